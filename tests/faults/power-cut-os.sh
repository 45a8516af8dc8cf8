# What a power cut costs with durability = "os", and that it costs nothing with "fsync": the same rig, the same load, the
# same cuts. With "os" acknowledged records must be lost (otherwise the rig forgets nothing and the other power cuts prove
# nothing), and only the newest ones, and the epoch must be another one afterwards. The machine's boot is another, too: a
# file of ours stands where the kernel names it.
#
# POWER_FILE_SYSTEMS ("ext4 xfs"), POWER_OS_ROUNDS (3 on each, and as many with "fsync").
set -euo pipefail
source tests/dispatch.sh
source tests/server.sh
source tests/faults/disk.bash
need unshare "apt-get install util-linux"
begin
prepare_disk
export ROOMLOG__STORAGE__DISK_RESERVE_BYTES="16 MiB" ROOMLOG__STORAGE__STRETCH_BYTES="16 MiB"
boot=/proc/sys/kernel/random/boot_id
with=(unshare --mount sh -c "mount --bind \"\$0\" $boot && exec \"\$@\"" "$work/boot")

another_boot() { cat /proc/sys/kernel/random/uuid >"$work/boot"; }
another_boot
"${with[@]}" cmp -s "$work/boot" "$boot" || { echo "SKIPPED: nothing can be put in place of $boot" >&2; exit 77; }

for kind in ${POWER_FILE_SYSTEMS:-ext4 xfs}; do
    new_disk "$kind"
    for durability in os fsync; do
        export ROOMLOG__STORAGE__DURABILITY=$durability
        lost=0 known=0
        for ((number = 1; number <= ${POWER_OS_ROUNDS:-3}; number++)); do
            data=$work/mount/data-$durability-$number
            : >"$work/ledger"
            serve || fail "the server does not start"
            # What is there long before the cut is on the medium in any case.
            ledger "$work/ledger" publish 50
            sync "$work/mount"
            ledger "$work/ledger" lost >"$work/before"
            cut_in "$((1 + RANDOM % 3)).$((RANDOM % 10))"
            ledger "$work/ledger" storm 60 >"$work/storm" || { cat "$work/storm"; fail "round $number: the client"; }
            kill_server
            power_on
            another_boot
            serve || fail "round $number with $durability: the server does not start"
            ledger "$work/ledger" lost >"$work/after" || fail "round $number: $(cat "$work/after")"
            echo "round $number on $file_system with $durability: $(cat "$work/storm"); $(cat "$work/after")"
            read -r count _ of _ <"$work/after"
            lost=$((lost + count)) known=$((known + of))
            before=$(grep -o 'epoch .*' "$work/before") after=$(grep -o 'epoch .*' "$work/after")
            if [[ $durability == os && $before == "$after" ]]; then fail "the epoch is the same as before"; fi
            if [[ $durability == fsync && $before != "$after" ]]; then fail "the epoch is another one"; fi
            ledger "$work/ledger" publish 50
            end_server || fail "the server ended with $?"
            "$ROOMLOG_BIN" check "$data" >"$work/check" || fail "round $number: $(cat "$work/check")"
            rm -rf "$data"
        done
        echo "$file_system with durability = \"$durability\": $((number - 1)) power cuts, $lost of $known acknowledged records lost"
        if [[ $durability == os ]]; then
            ((lost > 0)) || fail "nothing was lost: the rig proves nothing"
        else
            ((lost == 0)) || fail "acknowledged records are lost"
        fi
    done
done
