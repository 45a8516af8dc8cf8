# The server is restarted, by kill -9 and by SIGTERM in turn, while readers are in the midst of a replay of records that
# have left memory: each of them gets every record once, in order, over both transports.
#
# REPLAY_ROUNDS (6; long: 40), REPLAY_RECORDS (40000).
set -euo pipefail
source tests/dispatch.sh
source tests/server.sh
need python3 "apt-get install python3"
quic_off=0
begin
export ROOMLOG__STORAGE__DISK_RESERVE_BYTES="16 MiB" ROOMLOG__STORAGE__STRETCH_BYTES="1 MiB"
export ROOMLOG__STORAGE__TAILS_BYTES_MAX="1 MiB" ROOMLOG__STORAGE__BLOCK_CACHE_BYTES_MAX="1 MiB"
ws=$(free_port) admin=$(free_port) quic=$(free_port)
records=${REPLAY_RECORDS:-40000} rounds=${REPLAY_ROUNDS:-6}
serve || fail "the server does not start"
awk -v records="$records" 'BEGIN { for (n = 1; n <= records; n++) printf "%d %0*d\n", n, n % 700, 0 }' >"$work/lines"
"$ROOMLOG_BIN" pub replay --url "ws://127.0.0.1:$ws" <"$work/lines"
echo "$records records, $(metric roomlog_volumes) volumes"

some_lines() { (($(wc -l <"$1") > $2)); }
for ((round = 1; round <= rounds; round++)); do
    readers=()
    for transport in ws quic; do
        url=ws://127.0.0.1:$ws
        if [[ $transport == quic ]]; then url=quic://127.0.0.1:$quic; fi
        # Slower than the server, so that it is in the midst of it when the server goes.
        ("$ROOMLOG_BIN" sub replay --from earliest --count "$records" --timeout 60s --insecure --url "$url" 2>"$work/$transport.log" |
            python3 -c '
import sys, time
for number, line in enumerate(sys.stdin.buffer):
    sys.stdout.buffer.write(line)
    if number % 500 == 0:
        sys.stdout.buffer.flush()
        time.sleep(0.02)
' >"$work/$transport.lines") &
        readers+=($!)
    done
    at_end "kill -KILL ${readers[*]} 2>/dev/null"
    for at in 1000 10000 20000; do
        until_true 60 some_lines "$work/quic.lines" $((at * records / 40000)) || fail "round $round: the reader does not go on"
        if (((round + at / 1000) % 2)); then kill_server; else end_server || fail "the server ended with $?"; fi
        serve || fail "round $round: the server does not start"
    done
    for process in "${readers[@]}"; do wait "$process" || { cat "$work"/*.log >&2; fail "round $round: a reader"; }; done
    ends=("${ends[@]:1}")
    for transport in ws quic; do
        cmp "$work/lines" "$work/$transport.lines" || fail "round $round: over $transport something else was read"
    done
done
end_server || fail "the server ended with $?"
"$ROOMLOG_BIN" check "$data"
echo "$rounds replays over each transport with 3 restarts within, complete and in order"
