"""Killed at random instants, resumed, and compared bit for bit with a run left alone.

The instants are drawn uniformly over what is left of the run, by the timeline of the reference run.
Once as many kills are left as acts lack some, a kill waits for such an act, and in every second one
of those for a checkpoint inside the stage, if the act has them, before its own random delay.
Several kills may hit one workdir, one after another; then it is finished and compared.
"""

import contextlib
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.faulting import comparing, observing
from experiments.faulting.command import Bench, Ended
from experiments.faulting.observing import ACTS, Timeline

MOST_ON_ONE = 6  # kills
POLL = 0.005  # seconds
INSIDE = ("*", "stages/*/*", "stages/*/tree*/*")
PATIENCE = 300.0  # seconds that a kill waits for its act


class Reference(NamedTuple):
    """An uninterrupted run.

    Attributes:
        workdir: of the run.
        kept: what others must have in common with it.
        known: when it did what.
        ended: how its process ended.
    """

    workdir: Path
    kept: comparing.Kept
    known: Timeline
    ended: Ended


class Kills(NamedTuple):
    """What the kills did.

    Attributes:
        by_act: how many hit each act.
        inside: how many hit a stage that had a checkpoint to continue from.
        workdirs: runs that were killed, finished and compared.
        most: kills of one of them.
        problems: what should not have been.
    """

    by_act: dict[str, int]
    inside: int
    workdirs: int
    most: int
    problems: list[str]


class Killed(NamedTuple):
    """One kill: the act it hit, and whether a checkpoint lay inside the stage."""

    act: str
    inside: bool


def reference(bench: Bench) -> Reference:
    """Runs the setting twice, to fill the cache and then as the reference, which is timed.

    Raises:
        RuntimeError: if it does not run.
    """
    for name in ("warming", "reference"):
        workdir = bench.folder / name
        began = time.time()
        ended = bench.run(workdir)
        if ended.code:
            raise RuntimeError(f"the run does not run: {ended.err}")
    shutil.rmtree(bench.folder / "warming")
    known = observing.timeline(workdir, began, ended.seconds)
    return Reference(workdir, comparing.read(workdir), known, ended)


def controls(bench: Bench, same: Reference) -> tuple[list[str], list[str]]:
    """What the comparison says of one flipped bit and of another seed, and what is wrong in it."""
    leaf, flipped = comparing.flipped_bit(same.workdir, same.kept)
    by_bit = comparing.differences(same.kept, flipped)
    problems = [] if by_bit == [leaf] else [f"a flipped bit of {leaf} is seen as {by_bit}"]
    other = bench.folder / "other-seed"
    ended = bench.run(other, seed=1)
    if ended.code:
        return [], [*problems, f"another seed ended with {ended.code}: {ended.err}"]
    by_seed = comparing.differences(same.kept, comparing.read(other))
    told = [
        f"one flipped bit of one weight: {comparing.in_words(by_bit)}",
        f"another seed: {len(by_seed)} differences",
    ]
    trained = [name for name in same.kept.arrays if "model" in name and name.endswith("kernel")]
    rows = [f"row {number}" for number in range(len(same.kept.rows))]
    if unseen := [name for name in (*trained, *rows) if name not in by_seed]:
        problems.append(f"another seed has the same {unseen[0]}")
    return told, problems


def lacking(by_act: dict[str, int], left: int, least: int) -> str | None:
    """The act that the next kill must hit, if any must."""
    lack = {act: max(least - hits, 0) for act, hits in by_act.items()}
    return next((act for act in ACTS if lack[act]), None) if sum(lack.values()) >= left else None


def instant(workdir: Path, known: Timeline, rng: np.random.Generator) -> float:
    """Seconds after the start of a process, uniform over what is left for it to do."""
    stage = observing.next_stage(workdir, known)
    return rng.uniform(0, known.opened + known.whole - known.started(stage))


def await_act(
    process: subprocess.Popen[str],
    workdir: Path,
    began: float,
    known: Timeline,
    rng: np.random.Generator,
    act: str,
) -> None:
    """Waits for an act, and then for a random instant of its stage; or for the end."""
    inside = act in ("train", "prune", "unlearn") and rng.random() < 0.5
    until = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < until:
        if observing.act_at(workdir, process.pid, began, known) == act:
            if not inside or observing.has_checkpoint(workdir, known):
                break
        time.sleep(POLL)
    stage = observing.next_stage(workdir, known)
    span = known.opened if act == "data" else known.span(stage)
    time.sleep(rng.uniform(0, span / 4 if inside else span))


def kill_once(
    bench: Bench, workdir: Path, known: Timeline, rng: np.random.Generator, wanted: str | None
) -> Killed | Ended:
    """Starts or continues a run and kills it; how it ended by itself, if it was faster."""
    began, ticks = time.time(), time.perf_counter()
    process = bench.start_run(workdir)
    if wanted is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=instant(workdir, known, rng))
    else:
        await_act(process, workdir, began, known, rng, wanted)
    process.send_signal(signal.SIGSTOP)  # it stands still while it is looked at
    act = observing.act_at(workdir, process.pid, began, known)
    inside = observing.has_checkpoint(workdir, known)
    process.kill()
    out, err = process.communicate()
    if process.returncode != -signal.SIGKILL:
        return Ended(process.returncode, out, err, time.perf_counter() - ticks)
    return Killed(act, inside)


def compared(bench: Bench, workdir: Path, same: Reference) -> list[str]:
    """Finishes a run and compares it with the reference; what differs, in words."""
    ended = bench.run(workdir)
    if ended.code:
        return [f"{workdir.name}: the same command ended with {ended.code}: {ended.err}"]
    found = comparing.differences(same.kept, comparing.read(workdir))
    told = [f"{workdir.name}: {comparing.in_words(found)}"] if found else []
    here, there = (
        {str(path.relative_to(folder)) for deep in INSIDE for path in folder.glob(deep)}
        for folder in (workdir, same.workdir)
    )
    told += [f"{workdir.name}: holds {path}" for path in sorted(here - there)]
    return told + [f"{workdir.name}: does not hold {path}" for path in sorted(there - here)]


def kills(bench: Bench, same: Reference, *, count: int, least: int, seed: int) -> Kills:
    """Kills runs ``count`` times, each act at least ``least`` times, and compares every one.

    A kill that was meant for an act may come after it: then there is one more.
    """
    rng = np.random.default_rng(seed)
    by_act, problems = dict.fromkeys(ACTS, 0), []
    inside = workdirs = most = attempts = 0

    def enough() -> bool:
        return sum(by_act.values()) >= count and min(by_act.values()) >= least

    while not enough() and attempts < 4 * count:
        workdir, hits = bench.folder / f"killed-{workdirs}", 0
        for _ in range(rng.integers(1, MOST_ON_ONE + 1)):
            wanted = lacking(by_act, count - sum(by_act.values()), least)
            ahead = observing.acts_ahead(workdir, same.known)
            if enough() or (wanted is not None and wanted not in ahead):
                break
            attempts += 1
            killed = kill_once(bench, workdir, same.known, rng, wanted)
            if isinstance(killed, Ended):
                if killed.code:
                    problems.append(f"{workdir.name}: ended with {killed.code}: {killed.err}")
                break
            by_act[killed.act] += 1
            inside += killed.inside
            hits += 1
        problems += compared(bench, workdir, same)
        shutil.rmtree(workdir)
        workdirs, most = workdirs + 1, max(most, hits)
    if not enough():
        problems.append(f"too few kills: {by_act}")
    return Kills(by_act, inside, workdirs, most, problems)
