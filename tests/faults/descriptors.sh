# The server has fewer descriptors than connections want: those that are open go on, publishing goes on as well, although
# the journal needs new files and volumes are built meanwhile, the listener does not spin; and when connections go, others
# are accepted and everything is as before.
#
# DESCRIPTORS ("64 100 200"): the limits to try.
set -euo pipefail
source tests/dispatch.sh
source tests/server.sh
need python3 "apt-get install python3"
begin
export ROOMLOG__STORAGE__DISK_RESERVE_BYTES="1 MiB" ROOMLOG__STORAGE__STRETCH_BYTES="1 MiB"
export ROOMLOG__STORAGE__TAILS_BYTES_MAX="1 MiB" ROOMLOG__STORAGE__BLOCK_CACHE_BYTES_MAX="1 MiB"
ticks() { awk '{ print $14 + $15 }' "/proc/$server/stat"; }
state() { metric roomlog_storage_state; }

for limit in ${DESCRIPTORS:-64 100 200}; do
    data=$work/data-$limit
    rm -f "$work/ledger"
    ws=$(free_port) admin=$(free_port)
    with=(prlimit "--nofile=$limit:$limit")
    serve || fail "$limit descriptors: the server does not start"
    ledger "$work/ledger" publish 20 60000
    # A session that is there before publishes while no descriptor is left, and another one reads.
    timeout 120 python3 - "$ws" "$limit" "$work/ledger" <<'END' || fail "$limit descriptors: see above"
import os, socket, sys, time

sys.path.insert(0, "tests/extended")
sys.dont_write_bytecode = True
from client import EARLIEST, Session, publishes, record

port, limit, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
with Session(port, timeout=60) as writer, Session(port, timeout=60) as reader:
    publisher, taken = os.urandom(16), []
    for _ in range(limit + 20):
        one = socket.socket()
        one.settimeout(0.2)
        try:
            one.connect(("127.0.0.1", port))
        except OSError:
            pass
        taken.append(one)
    began = time.monotonic()
    with open(path, "a") as ledger:
        for seq in range(1, 101):
            name = os.urandom(24).hex()
            ledger.write(f"sent one {publisher.hex()} {seq} {name}/60000\n")
            whole = (bytes.fromhex(name) * 2501)[:60000]
            stored = writer.answer(writer.ask(publishes, "one", publisher, seq, [record(whole)]), "published")
            ledger.write(f"acked one {stored['first']} {name}\n")
    print(f"100 records of 60,000 bytes in {time.monotonic() - began:.1f} s, while {len(taken)} connections wanted to be made")
    joined = reader.join("one", EARLIEST)
    reader.until(lambda: joined.live or joined.left)
    if joined.left:
        print(f"reading: {joined.left}, behind {len(joined.records)} records")
    else:
        assert len(joined.records) == 120, len(joined.records)
    before = time.monotonic()
    # Long enough to tell a server that spins.
    time.sleep(2)
    for one in taken:
        one.close()
END
    before=$(ticks)
    sleep 1
    echo "$limit descriptors: $(($(ticks) - before)) ticks of a second are used at rest, the state is $(state)," \
        "$(metric roomlog_volumes) volumes, $(metric roomlog_builds_failed_total) builds have failed"
    [[ $(state) == 0 ]] || fail "$limit descriptors: $(curl --silent "http://127.0.0.1:$admin/health/ready")"
    ledger "$work/ledger" read
    ledger "$work/ledger" publish 100 60000
    ledger "$work/ledger" read
    end_server || fail "the server ended with $?"
    with=()
    "$ROOMLOG_BIN" check "$data"
done
