# The README's test command on a clean clone, with nothing built before: what a new contributor sees.
set -euo pipefail
source tests/dispatch.sh
need git "apt-get install git"
clone=$(mktemp -d)
trap 'rm -rf "$clone"' EXIT
git clone --quiet --no-hardlinks . "$clone/roomlog"
cd "$clone/roomlog"
env -u CARGO_TARGET_DIR tests/run
