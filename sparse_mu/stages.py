"""The workdir: who owns it, which config made it, and the stages finished so far."""

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
from sparse_mu.config import ConfigError
from sparse_mu.types import PyTree


class WorkdirError(Exception):
    """A workdir that cannot be used; one line that says why."""


def fingerprint(*parts: object) -> str:
    """A short digest of JSON-able parts and arrays: everything a stage's result depends on."""
    digest = hashlib.sha256()
    for part in parts:
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
        """The rows so far; a torn last line, left by a kill, is not one."""
        if not self.results.exists():
            return []
        text = self.results.read_text(encoding="utf-8")
        complete = text[: text.rfind("\n") + 1]
        try:
            return [json.loads(line) for line in complete.splitlines()]
        except json.JSONDecodeError as error:
            raise WorkdirError(f"{self.results}: line {error.lineno} is not JSON") from error

    def append_rows(self, rows: list[dict], known: list[dict]) -> None:
        """Adds rows in one durable write, after cutting off a torn last line.

        Args:
            rows: the rows to add.
            known: all rows that are already there.
        """
        text = "".join(json.dumps(row) + "\n" for row in rows)
        kept = sum(len(json.dumps(row)) + 1 for row in known)
        with open(self.results, "a+", encoding="utf-8") as file:
            if file.seek(0, os.SEEK_END) != kept:
                file.truncate(kept)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def held(path: Path, config: Mapping[str, object]) -> Iterator[Workdir]:
    """Makes or opens a workdir for one config and one process.

    Args:
        path: the folder.
        config: the flat config, kept as ``config.json``.

    Raises:
        ConfigError: if another config made the folder; names the first key that differs.
        WorkdirError: if it cannot be read or written, or another process holds it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / "lock", "a+", encoding="utf-8")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise WorkdirError(f"workdir {path}: cannot be written ({error.strerror})") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            raise WorkdirError(f"workdir {path}: is held by {lock.read().strip()}") from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        _same_config(path, config)
        yield Workdir(path)


def _same_config(path: Path, config: Mapping[str, object]) -> None:
    text = json.dumps(dict(config), indent=1)
    file = path / "config.json"
    if not file.exists():
        others = [entry.name for entry in path.iterdir() if entry.name != "lock"]
        if others:
            raise WorkdirError(
                f"workdir {path}: holds '{sorted(others)[0]}' and no config.json; "
                "give an empty or a new folder"
            )
        checkpoint.write_atomically(file, text)
        return
    try:
        before, now = json.loads(file.read_text(encoding="utf-8")), json.loads(text)
    except (OSError, json.JSONDecodeError) as error:
        raise WorkdirError(f"workdir {path}: config.json cannot be read ({error})") from error
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise ConfigError(
                f"config.{key} = {now.get(key)!r}: workdir {path} was made with "
                f"{before.get(key)!r}; give another --workdir"
            )
