# One server that is never restarted, for ROOMLOG_CAMPAIGN_MINUTES (60; 30 are the short form): thousands of rooms over
# both transports, connections that come and go, slow readers and such as never read, retention, volumes that are built
# and rewritten. What it takes is sampled all the time; in the second half resident memory may not grow by more than 1 %
# in 10 minutes, and descriptors and threads stay as they are. soak.sh is about what a server loses; this is about what
# it gathers.
#
# steady.csv and steady.svg go to docs/campaign when it takes 30 minutes or more, otherwise below target;
# STEADY_OUT names another folder.
set -euo pipefail
source tests/dispatch.sh
source tests/server.sh
need python3 "apt-get install python3"
export PYTHONDONTWRITEBYTECODE=1
ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -Hn)"
quic_off=0
begin
minutes=${ROOMLOG_CAMPAIGN_MINUTES:-60}
seconds=$((minutes * 60))
rooms=${STEADY_ROOMS:-4000}
out=${STEADY_OUT:-}
if [[ -z $out ]]; then
    if ((minutes >= 30)); then out=docs/campaign; else out=${CARGO_TARGET_DIR:-target}/campaign; fi
fi
mkdir -p "$out"
# Everything that is bounded is bounded low, so that it is full long before the second half.
cat >"$work/broker.toml" <<END_OF_FILE
[limits]
stall_timeout = "1 min"

[storage]
$(bounded_low)
publishers_per_room = 100
publisher_seqs = 16
publisher_age_max = "1 min"

[[retention]]
rooms = "probe"
max_records = 1000

[[retention]]
rooms = "*"
max_bytes = "256 KiB"
max_age = "3 min"
END_OF_FILE
serve --config "$work/broker.toml"

parts=() names=()
part() { # part NAME COMMAND…: one that goes on until the time is over
    "${@:2}" >"$work/$1.out" 2>&1 &
    parts+=($!) names+=("$1")
    at_end "kill -KILL $! 2>/dev/null"
}
# The crowd joins the rooms of the first one, too.
part websocket "$ROOMLOG_BIN" bench --publishers 8 --subscribers 16 --rooms "$rooms" --room-prefix crowd/ --rate 1200 \
    --payload-bytes 400 --duration "${seconds}s" --timeout 60s --url "ws://127.0.0.1:$ws"
part quic "$ROOMLOG_BIN" bench --publishers 2 --subscribers 4 --rooms 200 --rate 300 --payload-bytes 400 --insecure \
    --duration "${seconds}s" --timeout 60s --url "quic://127.0.0.1:$quic"
part crowd python3 tests/campaign/steady.py crowd "$ws" "$seconds" "$rooms"
part sample python3 tests/campaign/steady.py sample "$ws" "$admin" "$server" "$data" "$seconds" "$out/steady.csv"
failed=0
for index in "${!parts[@]}"; do
    if ! wait "${parts[index]}"; then
        failed=1
        echo "FAILED: ${names[index]}" >&2
        tail -n 12 "$work/${names[index]}.out" >&2
    fi
done
python3 tests/campaign/plot.py "$out/steady.csv" "$out/steady.svg" \
    "One server for $minutes minutes: $rooms rooms and more, a crowd that comes and goes, retention" \
    "resident_kib+budgets_kib:memory, MiB:0.0009765625" "descriptors+connections:descriptors, and connections of them" \
    threads:threads "disk_kib:disk, MiB:0.0009765625" volumes:volumes "published_per_s:records published in a second" \
    "ack_p50_ms+ack_p99_ms:time to an acknowledgement, ms"
echo "$out/steady.csv, $out/steady.svg"
grep -hE '^(published|publish to ack|lost)' "$work/websocket.out" "$work/quic.out" || true
cat "$work/crowd.out"
if ((failed)); then exit 1; fi
python3 tests/campaign/steady.py judge "$out/steady.csv" || exit 1
end_server || fail "the server ended with $?"
"$ROOMLOG_BIN" check "$data" >"$work/check" || { cat "$work/check"; fail "damage"; }
tail -n 1 "$work/check"
