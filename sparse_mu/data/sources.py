"""Where images come from: scikit-learn's digits, or a prepared TFDS directory.

A source is decoded once into uint8 arrays, kept in a cache (``cache.py``) and mapped from there
afterwards; TensorFlow is not used and nothing is ever downloaded here. The user's own images are in
``own_images.py``.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sparse_mu.data import cache, pictures, records, tfds_folder
from sparse_mu.data.limits import check_fits, first_rows, of_tests
from sparse_mu.data.records import Stored
from sparse_mu.data.tfds_folder import Located
from sparse_mu.data.types import Source

DIGITS_TEST_FRACTION = 0.25


def digits() -> Source:
    """Reads the 1,797 digits that scikit-learn carries, 8x8 pixels and one channel.

    Values 0..16 become bytes by ``round(v * 255 / 16)``. Classes in ascending order, the test part
    is ``default_rng(0).choice`` of ``int(n_c / 4)`` of the n_c rows of class c without
    replacement; both parts keep scikit-learn's order.

    Returns:
        A source of 1,352 training and 445 test rows.
    """
    from sklearn.datasets import load_digits

    values, targets = load_digits(return_X_y=True)
    inputs = np.round(np.asarray(values) * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = np.asarray(targets).astype(np.int32)
    rng = np.random.default_rng(0)
    test = np.zeros(len(labels), bool)
    for label in range(10):
        rows = np.flatnonzero(labels == label)
        test[rng.choice(rows, int(DIGITS_TEST_FRACTION * len(rows)), replace=False)] = True
    return Source(
        name="digits",
        train_inputs=inputs[~test],
        train_labels=labels[~test],
        train_ids=None,
        test_inputs=inputs[test],
        test_labels=labels[test],
        class_names=tuple(str(label) for label in range(10)),
    )


def tfds_images(
    name: str,
    data_dir: str | Path,
    limit: int | None = None,
    *,
    image_size: int = 0,
    cache_dir: str = "",
) -> Source:
    """Reads an image classification data set that TFDS has prepared as array_record.

    Rows are in storage order. The set needs the features "image" and "label"; "id", or else
    "file_name", becomes the row names where it exists. The test rows are those of ``test``, or of
    ``validation`` (``tfds_folder.locate``). Images of one channel stay grey, all others become RGB
    (``pictures.decode``).

    The whole set, decoded, is kept in a cache and mapped into memory from there, without TFDS, as
    long as the files of the data set are the same ones.

    Args:
        name: TFDS name, such as "cifar10" or "cifar10:3.0.2".
        data_dir: directory that holds the prepared data set.
        limit: keeps the first ``limit`` training and the first ``max(1, limit // 5)`` test rows,
            and decodes no others; None keeps all. A part is not cached.
        image_size: side that images are brought to by ``pictures.fit``; 0 leaves them as stored,
            and a set whose images all have that size already is left as stored, too. Needed for a
            set of many sizes.
        cache_dir: where the cache stands; "" is ``data_dir/.sparse_mu``, or where that cannot be
            written the user's cache folder.

    Returns:
        The source.

    Raises:
        DataError: the data set is unknown, not prepared in ``data_dir``, has images of many sizes
            and no ``image_size``, no images or no labels, does not fit in memory, or its files
            cannot be read; or ``cache_dir`` cannot be written.
        ValueError: ``limit`` is below 1.
    """
    records.refuse_limit(limit)
    located = tfds_folder.locate(name, data_dir)
    facts = [os.fspath(located.folder.resolve()), located.files, located.test_split, image_size]
    entry = cache.entry_of(located.full_name, facts, data_dir, cache_dir)
    source = cache.load(entry)
    if source is None and limit is None:
        source = cache.store(entry, _decoded(located, None, image_size))
    elif source is None:
        source = _decoded(located, limit, image_size)
    return first_rows(source, limit)._replace(name=name)


def _decoded(located: Located, limit: int | None, image_size: int) -> Source:
    """Reads the first rows of both splits through TFDS."""
    with records.quiet_absl():
        stored = records.open_located(located, image_size)
        train = _read(stored, "train", limit)
        test = _read(stored, located.test_split, None if limit is None else of_tests(limit))
    return Source(
        name=located.full_name,
        train_inputs=train.inputs,
        train_labels=train.labels,
        train_ids=train.ids,
        test_inputs=test.inputs,
        test_labels=test.labels,
        class_names=stored.class_names,
    )


class _Rows(NamedTuple):
    """The first rows of a split: uint8[N, H, W, C], int32[N], N names or None."""

    inputs: np.ndarray
    labels: np.ndarray
    ids: list[str] | None


def _read(stored: Stored, split: str, limit: int | None) -> _Rows:
    """Decodes the first rows of a split."""
    located = stored.located
    n_rows = located.splits[split]
    n_rows = n_rows if limit is None else min(limit, n_rows)
    height, width = (stored.size, stored.size) if stored.size else stored.shape
    shape = (height or 0, width or 0, 1 if stored.grey else 3)
    check_fits(f"{located.full_name} ({split})", n_rows, shape)
    inputs = np.empty((n_rows, *shape), np.uint8)
    labels, ids, numbers = np.empty(n_rows, np.int64), [], np.arange(n_rows)
    files = records.files_of(stored, split)
    for number, row in enumerate(records.read(stored, files, numbers, split)):
        labels[number] = row.label
        ids.append(row.name)
        try:
            picture = pictures.decode(row.image, grey=stored.grey, size=stored.size)
            if picture.shape != shape:
                raise pictures.PictureError(f"it is of shape {picture.shape}, not {shape}")
        except pictures.PictureError as error:
            name = f" ({row.name})" if row.name else ""
            what = f"{split}, the image of row {number}{name}"
            raise records.unreadable(located, what, error) from error
        inputs[number] = picture
    labels = records.classes(stored, labels, numbers, split)
    return _Rows(inputs, labels, None if stored.id_feature is None else ids)
