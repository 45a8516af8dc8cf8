# A disk that fails, told by the operating system: strace makes system calls of the running server fail. After a failed
# fdatasync or write nothing more is acknowledged although the disk would work again, reading goes on, health says why;
# after a restart all that was acknowledged is there, and what was not can be repeated.
set -euo pipefail
source tests/dispatch.sh
source tests/server.sh
need strace "apt-get install strace"
need python3 "apt-get install python3"
begin
client() { ledger "$data.ledger" "$@"; }

# inject WHAT COMMAND…: runs a command while system calls fail. WHAT is strace's, without `inject=`.
inject() {
    local what=$1 tracer
    shift
    strace -f -p "$server" -o "$work/injected" -e "trace=${what%%:*}" -e "inject=$what" 2>"$work/strace" &
    tracer=$!
    until_true 10 grep -q attached "$work/strace" || { cat "$work/strace" >&2; echo "SKIPPED: strace may not attach" >&2; exit 77; }
    "$@"
    kill -INT "$tracer"
    wait "$tracer" 2>/dev/null || true
    grep -qE "INJECTED|DELAYED" "$work/injected" || fail "nothing failed: no call of ${what%%:*}"
}

# What must hold when the journal has failed.
has_failed() {
    [[ $(metric roomlog_storage_state) == 2 ]] || fail "the state is $(metric roomlog_storage_state)"
    http /health/live >/dev/null || fail "not alive"
    if http /health/ready >"$work/health" 2>/dev/null; then fail "ready after a failure"; fi
    echo "health: $(curl --silent --write-out ' (%{http_code})' "http://127.0.0.1:$admin/health/ready" | tr '\n' ' ')"
    client refused 301 # The disk would work again: only one call failed.
    client read
    kill_server
    serve || fail "it does not start again"
    client again
    client read
    client publish 200
    end_server || fail "it ended with $?"
    "$ROOMLOG_BIN" check "$data"
}

for fault in "fdatasync:error=EIO:when=1" "pwrite64,pwritev,pwritev2:error=EIO:when=1"; do
    echo "--- $fault"
    data=$work/${fault%%[,:]*}
    serve
    client publish 300
    inject "$fault" client refused 301
    has_failed
done

echo "--- ENOSPC in a write, where space had been reserved"
data=$work/enospc
serve
client publish 300
inject "pwrite64,pwritev,pwritev2:error=ENOSPC:when=1" client publish_or_refused 300,301
echo "state $(metric roomlog_storage_state)"
client read
kill_server
serve || fail "it does not start again"
client again
client read
end_server || fail "it ended with $?"
"$ROOMLOG_BIN" check "$data"

echo "--- a slow disk: 200 ms for each fdatasync"
data=$work/slow
serve
client publish 100
began=$(date +%s%N)
inject "fdatasync:delay_enter=200000" client publish 10
took=$((($(date +%s%N) - began) / 1000000))
echo "10 publishes, one behind the other, took $took ms"
((took >= 2000)) || fail "acknowledged before the disk was done"
client read
end_server || fail "it ended with $?"

echo "--- EIO in reads of old records"
data=$work/reads
export ROOMLOG__STORAGE__TAILS_BYTES_MAX="1 MiB" ROOMLOG__STORAGE__BLOCK_CACHE_BYTES_MAX="1 MiB"
serve
client publish 3000 2000
inject "pread64,preadv,preadv2:error=EIO" client unreadable 301,303
client publish 300
client read
http /health/ready >/dev/null || fail "not ready, although only reads failed"
end_server || fail "it ended with $?"
"$ROOMLOG_BIN" check "$data"
