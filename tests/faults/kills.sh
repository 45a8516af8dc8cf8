# kill -9 of the server at random moments, its start not spared, while publishers and subscribers of both transports go on
# across all of them. Then everything that any of them was told is compared with what is stored: tests/faults/history.py
# says what must hold. Stretches are short, so that volumes are built between the kills.
#
# KILL_ROUNDS (40; long: 200).
set -euo pipefail
source tests/dispatch.sh
source tests/server.sh
need python3 "apt-get install python3"
quic_off=0
begin
rounds=${KILL_ROUNDS:-40}
# Below those that the system gives to outgoing connections: while the server is down, none of them can take it.
ws=$(free_port) admin=$(free_port) quic=$(free_port)
export ROOMLOG__STORAGE__STRETCH_BYTES="1 MiB" ROOMLOG__STORAGE__TAILS_BYTES_MAX="1 MiB"
export ROOMLOG__STORAGE__DISK_RESERVE_BYTES="16 MiB" ROOMLOG__STORAGE__DURABILITY=${KILL_DURABILITY:-fsync}
export ROOMLOG__STORAGE__OPEN_VOLUMES_BYTES_MAX="4 MiB"
books=$work/books
mkdir "$books"
rooms=(one two three)

away=(--timeout 120s --insecure)
writers=() readers=()

serve || fail "the server does not start"
for name in ann bob; do
    "${history[@]}" "$ws" publish "$books" "$name" "${rooms[@]}" 2>"$work/$name.log" &
    writers+=($!)
done
# Our own client, over both transports: the nth offset that it prints is that of the nth line.
for name in carol:quic dora:ws; do
    url=${name#*:}://127.0.0.1:$ws
    if [[ $name == *:quic ]]; then url=quic://127.0.0.1:$quic; fi
    name=${name%:*}
    mkfifo "$work/$name"
    "${history[@]}" "$ws" lines "$books" "$name" >"$work/$name" 2>"$work/$name-lines.log" &
    writers+=($!)
    "$ROOMLOG_BIN" pub one --ack --url "$url" "${away[@]}" <"$work/$name" >"$books/$name.acked" 2>"$work/$name.log" &
    writers+=($!)
done
"${history[@]}" "$ws" subscribe "$books" reader "${rooms[@]}" 2>"$work/reader.log" &
subscriber=$!
for name in one:ws one:quic two:quic three:ws; do
    url=ws://127.0.0.1:$ws
    if [[ $name == *:quic ]]; then url=quic://127.0.0.1:$quic; fi
    "$ROOMLOG_BIN" sub "${name%:*}" --from earliest --format json --url "$url" "${away[@]}" \
        >"$books/${name/:/-}.json" 2>"$work/${name/:/-}.log" &
    readers+=($!)
done
at_end "kill -KILL ${writers[*]} ${readers[*]} $subscriber 2>/dev/null"

early=0
for ((round = 1; round <= rounds; round++)); do
    sleep 0."$(printf %03d $((RANDOM % 700)))" # The moment is meant to be any.
    kill_server
    if ((RANDOM % 4 == 0)); then
        # Not even its start is spared.
        "$ROOMLOG_BIN" serve --data "$data" --listen "127.0.0.1:$ws" --quic "127.0.0.1:$quic" --admin "127.0.0.1:$admin" \
            >/dev/null 2>>"$work/serve.log" &
        server=$!
        sleep 0."$(printf %03d $((RANDOM % 120)))"
        kill_server
        early=$((early + 1))
    fi
    serve || fail "round $round: the server does not start"
    for process in "${writers[@]}" "${readers[@]}" "$subscriber"; do
        kill -0 "$process" 2>/dev/null || { tail -n 5 "$work"/*.log >&2; fail "round $round: a client has given up"; }
    done
done
sleep 1
touch "$books/stop"
for process in "${writers[@]}"; do
    wait "$process" || { tail -n 5 "$work"/*.log >&2; fail "a publisher has failed"; }
done
# They may be behind.
sleep 2
kill -0 "$subscriber" || { cat "$work/reader.log" >&2; fail "a subscriber has failed"; }
kill -TERM "${readers[@]}" "$subscriber" 2>/dev/null || true
wait "${readers[@]}" "$subscriber" || true
for name in one-ws one-quic two-quic three-ws; do
    [[ -s $books/$name.json ]] || { cat "$work/$name.log" >&2; fail "$name has read nothing"; }
done
builds=$(metric roomlog_volumes)
"${history[@]}" "$ws" judge "$books" "${rooms[@]}"
if grep -n "panicked" "$work/serve.log"; then fail "the server has panicked"; fi
end_server || fail "the server ended with $?"
"$ROOMLOG_BIN" check "$data"
echo "$rounds kills and $early during a start; $builds volumes"
