# Power cuts in the first second of a data directory, on a real file system: it is made, the server listens, the first
# records are acknowledged. The server starts on whatever is left of it, and what was acknowledged is there.
#
# POWER_FILE_SYSTEMS ("ext4 xfs"), POWER_NEW_ROUNDS (10 on each).
set -euo pipefail
source tests/dispatch.sh
source tests/server.sh
source tests/faults/disk.bash
begin
prepare_disk
export ROOMLOG__STORAGE__DISK_RESERVE_BYTES="16 MiB"
ws=$(free_port) admin=$(free_port)

# The names of the directory and of those above it that were made: ext4 and xfs happen to keep them with what is within,
# other file systems need not.
if command -v strace >/dev/null; then
    data=$work/traced/new/data
    with=(strace -D -f -y -o "$work/trace" -e trace=fsync -e signal=none)
    serve || fail "the server does not start"
    end_server
    for above in "$work" "$work/traced" "$work/traced/new"; do
        grep -q "fsync([0-9]*<$above>" "$work/trace" || fail "$above is not synced although a directory was made in it"
    done
    with=()
else
    echo "strace is not there: it is not looked whether the directory's own name is synced"
fi

acked() { grep -c ^acked "$work/ledger" || true; }

for kind in ${POWER_FILE_SYSTEMS:-ext4 xfs}; do
    new_disk "$kind"
    rm -f "$work/serve.log"
    early=0 with_records=0 total=0
    for ((number = 1; number <= ${POWER_NEW_ROUNDS:-10}; number++)); do
        # Below the mount point, which is durable, nothing is there yet.
        data=$work/mount/new/$number/data
        : >"$work/ledger"
        after=0.$(printf %03d $((RANDOM % 1000)))
        # Every third one as early as it goes.
        if ((number % 3 == 0)); then after=0.0$(printf %02d $((RANDOM % 60))); fi
        cut_in "$after"
        if start 2>/dev/null; then listened=1; else listened=0; fi
        if ((listened)); then
            ledger "$work/ledger" storm 3 >"$work/storm" || { cat "$work/storm"; fail "round $number: the client"; }
        fi
        until_true 5 gone "$disk" || fail "round $number: the disk is still there"
        kill_server
        power_on
        # Of some not even the name is left.
        left=$({ find "$work/mount/new" -mindepth 1 2>/dev/null || true; } | wc -l)
        serve || fail "round $number on $file_system, cut after $after s: the server does not start on what is left"
        ledger "$work/ledger" read >"$work/read" || fail "round $number on $file_system: $(cat "$work/read")"
        echo "round $number on $file_system: cut after $after s, listening: $listened, $(acked) acknowledged;" \
            "$left files and folders were left; $(cat "$work/read")"
        early=$((early + 1 - listened)) total=$((total + $(acked)))
        if (($(acked) > 0)); then with_records=$((with_records + 1)); fi
        ledger "$work/ledger" publish 20
        end_server || fail "the server ended with $?"
        "$ROOMLOG_BIN" check "$data" >"$work/check" || fail "round $number: $(cat "$work/check")"
        rm -rf "$work/mount/new"
        sync "$work/mount"
    done
    echo "$file_system: $((number - 1)) new directories cut, $early of them before the server listened, $with_records with" \
        "acknowledged records, $total of these, none lost"
done
