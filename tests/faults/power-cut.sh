# Power cuts on a real file system: records that were acknowledged are there afterwards, whatever was going on. Stretches
# are short, most rooms keep little and readers go through the past, so that volumes are built, verified, opened, rewritten
# and removed and journal files are recycled all the time; the cut comes in the midst of each of these in turn.
#
# POWER_FILE_SYSTEMS ("ext4 xfs"), POWER_ROUNDS (7 on each), POWER_MINUTES (0: rounds; otherwise so long on each).
set -euo pipefail
source tests/dispatch.sh
source tests/server.sh
source tests/faults/disk.bash
begin
prepare_disk
data=$work/mount/data
cat >"$work/broker.toml" <<END
[storage]
durability = "${POWER_DURABILITY:-fsync}"
stretch_bytes = "1 MiB"
journal_bytes_max = "64 MiB"
disk_reserve_bytes = "16 MiB"
tails_bytes_max = "1 MiB"
block_cache_bytes_max = "1 MiB"
open_volumes_bytes_max = "1 MiB"

[[retention]]
rooms = "short/*"
max_bytes = "256 KiB"
END
events=(any building verifying swapping opening recycling removing)

# read_the_past: reads rooms from their first record, again and again.
read_the_past() {
    while :; do
        "$ROOMLOG_BIN" sub "storm/$((RANDOM % 12))" --from earliest --until-live --timeout 5s --url "ws://127.0.0.1:$ws" \
            >/dev/null 2>&1 || sleep 0.1
    done
}

round() {
    local number=$1 event=${events[$1 % ${#events[@]}]}
    # Written just before the cut, and never synced: if that is always there, the rig forgets nothing and proves nothing.
    if ((number > 1)) && [[ ! -s $work/mount/unsynced ]]; then forgotten=$((forgotten + 1)); fi
    rm -f "$work/mount/unsynced"
    serve --config "$work/broker.toml" || fail "round $number: the server does not start"
    # What earlier rounds acknowledged, before anything new.
    if ((number > 1)); then
        ledger "$work/ledger" read >"$work/read" || fail "round $number: $(cat "$work/read")"
    fi
    ledger "$work/ledger" storm 60 short >"$work/storm" &
    local storm=$! built reader strike
    read_the_past &
    reader=$!
    head -c 100000 /dev/urandom >"$work/mount/unsynced"
    cut_when "$event" 6 >"$work/strike"
    strike=$!
    wait "$strike"
    # Without a disk it still tells what it has done.
    built=$(http /metrics 2>/dev/null | sed -nE 's/^roomlog_builds_total\{work="(.*)"\} (.*)/\2 \1/p' | paste -sd ,) || built=""
    # The client ends when the server does.
    kill -KILL "$reader"
    wait "$reader" 2>/dev/null || true
    kill_server
    wait "$storm" || { cat "$work/storm"; fail "round $number: the client"; }
    echo "round $number on $file_system: cut at $(cat "$work/strike") ($built); $(cat "$work/storm")"
    grep -q ^no "$work/strike" || struck=$((struck + 1))
    power_on
}

for kind in ${POWER_FILE_SYSTEMS:-ext4 xfs}; do
    new_disk "$kind"
    rm -f "$work/ledger" "$work/serve.log"
    began=$SECONDS number=0 forgotten=0 struck=0
    while ((${POWER_MINUTES:-0} > 0 ? SECONDS - began < ${POWER_MINUTES:-0} * 60 : number < ${POWER_ROUNDS:-7})); do
        number=$((number + 1))
        round "$number"
    done
    "$ROOMLOG_BIN" check "$data"
    serve --config "$work/broker.toml" || fail "the server does not start"
    ledger "$work/ledger" read
    ledger "$work/ledger" publish 100
    end_server || fail "the server ended with $?"
    "$ROOMLOG_BIN" check "$data"
    echo "$file_system: $number power cuts, $struck of them at the moment that was meant;" \
        "$(grep -c "is not part of the log" "$work/serve.log" || true) unfinished or given-up volumes and" \
        "$(grep -c "is dropped" "$work/serve.log" || true) torn commits were found;" \
        "$(grep -c ^acked "$work/ledger") acknowledged records, none lost"
    ((number < 3 || forgotten > 0)) || fail "the rig kept what nobody had synced: it proves nothing"
done
