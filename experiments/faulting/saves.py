"""Killed while it saves: what was whole before is whole afterwards, and nothing piles up.

A child process saves a tree of 2 MiB over and over, the way a stage is saved (one folder each) or
the way a fit keeps its checkpoints (the newest two), and says before and after each save which it
is. It is killed at a random instant after such a word; only kills without the word after count.
Every number in a tree is drawn from the number of its save, so that a mixture of two is seen.
"""

import shutil
import sys
import time
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from experiments.faulting import observing
from experiments.faulting.command import Bench
from sparse_mu import checkpoint, stages
from sparse_mu.standing import Keeper, Position, Standing

KINDS = ("stage", "checkpoint")
KEEP = 2  # checkpoints, the default
BEHIND = 2  # finished stages that the child leaves beside the one that it saves
SHAPES = [(3, 3, 32, 64)] * 20 + [(64,)] * 40 + [(250, 500)]
CHILD = "import sys; from experiments.faulting import saves; saves.child(*sys.argv[1:])"


class Saves(NamedTuple):
    """What the kills did.

    Attributes:
        hit: kills while a save was under way, by kind.
        missed: kills between two saves, which do not count.
        went_back: hits after which the newest whole tree was the one before.
        seconds: of one save, the median.
        whole: files and bytes of one saved tree.
        most: the largest number of files, and of bytes, found after a kill.
        problems: what should not have been.
    """

    hit: dict[str, int]
    missed: int
    went_back: int
    seconds: float
    whole: tuple[int, int]
    most: tuple[int, int]
    problems: list[str]


def tree_of(number: int) -> dict[str, np.ndarray]:
    """The tree of one save, all of it drawn from its number."""
    rng = np.random.default_rng(number)
    return {f"leaf_{i}": rng.random(shape, np.float32) for i, shape in enumerate(SHAPES)}


def keeper(folder: Path) -> Keeper:
    """The package's own checkpoints of a fit."""
    return stages.keeper_in(folder, 1, KEEP, lambda: False)


def save(kind: str, folder: Path, number: int) -> None:
    """One save."""
    if kind == "stage":
        checkpoint.save(folder / f"{number:06d}", tree_of(number), {"number": number})
        return
    standing = Standing((), {}, np.zeros(1, np.float32), tree_of(number), np.ones(1, bool), ())
    keeper(folder).save(standing, Position(0, number, 0, number, 0.0, 0.0))


def newest(kind: str, folder: Path) -> tuple[int, dict[str, np.ndarray]] | None:
    """The newest tree that is whole, as a run would read it, with the number it claims to be."""
    if kind == "stage":
        finished = sorted(path for path in folder.iterdir() if checkpoint.is_finished(path))
        if not finished:
            return None
        tree, meta = checkpoint.restore(finished[-1], tree_of(0))
        return meta["number"], tree
    like = Standing((), {}, np.zeros(1, np.float32), tree_of(0), np.ones(1, bool), ())
    found = keeper(folder).load(lambda position: like)
    return None if found is None else (found[1].done, found[0].state)


def child(kind: str, folder: str, number: str) -> None:
    """Saves from ``number`` on until it is killed."""
    where, this = Path(folder), int(number)
    while True:
        print("begin", this, flush=True)
        save(kind, where, this)
        print("end", this, flush=True)
        if kind == "stage":  # as stages of earlier runs, which are not the question here
            shutil.rmtree(where / f"{this - BEHIND:06d}", ignore_errors=True)
        this += 1


def await_word(out: IO[str], word: str) -> int:
    """Reads what the child says up to a word; returns the number behind it."""
    for line in out:
        said, number = line.split()
        if said == word:
            return int(number)
    raise RuntimeError("the child that saves ended by itself")


def kill_in_save(
    bench: Bench, kind: str, folder: Path, number: int, rng: np.random.Generator
) -> tuple[list[str], float]:
    """Lets a child save twice and kills it in the next save; its last word, and seconds of one."""
    process = bench.start([sys.executable, "-c", CHILD, kind, str(folder), str(number)])
    assert process.stdout is not None and process.stderr is not None
    try:
        await_word(process.stdout, "end")  # the first imports and is slow
        await_word(process.stdout, "begin")
        began = time.perf_counter()
        await_word(process.stdout, "end")
        seconds = time.perf_counter() - began
        await_word(process.stdout, "begin")
        time.sleep(rng.uniform(0, seconds))
    except RuntimeError as error:
        raise RuntimeError(f"{error}: {process.communicate()[1]}") from error
    finally:
        process.kill()
    rest = process.communicate()[0].split()
    return rest[-2:], seconds


def saves(bench: Bench, *, count: int, seed: int) -> Saves:
    """Kills ``count`` saves, half of each kind, and reads what is left after each."""
    rng = np.random.default_rng(seed)
    hit, problems = dict.fromkeys(KINDS, 0), []
    missed = went_back = files = size = 0
    timed = []
    lone = bench.folder / "saved-once"
    checkpoint.save(lone, tree_of(0), {})
    whole = observing.files_below(lone)
    for kind in KINDS:
        folder, number = bench.folder / f"saves-{kind}", 0
        folder.mkdir()
        while sum(hit.values()) < (count if kind == KINDS[-1] else count // 2):
            last, seconds = kill_in_save(bench, kind, folder, number, rng)
            timed.append(seconds)
            found_files, found_size = observing.files_below(folder)
            files, size = max(files, found_files), max(size, found_size)
            expected = number + 2  # the save that was killed
            if last and last[0] == "end":  # later than meant: between two saves, or in a later one
                missed += 1
                expected = int(last[1])
                if missed > 4 * count:
                    problems.append(f"{missed} kills hit no save")
                    return Saves(hit, missed, went_back, 0.0, whole, (files, size), problems)
            elif last and last[0] == "begin":
                expected = int(last[1])
                hit[kind] += 1
            else:
                hit[kind] += 1
            found = newest(kind, folder)
            if found is None or found[0] not in (expected - 1, expected):
                problems.append(f"{kind} {expected}: {found and found[0]} is the newest whole tree")
                number = expected
                continue
            went_back += found[0] < expected
            if differing := [k for k, v in tree_of(found[0]).items() if not same(v, found[1][k])]:
                problems.append(f"{kind} {found[0]}: {differing[0]} is not what was saved")
            number = found[0] + 1  # the next child begins over what the killed save left
    # a kill leaves the trees that are kept, one more that is whole, and one torn
    if files > (KEEP + 2) * whole[0] or size > (KEEP + 2) * whole[1]:
        problems.append(f"{files} files and {size} bytes lie there, of one tree {whole}")
    median = float(np.median(timed))
    return Saves(hit, missed, went_back, median, whole, (files, size), problems)


def same(expected: np.ndarray, found: np.ndarray) -> bool:
    """Whether two arrays agree in type, shape and every bit."""
    alike = (expected.dtype, expected.shape) == (found.dtype, found.shape)
    return alike and expected.tobytes() == np.ascontiguousarray(found).tobytes()
