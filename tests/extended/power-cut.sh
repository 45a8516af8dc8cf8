# Power cuts on a real file system: records that were acknowledged are there afterwards, whatever was going on. The disk
# is a file behind a cache that forgets, as a disk's own does, what was not flushed: nbdkit's cache filter, killed. While
# it is cut, volumes are being built, because stretches are short.
#
# POWER_FILE_SYSTEMS ("ext4 xfs"), POWER_ROUNDS (5 on each), POWER_MINUTES (0: rounds; otherwise so long on each).
set -euo pipefail
source tests/dispatch.sh
source tests/server.sh
need_root
need python3 "apt-get install python3"
need nbdkit "apt-get install nbdkit"
need nbdfuse "apt-get install libnbd-bin"
need losetup "apt-get install mount"
[[ -e /dev/fuse ]] || { echo "SKIPPED: there is no /dev/fuse" >&2; exit 77; }
begin
export ROOMLOG__STORAGE__STRETCH_BYTES="2 MiB" ROOMLOG__STORAGE__JOURNAL_BYTES_MAX="64 MiB"
export ROOMLOG__STORAGE__DISK_RESERVE_BYTES="16 MiB" ROOMLOG__STORAGE__TAILS_BYTES_MAX="1 MiB"

disk="" fuse="" device=""
mkdir "$work/nbd" "$work/mount"
data=$work/mount/data

gone() { ! kill -0 "$1" 2>/dev/null; }
is_device() { [[ -f $work/nbd/nbd ]]; }

# The disk on, and mounted.
power_on() {
    rm -f "$work/socket"
    nbdkit --foreground --unix "$work/socket" --filter=cache file "file=$work/image" cache=writeback >>"$work/nbdkit.log" 2>&1 &
    disk=$!
    until_true 10 test -S "$work/socket" || return 1
    nbdfuse "$work/nbd" "nbd+unix:///?socket=$work/socket" >>"$work/nbdkit.log" 2>&1 &
    fuse=$!
    until_true 10 is_device || return 1
    device=$(losetup --find --show "$work/nbd/nbd") || return 1
}

# The cut: the disk is gone between two system calls of anybody, with all that it had not been told to keep.
power_off() {
    kill -KILL "$disk" 2>/dev/null || true
    wait "$disk" 2>/dev/null || true
    disk=""
}

# What is left of a machine without power.
sweep() {
    # Without asking whether it is mounted: a file system without a disk does not answer.
    timeout 30 umount "$work/mount" 2>/dev/null || umount --lazy "$work/mount" 2>/dev/null || true
    if [[ -n $device ]]; then losetup --detach "$device" 2>/dev/null || true; fi
    if [[ -n $fuse ]]; then
        kill -TERM "$fuse" 2>/dev/null || true
        until_true 5 gone "$fuse" || kill -KILL "$fuse" 2>/dev/null || true
        wait "$fuse" 2>/dev/null || true
    fi
    # What nbdfuse leaves when its server is gone; `mountpoint` cannot look at that.
    umount --lazy "$work/nbd" 2>/dev/null || true
    device="" fuse=""
}
at_end 'power_off; sweep'

round() {
    local file_system=$1 number=$2 seconds
    mount -t "$file_system" "$device" "$work/mount" || fail "round $number: $file_system cannot be mounted"
    # Written just before the cut, and never synced: if that is always there, the rig forgets nothing and proves nothing.
    if ((number > 1)) && [[ ! -s $work/mount/unsynced ]]; then forgotten=$((forgotten + 1)); fi
    rm -f "$work/mount/unsynced"
    serve || fail "round $number: the server does not start"
    # What earlier rounds acknowledged, before anything new.
    if ((number > 1)); then
        ledger "$work/ledger" read
    fi
    seconds=$((1 + RANDOM % 4)).$((RANDOM % 10))
    ledger "$work/ledger" storm 60 >"$work/storm" &
    local storm=$!
    sleep "$seconds" # The moment is meant to be any.
    local built
    built=$(metric roomlog_builds_total)
    head -c 100000 /dev/urandom >"$work/mount/unsynced"
    power_off
    # The client ends when the server does.
    kill_server
    wait "$storm" || { cat "$work/storm"; fail "round $number: the client"; }
    sweep
    echo "round $number on $file_system: cut after $seconds s, $built volumes built, $(cat "$work/storm")"
    power_on || fail "round $number: the disk does not come back"
}

for file_system in ${POWER_FILE_SYSTEMS:-ext4 xfs}; do
    need "mkfs.$file_system" "apt-get install e2fsprogs xfsprogs"
    rm -f "$work/image" "$work/ledger"
    truncate --size 2G "$work/image"
    if ! power_on || ! "mkfs.$file_system" -q "$device"; then
        tail -n 5 "$work/nbdkit.log" >&2
        echo "SKIPPED: this machine cannot make a disk of nbdkit, nbdfuse and a loop device" >&2
        exit 77
    fi
    sync "$work/nbd/nbd"
    blockdev --flushbufs "$device"
    began=$SECONDS number=0 forgotten=0
    while ((${POWER_MINUTES:-0} > 0 ? SECONDS - began < ${POWER_MINUTES:-0} * 60 : number < ${POWER_ROUNDS:-5})); do
        number=$((number + 1))
        round "$file_system" "$number"
    done
    mount -t "$file_system" "$device" "$work/mount"
    "$ROOMLOG_BIN" check "$data"
    serve || fail "the server does not start"
    ledger "$work/ledger" read
    ledger "$work/ledger" publish 100
    end_server || fail "the server ended with $?"
    "$ROOMLOG_BIN" check "$data"
    umount "$work/mount"
    power_off
    sweep
    ((number < 3 || forgotten > 0)) || fail "the rig kept what nobody had synced: it proves nothing"
    echo "$file_system: $number power cuts, $(grep -c ^acked "$work/ledger") acknowledged records, none lost"
done
