"""Where images come from: scikit-learn's digits, or a prepared TFDS directory.

A source is decoded once into uint8 arrays in memory; TensorFlow is not used and nothing is ever
downloaded here.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

DIGITS_TEST_FRACTION = 0.25
READ_ROWS = 250  # records fetched per call


class DataError(Exception):
    """Data that are missing or cannot be read; the message is one line that says what to do."""


class Source(NamedTuple):
    """A data set in memory.

    Attributes:
        name: of the data set.
        train_inputs: uint8[N, H, W, C].
        train_labels: int32[N].
        train_ids: N names of the training rows; None where the data set has none.
        test_inputs: uint8[M, H, W, C].
        test_labels: int32[M].
        class_names: K names; label k is called ``class_names[k]``.
    """

    name: str
    train_inputs: np.ndarray
    train_labels: np.ndarray
    train_ids: list[str] | None
    test_inputs: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]


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


def tfds_images(name: str, data_dir: str | Path, limit: int | None = None) -> Source:
    """Reads an image classification data set that TFDS has prepared as array_record.

    Rows are in storage order. Images need the features "image" (of one fixed size) and "label";
    "id" becomes the row names where it exists.

    Args:
        name: TFDS name, such as "cifar10" or "cifar10:3.0.2".
        data_dir: directory that holds the prepared data set.
        limit: keeps the first ``limit`` training and the first ``max(1, limit // 5)`` test rows,
            and reads no others; None keeps all.

    Returns:
        The source, decoded.

    Raises:
        DataError: the data set is unknown, not prepared in ``data_dir``, has no fixed-size images
            or no labels, or its files cannot be read.
        ValueError: ``limit`` is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"dataset.limit is {limit}; at least 1 is needed")
    with _quiet_absl():
        builder = _prepared(name, data_dir)
    features = builder.info.features
    test_limit = None if limit is None else max(1, limit // 5)
    train_inputs, train_labels, train_ids = _read(builder, "train", limit)
    test_inputs, test_labels, _ = _read(builder, "test", test_limit)
    return Source(
        name=name,
        train_inputs=train_inputs,
        train_labels=train_labels,
        train_ids=train_ids,
        test_inputs=test_inputs,
        test_labels=test_labels,
        class_names=tuple(features["label"].names),
    )


@contextmanager
def _quiet_absl() -> Iterator[None]:
    """Holds back TFDS's warnings: a missing data set is our one line, not theirs."""
    from absl import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _prepared(name: str, data_dir: str | Path) -> "tfds.core.DatasetBuilder":
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (ValueError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"TFDS knows no data set {name!r}: {reason}") from error
    if not builder.is_prepared() or builder.info.file_format.value != "array_record":
        raise DataError(
            f"{name} is not prepared as array_record in {data_dir}; where TensorFlow is "
            f"installed, run: tfds build {name} --file_format=array_record --data_dir={data_dir}"
        )
    features = builder.info.features
    if "image" not in features or "label" not in features:
        raise DataError(
            f"{name} has the features {', '.join(features)}; image and label are needed"
        )
    if None in features["image"].shape:
        raise DataError(f"{name} has images of many sizes; only one fixed size fits in memory")
    for split in ("train", "test"):
        if split not in builder.info.splits:
            raise DataError(
                f"{name} has no split {split!r}; it has {', '.join(builder.info.splits)}"
            )
    return builder


def _read(
    builder: "tfds.core.DatasetBuilder", split: str, limit: int | None
) -> tuple[np.ndarray, np.ndarray, list[str] | None]:
    """Reads inputs uint8[N, H, W, C], labels int32[N] and ids of the first rows of a split."""
    import tensorflow_datasets as tfds

    n_rows = builder.info.splits[split].num_examples
    n_rows = n_rows if limit is None else min(limit, n_rows)
    features = builder.info.features
    inputs = np.empty((n_rows, *features["image"].shape), np.uint8)
    labels = np.empty(n_rows, np.int32)
    ids = [] if "id" in features else None
    try:
        rows = builder.as_data_source(
            split=f"{split}[:{n_rows}]", decoders={"image": tfds.decode.SkipDecoding()}
        )
        for start in range(0, n_rows, READ_ROWS):
            chunk = range(start, min(start + READ_ROWS, n_rows))
            for row, record in zip(chunk, rows.__getitems__(chunk), strict=True):
                inputs[row] = _decode(record["image"], inputs.shape[1:])
                labels[row] = record["label"]
                if ids is not None:
                    ids.append(record["id"].decode())
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{builder.name} ({split}) cannot be read: {reason}") from error
    return inputs, labels, ids


def _decode(encoded: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Decodes PNG or JPEG bytes to uint8[H, W, C], grey for C = 1 and RGB otherwise."""
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("L" if shape[-1] == 1 else "RGB")).reshape(shape)
