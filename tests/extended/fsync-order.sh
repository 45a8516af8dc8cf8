# Proved from outside, on the timeline of system calls: what acknowledges or shows a record leaves the server only after
# the record has been written and an fdatasync that began behind that write has returned. And counted: one fdatasync for
# each commit, and how many write calls a delivered record costs at saturation.
set -euo pipefail
source tests/dispatch.sh
source tests/server.sh
need strace "apt-get install strace"
need python3 "apt-get install python3"
begin

# strace stands behind the server (-D), so that $server is the server. Everything in hexadecimal and whole.
trace=$work/trace
calls=pwrite64,pwritev,pwritev2,write,writev,sendto,sendmsg,fdatasync,fsync,sync_file_range
with=(strace -D -f -yy -xx -s 300000 -o "$trace" -e "trace=$calls" -e signal=none)
serve
before=$(metric roomlog_commits_total)
PYTHONDONTWRITEBYTECODE=1 timeout 120 python3 tests/extended/fsync_order.py drive "$ws"
commits=$(($(metric roomlog_commits_total) - before))
end_server || fail "the server ended with $?"
PYTHONDONTWRITEBYTECODE=1 timeout 300 python3 tests/extended/fsync_order.py judge "$trace" "$commits"
rm "$trace"

# Write calls at saturation: by our own metric, and the metric against strace.
with=()
data=$work/saturated
serve
"$ROOMLOG_BIN" bench --duration 5s --warmup 1s --publishers 4 --subscribers 4 --rooms 1 --window 1024 \
    --url "ws://127.0.0.1:$ws" >"$work/bench"
calls_made=$(metric roomlog_write_calls_total)
delivered=$(metric roomlog_delivered_records_total)
kill_server
awk -v calls="$calls_made" -v records="$delivered" 'BEGIN {
    printf "at saturation: %d write calls, answers included, for %d delivered records: 1 per %.1f\n", calls, records, records / calls
    exit !(records >= 16 * calls)
}' || fail "more than one write call per 16 records"

data=$work/counted
with=(strace -D -f -yy -s 0 -o "$trace" -e trace=write,writev,sendto,sendmsg -e signal=none)
serve
"$ROOMLOG_BIN" bench --duration 2s --warmup 100ms --publishers 2 --subscribers 2 --rooms 1 --window 256 \
    --url "ws://127.0.0.1:$ws" >"$work/bench"
counted=$(metric roomlog_write_calls_total)
kill_server
# Calls on the clients' port that gave bytes away, or are told in two lines; what would have blocked is no write call.
seen=$(grep -cE "(write|writev|sendto|sendmsg)\([0-9]+<TCP:\[127.0.0.1:$ws->.*(= [1-9]|<unfinished)" "$trace" || true)
echo "the metric counts $counted write calls, strace $seen"
# An upgrade's and a close frame's bytes are not the session's; there are 5 connections or so.
((seen >= counted - 10 && seen <= counted + counted / 50 + 40)) || fail "the metric is not what strace counts"
