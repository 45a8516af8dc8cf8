# Sourced by the power cuts, behind tests/server.sh: a disk whose power can be cut. It is a file behind a cache that
# forgets, as a disk's own does, what was not flushed: nbdkit's cache filter, killed. A loop device stands on it.
#
#   prepare_disk          the tools, or a loud skip; cleans up at the end of the script
#   new_disk FILE_SYSTEM  an empty disk, mounted at $work/mount
#   power_cut             between two system calls of anybody: all that was not flushed is gone
#   cut_in SECONDS        the same, at that time; the script goes on meanwhile
#   cut_when EVENT…       the same, when tests/faults/strike.py sees the event
#   power_on              the same disk again, mounted. What ran on it must have ended
#
# ROOMLOG_BIN runs on it as anywhere else; its data directory must be below $work/mount.

# shellcheck disable=SC2154 # work, server and data are those of tests/server.sh.

disk="" fuse="" device="" file_system=""

gone() { ! kill -0 "$1" 2>/dev/null; }
is_device() { [[ -f $work/nbd/nbd ]]; }

prepare_disk() {
    need_root
    need python3 "apt-get install python3"
    need nbdkit "apt-get install nbdkit"
    need nbdfuse "apt-get install libnbd-bin"
    need losetup "apt-get install mount"
    [[ -e /dev/fuse ]] || { echo "SKIPPED: there is no /dev/fuse" >&2; exit 77; }
    mkdir "$work/nbd" "$work/mount"
    at_end 'power_cut; sweep'
}

connect_disk() {
    rm -f "$work/socket"
    nbdkit --foreground --unix "$work/socket" --filter=cache file "file=$work/image" cache=writeback >>"$work/nbdkit.log" 2>&1 &
    disk=$!
    disown "$disk" # The shell is not to tell of every death.
    until_true 10 test -S "$work/socket" || return 1
    nbdfuse "$work/nbd" "nbd+unix:///?socket=$work/socket" >>"$work/nbdkit.log" 2>&1 &
    fuse=$!
    disown "$fuse"
    until_true 10 is_device || return 1
    device=$(losetup --find --show "$work/nbd/nbd") || return 1
}

new_disk() {
    file_system=$1
    need "mkfs.$file_system" "apt-get install e2fsprogs xfsprogs"
    if [[ -n $disk ]]; then
        umount "$work/mount" 2>/dev/null || true
        power_cut
        sweep
    fi
    rm -f "$work/image"
    truncate --size 2G "$work/image"
    if ! connect_disk || ! "mkfs.$file_system" -q "$device"; then
        tail -n 5 "$work/nbdkit.log" >&2
        echo "SKIPPED: this machine cannot make a disk of nbdkit, nbdfuse and a loop device" >&2
        exit 77
    fi
    sync "$work/nbd/nbd"
    blockdev --flushbufs "$device"
    mount -t "$file_system" "$device" "$work/mount"
}

power_cut() {
    if [[ -n $disk ]]; then
        kill -KILL "$disk" 2>/dev/null || true
        until_true 10 gone "$disk" || true
    fi
    disk=""
}

cut_in() {
    (
        sleep "$1"
        kill -KILL "$disk"
    ) &
}

cut_when() {
    PYTHONDONTWRITEBYTECODE=1 python3 tests/faults/strike.py "$disk" "$server" "$data" "$@" &
}

# What is left of a machine without power.
sweep() {
    # Without asking whether it is mounted: a file system without a disk does not answer.
    timeout 30 umount "$work/mount" 2>/dev/null || umount --lazy "$work/mount" 2>/dev/null || true
    if [[ -n $device ]]; then losetup --detach "$device" 2>/dev/null || true; fi
    if [[ -n $fuse ]]; then
        kill -TERM "$fuse" 2>/dev/null || true
        until_true 5 gone "$fuse" || kill -KILL "$fuse" 2>/dev/null || true
    fi
    # What nbdfuse leaves when its server is gone; `mountpoint` cannot look at that.
    umount --lazy "$work/nbd" 2>/dev/null || true
    device="" fuse=""
}

power_on() {
    power_cut
    sweep
    connect_disk || fail "the disk does not come back"
    mount -t "$file_system" "$device" "$work/mount" || fail "$file_system cannot be mounted"
}
