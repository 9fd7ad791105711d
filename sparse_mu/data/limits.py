"""How many rows of a source are kept, and whether they fit in memory."""

import os

import numpy as np

from sparse_mu.data.types import DataError, Source


def of_tests(limit: int) -> int:
    """How many test rows go with the first ``limit`` training rows: a fifth, at least one."""
    return max(1, limit // 5)


def check_fits(what: str, rows: int, shape: tuple[int, ...]) -> None:
    """Refuses, before anything is allocated, images that cannot stand in this machine's memory.

    Args:
        what: they are called in the message.
        rows: number of images.
        shape: (H, W, C) of one, a byte each.

    Raises:
        DataError: they are larger than the physical memory.
    """
    needed = rows * int(np.prod(shape, dtype=object))
    if not hasattr(os, "sysconf"):  # then numpy says so when it allocates
        return
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise DataError(
            f"{what}: {rows:,} images of {'x'.join(map(str, shape))} bytes are "
            f"{needed / 2**30:,.1f} GiB, this machine has {memory / 2**30:,.1f} GiB of memory; "
            "set dataset.reading=stream, or a smaller dataset.limit or dataset.image_size"
        )


def first_rows(source: Source, limit: int | None) -> Source:
    """The first ``limit`` training and the first ``of_tests(limit)`` test rows; None: all."""
    if limit is None:
        return source
    tests = of_tests(limit)
    ids, numbers = source.train_ids, source.train_rows
    return source._replace(
        train_inputs=source.train_inputs[:limit],
        train_labels=source.train_labels[:limit],
        train_ids=None if ids is None else ids[:limit],
        test_inputs=source.test_inputs[:tests],
        test_labels=source.test_labels[:tests],
        train_rows=None if numbers is None else numbers[:limit],
    )


def spread(count: int, limit: int | None) -> np.ndarray:
    """``limit`` of ``count`` rows, evenly spread, int64 ascending; all where fewer are there."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.arange(limit) * count // limit


def spread_rows(source: Source, limit: int | None) -> Source:
    """``limit`` training and ``of_tests(limit)`` test rows, evenly spread; None: all.

    Rows that are sorted by class keep the share of every class so. Each training row keeps its
    number (``Source.train_rows``).
    """
    if limit is None:
        return source
    train = spread(len(source.train_labels), limit)
    test = spread(len(source.test_labels), of_tests(limit))
    ids, numbers = source.train_ids, source.train_rows
    return source._replace(
        train_inputs=source.train_inputs[train],
        train_labels=source.train_labels[train],
        train_ids=None if ids is None else [ids[row] for row in train],
        test_inputs=source.test_inputs[test],
        test_labels=source.test_labels[test],
        train_rows=train if numbers is None else numbers[train],
    )


def of_classes(source: Source, classes: tuple[int, ...]) -> Source:
    """The rows of some classes alone, which are numbered anew in the order given.

    Each training row keeps its number (``Source.train_rows``). Images are copied.

    Args:
        source: the data set.
        classes: distinct, each 0..K-1.

    Raises:
        DataError: if one of them has no training or no test row.
    """
    number = np.full(len(source.class_names), -1, np.int32)
    number[list(classes)] = np.arange(len(classes), dtype=np.int32)
    train, test = (number[labels] for labels in (source.train_labels, source.test_labels))
    for kind, found in (("training", train), ("test", test)):
        missing = sorted(set(range(len(classes))) - set(found.tolist()))
        if missing:
            name = source.class_names[classes[missing[0]]]
            raise DataError(f"{source.name}: class {name!r} has no {kind} row")
    rows, tests = np.flatnonzero(train >= 0), np.flatnonzero(test >= 0)
    ids, numbers = source.train_ids, source.train_rows
    return source._replace(
        train_inputs=source.train_inputs[rows],
        train_labels=train[rows],
        train_ids=None if ids is None else [ids[row] for row in rows],
        test_inputs=source.test_inputs[tests],
        test_labels=test[tests],
        class_names=tuple(source.class_names[label] for label in classes),
        train_rows=rows if numbers is None else numbers[rows],
    )
