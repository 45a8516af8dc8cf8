# A file system that is full, in two ways: less is free than the server keeps in reserve, and not a byte is free.
# Publishes are refused as storage_full, reading goes on, space that returns heals it, nothing acknowledged is lost, and
# the directory opens on the full disk.
set -euo pipefail
source tests/dispatch.sh
source tests/server.sh
need_root
need python3 "apt-get install python3"
begin
mkdir "$work/disk"
mount -t tmpfs -o size=192m tmpfs "$work/disk" || { echo "SKIPPED: no tmpfs can be mounted" >&2; exit 77; }
at_end "umount '$work/disk'"
data=$work/disk/data
export ROOMLOG__STORAGE__DISK_RESERVE_BYTES="16 MiB" ROOMLOG__STORAGE__STRETCH_BYTES="8 MiB"
export ROOMLOG__STORAGE__JOURNAL_BYTES_MAX="64 MiB"
client() { ledger "$work/ledger" "$@"; }
state() { metric roomlog_storage_state; }
state_is() { [[ $(state) == "$1" ]]; }
ballast() { # ballast MIB LEFT: fills the disk but for so much
    local free
    free=$(df --output=avail -k "$work/disk" | tail -n 1)
    fallocate -l $((free - $1 * 1024))K "$work/disk/ballast"
}

serve
client publish 2000
echo "--- under the reserve"
ballast 8
until_true 30 state_is 1 || fail "the state is $(state)"
client refused 300
client read
if http /health/ready >/dev/null 2>&1; then fail "ready on a full disk"; fi
curl --silent "http://127.0.0.1:$admin/health/ready"
rm "$work/disk/ballast"
until_true 30 state_is 0 || fail "space came back, and the state is $(state)"
client publish 2000
http /health/ready >/dev/null || fail "not ready although there is space"

echo "--- filled by its own records"
client fill
state_is 1 || fail "the state is $(state) when publishes are refused"
client read
echo "$(df --output=avail -h "$work/disk" | tail -n 1) free, $(grep -c ^acked "$work/ledger") records acknowledged"

echo "--- killed, and opened with not a byte free"
kill_server
dd if=/dev/zero of="$work/disk/ballast" bs=4096 status=none 2>/dev/null || true
echo "$(df --output=avail -B1 "$work/disk" | tail -n 1) bytes free"
"$ROOMLOG_BIN" check "$data"
# It listens, but is not ready: it is full.
if start; then
    client read
    client refused 300
    rm "$work/disk/ballast"
    # What the server itself has filled stays so: it asks for its reserve, too. More room:
    mount -o remount,size=320m "$work/disk"
    until_true 30 state_is 0 || fail "space came back, and the state is $(state)"
    client publish 2000
    client again
    client read
    end_server || fail "the server ended with $?"
else
    echo "it does not open on a disk without a byte left, and says:"
    tail -n 1 "$work/serve.log"
    grep -qiE 'space|full' "$work/serve.log" || fail "it does not say why"
    server=""
    rm "$work/disk/ballast"
    mount -o remount,size=320m "$work/disk"
    serve || fail "it does not open with space"
    client read
    client publish 2000
    end_server || fail "the server ended with $?"
fi
"$ROOMLOG_BIN" check "$data"
