"""Hashes of streamed images kept on disk: without them every start would decode every image.

One file ``<key>.npz`` in the place of a cache entry (``cache.py``), of 25 bytes an image. It is
complete or not there: written beside under another name, then renamed. What is damaged, of another
size or not there is hashed again by the caller.
"""

import contextlib
import io
import logging
import os
import secrets
from pathlib import Path

import numpy as np

from sparse_mu.data import cache
from sparse_mu.data.duplicates import Hashes

VERSION = 1  # of what a hash is; raise it when duplicates.hashes changes

logger = logging.getLogger(__name__)


def entry_of(name: str, digest: str, data_dir: str | Path, cache_dir: str) -> cache.Entry:
    """Where the hashes of a stream are kept.

    Args:
        name: of the data set.
        digest: of the stream, which stands for its files, its rows and the size of its images.
        data_dir: the folder of the data, part of the key: two may hold files that look the same.
        cache_dir: ``dataset.cache_dir``; "" for the places of :func:`cache.entry_of`.
    """
    facts = [VERSION, digest, os.path.realpath(os.path.expanduser(data_dir))]
    return cache.entry_of(f"{name}-hashes", facts, data_dir, cache_dir)


def load(entry: cache.Entry, count: int) -> Hashes | None:
    """The hashes of ``count`` images; None, with a warning, if they are damaged."""
    for place in entry.places:
        file = place / f"{entry.key}.npz"
        try:
            if file.is_file():
                return _read(file, count)
        except Exception as error:  # of damage zipfile, numpy, ast and tokenize raise many kinds
            reason = str(error).partition("\n")[0]
            logger.warning("the hashes of images in %s are damaged: %s", file, reason)
    return None


def store(entry: cache.Entry, found: Hashes) -> None:
    """Keeps hashes in the first place that takes them; where none does, a warning says why."""
    reason = ""
    for place in entry.places:
        temporary = place / f".{entry.key}.{os.getpid()}-{secrets.token_hex(4)}.npz"
        try:
            place.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                np.savez(file, **{k: v for k, v in found._asdict().items() if v is not None})
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, place / f"{entry.key}.npz")
            return
        except OSError as error:
            reason = f"{place}: {error.strerror or error}"
            with contextlib.suppress(OSError):
                temporary.unlink()
    logger.warning("hashes of images are not kept, the next run reads all again: %s", reason)


def _read(file: Path, count: int) -> Hashes:
    """Raises when the file is not as :func:`store` wrote it for ``count`` images."""
    with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
        if {*arrays.files} | {"picture"} != {*Hashes._fields}:
            raise ValueError(f"it holds {', '.join(arrays.files)}")
        picture = arrays["picture"] if "picture" in arrays.files else None
        found = Hashes(arrays["pixels"], picture, arrays["flat"])
    for array, kind in zip(found, ("S16", "uint64", "bool"), strict=True):
        if array is not None and (array.shape != (count,) or array.dtype != kind):
            raise ValueError(f"it holds {array.dtype}{[*array.shape]}, not {kind}[{count}]")
    return found
