"""Runs attacks one after the other, and tells what came of each and the server's memory before, at most and after."""


def memory(process, field):
    """MiB that /proc tells of: VmRSS is now, VmHWM the most since it was last forgotten."""
    for line in open(f"/proc/{process}/status"):
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise SystemExit("FAILED: the server has ended")


def run(attacks, process, is_well, failures):
    """How many of `attacks` failed: each is a name, how many MiB the server may take for it at most, and what does it.

    `failures` are the exceptions that are a failure of the attack alone; `is_well` raises when the server is not.
    """
    width, failed = max(len(name) for name, *_ in attacks), 0
    print(f"{'attack':{width}} {'before':>7} {'most':>7} {'after':>7} MiB  outcome")
    for name, most_mib, attack in attacks:
        with open(f"/proc/{process}/clear_refs", "w") as file:
            file.write("5")
        before = memory(process, "VmRSS")
        try:
            outcome = attack()
        except failures as error:
            outcome, failed = f"FAILED: {type(error).__name__} {error}", failed + 1
        most = memory(process, "VmHWM")
        is_well()
        if most - before > most_mib:
            outcome, failed = f"FAILED: more than {most_mib} MiB; {outcome}", failed + 1
        print(f"{name:{width}} {before:7.1f} {most:7.1f} {memory(process, 'VmRSS'):7.1f}      {outcome}", flush=True)
    return failed
