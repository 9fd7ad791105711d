"""Rows that are decoded when they are read, from a config."""

import functools
import hashlib
import logging

import numpy as np

from sparse_mu.config import Flat
from sparse_mu.data import duplicates, encoded, hash_cache, streams
from sparse_mu.types import Streamed

HASHED_ROWS = 256  # read at once

logger = logging.getLogger(__name__)


def open_files(flat: Flat) -> encoded.Encoded:
    """Opens the TFDS data set of the config; its inputs are the numbers of its image files.

    Raises:
        sparse_mu.data.types.DataError: it is missing, or cannot be read as it is.
    """
    return encoded.tfds_files(
        flat["dataset.name"],
        flat["dataset.data_dir"],
        flat["dataset.limit"] or None,
        image_size=flat["dataset.image_size"],
        cache_dir=flat["dataset.cache_dir"],
    )


def build_stream(
    flat: Flat, files: encoded.Encoded, stored: np.ndarray, labels: np.ndarray
) -> Streamed:
    """The rows of an experiment as a stream.

    Args:
        flat: the config.
        files: the opened data set.
        stored: ``int64[N]``, the image file of each row.
        labels: ``int32[N]``.
    """
    size = flat["dataset.image_size"]
    stream = streams.Stream(
        name=files.source.name,
        files=files.files,
        stored=stored,
        labels=labels,
        size=size,
        resized=files.resized,
        augmented=flat["train.augment"] == "resized_crop_flip",
        workers=flat["dataset.workers"],
    )
    rows = hashlib.sha256(np.ascontiguousarray(stored).tobytes()).hexdigest()[:16]
    return Streamed(
        shape=(len(stored), size, size, 3),
        labels=labels,
        read=functools.partial(streams.read, stream),
        digest=f"{files.digest} at {size}, rows {rows}",
    )


def stream_hashes(flat: Flat, stream: Streamed) -> duplicates.Hashes:
    """What the images of a stream are compared by, un-augmented; kept on disk once it is known.

    Args:
        flat: the config.
        stream: the rows of its experiment.

    Raises:
        sparse_mu.data.types.DataError: an image cannot be read or decoded.
    """
    count = stream.shape[0]
    name, places = flat["dataset.name"], (flat["dataset.data_dir"], flat["dataset.cache_dir"])
    entry = hash_cache.entry_of(name, stream.digest, *places)
    kept = hash_cache.load(entry, count)
    if kept is not None:
        return kept
    logger.warning(  # the lowest level that is shown; ImageNet takes two hours of two cores
        "%s: all %s images are read once to find copies of forget images; "
        "config.forget.duplicates='skip' leaves that out",
        name, f"{count:,}",
    )  # fmt: skip
    rows = np.arange(-(-count // HASHED_ROWS) * HASHED_ROWS) % count
    read = stream.read(rows.reshape(-1, HASHED_ROWS), None)
    found = duplicates.joined([duplicates.hashes(images) for images in read], count)
    hash_cache.store(entry, found)
    return found
