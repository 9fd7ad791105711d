"""Which images an experiment reads, from a config."""

import numpy as np

from sparse_mu.config import ConfigError, Flat
from sparse_mu.data import own_arrays, own_images, sources
from sparse_mu.data.limits import first_rows
from sparse_mu.data.types import Source


def read_source(flat: Flat) -> Source:
    """Reads ``dataset.name``: digits, folder, npz, or else a data set of TFDS.

    Raises:
        ConfigError: a key is set that this source has no use for.
        sparse_mu.data.types.DataError: it is missing, or cannot be read as it is.
    """
    name, place = flat["dataset.name"], flat["dataset.data_dir"]
    limit, size = flat["dataset.limit"] or None, flat["dataset.image_size"]
    cache_dir = flat["dataset.cache_dir"]
    if name == "digits":
        if size:
            raise ConfigError(f"config.dataset.image_size = {size}: digits are 8x8; must be 0")
        return first_rows(sources.digits(), limit)
    if name == "folder":
        return own_images.folder(place, limit, image_size=size, cache_dir=cache_dir)
    if name == "npz":
        return own_arrays.npz(place, limit, image_size=size)
    return sources.tfds_images(name, place, limit, image_size=size, cache_dir=cache_dir)


def gathered(inputs: np.ndarray, rows: np.ndarray, more: np.ndarray) -> np.ndarray:
    """``inputs[rows]`` and then ``more``, in one new array: the images are copied once.

    Args:
        inputs: uint8[N, H, W, C], possibly mapped from a file.
        rows: int64[n], each 0..N-1.
        more: uint8[M, H, W, C].

    Returns:
        uint8[n + M, H, W, C].
    """
    joined = np.empty((len(rows) + len(more), *inputs.shape[1:]), np.uint8)
    # any mode but "raise" writes into out directly
    np.take(inputs, rows, axis=0, out=joined[: len(rows)], mode="clip")
    joined[len(rows) :] = more
    return joined
