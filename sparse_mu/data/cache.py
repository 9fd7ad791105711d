"""Decoded images kept on disk, so that a data set is decoded once.

An entry is a folder ``<name>-<fingerprint>`` of ``.npy`` files, mapped into memory when read, and a
``meta.json``. It is complete or not there: written beside under another name, then renamed, so two
processes may fill it at once. What it was made from is in the fingerprint; an entry of other files
is never read.
"""

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sparse_mu.data.types import DataError, Source

VERSION = 1  # of what an entry holds and of how images are decoded; raise it when either changes
_ARRAYS = ("train_inputs", "train_labels", "test_inputs", "test_labels")
_ABANDONED = 3600  # seconds; an entry is written in far less
_DAMAGED = (OSError, ValueError, EOFError, KeyError, TypeError)  # what reading an entry may raise
# an entry while it is written: .KEY.PROCESS-DRAW.tmp; _write makes the name
_WRITING = re.compile(r"\..+-[0-9a-f]{16}\.[0-9]+-[0-9a-f]{8}\.tmp")
_FULL = (errno.ENOSPC, errno.EDQUOT)

logger = logging.getLogger(__name__)


class Entry(NamedTuple):
    """Where a decoded data set is kept.

    Attributes:
        key: the folder's name.
        places: folders it may stand in, the first that can be written takes it.
        chosen: whether the user chose the place.
    """

    key: str
    places: tuple[Path, ...]
    chosen: bool


def entry_of(name: str, facts: object, beside: str | Path, cache_dir: str) -> Entry:
    """The entry of a data set.

    Args:
        name: of the data set, the beginning of the key.
        facts: all that the decoded arrays depend on, as JSON-able values: the files with sizes and
            times, the image size.
        beside: the folder of the data; its ``.sparse_mu`` comes first, the user's cache folder
            (``$XDG_CACHE_HOME/sparse_mu/data``) second.
        cache_dir: ``dataset.cache_dir``; where it is not empty, the only place.
    """
    digest = hashlib.sha256(json.dumps([VERSION, name, facts]).encode()).hexdigest()[:16]
    key = f"{name.replace('/', '-').replace(':', '-')}-{digest}"
    if cache_dir:
        return Entry(key, (Path(os.path.expanduser(cache_dir)),), chosen=True)
    user = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return Entry(key, (Path(beside) / ".sparse_mu", user / "sparse_mu" / "data"), chosen=False)


def load(entry: Entry) -> Source | None:
    """The data set of an entry, its arrays mapped into memory; None where it is not kept.

    A damaged entry counts as not kept, with a warning.
    """
    for place in entry.places:
        folder = place / entry.key
        try:
            if folder.is_dir():
                return _read(folder)
        except _DAMAGED as error:
            reason = str(error).partition("\n")[0]
            logger.warning("the decoded images in %s are damaged: %s", folder, reason)
    return None


def store(entry: Entry, source: Source) -> Source:
    """Keeps a data set, in the first place that takes it.

    It is kept whole: ``source.train_rows`` must be None.

    Where none does, a warning says why and the data set stays in memory: nothing is lost but the
    time to decode it again.

    Returns:
        The data set, mapped from its new place, or ``source`` itself.

    Raises:
        DataError: the place that the user chose cannot be written for another reason than a full
            disk.
    """
    reason = ""
    for place in entry.places:
        try:
            kept = _write(place, entry.key, source)
        except OSError as error:
            reason = f"{place}: {error.strerror or error}"
            if entry.chosen and error.errno not in _FULL:
                raise DataError(
                    f"dataset.cache_dir={place} cannot be written: {error.strerror or error}"
                ) from error
            continue
        if place != entry.places[0]:
            logger.warning("decoded images are kept in %s (%s)", place / entry.key, reason)
        return kept
    logger.warning("decoded images are not kept, the next run decodes again: %s", reason)
    return source


def _read(folder: Path) -> Source:
    """Reads a complete entry; raises what :func:`load` catches when it is not as written."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    arrays = {}
    for name in _ARRAYS:
        try:
            array = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        except Exception as error:  # of a damaged header numpy, ast and tokenize raise many kinds
            raise ValueError(f"{name}.npy: {str(error) or type(error).__name__}") from error
        if [*array.shape] != meta["shapes"][name] or array.dtype != meta["dtypes"][name]:
            raise ValueError(f"{name}.npy is not of the shape and type it was written with")
        arrays[name] = array
    for name in ("train_labels", "test_labels"):
        labels = arrays[name]
        if labels.min() < 0 or labels.max() >= len(meta["class_names"]):
            raise ValueError(f"{name}.npy has labels of no class")
    ids = meta["train_ids"]
    if ids is not None and len(ids) != len(arrays["train_labels"]):
        raise ValueError("meta.json has not one id per training row")
    return Source(
        name=meta["name"], train_ids=ids, class_names=tuple(meta["class_names"]), **arrays
    )


def _write(place: Path, key: str, source: Source) -> Source:
    place.mkdir(parents=True, exist_ok=True)
    _sweep(place)
    folder = place / key
    temporary = place / f".{key}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        temporary.mkdir()
        arrays = {name: getattr(source, name) for name in _ARRAYS}
        for name, array in arrays.items():
            _save(temporary / f"{name}.npy", np.ascontiguousarray(array))
        meta = {
            "name": source.name,
            "class_names": source.class_names,
            "train_ids": source.train_ids,
            "shapes": {name: array.shape for name, array in arrays.items()},
            "dtypes": {name: array.dtype.str for name, array in arrays.items()},
        }
        with open(temporary / "meta.json", "w", encoding="utf-8") as file:
            json.dump(meta, file)
            file.flush()
            os.fsync(file.fileno())
        return _publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _save(path: Path, array: np.ndarray) -> None:
    """Writes a ``.npy``; ``np.save`` would not say that the disk is full."""
    with open(path, "wb") as file:
        header = np.lib.format.header_data_from_array_1_0(array)
        np.lib.format.write_array_header_1_0(file, header)
        file.write(array.data)
        file.flush()
        os.fsync(file.fileno())


def _publish(temporary: Path, folder: Path) -> Source:
    """Renames an entry into place; one that another process put there meanwhile is as good."""
    try:
        return _read(folder)
    except _DAMAGED:
        if folder.exists():  # damaged
            os.replace(folder, temporary / "damaged")
            shutil.rmtree(temporary / "damaged")
    try:
        os.replace(temporary, folder)
    except OSError:
        if not folder.is_dir():
            raise
    try:
        return _read(folder)
    except _DAMAGED as error:
        raise OSError(errno.EIO, f"{folder} is not read back as written: {error}") from error


def _sweep(place: Path) -> None:
    """Removes the entries that killed processes left half-written, and nothing else."""
    for left in place.glob(".*.tmp"):  # the user's folder, too, may be the place
        if not _WRITING.fullmatch(left.name) or left.is_symlink() or not left.is_dir():
            continue
        try:
            abandoned = time.time() - left.stat().st_mtime > _ABANDONED
        except OSError:  # its owner has just renamed it
            continue
        if abandoned:
            shutil.rmtree(left, ignore_errors=True)
