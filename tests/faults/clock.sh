# The system's clock jumps an hour ahead and an hour back, again and again, under a running server and between two runs:
# times of a room never fall, no session ends, repeats are still known, retention by age takes nothing because of a jump
# and says so in health's metrics, and a directory from the future opens.
#
# CLOCK_ROUNDS (6; long: 60).
set -euo pipefail
source tests/dispatch.sh
source tests/server.sh
need python3 "apt-get install python3"
need faketime "apt-get install faketime"
begin
library=$(find /usr/lib /usr/local/lib -name libfaketime.so.1 2>/dev/null | head -n 1)
[[ -n $library ]] || { echo "SKIPPED: there is no libfaketime.so.1" >&2; exit 77; }
cat >"$work/broker.toml" <<END
[storage]
stretch_bytes = "1 MiB"
disk_reserve_bytes = "1 MiB"

[[retention]]
rooms = "one"
max_age = "30 min"
END
# Only the clock that can be set: the other one counts on, as it does on a machine whose clock is set.
with=(env "LD_PRELOAD=$library" "FAKETIME_TIMESTAMP_FILE=$work/clock" FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1
    DONT_FAKE_MONOTONIC=1)
set_clock() { echo "$1" >"$work/clock"; }
client() { ledger "$work/ledger" "$@"; }
# The time of the newest record.
newest() {
    "$ROOMLOG_BIN" sub one --from last:1 --count 1 --format json --url "ws://127.0.0.1:$ws" | sed -E 's/.*"time":"?([^",]*).*/\1/'
}

set_clock +0
serve --config "$work/broker.toml" || fail "the server does not start"
# A session that must outlast all jumps.
"$ROOMLOG_BIN" sub one --from earliest --format json --timeout 300s --url "ws://127.0.0.1:$ws" >"$work/seen" 2>"$work/sub.log" &
subscriber=$!
at_end "kill -KILL $subscriber 2>/dev/null"
client publish 100
echo "the newest record is of $(newest)"
rounds=${CLOCK_ROUNDS:-6}
for ((round = 1; round <= rounds; round++)); do
    for hours in +1h -1h +0; do
        set_clock "$hours"
        client publish 50
        client read >"$work/said" || fail "at $hours: $(cat "$work/said")"
    done
done
set_clock +1h
alarmed() { (($(metric roomlog_clock_alarm) == 1)); }
until_true 10 alarmed || fail "a jump of an hour raises no alarm"
echo "at +1h: $(newest), and the alarm is on"
client read
kill -0 "$subscriber" 2>/dev/null || fail "the subscriber has given up: $(cat "$work/sub.log")"
(($(metric roomlog_sessions_opened_total) >= 1))
end_server || fail "the server ended with $?"

# From the future into the past: ended as well as killed.
for how in end_server kill_server; do
    set_clock -1h
    serve --config "$work/broker.toml" || fail "a directory from the future does not open"
    client publish 50
    client read
    echo "at -1h, behind records of the future: $(newest)"
    "$how" || fail "the server ended with $?"
done

# The same clock again, without jumps: times still do not fall.
set_clock +0
serve --config "$work/broker.toml" || fail "the server does not start"
client publish 50
client read
# It was sent away at the ends in between, and comes back.
all_seen() { (($(grep -c . "$work/seen") == $(grep -c ^acked "$work/ledger"))); }
until_true 60 all_seen || fail "the subscriber has read $(grep -c . "$work/seen") records: $(cat "$work/sub.log")"
kill -TERM "$subscriber"
wait "$subscriber" || true
python3 - "$work/seen" <<'END'
import json, sys

records = [json.loads(line) for line in open(sys.argv[1]) if line.endswith("\n")]
times = [one["time"] for one in records]
assert len(times) > 100, "the subscriber has read next to nothing"
assert times == sorted(times), "the times of a room fall"
assert [one["prev"] for one in records] == [0] + [one["offset"] for one in records[:-1]], "the chain is broken"
print(f"{len(times)} records were delivered to one subscriber in order, from {times[0]} to {times[-1]}")
END
end_server || fail "the server ended with $?"
"$ROOMLOG_BIN" check "$data"
