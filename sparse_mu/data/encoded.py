"""The images of a prepared TFDS data set as files: decoded only when they are read.

What stands in memory are the labels and names of the rows. They are read once, which reads every
record, and cached beside the data as decoded images are (``cache.py``).
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sparse_mu.data import cache, records, tfds_folder
from sparse_mu.data.limits import first_rows, of_tests
from sparse_mu.data.records import Files, Stored
from sparse_mu.data.types import DataError, Source


class Encoded(NamedTuple):
    """A data set of encoded images.

    Attributes:
        source: its labels, names and classes; ``inputs`` are the numbers of its records, int64.
        files: its image files by record number.
        resized: whether images are of another size than asked for; else they are left as stored.
        digest: stands for the files it is in, wherever their folder stands.
    """

    source: Source
    files: Files
    resized: bool
    digest: str


def tfds_files(
    name: str,
    data_dir: str | Path,
    limit: int | None = None,
    *,
    image_size: int,
    cache_dir: str = "",
) -> Encoded:
    """Opens a data set that TFDS has prepared as array_record; see :func:`sources.tfds_images`.

    Args:
        name: TFDS name, such as "imagenet2012".
        data_dir: directory that holds the prepared data set.
        limit: the first ``limit`` training, the first ``max(1, limit // 5)`` test rows; None: all.
        image_size: side that images will be brought to.
        cache_dir: where labels and names are kept; "" is ``data_dir/.sparse_mu``, or where that
            cannot be written the user's cache folder.

    Raises:
        DataError: the data set is unknown, not prepared, without images, labels, or cannot be read.
        ValueError: ``limit`` is below 1.
    """
    records.refuse_limit(limit)
    located = tfds_folder.locate(name, data_dir)
    facts = [located.files, located.test_split, "labels"]
    digest = cache.entry_of(located.full_name, facts, data_dir, cache_dir).key
    facts = [os.fspath(located.folder.resolve()), *facts]
    entry = cache.entry_of(located.full_name, facts, data_dir, cache_dir)
    train, test = located.splits["train"], located.splits[located.test_split]
    with records.quiet_absl():
        stored = records.open_located(located, image_size)
        if stored.grey:
            raise DataError(f"{name} has images of one channel; only RGB can be streamed")
        files = records.files_of(stored, f"train+{located.test_split}")
        source = cache.load(entry)
        if source is None:
            if limit is None:
                source = cache.store(entry, _labels(stored, files, train, np.arange(train + test)))
            else:
                first = np.arange(min(limit, train))
                tests = train + np.arange(min(of_tests(limit), test))
                source = _labels(stored, files, len(first), np.concatenate([first, tests]))
    source = first_rows(source, limit)._replace(name=name)
    return Encoded(source, files, resized=bool(stored.size), digest=digest)


def _labels(stored: Stored, files: Files, train: int, numbers: np.ndarray) -> Source:
    """Reads labels and names of some records, the first ``train`` of them of the training rows."""
    labels, ids = np.empty(len(numbers), np.int64), []
    for place, row in enumerate(records.read(stored, files, numbers, "its labels")):
        labels[place] = row.label
        ids.append(row.name)
    labels = records.classes(stored, labels, numbers, "its labels")
    return Source(
        name=stored.located.full_name,
        train_inputs=numbers[:train],
        train_labels=labels[:train],
        train_ids=None if stored.id_feature is None else ids[:train],
        test_inputs=numbers[train:],
        test_labels=labels[train:],
        class_names=stored.class_names,
    )
