"""Faults on purpose: nothing is lost, nothing is silently wrong. ``results/faults.md``.

    python -m experiments.faults all          # everything, under 40 minutes on two quiet cores
    python -m experiments.faults kills        # one of them; the others' results stay as they are

Each disturbs shrunken digits runs (three trials, four epochs, every act and method; smaller where
it says so) and compares what is left, bit for bit, with a run that was left alone. Its section of
``results/faults.md`` is written anew. Exits with 1 if anything was not as it must be.

- ``kills``: kill -9 at random instants, resumed each time;
- ``saves``: kill -9 while a checkpoint is being saved;
- ``flips``: flipped bytes against ``--verify`` and the next run;
- ``starts``: many starts on one workdir at once;
- ``overhead``: what checkpoints, digests and fingerprints cost;
- ``signals``: SIGINT and SIGTERM at random instants;
- ``disk``: full, read-only and emptied disks.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import NamedTuple

import numpy as np

from experiments.benchmark import machine, pace
from experiments.faulting import disk, flips, kills, overhead, saves, signals, starts
from experiments.faulting.command import FEW, FEWEST, ROOT, WHOLE, Bench
from experiments.faulting.kills import Reference

RESULTS = Path(__file__).parent / "results" / "faults.md"
WHATS = ("kills", "saves", "flips", "starts", "overhead", "signals", "disk")
LIMIT = 15.0  # seconds of the undisturbed run, warm


class Section(NamedTuple):
    """What one experiment says: lines of markdown, and what was not as it must be."""

    lines: list[str]
    problems: list[str]


class Benches:
    """Scratch folders with one cache, and the reference of each setting, made when asked for."""

    def __init__(self, folder: Path, cache: Path) -> None:
        """Nothing has run."""
        self.folder, self.cache = folder, cache
        self.references: dict[int, tuple[Bench, Reference]] = {}

    def bench(self, name: str, overrides: dict) -> Bench:
        """A folder of its own."""
        folder = self.folder / name
        folder.mkdir()
        return Bench(folder, self.cache, overrides)

    def whole(self) -> tuple[Bench, Reference]:
        """Every act and method."""
        return self._of("whole", WHOLE)

    def few(self) -> tuple[Bench, Reference]:
        """Every act, two methods."""
        return self._of("few", FEW)

    def _of(self, name: str, overrides: dict) -> tuple[Bench, Reference]:
        if id(overrides) not in self.references:
            bench = self.bench(name, overrides)
            self.references[id(overrides)] = bench, kills.reference(bench)
        return self.references[id(overrides)]


def of_kills(benches: Benches, count: int, seed: int) -> Section:
    """Kills, after the controls of the comparison."""
    bench, same = benches.whole()
    told, problems = kills.controls(bench, same)
    found = kills.kills(bench, same, count=count, least=min(5, count // 5), seed=seed)
    spans = ", ".join(f"{act} {seconds:.1f}" for act, seconds in same.known.spans().items())
    lines = [
        f"The undisturbed run took {same.ended.seconds:.1f} s, programs compiled before (wanted: "
        f"under {LIMIT:.0f}; seconds of its acts: {spans}).",
        "",
        *table(("act", "kills"), found.by_act.items()),
        "",
        f"n = {sum(found.by_act.values())} kills of {found.workdirs} runs, up to {found.most} of "
        f"one; {found.inside} of them left a checkpoint inside the stage. Every run was finished "
        f"by the same command and compared: {len(same.kept.arrays)} arrays of "
        f"{len(same.kept.stages)} stages, {len(same.kept.rows)} rows, the manifest's digests.",
        *(f"- Control, {line}." for line in told),
    ]
    return Section(lines, problems + found.problems)


def of_saves(benches: Benches, count: int, seed: int) -> Section:
    """Kills during saves."""
    found = saves.saves(benches.bench("saves", {}), count=count, seed=seed)
    files, size = found.whole
    lines = [
        *table(("saved as", "kills"), found.hit.items()),
        "",
        f"n = {sum(found.hit.values())}, each while a save of {found.seconds:.2f} s was under way "
        f"({found.missed} more fell between two saves and do not count); after {found.went_back} "
        "the newest whole tree was the one before, else the new one. One tree is "
        f"{files} files of {size:,} bytes; the most that lay there after a kill were "
        f"{found.most[0]} files and {found.most[1]:,} bytes.",
    ]
    return Section(lines, found.problems)


def of_flips(benches: Benches, count: int, seed: int) -> Section:
    """Flipped bytes."""
    found = flips.flips(benches.bench("flips", FEWEST), count=count, seed=seed)
    head = ("file", "flips", "found by --verify", "run again: refused", "made again", "harmless")
    rows = [
        (
            kind,
            sum(by.values()),
            "-" if kind == flips.UNDER_WAY else found.verified[kind],
            *by.values(),
        )
        for kind, by in found.counts.items()
    ]
    n = sum(sum(by.values()) for by in found.counts.values())
    return Section(
        [*table(head, rows), "", f"n = {n}; a run of two trials and one method."], found.problems
    )


def of_starts(benches: Benches, count: int, seed: int) -> Section:
    """Concurrent starts."""
    del seed
    found = starts.starts(*benches.whole(), count=count)
    line = f"{count} starts at once: {found.ran} ran, {found.refused} refused, such as:"
    return Section([line, "", f"    {found.line}"], found.problems)


def of_overhead(benches: Benches, count: int, seed: int) -> Section:
    """The cost of losing nothing."""
    del count, seed
    found = overhead.overhead(benches.bench("overhead", {}))
    rows = [
        (name, calls, f"{seconds:.3f}", f"{seconds / found.whole:.2%}")
        for name, (calls, seconds) in found.parts.items()
    ]
    spent = sum(seconds for _, seconds in found.parts.values())
    return Section(
        [
            *table(("for", "calls", "seconds", "of the run"), rows),
            "",
            f"**{spent:.2f} s of {found.whole:.1f} s, {found.share:.2%}** of one run of "
            f"`configs/digits.py`, programs compiled before (allowed: {overhead.LIMIT:.0%}; "
            "n = 1).",
        ],
        found.problems,
    )


def of_signals(benches: Benches, count: int, seed: int) -> Section:
    """SIGINT and SIGTERM, to runs of two trials and two methods."""
    found = signals.signals(*benches.few(), wanted=[SIGINT, SIGTERM] * count, seed=seed)
    each = ", ".join(f"{name} {n}" for name, n in found.stopped.items())
    acts = ", ".join(f"{act} {n}" for act, n in found.by_act.items())
    return Section(
        [
            f"{each}; by act: {acts}. {found.early} more came while Python was importing, and the "
            "process died of them. The others ended it with 130 or 143 and named the command that "
            f"continues. {found.workdirs} runs were continued by it to the end and compared.",
            "",
            *table(
                ("seconds to the end of the process", "n", "median", "largest"),
                (spread("after the first signal", found.seconds), spread("second", found.second)),
            ),
        ],
        found.problems,
    )


def of_disk(benches: Benches, count: int, seed: int) -> Section:
    """Disks in trouble."""
    del count, seed
    found = disk.disk(*benches.few())
    said = ((what, text.replace("|", "\\|")) for what, text in found.said.items())
    lines = [*table(("trouble", "exit code and what was printed"), said), ""]
    lines += [
        f"After each the same command ended with the reference's bits (n = {len(found.said)})."
    ]
    return Section([*lines, *(f"- Not tried: {what}." for what in found.left_out)], found.problems)


def spread(name: str, seconds: list[float]) -> tuple[str, int, str, str]:
    """A row of a table: how many, their median and the largest."""
    middle, largest = (np.median(seconds), max(seconds)) if seconds else (0.0, 0.0)
    return name, len(seconds), f"{middle:.2f}", f"{largest:.2f}"


def table(head: tuple[str, ...], rows: Iterator | tuple | list) -> list[str]:
    """Lines of a markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return [f"| {' | '.join(map(str, line))} |" for line in lines]


EXPERIMENTS = {  # and how often they disturb
    "kills": (of_kills, 50),
    "saves": (of_saves, 30),
    "flips": (of_flips, 200),
    "starts": (of_starts, 20),
    "overhead": (of_overhead, 1),
    "signals": (of_signals, 10),
    "disk": (of_disk, 1),
}


def commit() -> str:
    """Of the checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def write_section(file: Path, name: str, lines: list[str]) -> None:
    """Replaces one section of the results, or adds it; the others stay as they are."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    _, *parts = f"\n{text}".split("\n## ")
    sections = {part.partition("\n")[0]: part.partition("\n")[2].strip("\n") for part in parts}
    sections[name] = "\n".join(lines)
    summary = (__doc__ or "").splitlines()[0].partition(" ``")[0]
    ordered = [f"## {known}\n\n{sections[known]}\n" for known in WHATS if known in sections]
    head = (
        f"# Faults on purpose\n\n{summary.partition(': ')[2].capitalize()} What each does is said "
    )
    head += "in `experiments/faulting`; bits are compared with those of a run left alone.\n"
    file.write_text("\n".join([head, *ordered]), encoding="utf-8")


def main() -> int:
    """Runs what is asked for; 1 if anything was not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=(*WHATS, "all"))
    parser.add_argument(
        "--count", type=int, help="how often to disturb; default: as in the results"
    )
    parser.add_argument("--seed", type=int, default=0, help="draws the instants and the bytes")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file to write to")
    parser.add_argument("--cache", type=Path, help="of compiled programs; default: a new one")
    chosen = parser.parse_args()
    if chosen.count is not None and chosen.what == "all":
        parser.error("--count is for one experiment")
    failed, measured = 0, commit()  # before the results are written
    with tempfile.TemporaryDirectory() as scratch:
        benches = Benches(Path(scratch), chosen.cache or Path(scratch) / "cache")
        for name in WHATS if chosen.what == "all" else (chosen.what,):
            experiment, usual = EXPERIMENTS[name]
            count, before, began = chosen.count or usual, pace(), time.perf_counter()
            section = experiment(benches, count, chosen.seed)
            seconds = time.perf_counter() - began
            given = "" if chosen.count is None else f" --count={count}"
            lines = [
                f"`python -m experiments.faults {name}{given} --seed={chosen.seed}`, commit "
                f"{measured}, {machine()}; {seconds:.0f} s (pace {before:.2f}, {pace():.2f}).",
                "",
                *section.lines,
                "",
                *(f"- **Problem**: {' '.join(problem.split())}" for problem in section.problems),
                "No problem." if not section.problems else "",
            ]
            write_section(chosen.results, name, [line.replace(scratch, "DIR") for line in lines])
            print(f"## {name}\n", *lines, sep="\n", flush=True)
            failed += bool(section.problems)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
