"""Flipped bytes: each is found, or changes nothing; never a silently different number.

On copies of a finished workdir one byte of one file is changed at random; ``--verify`` looks at it,
and then the command is run again. A tenth of the flips are in the checkpoints of a stage that is
under way: what lay on the disk after the newest of them was saved, as a kill would have left it.
All in this process, through the entry function of the command.
"""

import contextlib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from experiments.faulting import comparing
from experiments.faulting.command import Bench
from experiments.faulting.comparing import Kept
from sparse_mu import checkpoint, main

KINDS = {  # patterns of their files, and the share of all flips
    "arrays of stages": ("stages/*/tree/**/*", 0.5),
    "scalars of stages": ("stages/*/meta.json", 0.1),
    "manifest": ("manifest.json", 0.1),
    "results": ("results.jsonl", 0.1),
    "config": ("config.json", 0.1),
    "checkpoints under way": ("stages/*/under_way/**/*", 0.1),
}
UNDER_WAY = "checkpoints under way"
OUTCOMES = ("detected", "refused", "made again", "harmless")
FORGET_PROGRAMS = 20  # flips after which compiled programs are dropped from memory


class Flips(NamedTuple):
    """What became of the flips.

    Attributes:
        verified: how many flips ``--verify`` found, by kind; it has nothing to say of a run that is
            not finished.
        counts: by kind, how many the next run refused, how many made it compute something again,
            and how many changed nothing.
        problems: what should not have been.
    """

    verified: dict[str, int]
    counts: dict[str, dict[str, int]]
    problems: list[str]


class Called(NamedTuple):
    """How a call of the command ended."""

    code: int
    out: str
    err: str


def call(argv: list[str]) -> Called:
    """The command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main.main(["sparse_mu.main", *argv])
    return Called(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def copied_under_way(workdir: Path, to: Path, number: int) -> Iterator[None]:
    """Copies a workdir at the instant when checkpoint ``number`` of its first stage is saved."""
    save = checkpoint.save

    def and_copy(folder: Path, tree: object, meta: dict) -> None:
        save(folder, tree, meta)
        if folder.parent.name == "under_way" and folder.name == f"{number:06d}" and not to.exists():
            shutil.copytree(workdir, to)

    checkpoint.save = and_copy
    try:
        yield
    finally:
        checkpoint.save = save


def flip(path: Path, rng: np.random.Generator) -> str:
    """Changes one byte of a file; says which."""
    content = bytearray(path.read_bytes())
    at, change = int(rng.integers(len(content))), int(rng.integers(1, 256))
    content[at] ^= change
    path.write_bytes(content)
    return f"byte {at} ^ {change}"


def choose(folder: Path, pattern: str, rng: np.random.Generator) -> Path:
    """A file of a kind: any of them alike, or (every other time) any byte of theirs alike."""
    files = sorted(p for p in folder.glob(pattern) if p.is_file() and p.stat().st_size)
    sizes = np.array([file.stat().st_size for file in files], float)
    weights = sizes if rng.random() < 0.5 else np.ones(len(files))
    return files[rng.choice(len(files), p=weights / weights.sum())]


def written(folder: Path) -> dict[str, int]:
    """When the stages and rows of a workdir were written, in nanoseconds."""
    files = [*folder.glob("stages/*/meta.json"), folder / "results.jsonl"]
    return {str(file): file.stat().st_mtime_ns for file in files if file.exists()}


def raw(folder: Path) -> tuple[Kept, bytes]:
    """All that a reader of a finished workdir takes from it, measured seconds included."""
    return comparing.read(folder), (folder / "results.jsonl").read_bytes()


def flips(bench: Bench, *, count: int, seed: int) -> Flips:
    """Flips ``count`` bytes, one at a time.

    Raises:
        RuntimeError: if the run does not run.
    """
    logging.set_verbosity(logging.ERROR)  # a warning each is meant
    rng = np.random.default_rng(seed)
    clean, under_way = bench.folder / "clean", bench.folder / "under-way"
    with copied_under_way(clean, under_way, 1):
        made = call(bench.flags(clean))
    if made.code or not under_way.exists():
        raise RuntimeError(f"the run does not run: {made.err}")
    whole = raw(clean)
    names, shares = list(KINDS), [share for _, share in KINDS.values()]
    counts = {name: dict.fromkeys(OUTCOMES[1:], 0) for name in names}
    verified, problems = dict.fromkeys(names, 0), []
    workdir = bench.folder / "flipped"
    for number in range(count):
        kind = names[rng.choice(len(names), p=shares)]
        shutil.copytree(under_way if kind == UNDER_WAY else clean, workdir)
        path = choose(workdir, KINDS[kind][0], rng)
        where = f"{path.relative_to(workdir)}, {flip(path, rng)}"
        try:
            found = kind != UNDER_WAY and looked_at(workdir, whole)
            verified[kind] += found
            counts[kind][run_again(bench, workdir, whole[0], is_whole=kind != UNDER_WAY)] += 1
        except AssertionError as error:
            problems.append(f"{where}: {error}")
        shutil.rmtree(workdir)
        if number % FORGET_PROGRAMS == FORGET_PROGRAMS - 1:
            jax.clear_caches()
    return Flips(verified, counts, problems)


def looked_at(workdir: Path, whole: tuple[Kept, bytes]) -> bool:
    """Whether ``--verify`` finds a flip.

    Raises:
        AssertionError: if it does not, and the workdir says other things than before, or if it does
            and does not say it in a line.
    """
    got = call([f"--verify={workdir}"])
    if got.code == 0:
        assert raw(workdir) == whole, "--verify finds nothing, and numbers differ"
        return False
    lines = [line for line in got.out.splitlines() if "FAILS" in line]
    assert lines or (got.err.count("\n") == 1 and got.err.startswith("error: ")), got.out + got.err
    return True


def run_again(bench: Bench, workdir: Path, kept: Kept, *, is_whole: bool) -> str:
    """Runs the command on a flipped workdir; what came of it.

    Raises:
        AssertionError: if the numbers differ, or it was refused in another way than by one line.
    """
    before = written(workdir)
    got = call(bench.flags(workdir))
    if got.code:
        assert got.code in (1, 2) and got.err.startswith("error: "), got.err
        assert got.err.count("\n") == 1, got.err
        return "refused"
    differing = comparing.differences(kept, comparing.read(workdir))
    assert not differing, comparing.in_words(differing)
    return "harmless" if is_whole and written(workdir) == before else "made again"
