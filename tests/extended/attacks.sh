# Attacks from outside, by bare sockets and by a QUIC stack that is told to break the rules: what the server does about
# each, and its resident memory before, at most and after. Others are served meanwhile. QUIC three times: when a peer never
# has to prove its address, when it has to under load (the default), and always. ATTACKS="websocket 64" runs only these; the
# numbers are quic_retry_above. ATTACKS_VENV names an environment of Python with aioquic; else one is made.
set -euo pipefail
source tests/dispatch.sh
source tests/server.sh
need_root
need python3 "apt-get install python3"
need ip "apt-get install iproute2"
if [[ -z ${ATTACKS_INSIDE:-} ]]; then
    unshare --net true 2>/dev/null || { echo "SKIPPED: this needs network namespaces" >&2; exit 77; }
    if [[ -z ${ATTACKS_VENV:-} ]]; then
        ATTACKS_VENV=$(mktemp -d)
        trap 'rm -rf "$ATTACKS_VENV"' EXIT
        install() { python3 -m venv "$ATTACKS_VENV" && "$ATTACKS_VENV/bin/python" -m pip install --quiet --disable-pip-version-check aioquic; }
        install >"$ATTACKS_VENV/log" 2>&1 || {
            tail -n 3 "$ATTACKS_VENV/log" >&2
            echo "SKIPPED: this needs the Python package aioquic, which could not be installed" >&2
            exit 77
        }
    fi
    if [[ -z ${ROOMLOG_BIN:-} ]]; then cargo build --release --locked --quiet; fi
    # In a network of its own there are addresses that are not loopback's, to which no limit applies.
    ATTACKS_INSIDE=1 ATTACKS_VENV=$ATTACKS_VENV unshare --net bash "$0"
    exit
fi
ip link set lo up
for address in 10.98.0.1 10.98.0.2 10.98.0.3; do ip address add "$address/32" dev lo; done
begin
export PYTHONDONTWRITEBYTECODE=1
ulimit -n 20000
quic_off=0 host=10.98.0.1
export ROOMLOG__SERVER__ALLOW_ANONYMOUS=true ROOMLOG__SERVER__ALLOWED_HOSTS=$host
export ROOMLOG__LIMITS__IDLE_TIMEOUT="6 s" ROOMLOG__LIMITS__PING_INTERVAL="2 s" ROOMLOG__LOG__LEVEL=debug

websocket() {
    echo "--- WebSocket"
    serve
    timeout 240 python3 tests/extended/attacks.py "$ws" "$server" "$host" 10.98.0.2 10.98.0.3 2>"$work/secret" || {
        cat "$work/secret" >&2
        fail "the attacks"
    }
    secret=$(sed -n 's/^secret //p' "$work/secret")
    [[ -n $secret ]] || fail "no secret was sent"
    if grep -q "$secret" "$work/serve.log" "$work/serve.out"; then fail "a token in a URL is in the log"; fi
    until_true 30 none_left || fail "$(metric roomlog_connections) connections are left"
    end_server || fail "the server ended with $?"
    "$ROOMLOG_BIN" check "$data" | tail -n 1
}

quic_with() {
    local above=$1
    export ROOMLOG__SERVER__QUIC_RETRY_ABOVE=$above
    echo "--- QUIC, proof of the address above $above handshakes"
    serve
    timeout 200 "$ATTACKS_VENV/bin/python" tests/extended/attacks_quic.py "$quic" "$server" "$above" "$host" || fail "the attacks"
    until_true 30 none_left || fail "$(metric roomlog_connections) connections are left"
    end_server || fail "the server ended with $?"
    "$ROOMLOG_BIN" check "$data" | tail -n 1
}

none_left() { [[ $(metric roomlog_connections) == 0 ]]; }

for part in ${ATTACKS:-websocket 1000000 64 0}; do
    data=$work/$part
    case $part in
    websocket) websocket ;;
    *) quic_with "$part" ;;
    esac
done
