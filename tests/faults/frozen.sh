# The server is stopped with SIGSTOP while clients go on, as a machine that hangs or a virtual machine that is moved, and
# continued: clients whose patience is longer go on, the others come back; nothing is lost, doubled or out of order. Once
# for less than idle_timeout, and once for more, where the server finds that everybody has been silent for too long.
#
# FROZEN_SECONDS (20; long: 60).
set -euo pipefail
source tests/dispatch.sh
source tests/server.sh
need python3 "apt-get install python3"
quic_off=0
begin
seconds=${FROZEN_SECONDS:-20}
export ROOMLOG__STORAGE__DISK_RESERVE_BYTES="16 MiB" ROOMLOG__STORAGE__STRETCH_BYTES="1 MiB"
rooms=(one two)

for idle in "$((seconds * 3)) s" "$((seconds / 3)) s"; do
    export ROOMLOG__LIMITS__IDLE_TIMEOUT=$idle ROOMLOG__LIMITS__PING_INTERVAL="2 s"
    data=$work/data-${idle%% *} books=$work/books-${idle%% *}
    mkdir "$books"
    ws=$(free_port) admin=$(free_port) quic=$(free_port)
    serve || fail "the server does not start"
    "${history[@]}" "$ws" publish "$books" ann "${rooms[@]}" 2>"$work/ann.log" &
    writers=($!)
    rm -f "$work/carol"
    mkfifo "$work/carol"
    "${history[@]}" "$ws" lines "$books" carol >"$work/carol" 2>"$work/carol-lines.log" &
    writers+=($!)
    "$ROOMLOG_BIN" pub one --ack --url "quic://127.0.0.1:$quic" --insecure --timeout 300s <"$work/carol" \
        >"$books/carol.acked" 2>"$work/carol.log" &
    writers+=($!)
    "${history[@]}" "$ws" subscribe "$books" reader "${rooms[@]}" 2>"$work/reader.log" &
    readers=($!)
    for name in one:ws one:quic; do
        url=ws://127.0.0.1:$ws
        if [[ $name == *:quic ]]; then url=quic://127.0.0.1:$quic; fi
        "$ROOMLOG_BIN" sub one --from earliest --format json --url "$url" --insecure --timeout 300s \
            >"$books/${name/:/-}.json" 2>"$work/${name/:/-}.log" &
        readers+=($!)
    done
    at_end "kill -KILL ${writers[*]} ${readers[*]} 2>/dev/null"
    acked() { cat "$books/$1.acked" 2>/dev/null | wc -l; }
    more() { (($(acked ann) > $1 && $(acked carol) > 100)); }
    until_true 60 more 500 || fail "nothing is acknowledged: $(tail -n 3 "$work/ann.log")"
    kill -STOP "$server"
    before=$(acked ann)
    sleep "$seconds"
    during=$(($(acked ann) - before))
    kill -CONT "$server"
    until_true 60 more $((before + during + 500)) || fail "ann is not acknowledged any more: $(tail -n 3 "$work/ann.log")"
    carol() { (($(acked carol) == $(wc -l <"$books/carol.sent"))); }
    sleep 1
    touch "$books/stop"
    for process in "${writers[@]}"; do
        wait "$process" || { tail -n 5 "$work"/*.log >&2; fail "a publisher has failed"; }
    done
    carol || fail "not all of carol's lines are acknowledged"
    sleep 1
    for process in "${readers[@]}"; do
        kill -0 "$process" 2>/dev/null || { tail -n 5 "$work"/*.log >&2; fail "a subscriber has given up"; }
    done
    kill -TERM "${readers[@]}"
    wait "${readers[@]}" || true
    ends=("${ends[@]:1}")
    "${history[@]}" "$ws" judge "$books" "${rooms[@]}"
    ((during < 50)) || fail "$during acknowledgements while it was stopped"
    echo "stopped for $seconds s with an idle timeout of $idle: $(metric roomlog_sessions_opened_total) sessions were opened," \
        "the clock alarm is $(metric roomlog_clock_alarm)"
    end_server || fail "the server ended with $?"
    "$ROOMLOG_BIN" check "$data"
done
