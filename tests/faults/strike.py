"""Kills a process, the disk, at a moment of a server's work.

strike.py DISK_PROCESS SERVER_PROCESS DATA_DIRECTORY EVENT SECONDS

Waits until the server works at EVENT, but no longer than SECONDS, and a moment more: somewhere in what follows. Says
what it was. The events are what can be seen of the data directory from outside:

  any         nothing is waited for but a random time
  building    a volume's directory appears
  verifying   its .rld appears: all of it is written, and is about to be read and named by the manifest
  swapping    the manifest is written anew
  opening     the server opens the database of a finished volume, to read it
  recycling   the journal gets a file, or one of its files gets another name
  removing    a volume is given up
"""

import os
import random
import signal
import sys
import time

disk, server, data, event, seconds = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], float(sys.argv[5])

# How long the work may go on, in seconds: about as long as it takes.
LENGTH = dict(any=0, building=0.12, verifying=0.03, swapping=0.004, opening=0.004, recycling=0.02, removing=0.01)


def names(folder):
    try:
        return set(os.listdir(os.path.join(data, folder)))
    except OSError:
        return set()


def opened():
    """The databases that the server has open."""
    found = set()
    try:
        for one in os.listdir(f"/proc/{server}/fd"):
            try:
                found.add(os.readlink(f"/proc/{server}/fd/{one}"))
            except OSError:
                pass
    except OSError:
        pass
    finished = {name[:-4] for name in names("volumes") if name.endswith(".rld")}
    return {path for path in found if "/volumes/" in path and os.path.basename(os.path.dirname(path)) in finished}


def manifest():
    try:
        return os.stat(os.path.join(data, "manifest")).st_ino
    except OSError:
        return None


def volumes(ending):
    return {name for name in names("volumes") if name.endswith(ending)}


def watch():
    """What to compare, and whether it is the moment when it has changed."""
    if event == "building":
        return {name for name in names("volumes") if name.isdigit()}, lambda before, now: now - before
    if event == "verifying":
        return volumes(".rld"), lambda before, now: now - before
    if event == "swapping":
        return (manifest(), "manifest.tmp" in names("")), lambda before, now: now[1] or now[0] != before[0]
    if event == "opening":
        return opened(), lambda before, now: now - before
    if event == "recycling":
        return names("journal"), lambda before, now: now != before
    if event == "removing":
        return (volumes(".rld"), volumes(".doomed")), lambda before, now: before[0] - now[0] or now[1] - before[1]
    raise SystemExit(__doc__)


def wait():
    began = time.monotonic()
    time.sleep(random.uniform(0.3, seconds) if event == "any" else random.uniform(0.3, seconds / 3))
    if event == "any":
        return True
    before, is_moment = watch()
    while time.monotonic() < began + seconds:
        now, _ = watch()
        if is_moment(before, now):
            return True
        before = now
    return False


came = wait()
delay = random.uniform(0, LENGTH[event])
time.sleep(delay)
os.kill(disk, signal.SIGKILL)
print(f"{event} + {delay * 1000:.1f} ms" if came else f"no {event}", flush=True)
