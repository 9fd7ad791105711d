"""Stages: what a result depends on, the result on disk, and the checkpoints on the way to it."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from sparse_mu import checkpoint
from sparse_mu.standing import Keeper, LikeAt, Position, Standing
from sparse_mu.types import PyTree, Streamed

UNDER_WAY = "under_way"  # the folder of a stage that is not finished


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


def finished(folder: Path, like: PyTree) -> tuple[PyTree, dict] | None:
    """What a finished stage holds; None where it is not finished, or damaged (that is said)."""
    if not checkpoint.is_finished(folder):
        return None
    try:
        found = checkpoint.restore(folder, like)
    except checkpoint.DamagedError as error:
        logging.warning("%s is made again: %s", folder.name, error)
        return None
    shutil.rmtree(folder / UNDER_WAY, ignore_errors=True)  # killed before it was taken away
    return found


def keeper_in(
    folder: Path,
    every: int,
    keep: int,
    stop_asked: Callable[[], bool],
    before_saving: Callable[[], None] = lambda: None,
) -> Keeper:
    """Checkpoints of a fit, one folder each, numbered upwards.

    Args:
        folder: where; a stage's own.
        every: epochs of a group between two of them.
        keep: how many there are at most, the newest.
        stop_asked: whether the run was asked to stop.
        before_saving: raises where nothing may be saved.
    """

    def numbered() -> list[Path]:
        """Oldest first, whole or not."""
        inside = folder.iterdir() if folder.is_dir() else ()
        return sorted((path for path in inside if path.name.isdecimal()), key=lambda p: int(p.name))

    def load(like_at: LikeAt) -> tuple[Standing, Position] | None:
        for path in reversed(numbered()):
            if not checkpoint.is_finished(path):
                continue  # killed while it was saved
            try:
                at = Position(**checkpoint.read_meta(path))
                return checkpoint.read_tree(path, like_at(at)), at
            # the others: it was written by a version whose positions are of another form
            except (checkpoint.CheckpointError, TypeError, ValueError) as error:
                logging.warning("going back to the checkpoint before: %s", error)
        return None

    def save(standing: Standing, position: Position) -> None:
        before_saving()
        for path in numbered():
            if not checkpoint.is_finished(path):  # its save was killed; it may fill the disk
                shutil.rmtree(path)
        before = numbered()
        number = int(before[-1].name) + 1 if before else 0
        checkpoint.save(folder / f"{number:06d}", standing, position._asdict())
        for path in numbered()[:-keep]:
            shutil.rmtree(path)

    return Keeper(load, save, every, stop_asked)
