# A server for hours under everything at once: publishers whose every acknowledgement is written down, load with readers
# over both transports, browsers' worth of idle connections, retention, volumes that are built and rewritten; killed or
# ended every minute or so, and then read back whole. ROOMLOG_CAMPAIGN_MINUTES (60) long. Memory that only grows fails.
set -euo pipefail
source tests/dispatch.sh
source tests/server.sh
need python3 "apt-get install python3"
quic_off=0
begin
cat >"$work/broker.toml" <<END
[storage]
$(bounded_low)

[[retention]]
rooms = "storm/*"

[[retention]]
rooms = "*"
max_bytes = "4 MiB"
max_age = "5 min"
END
minutes=${ROOMLOG_CAMPAIGN_MINUTES:-60}
round=0 most=0
while ((SECONDS < minutes * 60)); do
    round=$((round + 1))
    # The ledger is for one round's publishers and rooms that are kept for ever: what grows is read back every time.
    serve --config "$work/broker.toml" || fail "round $round: the server does not start"
    if [[ -s $work/ledger ]]; then
        ledger "$work/ledger" read || fail "round $round: after a restart"
    fi
    seconds=$((20 + RANDOM % 40))
    loads=()
    "$ROOMLOG_BIN" bench --idle 200 --duration 1h --url "ws://127.0.0.1:$ws" >/dev/null 2>&1 &
    loads+=($!)
    for url in "ws://127.0.0.1:$ws" "quic://127.0.0.1:$quic"; do
        "$ROOMLOG_BIN" bench --publishers 3 --subscribers 6 --rooms 3 --rate 1000 --payload-bytes 700 --insecure \
            --duration 1h --url "$url" >/dev/null 2>&1 &
        loads+=($!)
    done
    at_end "kill -KILL ${loads[*]} 2>/dev/null"
    ledger "$work/ledger" storm "$seconds" 2>"$work/storm.log" >"$work/storm" &
    storm=$!
    sleep $((seconds / 2 + RANDOM % seconds)) # The moment is meant to be any.
    resident=$(resident "$server")
    ((resident <= most)) || most=$resident
    volumes=$(metric roomlog_volumes)
    if ((RANDOM % 3 == 0)); then
        how=ended
        end_server || fail "round $round: the server ended with $?"
    else
        how=killed
        kill_server
    fi
    kill -KILL "${loads[@]}" 2>/dev/null || true
    wait "${loads[@]}" 2>/dev/null || true
    ends=("${ends[@]:1}")
    wait "$storm" || { cat "$work/storm" "$work/storm.log"; fail "round $round: the client"; }
    "$ROOMLOG_BIN" check "$data" >"$work/check" || { cat "$work/check"; fail "round $round: damage"; }
    echo "round $round: $how, $(cat "$work/storm"), $((resident / 1024)) MiB resident, $volumes volumes, $(du -sm "$data" | cut -f 1) MiB; $(tail -n 1 "$work/check")"
    # A ledger that takes minutes to read back would be all that is tested.
    if (($(grep -c ^acked "$work/ledger") > 300000)); then
        rm -rf "$data" "$work/ledger"
    fi
done
# Budgets: tails 8, cache 8, open volumes 32, journal index, sessions, and the allocator's share.
((most < 600 * 1024)) || fail "$((most / 1024)) MiB resident"
echo "$round rounds, at most $((most / 1024)) MiB resident"
