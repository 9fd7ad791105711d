"""The workdir: who owns it, which config made it, and the stages finished so far."""

import collections
import contextlib
import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sparse_mu import checkpoint
from sparse_mu.config import ConfigError, Flat
from sparse_mu.types import PyTree, Streamed

_CONFIG, _LOCK = "config.json", "lock"


class WorkdirError(Exception):
    """A workdir that cannot be used; one line that says why."""


def fingerprint(*parts: object) -> str:
    """A short digest of JSON-able parts, arrays and streams: what a stage's result depends on."""
    digest = hashlib.sha256()
    for part in parts:
        part = part.digest if isinstance(part, Streamed) else part
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            digest.update(json.dumps(part, sort_keys=True).encode())
    return digest.hexdigest()[:16]


class Stage(NamedTuple):
    """A stage's result: its arrays, its scalars, and the fingerprint later stages build on."""

    tree: PyTree
    meta: dict
    fingerprint: str


class Workdir(NamedTuple):
    """A workdir that this process holds; made by :func:`held`."""

    path: Path
    trials: int

    @property
    def results(self) -> Path:
        """One JSON line per method, sparsity and trial."""
        return self.path / "results.jsonl"

    def stage(
        self,
        name: str,
        depends_on: tuple[object, ...],
        make: Callable[[], tuple[PyTree, Mapping[str, object]]],
        like: PyTree,
    ) -> Stage:
        """Restores a finished stage, or makes and saves it.

        Args:
            name: the stage's name, the first part of its folder's.
            depends_on: everything its result depends on.
            make: computes its tree and its JSON-able scalars.
            like: the structure, shapes and types of the tree.
        """
        print_ = fingerprint(name, *depends_on)
        folder = self.path / "stages" / f"{name}-{print_}"
        if checkpoint.is_finished(folder):
            return Stage(*checkpoint.restore(folder, like), print_)
        tree, meta = make()
        checkpoint.save(folder, tree, meta)
        return Stage(tree, dict(meta), print_)

    def read_rows(self) -> list[dict]:
        """The rows of every arm whose rows are all there.

        A torn last line is not a row, and the arm that it belonged to is judged again.

        Raises:
            WorkdirError: if any other line is not a row.
        """
        if not self.results.exists():
            return []
        lines = self.results.read_bytes().split(b"\n")[:-1]
        rows, counts = [], collections.Counter()
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                counts[row["method"], row["sparsity"]] += 1
            except (ValueError, TypeError, KeyError) as error:
                raise WorkdirError(
                    f"{self.results}, line {number}: is not a row of results; delete the file, "
                    "and the same command writes it again"
                ) from error
            rows.append(row)
        return [row for row in rows if counts[row["method"], row["sparsity"]] == self.trials]

    def append_rows(self, rows: list[dict], known: list[dict]) -> None:
        """Adds rows: all of them, or none if the process is killed.

        Args:
            rows: the rows to add.
            known: all rows that are already there.
        """
        text = "".join(json.dumps(row) + "\n" for row in [*known, *rows])
        checkpoint.write_atomically(self.results, text)


@contextlib.contextmanager
def held(path: Path, config: Flat, *, may_be_new: bool = True) -> Iterator[Workdir]:
    """Makes or opens a workdir for one config and one process.

    Args:
        path: the folder.
        config: the flat config, kept as ``config.json``.
        may_be_new: whether a folder that holds no run yet may become a workdir.

    Raises:
        ConfigError: if another config made the folder; names the first key that differs.
        WorkdirError: if it cannot be read or written, or another process holds it.
    """
    is_new = examine(path, config)
    if is_new and not may_be_new:
        raise WorkdirError(f"workdir {path}: has no results yet; run without --report_only")
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / _LOCK, "a+", encoding="utf-8")
    except OSError as error:
        raise WorkdirError(f"workdir {path}: cannot be written ({error.strerror})") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise WorkdirError(f"workdir {path}: is held by {lock.read().strip()}") from error
        except OSError as error:
            raise WorkdirError(f"workdir {path}: cannot be locked ({error.strerror})") from error
        if examine(path, config):  # again: nobody else can change it now
            checkpoint.write_atomically(path / _CONFIG, json.dumps(dict(config), indent=1))
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield Workdir(path, config["trials"])


def examine(path: Path, config: Flat) -> bool:
    """Whether ``path`` would be a new workdir, not one that ``config`` made; changes nothing.

    Raises:
        ConfigError: if another config made the folder; names the first key that differs.
        WorkdirError: if it cannot be read, or holds other things.
    """
    try:
        inside = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
        found = _CONFIG in inside and (path / _CONFIG).read_text(encoding="utf-8")
        before = json.loads(found) if found is not False else None
    except OSError as error:
        raise WorkdirError(f"workdir {path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise WorkdirError(f"workdir {path}: {_CONFIG} is damaged ({error})") from error
    if found is False:
        others = [name for name in inside if name not in (_LOCK, f"{_CONFIG}.tmp")]
        if others:
            raise WorkdirError(
                f"workdir {path}: holds {others[0]!r} and no {_CONFIG}; "
                "give an empty or a new folder"
            )
        return True
    if not isinstance(before, dict):
        raise WorkdirError(f"workdir {path}: {_CONFIG} is damaged (it holds no config)")
    now = json.loads(json.dumps(dict(config)))
    for key in [*now, *(before.keys() - now.keys())]:
        if before.get(key) != now.get(key):
            raise ConfigError(
                f"config.{key} = {now.get(key)!r}: workdir {path} was made with "
                f"{before.get(key)!r}; give that value, or another --workdir"
            )
    return False
