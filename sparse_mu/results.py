"""``results.jsonl``: the rows of a run, a line each, only ever added to.

A line is a row and, as ``check``, a digest of it, so a byte that changed on disk is found in
whichever row it stands. A line without its end was torn by a kill and is cut off before the next
one is written. The rows of an arm are written together, trial after trial; they count if all are
there, and the last such set of an arm counts. The line :data:`ANEW` takes back all lines above it.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from sparse_mu import checkpoint
from sparse_mu.workdir import Workdir, WorkdirError

ANEW = {"anew": "the lines above no longer count"}
_CHECK = "check"


class Results(NamedTuple):
    """What a file of results holds.

    Attributes:
        rows: of every arm whose rows are all there; by sparsity, method and trial.
        damaged: the numbers, from 1, of the lines that are not as they were written.
        state: device, inode and size of the file; None if there is none.
        end: bytes of its whole lines; what comes after was torn by a kill.
    """

    rows: list[dict]
    damaged: tuple[int, ...]
    state: tuple[int, int, int] | None
    end: int


def line(row: dict) -> str:
    """A row as it stands in the file."""
    return json.dumps({**row, _CHECK: _digest(row)}) + "\n"


def read(file: Path, trials: int) -> Results:
    """Reads the rows of a run of so many trials; changes nothing.

    Raises:
        WorkdirError: if there is a file and it cannot be read.
    """
    if file.exists() and not file.is_file():
        raise WorkdirError(f"{file}: is no file")
    try:
        with open(file, "rb") as opened:
            content = opened.read()
            state = _state(opened.fileno())
    except FileNotFoundError:
        return Results([], (), None, 0)
    except OSError as error:
        raise WorkdirError(f"{file}: cannot be read ({error.strerror})") from error
    *lines, torn = content.split(b"\n")
    arms: dict[tuple[str, float], list[dict]] = {}
    damaged: list[int] = []
    together: list[dict] = []  # rows of one arm in lines that follow each other
    for number, text in enumerate(lines, start=1):
        row = _parse(text)
        if row is None or row == ANEW:
            together = []
            if row is None:
                damaged.append(number)
            else:
                arms, damaged = {}, []
            continue
        if row["trial"] != len(together) or (together and _arm(row) != _arm(together[0])):
            together = []
        if row["trial"] == len(together):
            together.append(row)
        if len(together) == trials:
            arms[_arm(row)], together = together, []
    rows = in_order(row for arm in arms.values() for row in arm)
    return Results(rows, tuple(damaged), state, len(content) - len(torn))


def read_whole(file: Path, trials: int) -> list[dict]:
    """The rows, where no line may be lost.

    Raises:
        WorkdirError: if the file cannot be read, or naming the first line that is damaged.
    """
    found = read(file, trials)
    if found.damaged:
        raise WorkdirError(
            f"{damage(file, found)}; run without --report_only, and what it said is judged again"
        )
    return found.rows


def damage(file: Path, found: Results) -> str:
    """Names the first line that is damaged, and how many others are."""
    others = f", as are {len(found.damaged) - 1} more" if len(found.damaged) > 1 else ""
    return f"{file}, line {found.damaged[0]}: is damaged{others}"


def append(
    workdir: Workdir, found: Results, rows: Sequence[dict], *, anew: bool = False
) -> Results:
    """Adds rows to the file, on the disk when this returns.

    A file that is no longer the one that was read or written last, or is gone, is written again
    with all rows that are known: no row is lost to whoever deleted or changed it.

    Args:
        workdir: where.
        found: what the file holds.
        rows: the rows of whole arms, trial after trial.
        anew: whether nothing that was in the file counts any longer.

    Returns:
        What the file holds now.

    Raises:
        WorkdirError: if the disk does not take them; the file is as it was.
    """
    workdir.check_is_there()
    replaced = {_arm(row) for row in rows}
    kept = [] if anew else [row for row in found.rows if _arm(row) not in replaced]
    text = "".join(map(line, [ANEW, *rows] if anew and found.end else rows))
    damaged = () if anew else found.damaged
    try:
        state = _extend(workdir.results, found, text.encode())
        if state is None:
            damaged = ()
            checkpoint.write_atomically(workdir.results, "".join(map(line, [*kept, *rows])))
            _sync_folder(workdir.path)
            state = _state(workdir.results)
    except OSError as error:
        raise WorkdirError(f"{workdir.results}: cannot be written ({error.strerror})") from error
    return Results(in_order([*kept, *rows]), damaged, state, state[-1])


def in_order(rows: Iterable[dict]) -> list[dict]:
    """The rows by sparsity, method and trial, in whichever order they were written."""
    return sorted(rows, key=lambda row: (row["sparsity"], row["method"], row["trial"]))


def _digest(row: dict) -> str:
    text = json.dumps(row, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _parse(text: bytes) -> dict | None:
    """The row of a line, or :data:`ANEW`; None if the line is not as it was written."""
    try:
        row = json.loads(text.decode())  # of bytes, json would guess the encoding
        if row.pop(_CHECK) != _digest(row):
            return None
        kinds = type(row.get("method")), type(row.get("trial"))
        is_row = kinds == (str, int) and row["sparsity"] >= 0
        return row if is_row or row == ANEW else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _arm(row: dict) -> tuple[str, float]:
    return row["method"], row["sparsity"]


def _extend(path: Path, found: Results, text: bytes) -> tuple[int, int, int] | None:
    """Writes at the end of the last whole line; None if the file is not the one found."""
    try:
        file = open(path, "r+b", buffering=0)
    except FileNotFoundError:
        return None
    with file:
        if _state(file.fileno()) != found.state:
            return None
        try:
            file.truncate(found.end)
            _write(file, found.end, text)
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(found.end)
            raise
        return _state(file.fileno())


def _write(file: FileIO, start: int, text: bytes) -> None:
    file.seek(start)
    rest = memoryview(text)
    while rest:
        rest = rest[file.write(rest) :]
    os.fsync(file.fileno())


def _state(file: int | Path) -> tuple[int, int, int]:
    status = os.stat(file)
    return status.st_dev, status.st_ino, status.st_size


def _sync_folder(folder: Path) -> None:
    """Makes a file's name as durable as its content."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
