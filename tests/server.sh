# Sourced by the scripts of the longer tiers: the program, a folder for the script, and servers in it on ports of their
# own. All that a script starts and makes is gone when it ends, however it ends.
#
#   begin               builds the program (ROOMLOG_BIN takes another one), makes the folder $work
#   start [ARGUMENT…]   starts a server on loopback and waits until it listens: $server is its process, $ws, $admin and
#                       $quic (0 = off) are its ports; started again, it takes the same ones
#   serve [ARGUMENT…]   the same, and waits until it is ready for publishes
#   end_server          SIGTERM, and its exit code
#   kill_server         SIGKILL
#   at_end COMMAND      a command for the end of the script; the last one given runs first
#
# Settings: $data (the data directory), $with (an array: what to start the server through), $quic_off (no QUIC), $host
# (where clients reach it; 127.0.0.1).

work="" data="" server="" ws=0 admin=0 quic=0 quic_off=1 host=127.0.0.1
with=()
ends=()

at_end() {
    ends=("$1" "${ends[@]}")
}

clean_up() {
    local code=$? command
    trap - EXIT
    set +e
    if [[ -n $server ]]; then
        kill -KILL "$server" 2>/dev/null
        wait "$server" 2>/dev/null
    fi
    for command in "${ends[@]}"; do
        eval "$command"
    done
    if ((code != 0 && code != 77)) && [[ -s $work/serve.log ]]; then
        echo "--- the end of the server's log" >&2
        tail -n 20 "$work/serve.log" >&2
    fi
    [[ -n $work ]] && rm -rf "$work"
    exit "$code"
}

begin() {
    need curl "apt-get install curl"
    if [[ -z ${ROOMLOG_BIN:-} ]]; then
        cargo build --release --locked --quiet
        ROOMLOG_BIN=${CARGO_TARGET_DIR:-target}/release/roomlog
    fi
    ROOMLOG_BIN=$(realpath "$ROOMLOG_BIN")
    export ROOMLOG_BIN
    work=$(mktemp -d)
    data=$work/data
    trap clean_up EXIT
    trap 'exit 130' INT TERM
}

# until_true SECONDS COMMAND…: repeats a command until it succeeds.
until_true() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || return 1
        sleep 0.05
    done
}

# free_port: a port of loopback on which nobody listens.
free_port() {
    local port
    while port=$((20000 + RANDOM % 12000)); do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

# fail WORD…: ends the script.
fail() {
    echo "FAILED: $*" >&2
    exit 1
}

http() { # http PATH: the body of an answer of the operators' port; fails unless it is 200
    curl --silent --show-error --fail --max-time 10 "http://127.0.0.1:$admin$1"
}

# metric NAME: the value of a metric without labels, or the sum over all labels.
metric() {
    http /metrics | awk -v name="$1" '$1 == name || index($1, name "{") == 1 { sum += $2 } END { printf "%.0f\n", sum }'
}

server_told_ports() {
    grep -q '^  metrics' "$work/serve.out" || ! kill -0 "$server"
}

# Whether the server ended, is a bare question: who waits for readiness must not wait for a dead one.
server_is_ready() {
    http /health/ready || ! kill -0 "$server"
}

start() {
    local quic_address=$host:$quic
    if ((quic_off)); then quic_address=off; fi
    : >"$work/serve.out"
    "${with[@]}" "$ROOMLOG_BIN" serve --data "$data" --listen "$host:$ws" --admin "127.0.0.1:$admin" \
        --quic "$quic_address" "$@" >"$work/serve.out" 2>>"$work/serve.log" &
    server=$!
    until_true 60 server_told_ports || return 1
    kill -0 "$server" 2>/dev/null || return 1
    ws=$(sed -nE 's|^  WebSocket .*:([0-9]+)$|\1|p' "$work/serve.out")
    admin=$(sed -nE 's|^  metrics .*:([0-9]+)/metrics$|\1|p' "$work/serve.out")
    if ((!quic_off)); then quic=$(sed -nE 's|^  QUIC +quic://[^ ]*:([0-9]+) .*|\1|p' "$work/serve.out"); fi
}

serve() {
    start "$@" && until_true 60 server_is_ready && kill -0 "$server" 2>/dev/null
}

end_server() {
    local code=0
    kill -TERM "$server"
    wait "$server" || code=$?
    server=""
    return "$code"
}

kill_server() {
    kill -KILL "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
    server=""
}

# ledger FILE ACTION…: see tests/extended/ledger.py.
ledger() {
    PYTHONDONTWRITEBYTECODE=1 timeout 300 python3 tests/extended/ledger.py "$ws" "$@"
}

# "${history[@]}" PORT ACTION…: see tests/faults/history.py. A process of its own, and no shell around it that would die in
# its place.
# shellcheck disable=SC2034 # Of those who source this.
history=(env PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=tests/extended python3 tests/faults/history.py)

# What makes a [storage] table that is bounded low, so that all of it is full soon.
bounded_low() {
    cat <<END
stretch_bytes = "16 MiB"
journal_bytes_max = "128 MiB"
tails_bytes_max = "8 MiB"
block_cache_bytes_max = "8 MiB"
open_volumes_bytes_max = "32 MiB"
END
}

# resident PROCESS: its resident memory in KiB.
resident() {
    awk '/^VmRSS:/ { print $2 }' "/proc/$1/status"
}
