# Two processes on one data directory: the second one is refused, says who has it, and disturbs nobody. Of several that
# begin at once exactly one gets it. One that was killed leaves nothing that keeps the next one away.
#
# RACE_ROUNDS (10; long: 200).
set -euo pipefail
source tests/dispatch.sh
source tests/server.sh
need python3 "apt-get install python3"
begin
export ROOMLOG__STORAGE__DISK_RESERVE_BYTES="1 MiB"
second() { # a server on other ports, until it ends
    timeout 30 "$ROOMLOG_BIN" serve --data "$data" --listen 127.0.0.1:0 --admin off --quic off
}

serve
ledger "$work/ledger" publish 300
code=0
second >"$work/second" 2>&1 || code=$?
((code == 1)) || fail "a second server ended with $code"
grep -q "in use by another process (process $server)" "$work/second" || fail "it said: $(cat "$work/second")"
tail -n 1 "$work/second"
code=0
"$ROOMLOG_BIN" check "$data" >"$work/check" 2>&1 || code=$?
((code == 2)) || fail "check ended with $code: $(cat "$work/check")"
ledger "$work/ledger" publish 300
ledger "$work/ledger" read

rounds=${RACE_ROUNDS:-10}
for ((round = 1; round <= rounds; round++)); do
    kill_server
    racers=()
    for racer in 1 2 3 4; do
        "$ROOMLOG_BIN" serve --data "$data" --listen 127.0.0.1:0 --admin off --quic off >"$work/racer-$racer" 2>&1 &
        racers+=($!)
    done
    at_end "kill -KILL ${racers[*]} 2>/dev/null"
    three_are_gone() {
        local alive=0 process
        for process in "${racers[@]}"; do if kill -0 "$process" 2>/dev/null; then alive=$((alive + 1)); fi; done
        ((alive == 1))
    }
    until_true 20 three_are_gone || fail "round $round: not just one of four has the directory"
    (($(cat "$work"/racer-* | grep -c "in use by another process") == 3)) || fail "round $round: $(cat "$work"/racer-*)"
    kill -KILL "${racers[@]}" 2>/dev/null || true
    wait "${racers[@]}" 2>/dev/null || true
    ends=("${ends[@]:1}")
    serve || fail "round $round: the directory is still taken"
done
ledger "$work/ledger" read
end_server || fail "the server ended with $?"
"$ROOMLOG_BIN" check "$data"
echo "$rounds races of four, each won by one"
