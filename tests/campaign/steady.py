"""The crowd of steady.sh, its instruments, and the verdict.

steady.py crowd PORT SECONDS ROOMS          connections that come and go all the time, some of them without a word; slow
                                            readers; readers that never read. Ends with an error when one is wronged.
steady.py sample PORT ADMIN PID DATA SECONDS FILE   a row of measurements every few seconds, as CSV
steady.py judge FILE                        whether the second half is flat
"""

import collections
import os
import pathlib
import random
import statistics
import sys
import threading
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "extended"))

from client import EARLIEST, NEW, Closed, Refused, Session, frame, joins, last

# Of each kind, at a time.
CHURNING, SLOW, DEAD = 6, 20, 20
# How long one that never reads is left alone; the server's patience (stall_timeout in steady.sh) is shorter.
DEAD_SECONDS = 90
SAMPLE_SECONDS = 5
COLUMNS = ("seconds resident_kib descriptors threads connections disk_kib volumes rooms published_per_s "
           "ack_p50_ms ack_p99_ms budgets_kib").split()
# From how many minutes on a slope says something.
MINUTES_MIN = 20


class Crowd:
    def __init__(self, port, seconds, rooms):
        self.port, self.rooms, self.until = port, rooms, time.monotonic() + seconds
        self.counts, self.failure = collections.Counter(), None
        kinds = [self.churn] * CHURNING + [self.slow] * SLOW + [self.dead] * DEAD
        self.threads = [threading.Thread(target=self.play, args=(kind,), daemon=True) for kind in kinds]

    def going(self):
        return self.failure is None and time.monotonic() < self.until

    def pause(self, seconds):
        deadline = time.monotonic() + seconds
        while self.going() and time.monotonic() < deadline:
            time.sleep(0.2)

    def play(self, kind):
        try:
            while self.going():
                kind()
                self.counts[kind.__name__] += 1
        except Exception as error:  # Whatever it is, it ends the run.
            self.failure = self.failure or f"{kind.__name__}: {type(error).__name__} {error}"

    def room(self):
        return f"crowd/{random.randrange(self.rooms)}"

    def churn(self):
        """Comes, reads a little of some rooms, says something, and goes: with a goodbye or without."""
        one = Session(self.port, timeout=60)
        for name in {self.room() for _ in range(5)}:
            joined = one.join(name, random.choice((NEW, last(20), EARLIEST)))
            one.until(lambda: joined.live)
        # The rooms of the bench are not for others to speak in: it would take that for damage.
        name = f"side/{random.randrange(self.rooms // 4)}"
        joined = one.join(name, last(5))
        stored = one.publish(name, os.urandom(random.choice((20, 200, 2000))))
        one.until(lambda: joined.position >= stored["first"])
        if random.random() < 0.5:
            one.wire.close()
        else:
            one.wire.socket.close()
        time.sleep(0.3)

    def slow(self):
        """Reads some KiB in a second, for a minute or so; what it reads is judged as for any other."""
        one = Session(self.port, timeout=60, small_buffer=4096)
        for name in {self.room() for _ in range(20)}:
            one.join(name, EARLIEST)
        until = time.monotonic() + random.uniform(30, 90)
        while self.going() and time.monotonic() < until:
            one.step()
            self.pause(0.4)
        one.wire.socket.close()

    def dead(self):
        """Asks for all of many rooms and never reads; the server sends it away when its patience is over."""
        one = Session(self.port, timeout=60, small_buffer=4096)
        for join in range(1, 40):
            one.request += 1
            one.wire.send(frame(joins(one.request, join, self.room(), EARLIEST)))
        self.pause(DEAD_SECONDS)
        one.wire.socket.close()

    def run(self):
        for thread in self.threads:
            thread.start()
            time.sleep(0.1)
        while self.going():
            time.sleep(0.5)
        for thread in self.threads:
            thread.join(60)
        print(", ".join(f"{count} {name}" for name, count in sorted(self.counts.items())), flush=True)
        if self.failure:
            raise SystemExit(f"FAILED: {self.failure}")


class Instruments:
    def __init__(self, port, admin, pid, data):
        self.port, self.admin, self.pid, self.data = port, admin, pid, data
        self.times, self.lock, self.failure = [], threading.Lock(), None

    def probe(self):
        """Times one acknowledgement after the other, a few in a second."""
        try:
            with Session(self.port, timeout=120) as one:
                while True:
                    began = time.perf_counter()
                    one.publish("probe", b"how long")
                    with self.lock:
                        self.times.append((time.perf_counter() - began) * 1e3)
                    one.answers.clear()
                    time.sleep(0.05)
        except (Closed, Refused, OSError) as error:
            self.failure = error

    def metrics(self):
        found = collections.Counter()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=60) as answer:
            for line in answer.read().decode().splitlines():
                if line and not line.startswith("#"):
                    name, value = line.rsplit(" ", 1)
                    found[name.split("{")[0]] += float(value)
        return found

    def status(self):
        lines = pathlib.Path(f"/proc/{self.pid}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["VmRSS"].split()[0]), int(fields["Threads"])

    def disk_kib(self):
        total = 0
        for folder, _, names in os.walk(self.data):
            for name in names:
                try:
                    total += os.stat(os.path.join(folder, name)).st_blocks // 2
                except FileNotFoundError:
                    pass  # It has been removed meanwhile.
        return total

    def run(self, seconds, path):
        threading.Thread(target=self.probe, daemon=True).start()
        began = time.monotonic()
        with open(path, "w", buffering=1) as file:
            file.write(",".join(COLUMNS) + "\n")
            published, before = self.metrics()["roomlog_published_records_total"], began
            while time.monotonic() - began < seconds:
                time.sleep(SAMPLE_SECONDS)
                metrics, now = self.metrics(), time.monotonic()
                resident, threads = self.status()
                with self.lock:
                    times, self.times = sorted(self.times), []
                at = [times[int(len(times) * part)] if times else float("nan") for part in (0.5, 0.99)]
                total = metrics["roomlog_published_records_total"]
                row = (now - began, resident, len(os.listdir(f"/proc/{self.pid}/fd")), threads, metrics["roomlog_connections"],
                       self.disk_kib(), metrics["roomlog_volumes"], metrics["roomlog_rooms"],
                       (total - published) / (now - before), *at, metrics["roomlog_budget_used_bytes"] / 1024)
                published, before = total, now
                file.write(",".join(f"{value:.10g}" for value in row) + "\n")
                if self.failure:
                    raise SystemExit(f"FAILED: the probe: {self.failure}")


def rows(path):
    with open(path) as file:
        names = file.readline().strip().split(",")
        return [dict(zip(names, map(float, line.split(",")))) for line in file]


def judge(path):
    found = rows(path)
    found = found[len(found) // 2 :]
    minutes = 2 * (found[-1]["seconds"] - found[0]["seconds"]) / 60
    wrong = []

    times = [row["seconds"] / 600 for row in found]
    resident = [row["resident_kib"] for row in found]
    slope = statistics.linear_regression(times, resident).slope / statistics.mean(resident) * 100
    print(f"resident memory, second half: {min(resident) / 1024:.0f} to {max(resident) / 1024:.0f} MiB, "
          f"{slope:+.2f} % in 10 minutes")
    if slope > 1:
        wrong.append(f"resident memory grows by {slope:.2f} % in 10 minutes")

    # Connections come and go; what is meant is what stays behind them.
    third, fourth = found[: len(found) // 2], found[len(found) // 2 :]
    for what, value in (("descriptors beside connections", lambda row: row["descriptors"] - row["connections"]),
                        ("threads", lambda row: row["threads"])):
        before, after = (statistics.median(map(value, part)) for part in (third, fourth))
        print(f"{what}: {before:.0f} in the third quarter, {after:.0f} in the fourth (medians)")
        if abs(after - before) > max(2, before / 50):
            wrong.append(f"{what}: from {before:.0f} to {after:.0f}")
    disk = [row["disk_kib"] / 1024 for row in found]
    print(f"disk: {min(disk):.0f} to {max(disk):.0f} MiB; volumes: {min(row['volumes'] for row in found):.0f} to "
          f"{max(row['volumes'] for row in found):.0f}; acknowledgements: p99 {statistics.median(row['ack_p99_ms'] for row in found):.1f} ms "
          f"(median of {SAMPLE_SECONDS} s windows)")
    if minutes < MINUTES_MIN:
        print(f"{minutes:.0f} minutes are too short to judge a slope; {MINUTES_MIN} are needed")
    elif wrong:
        raise SystemExit("FAILED: " + "; ".join(wrong))


if __name__ == "__main__":
    action, rest = sys.argv[1], sys.argv[2:]
    if action == "crowd":
        Crowd(*map(int, rest)).run()
    elif action == "sample":
        Instruments(int(rest[0]), int(rest[1]), int(rest[2]), rest[3]).run(float(rest[4]), rest[5])
    elif action == "judge":
        judge(rest[0])
    else:
        raise SystemExit(__doc__)
