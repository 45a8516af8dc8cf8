# Runs the browser page's script against docs/protocol.md and a scripted server.
set -euo pipefail
source tests/dispatch.sh
need node "apt-get install nodejs"
node --test tests/extended/page_codec.mjs
