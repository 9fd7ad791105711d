"""The workdir: which config made it, which process owns it, and the stages finished so far.

What decides who owns a workdir is ``flock`` on its file ``lock``, which stays when nobody does. The
kernel frees the lock when its process ends, however it ends, so a lock is never stale and no run
has to guess whether a process number found on disk is still alive, or on which machine. The words
in the file are for people: who holds it, and, where nobody does and it is not empty, who was killed
at work. A file system that has no ``flock`` is refused: there one owner cannot be promised.
"""

import contextlib
import datetime
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TextIO

from absl import logging

from sparse_mu import checkpoint, stages
from sparse_mu.config import ConfigError, Flat
from sparse_mu.stages import Stage, fingerprint
from sparse_mu.standing import Keeper
from sparse_mu.stopping import Stopped, StopRequest
from sparse_mu.types import PyTree

_CONFIG, _LOCK = "config.json", "lock"
LONGEST_RECORD = 200  # characters that are read of a lock
LARGEST_CONFIG = 2**20  # bytes
PATIENCE = 5.0  # seconds that a new owner may take to say who it is


class WorkdirError(Exception):
    """A workdir that cannot be used; one line that says why."""


class Workdir(NamedTuple):
    """A workdir that this process holds; made by :func:`held`.

    Attributes:
        path: the folder.
        trials: of the run.
        every_epochs: between two checkpoints inside a stage.
        keep: how many of these there are at most.
        stop: whether the run was asked to stop.
        lock: device and inode of the file that this process has locked.
    """

    path: Path
    trials: int
    every_epochs: int
    keep: int
    stop: StopRequest
    lock: tuple[int, int]

    @property
    def results(self) -> Path:
        """One JSON line per method, sparsity and trial."""
        return self.path / "results.jsonl"

    def check_is_there(self) -> None:
        """Looks before something is saved that a deleted folder would come back with, half.

        Raises:
            WorkdirError: if the folder or its lock is gone or another one: somebody deleted, moved
                or replaced it under the run.
        """
        try:
            found = _identity(os.stat(self.path / _LOCK))
        except OSError:
            found = None
        if found != self.lock:
            raise WorkdirError(
                f"workdir {self.path}: was deleted or replaced under the run; what it still holds "
                "is whole, and the same command makes the rest"
            )

    def stage(
        self,
        name: str,
        depends_on: tuple[object, ...],
        make: Callable[[Keeper], tuple[PyTree, Mapping[str, object]]],
        like: PyTree,
    ) -> Stage:
        """Restores a finished stage, or makes and saves it.

        Args:
            name: the stage's name, the first part of its folder's.
            depends_on: everything its result depends on.
            make: computes its tree and its JSON-able scalars; goes on from the checkpoints of the
                given keeper.
            like: the structure, shapes and types of the tree.

        Raises:
            Stopped: if it is not finished and the run was asked to stop.
        """
        print_ = fingerprint(name, *depends_on)
        folder = self.path / "stages" / f"{name}-{print_}"
        if (found := stages.finished(folder, like)) is not None:
            return Stage(*found, print_)
        if self.stop.asked():
            raise Stopped
        under_way = folder / stages.UNDER_WAY
        keeper = stages.keeper_in(
            under_way, self.every_epochs, self.keep, self.stop.asked, self.check_is_there
        )
        tree, meta = make(keeper)
        self.check_is_there()
        checkpoint.save(folder, tree, meta)
        shutil.rmtree(under_way, ignore_errors=True)
        return Stage(tree, dict(meta), print_)


@contextlib.contextmanager
def held(
    path: Path, config: Flat, *, may_be_new: bool = True, stop: StopRequest | None = None
) -> Iterator[Workdir]:
    """Makes or opens a workdir for one config and one process.

    Args:
        path: the folder.
        config: the flat config, kept as ``config.json``.
        may_be_new: whether a folder that holds no run yet may become a workdir.
        stop: what asks the run to stop; default: nothing does.

    Raises:
        ConfigError: if another config made the folder; names the first key that differs.
        WorkdirError: if it cannot be read or written, or another process holds it.
    """
    is_new = examine(path, config)
    if is_new and not may_be_new:
        raise WorkdirError(f"workdir {path}: has no results yet; run without --report_only")
    with _locked(path) as lock:
        if examine(path, config):  # again: nobody else can change it now
            try:
                checkpoint.write_atomically(path / _CONFIG, json.dumps(dict(config), indent=1))
            except OSError as error:
                raise _unwritable(path, error) from error
        yield Workdir(
            path,
            trials=config["trials"],
            every_epochs=config["checkpoint.every_epochs"],
            keep=config["checkpoint.keep"],
            stop=StopRequest() if stop is None else stop,
            lock=lock,
        )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[tuple[int, int]]:
    """Takes the lock and says in it who has it; empties it at the end, however the run ends.

    Yields:
        Device and inode of the lock.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / _LOCK, "a+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise _unwritable(path, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WorkdirError(f"workdir {path}: is held by {_owner(lock)}") from error
        except OSError as error:
            raise WorkdirError(f"workdir {path}: cannot be locked ({error.strerror})") from error
        before = _record(lock)
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        try:
            os.truncate(lock.fileno(), 0)
            os.write(
                lock.fileno(),
                f"process {os.getpid()} on {socket.gethostname()} since {now}\n".encode(),
            )
        except OSError as error:
            raise _unwritable(path, error) from error
        if before:
            logging.warning(
                "workdir %s: taking over from %s, which did not end cleanly", path, before
            )
        try:
            yield _identity(os.fstat(lock.fileno()))
        finally:
            with contextlib.suppress(OSError):
                os.truncate(lock.fileno(), 0)


def _record(lock: TextIO) -> str:
    """What a lock says, as one line that a terminal can show."""
    lock.seek(0)
    words = " ".join(lock.read(LONGEST_RECORD).split())
    return "".join(letter for letter in words if letter.isprintable())


def _owner(lock: TextIO) -> str:
    """Who holds a lock; one that took it this moment is given the time to say so."""
    until = time.monotonic() + PATIENCE
    while not (said := _record(lock)) and time.monotonic() < until:
        time.sleep(0.02)
    return said or "another process"


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _unwritable(path: Path, error: OSError) -> WorkdirError:
    return WorkdirError(f"workdir {path}: cannot be written ({error.strerror})")


def _is_readable(file: Path) -> bool:
    """Whether a file is one, not a pipe that is waited on, and not far too large."""
    return file.is_file() and file.stat().st_size <= LARGEST_CONFIG


def examine(path: Path, config: Flat) -> bool:
    """Whether ``path`` would be a new workdir, not one that ``config`` made; changes nothing.

    Raises:
        ConfigError: if another config made the folder; names the first key that differs.
        WorkdirError: if it cannot be read, or holds other things.
    """
    try:
        inside = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
        if _CONFIG in inside and not _is_readable(path / _CONFIG):
            raise WorkdirError(f"workdir {path}: {_CONFIG} is no config of a run")
        found = _CONFIG in inside and (path / _CONFIG).read_text(encoding="utf-8")
        before = json.loads(found) if found is not False else None
    except OSError as error:
        raise WorkdirError(f"workdir {path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
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
