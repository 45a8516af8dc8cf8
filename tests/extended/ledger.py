"""full_disk.py WS_PORT FILE publish COUNT | fill | refused | read

FILE holds a line for each acknowledged record: its offset and payload. `publish` must succeed, `fill` publishes until it is
refused as storage_full, `refused` must be, `read` compares all that there is with the file."""

import os
import sys

from client import EARLIEST, Refused, Session

STORAGE_FULL = 300
port, path, action = int(sys.argv[1]), sys.argv[2], sys.argv[3]
with Session(port, timeout=60) as one, open(path, "a+") as file:
    unknown = []

    def publish(payload):
        """Whether it was acknowledged. A refusal must be storage_full."""
        publisher = os.urandom(16)
        one.publisher, one.seqs = publisher, type(one.seqs)()
        try:
            stored = one.publish("full", payload)
        except Refused as refusal:
            if refusal.code != STORAGE_FULL or not refusal.retry:
                raise
            return False
        file.write(f"{stored['first']} {payload[:24].hex()}\n")
        return True

    def payload(size):
        return os.urandom(24) + bytes(os.urandom(64)) * (size // 64)

    if action == "publish":
        for _ in range(int(sys.argv[4])):
            if not publish(payload(128)):
                raise SystemExit("FAILED: storage_full although there is space")
    elif action == "fill":
        count = 0
        while publish(os.urandom(60_000)):
            count += 1
            if count > 50_000:
                raise SystemExit("FAILED: never full")
        print(f"refused after {count} records of 60,000 bytes")
    elif action == "refused":
        for _ in range(20):
            if publish(payload(128)):
                raise SystemExit("FAILED: acknowledged on a full disk")
        print("publishes are refused as storage_full")
    else:
        room = one.join("full", EARLIEST)
        one.until(lambda: room.live)
        file.seek(0)
        expected = dict(line.split() for line in file)
        read = {str(record.offset): record.payload[:24].hex() for record in room.records}
        if expected != read:
            lost = sum(read.get(offset) != payload for offset, payload in expected.items())
            more = len(read.keys() - expected.keys())
            raise SystemExit(f"FAILED: {lost} acknowledged records lost, {more} read that were refused")
        print(f"all {len(read)} acknowledged records are read, and nothing else")
