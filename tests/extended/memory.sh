# What it costs: resident memory with idle connections over both transports, and after ROOMLOG_MEMORY_MIB (1024) MiB of
# 128-byte records in 1,000 rooms the time of a restart, the disk, and where replayed records come from.
set -euo pipefail
source tests/dispatch.sh
source tests/server.sh
quic_off=0
begin
ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -Hn)"

# Joined subscriptions are the last thing that a connection of the load does before it is idle.
joined_is() { (($(metric roomlog_subscriptions) == $1)); }
idle() { # idle COUNT URL MOST_KIB
    local before after load
    if (($(ulimit -n) < $1 + 500)); then
        echo "SKIPPED: $1 connections need more descriptors than $(ulimit -n)" >&2
        return
    fi
    data=$work/idle-$1-${2%%:*}
    ws=0 admin=0 quic=0
    serve
    case $2 in quic*) port=$quic ;; *) port=$ws ;; esac
    # Warm, so that what is allocated once is not counted for each connection.
    "$ROOMLOG_BIN" bench --idle 20 --duration 1s --warmup 100ms --url "$2:$port" --insecure >/dev/null 2>&1
    before=$(resident "$server")
    "$ROOMLOG_BIN" bench --idle "$1" --duration 1h --timeout 120s --url "$2:$port" --insecure >"$work/bench" 2>&1 &
    load=$!
    at_end "kill -KILL $load 2>/dev/null"
    until_true 120 joined_is "$1" || { tail -n 3 "$work/bench" >&2; fail "$(metric roomlog_subscriptions) of $1 joined"; }
    after=$(resident "$server")
    awk -v count="$1" -v url="${2%%:*}" -v before="$before" -v after="$after" -v most="$3" 'BEGIN {
        each = (after - before) / count
        printf "%6d idle joined connections over %-4s: %6.1f MiB resident, before %5.1f; %5.1f KiB each\n", count, url, after / 1024, before / 1024, each
        exit !(each <= most)
    }' || fail "more than $3 KiB each"
    kill -KILL "$load"
    wait "$load" 2>/dev/null || true
    kill_server
}
idle 1000 ws://127.0.0.1 24
idle 10000 ws://127.0.0.1 24
idle 1000 quic://127.0.0.1 160

mebibytes=${ROOMLOG_MEMORY_MIB:-1024}
free=$(($(df --output=avail -k "$work" | tail -n 1) / 1024))
if ((free < 4 * mebibytes)); then
    echo "SKIPPED: $mebibytes MiB of records need $((4 * mebibytes)) MiB of disk, and $free are free" >&2
    exit 77
fi
data=$work/log
echo "--- $mebibytes MiB of 128-byte records in 1,000 rooms, in this process"
cargo run --release --quiet --locked -p roomlog-bench --bin log -- "$data" "$mebibytes" 1000
echo "--- a server on that directory"
ws=0 admin=0 quic=0
began=$(date +%s%N)
serve
echo "ready after $((($(date +%s%N) - began) / 1000000)) ms, $(($(resident "$server") / 1024)) MiB resident, $(du -sm "$data" | cut -f 1) MiB on the disk"
for room in 0 1 500 999; do
    "$ROOMLOG_BIN" sub "room-$room" --from earliest --until-live --url "ws://127.0.0.1:$ws" >"$work/room" || fail "room-$room cannot be read"
done
http /metrics | grep '^roomlog_delivered_records_total.*websocket' | grep -v ' 0$'
echo "$(($(resident "$server") / 1024)) MiB resident after the replay of 4 rooms"
end_server || fail "the server ended with $?"
