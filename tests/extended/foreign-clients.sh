# Other people's WebSocket and QUIC implementations speak to the server: Python's websockets, node's ws, aioquic. They are
# given bytes of docs/protocol.md by tests/extended/client.py and node's own; it is their framing, masking, closing, TLS
# and stream handling that is on trial, and ours. (The Autobahn test suite is not for us: it wants an echo of text and
# binary messages, and this protocol ends a session at the first of them.)
set -euo pipefail
source tests/dispatch.sh
source tests/server.sh
need python3 "apt-get install python3"
need node "apt-get install nodejs"
need npm "apt-get install npm"
quic_off=0
begin
skipped=0
skip() {
    echo "SKIPPED: $* could not be installed" >&2
    skipped=1
}
serve
python3 -m venv "$work/venv" >"$work/pip.log" 2>&1 || { tail -n 3 "$work/pip.log" >&2; need python3-venv "apt-get install python3-venv"; }
packages() { "$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >"$work/pip.log" 2>&1; }
run() { PYTHONDONTWRITEBYTECODE=1 timeout 120 "$work/venv/bin/python" "$@"; }

if packages websockets; then run tests/extended/foreign_websockets.py "$ws"; else skip "the Python package websockets"; fi
if packages aioquic; then
    run tests/extended/foreign_aioquic.py "$quic" "$data/dev-cert.pem"
else
    skip "the Python package aioquic"
fi
if npm install --prefix "$work" --silent --no-audit --no-fund ws >"$work/npm.log" 2>&1; then
    cp tests/extended/foreign_ws.mjs "$work/"
    PAGE=$PWD/docs/protocol.md timeout 120 node "$work/foreign_ws.mjs" "$ws"
else
    skip "the npm package ws"
fi
end_server || fail "the server ended with $?"
"$ROOMLOG_BIN" check "$data"
if ((skipped)); then exit 77; fi
