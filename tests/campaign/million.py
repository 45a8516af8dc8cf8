"""Rooms that are made, used once and left; and what the first access to one costs later.

million.py PORT use FIRST BEHIND   each room from FIRST to below BEHIND: published to, joined, read, left
million.py PORT access COUNT ROOMS COUNT of ROOMS rooms by chance, one after the other: the time of a join until its
                                   record is there and it is live, and that it is the right record; prints milliseconds
million.py PORT forget DIRECTORY   takes the files of a directory out of the page cache
"""

import os
import pathlib
import random
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "extended"))

from client import EARLIEST, Session, frame, joins, last, leaves, publishes, record

# Rooms that are under way at once: below the limits of a session.
TOGETHER = 250

port, action, rest = int(sys.argv[1]), sys.argv[2], sys.argv[3:]


def name(number):
    return f"user/{number:07}/inbox"


def payload(number):
    return b"hello, this is record one of room %07d" % number


def several(one, write):
    """Sends a request for each of them in one message; their ids."""
    first = one.request + 1
    one.request += len(write)
    one.wire.send(b"".join(frame(request(first + at)) for at, request in enumerate(write)))
    return range(first, first + len(write))


def answered(one, requests, expected):
    one.until(lambda: len(one.answers) == len(requests))
    for request in requests:
        kind, fields = one.answers.pop(request)
        if kind != expected:
            raise SystemExit(f"FAILED: {kind} {fields} in the place of {expected}")


def use(first, behind):
    with Session(port, timeout=120) as one:
        for at in range(first, behind, TOGETHER):
            rooms = range(at, min(at + TOGETHER, behind))
            answered(one, several(one, [
                lambda request, room=room: publishes(request, name(room), one.publisher, 1, [record(payload(room))])
                for room in rooms]), "published")
            one.waiting = {one.request + 1 + index: name(room) for index, room in enumerate(rooms)}
            answered(one, several(one, [
                lambda request, join=join, room=room: joins(request, join, name(room), EARLIEST)
                for join, room in enumerate(rooms)]), "joined")
            # One after the other: to look at all of them with each message would be all that this does.
            for joined in one.subscriptions.values():
                one.until(lambda: joined.live)
            for join, room in enumerate(rooms):
                if [found.payload for found in one.subscriptions[join].records] != [payload(room)]:
                    raise SystemExit(f"FAILED: what is read of {name(room)}")
            answered(one, several(one, [lambda request, join=join: leaves(request, join) for join in range(len(rooms))]), "ok")
            one.subscriptions.clear()


def access(count, rooms):
    times = []
    with Session(port, timeout=60) as one:
        for room in random.sample(range(rooms), count):
            began = time.perf_counter()
            joined = one.join(name(room), last(1))
            one.until(lambda: joined.live)
            times.append(time.perf_counter() - began)
            if [found.payload for found in joined.records] != [payload(room)]:
                raise SystemExit(f"FAILED: what is read of {name(room)}")
            one.leave(joined)
    times.sort()
    at = [times[min(int(count * part), count - 1)] * 1e3 for part in (0.5, 0.99, 1)]
    print(f"{at[0]:.2f} {at[1]:.2f} {at[2]:.2f}")


def forget(directory):
    for path in pathlib.Path(directory).rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


if action == "forget":
    forget(*rest)
else:
    {"use": use, "access": access}[action](*map(int, rest))
