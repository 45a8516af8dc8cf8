# 10,000 connections in one room (STALLED_CONNECTIONS), of which a tenth stop reading: the others are not delayed, the
# server's memory for each that stalls is at most 64 KiB, and all of them receive everything when they read again.
# STALLED_RATE (200) publishes a second for STALLED_SECONDS (60), in STALLED_PAIRS (3) pairs of runs with them and
# without. A machine that cannot deliver so much is told so, and has the rate halved until it can.
set -euo pipefail
source tests/dispatch.sh
source tests/server.sh
need cargo "install Rust"
need unshare "apt-get install util-linux"
need ip "apt-get install iproute2"
connections=${STALLED_CONNECTIONS:-10000}
# In a network of its own, with packets as small as they are elsewhere: over the usual loopback a socket takes 2.6 MB
# before it takes no more.
if [[ -z ${STALLED_INSIDE:-} ]]; then
    export STALLED_INSIDE=1
    if ! unshare --map-root-user --net true 2>/dev/null; then
        echo "SKIPPED: no network namespace can be made here (root can)" >&2
        exit 77
    fi
    # There is nothing to fetch from in there.
    [[ -n ${ROOMLOG_BIN:-} && -n ${ROOMLOG_COMPARE_BIN:-} ]] || cargo fetch --locked --quiet
    exec unshare --map-root-user --net bash "$0"
fi
ip link set lo mtu 1500 up
ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -Hn)"
if (($(ulimit -n) < connections + 500)); then
    echo "SKIPPED: $connections connections need more descriptors than $(ulimit -n)" >&2
    exit 77
fi
begin
if [[ -z ${ROOMLOG_COMPARE_BIN:-} ]]; then
    cargo build --release --locked --quiet -p roomlog-compare
    ROOMLOG_COMPARE_BIN=${CARGO_TARGET_DIR:-target}/release/roomlog-compare
fi
stalled=$((connections / 10))
# Little of the log is in memory: who reads again is served from the store.
printf '[storage]\ntails_bytes_max = "1 MiB"\n' >"$work/broker.toml"
serve --config "$work/broker.toml"

# How far behind the last reader is at most: the proof that those who are to stall do.
watch() {
    local lag=0 now
    while sleep 1; do
        now=$(metric roomlog_subscription_lag_records) && ((now <= lag)) || lag=$now
        echo "$lag" >"$work/lag"
    done 2>/dev/null
}
watch &
watcher=$!
disown "$watcher"
at_end "kill -KILL $watcher"
"$ROOMLOG_COMPARE_BIN" stalled --port "$ws" --pid "$server" --readers $((connections - stalled)) --stalled "$stalled" \
    --rate "${STALLED_RATE:-200}" --seconds "${STALLED_SECONDS:-60}" --pairs "${STALLED_PAIRS:-3}" || fail "see above"
lag=$(cat "$work/lag")
stored=$(http /metrics | awk '/^roomlog_delivered_records_total/ && !/source="tail"/ { sum += $2 } END { printf "%d", sum }')
echo "the last reader was $lag records behind at most; $stored records were delivered from the store, not from memory"
((lag > 1000)) || fail "those who were to stall did not"
end_server || fail "the server ended with $?"
