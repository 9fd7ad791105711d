"""Which images an experiment reads, from a config."""

from collections.abc import Sequence

import numpy as np

from sparse_mu.config import ConfigError, Flat
from sparse_mu.data import forget_sets, own_arrays, own_images, sources
from sparse_mu.data.limits import first_rows, of_classes
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


def of_kept_classes(flat: Flat, source: Source, group: str = "dataset") -> Source:
    """The rows of ``dataset.classes`` alone; all where it names none.

    Raises:
        ConfigError: one of them does not exist, or several stand for one.
        sparse_mu.data.types.DataError: one of them has no rows.
    """
    entries, names = flat[f"{group}.classes"], source.class_names
    if not entries:
        return source
    said = f"config.{group}.classes = {entries!r}:"
    try:
        meant = forget_sets.class_entries(entries, names)
    except forget_sets.ForgetSetError as error:
        raise ConfigError(f"{said} {error}") from error
    for entry, classes in zip(entries, meant, strict=True):
        if len(classes) != 1 or not 0 <= classes[0] < len(names):
            raise ConfigError(f"{said} {entry!r} is no class of 0..{len(names) - 1}")
    return of_classes(source, tuple(classes[0] for classes in meant))


def gathered(inputs: np.ndarray, rows: np.ndarray, more: Sequence[np.ndarray]) -> np.ndarray:
    """``inputs[rows]`` and then all of ``more``, in one new array: the images are copied once.

    Args:
        inputs: uint8[N, H, W, C], possibly mapped from a file.
        rows: int64[n], each 0..N-1.
        more: arrays uint8[M, H, W, C].

    Returns:
        uint8[n + sum of M, H, W, C].
    """
    count = len(rows) + sum(map(len, more))
    joined = np.empty((count, *inputs.shape[1:]), np.uint8)
    # any mode but "raise" writes into out directly
    np.take(inputs, rows, axis=0, out=joined[: len(rows)], mode="clip")
    at = len(rows)
    for part in more:
        joined[at : at + len(part)] = part
        at += len(part)
    return joined
