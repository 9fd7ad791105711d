"""SIGINT and SIGTERM at random instants: exit codes, how soon, and what the printed command does.

Python itself answers a signal while it starts, imports the command and shuts down: the process dies
of the signal, which a shell reports with the same numbers, 130 and 143 (SIGINT within the first
milliseconds makes Python exit with 1). Those that come before the command are counted apart and
sent once more; nothing has been written then.
"""

import contextlib
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from signal import Signals
from typing import NamedTuple

import numpy as np

from experiments.faulting import comparing, kills, observing
from experiments.faulting.command import Bench
from experiments.faulting.kills import Reference
from experiments.faulting.observing import Timeline

CONTINUES = "this continues it: "
LONGEST = 60.0  # seconds to the end: one compilation, step and save, on a busy machine
AT_ONCE = 5.0  # seconds from a second signal to the end


class Sent(NamedTuple):
    """What the signals did.

    Attributes:
        stopped: runs that ended by their signal, by its name.
        early: how many others were still importing, and died of it.
        seconds: from a signal to the end of the process, of each that was past that.
        second: seconds from a second signal to the end.
        by_act: how many hit each act.
        workdirs: runs that were stopped, continued to the end and compared.
        problems: what should not have been.
    """

    stopped: dict[str, int]
    early: int
    seconds: list[float]
    second: list[float]
    by_act: dict[str, int]
    workdirs: int
    problems: list[str]


class Stopped(NamedTuple):
    """One run that was sent signals: how it ended, how soon after the last, and in which act."""

    code: int
    err: str
    seconds: float
    act: str


def stop_once(
    bench: Bench,
    command: list[str],
    workdir: Path,
    known: Timeline,
    this: Signals,
    *,
    delay: float,
    twice: float,
) -> Stopped:
    """Starts a command and sends it a signal.

    Args:
        bench: where.
        command: the run.
        workdir: its folder.
        known: the timeline of the reference.
        this: the signal.
        delay: seconds from the start to the signal.
        twice: seconds from there to the same signal again; 0 sends one.
    """
    began = time.time()
    process = bench.start(command)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=delay)
    act = observing.act_at(workdir, process.pid, began, known)
    began = time.perf_counter()
    process.send_signal(this)
    if twice:
        time.sleep(twice)
        began = time.perf_counter()
        process.send_signal(this)
    _, err = process.communicate()
    return Stopped(process.returncode, err, time.perf_counter() - began, act)


def is_early(got: Stopped, this: Signals) -> bool:
    """Whether a signal came before the command or after it, to Python alone."""
    alone = got.code == -this or "KeyboardInterrupt" in got.err
    return alone and got.act == "data" and CONTINUES not in got.err


def printed_command(err: str) -> list[str] | None:
    """The command that continues a run, as it was printed last; by this interpreter."""
    last = err.strip().splitlines()[-1] if err.strip() else ""
    if CONTINUES not in last or "Traceback" in err:
        return None
    return [sys.executable, *shlex.split(last.partition(CONTINUES)[2])[1:]]


def signals(bench: Bench, same: Reference, *, wanted: Sequence[Signals], seed: int) -> Sent:
    """Sends signals at random instants, one in five of them twice.

    Those that come while the command is imported, and those that a run is too fast for, are sent
    once more.
    """
    left = list(wanted)
    rng = np.random.default_rng(seed)
    stopped, by_act = {this.name: 0 for this in wanted}, dict.fromkeys(observing.ACTS, 0)
    early, workdirs = 0, 0
    seconds, second, problems = [], [], []
    tries = 0
    while left and tries < 8 * len(wanted):
        workdir = bench.folder / f"stopped-{workdirs}"
        command = bench.command(workdir)
        for _ in range(rng.integers(1, kills.MOST_ON_ONE)):
            if not left:
                break
            tries += 1
            this, twice = left[0], rng.uniform(0.01, 0.5) if rng.random() < 0.2 else 0.0
            delay = kills.instant(workdir, same.known, rng)
            got = stop_once(bench, command, workdir, same.known, this, delay=delay, twice=twice)
            if got.code == 0:  # it was faster
                break
            if is_early(got, this):
                early += 1
                continue
            left = left[1:]
            stopped[this.name] += 1
            by_act[got.act] += 1
            (second if twice else seconds).append(got.seconds)
            # the second of two may come when the first has ended all but Python itself
            if got.code not in ((128 + this, -this) if twice else (128 + this,)):
                problems.append(f"{this.name} in {got.act}: code {got.code}: {got.err}")
            limit = AT_ONCE if twice else LONGEST
            if got.seconds > limit:
                problems.append(f"{this.name} in {got.act}: ended after {got.seconds:.1f} s")
            command = printed_command(got.err) or command
            if not twice and printed_command(got.err) is None:
                problems.append(f"{this.name} in {got.act}: names no command: {got.err}")
        process = bench.start(command)
        _, err = process.communicate()
        if process.returncode:
            problems.append(
                f"{workdir.name}: the printed command ended with {process.returncode}: {err}"
            )
        else:
            found = comparing.differences(same.kept, comparing.read(workdir))
            problems += [f"{workdir.name}: {comparing.in_words(found)}"] if found else []
        shutil.rmtree(workdir)
        workdirs += 1
    if left:
        problems.append(f"{len(left)} signals were never sent")
    return Sent(stopped, early, seconds, second, by_act, workdirs, problems)
