# A file system that is full, in two ways: less is free than the server keeps in reserve, and not a byte is free.
# Publishes are refused as storage_full, reading goes on, space that returns heals it, nothing acknowledged is lost, and
# the directory opens on the full disk, time and again. On tmpfs, and on ext4 where it can be mounted.
set -euo pipefail
source tests/dispatch.sh
source tests/server.sh
need_root
need python3 "apt-get install python3"
begin
disk=$work/disk
data=$disk/data
mkdir "$disk"
export ROOMLOG__STORAGE__DISK_RESERVE_BYTES="16 MiB" ROOMLOG__STORAGE__STRETCH_BYTES="8 MiB"
export ROOMLOG__STORAGE__JOURNAL_BYTES_MAX="64 MiB"
client() { ledger "$work/ledger" "$@"; }
state() { metric roomlog_storage_state; }
state_is() { [[ $(state) == "$1" ]]; }
free() { df --output=avail "-B${1:-1}" "$disk" | tail -n 1; }
fill_but() { # fill_but MIB: fills the disk but for so much
    fallocate -l "$(($(free 1K) - $1 * 1024))K" "$disk/filler"
}
fill_all() {
    rm -f "$disk/filler"
    dd if=/dev/zero of="$disk/filler" bs=4096 status=none 2>/dev/null || true
    sync -f "$disk"
    dd if=/dev/zero bs=4096 status=none 2>/dev/null >>"$disk/filler" || true
    echo "$(free) bytes free, a ballast of $(stat -c %s "$data/ballast" 2>/dev/null || echo 0)"
}

full() { # full NAME: all of it, on the file system that is mounted
    echo "=== $1"
    rm -f "$work/ledger"
    # What an operator finds to delete in the end.
    fallocate -l 96M "$disk/elsewhere"
    serve
    client publish 2000
    until_true 60 test -s "$data/ballast" || fail "there is no ballast"
    echo "--- under the reserve"
    fill_but 8
    until_true 30 state_is 1 || fail "the state is $(state)"
    client refused 300
    client read
    if http /health/ready >/dev/null 2>&1; then fail "ready on a full disk"; fi
    curl --silent "http://127.0.0.1:$admin/health/ready"
    rm "$disk/filler"
    until_true 30 state_is 0 || fail "space came back, and the state is $(state)"
    client publish 2000
    http /health/ready >/dev/null || fail "not ready although there is space"

    echo "--- filled by its own records"
    client fill
    state_is 1 || fail "the state is $(state) when publishes are refused"
    client read
    (($(free) > 8 << 20)) || fail "the reserve is used up: $(free) bytes are free"
    echo "$(free) free, $(grep -c ^acked "$work/ledger") records acknowledged"

    echo "--- killed or ended, and opened with not a byte free"
    for turn in 1 2 3 4; do
        if ((turn % 2)); then kill_server; else end_server || fail "the server ended with $?"; fi
        fill_all
        "$ROOMLOG_BIN" check "$data"
        # It listens, but is not ready: it is full.
        start || fail "it does not open on a full disk"
        client read
        client refused 300
    done
    fill_all
    client read
    rm "$disk/filler" "$disk/elsewhere"
    until_true 30 state_is 0 || fail "space came back, and the state is $(state)"
    client publish 2000
    client again
    client read
    end_server || fail "the server ended with $?"
    "$ROOMLOG_BIN" check "$data"
}

mount -t tmpfs -o size=288m tmpfs "$disk" || { echo "SKIPPED: no tmpfs can be mounted" >&2; exit 77; }
at_end "umount '$disk'"
full tmpfs
umount "$disk"
ends=()

truncate -s 304M "$work/image"
if mkfs.ext4 -q -F -m 0 "$work/image" && mount -o loop "$work/image" "$disk"; then
    at_end "umount '$disk'"
    full ext4
else
    echo "no ext4 can be mounted here: tmpfs only"
fi
