# Other people's WebSocket and QUIC implementations speak to the server: Python's websockets, node's ws and the WebSocket
# that is built into node, aioquic, s2n-quic. Each joins, publishes, replays and resumes (and browser.sh does with
# Chromium's). They are given bytes of docs/protocol.md by tests/extended/client.py and minimal codecs of their own; it is
# their framing, masking, closing, TLS and stream handling that is on trial, and ours.
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
    cp tests/extended/foreign_ws.mjs tests/extended/foreign_walk.mjs "$work/"
    PAGE=$PWD/docs/protocol.md timeout 120 node "$work/foreign_ws.mjs" "$ws"
else
    skip "the npm package ws"
fi
# The system's node may be of before it had a WebSocket.
node=node
has_socket() { "$node" --eval 'process.exit(typeof WebSocket === "function" ? 0 : 1)'; }
if ! has_socket; then
    npm install --prefix "$work/node" --silent --no-audit --no-fund node@22 >"$work/npm.log" 2>&1 || true
    node=$work/node/node_modules/node/bin/node
fi
if has_socket; then
    timeout 120 "$node" tests/extended/foreign_builtin.mjs "$ws"
else
    skip "a node with a WebSocket of its own"
fi
# A Rust program in a workspace of its own, so that nobody else has to build s2n-quic.
s2n=${CARGO_TARGET_DIR:-target}/s2n-quic
s2n_manifest=tests/extended/s2n_quic/Cargo.toml
if cargo fetch --locked --quiet --manifest-path "$s2n_manifest"; then
    cargo build --release --locked --quiet --manifest-path "$s2n_manifest" --target-dir "$s2n"
    timeout 120 "$s2n/release/foreign-s2n-quic" "$quic" "$data/dev-cert.pem"
else
    skip "the Rust package s2n-quic"
fi
end_server || fail "the server ended with $?"
"$ROOMLOG_BIN" check "$data"
if ((skipped)); then exit 77; fi
