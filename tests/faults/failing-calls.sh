# Every nth system call of each kind fails, with EIO and with ENOSPC: writes, syncs, renames, removals, new directories and
# files cut to length. strace counts for each thread of the server by itself, so the nth call of each thread fails.
# Meanwhile volumes are built, rewritten and removed. Whatever happens: publishes are acknowledged or refused with a code
# of the broker's trouble, what was acknowledged is read, health tells a journal that has failed, a start that does not
# succeed says which file it was; and the start after it, on a disk that works, finds everything, and takes what was refused.
#
# The in-memory disk of the unit tests does the same with every operation (src/storage/journal/model.rs, volume/tests).
#
# CALLS ("pwrite64 fdatasync fsync rename unlink mkdir ftruncate"), CALL_ERRORS ("EIO ENOSPC"), CALL_STEP (16: every 16th,
# from a random one on; long: 1), CALL_FIRST (the first one).
set -euo pipefail
source tests/dispatch.sh
source tests/server.sh
need strace "apt-get install strace"
need python3 "apt-get install python3"
begin
cat >"$work/broker.toml" <<END
[storage]
stretch_bytes = "1 MiB"
disk_reserve_bytes = "1 MiB"
tails_bytes_max = "1 MiB"
block_cache_bytes_max = "1 MiB"

[[retention]]
rooms = "short/*"
max_bytes = "128 KiB"
END
step=${CALL_STEP:-16}
ws=$(free_port) admin=$(free_port)
cases=0 refused=0 failed=0 closings=0
client() { ledger "$work/ledger" "$@"; }
# Until nothing is left to be done, the journal has failed, or time is over.
rests() { (($(metric roomlog_storage_state) == 2 || $(metric roomlog_builder_backlog_bytes) < 1 << 20)); }

one_case() { # one_case CALL ERROR N: whether there was an nth call
    local call=$1 error=$2 n=$3 what="$1 $3: $2" state code
    rm -rf "$data" "$work/ledger" "$work/calls" "$work/serve.log"
    with=(strace -D -f --seccomp-bpf -qq -o "$work/calls" -e "trace=$call" -e "inject=$call:error=$error:when=$n" -e signal=none)
    if start --config "$work/broker.toml" 2>/dev/null; then
        client work >"$work/said" || fail "$what: $(cat "$work/said")"
        until_true 3 rests || true
        sleep 0.2
        client read >"$work/said" || fail "$what: while it fails, $(cat "$work/said")"
        state=$(metric roomlog_storage_state)
        http /health/live >/dev/null || fail "$what: not alive"
        if ((state == 2)); then
            failed=$((failed + 1))
            if http /health/ready >/dev/null 2>&1; then fail "$what: ready after a failure"; fi
            client refused 301 >/dev/null
        elif ((state == 0)); then
            http /health/ready >/dev/null || fail "$what: not ready, and state 0"
        fi
    else
        refused=$((refused + 1))
        code=0
        wait "$server" || code=$?
        server=""
        ((code == 1)) || fail "$what: the start ended with $code"
        grep -qE "(journal|volumes|meta|manifest|run|lock|ballast|data|cert)" "$work/serve.log" ||
            fail "$what: the start did not say which file it was"
    fi
    if [[ -n $server ]]; then
        if ((n % 2)); then kill_server; else end_server || true; fi
    fi
    # strace may take a moment longer than the server.
    if ! until_true 1 grep -q INJECTED "$work/calls"; then return 1; fi
    # sled panics when the sync with which it closes a database fails. That is caught and told, and the volume was synced before.
    caught=$(grep -c "panicked at .*/sled-0.34.7/src/pagecache/logger.rs:467:" "$work/serve.log") || true
    told=$(grep -c "closing failed" "$work/serve.log") || true
    if ((caught > told)); then fail "$what: a panic of sled that is not caught"; fi
    closings=$((closings + caught))
    if grep "panicked" "$work/serve.log" | grep -v "/sled-0.34.7/src/pagecache/logger.rs:467:"; then fail "$what: a panic"; fi
    with=()
    serve --config "$work/broker.toml" || fail "$what: the next start does not succeed"
    if [[ -s $work/ledger ]]; then
        client again >"$work/said" || fail "$what: after it, $(cat "$work/said")"
        client read >"$work/said" || fail "$what: after it, $(cat "$work/said")"
    fi
    end_server || fail "$what: the server ended with $?"
    "$ROOMLOG_BIN" check "$data" >"$work/said" || fail "$what: $(cat "$work/said")"
    cases=$((cases + 1))
}

for call in ${CALLS:-pwrite64 fdatasync fsync rename unlink mkdir ftruncate}; do
    for error in ${CALL_ERRORS:-EIO ENOSPC}; do
        n=${CALL_FIRST:-$((1 + RANDOM % step))}
        # A step may be longer than there are calls.
        until one_case "$call" "$error" "$n"; do
            ((n > 1)) || fail "$call is never called"
            n=$((n / 2))
        done
        first=$n
        n=$((n + step))
        while one_case "$call" "$error" "$n"; do n=$((n + step)); done
        echo "$call: $error at every ${step}th from the ${first}th on, up to the $((n - step))th"
    done
done
echo "$cases failures: $refused starts refused, $failed journals stopped, sled could not close $closings times; nothing acknowledged was lost"
((cases > 0))
