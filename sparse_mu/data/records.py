"""The records of a prepared TFDS data set: the image file, label and name of a row each.

Whoever reads such a data set reads it here, through TFDS and without TensorFlow: the images at once
(``sources.py``), or one by one when they are needed (``encoded.py``).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sparse_mu.data import tfds_folder
from sparse_mu.data.tfds_folder import Located
from sparse_mu.data.types import DataError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

READ_ROWS = 250  # records fetched per call
ID_FEATURES = ("id", "file_name")  # the first that a data set has names its rows


class Stored(NamedTuple):
    """A data set opened by TFDS: which features are read, and how its images are decoded."""

    located: Located
    builder: "tfds.core.DatasetBuilder"
    features: Any  # tfds.features.FeaturesDict, whose own types are of no help
    id_feature: str | None
    grey: bool
    size: int
    shape: tuple[int | None, int | None]
    class_names: tuple[str, ...]


class Row(NamedTuple):
    """One record: the bytes of its image file, its label, and its name where rows have names."""

    image: bytes
    label: int
    name: str | None


class Files:
    """Records by number; made to be pickled for other processes."""

    def __init__(
        self,
        records: Sequence[bytes],
        features: "tfds.features.FeaturesDict",
        id_feature: str | None,
    ) -> None:
        """Of serialised examples; the features to be read of them, and which names a row."""
        self._records, self._features, self._id_feature = records, features, id_feature

    def __len__(self) -> int:
        """How many records."""
        return len(self._records)

    def rows(self, numbers: Sequence[int]) -> list[Row]:
        """Some records.

        Raises:
            ValueError, OSError, RuntimeError, IndexError: their files are damaged.
        """
        found = whole_records(self._records, numbers)
        return [self._row(*pair) for pair in zip(numbers, found, strict=True)]

    def _row(self, number: int, record: bytes) -> Row:
        import tensorflow_datasets as tfds

        skip = {"image": tfds.decode.SkipDecoding()}
        example: Any = self._features.deserialize_example_np(record, decoders=skip)
        absent = [feature for feature, value in example.items() if value is None]
        if absent:
            raise ValueError(f"record {number} has no {absent[0]}")
        name = None if self._id_feature is None else example[self._id_feature].decode()
        return Row(example["image"], example["label"], name)

    def __getitems__(self, numbers: Sequence[int]) -> list[bytes]:
        """The image files of some records; raises as :meth:`rows`."""
        return [row.image for row in self.rows(numbers)]


def refuse_limit(limit: int | None) -> None:
    """Raises ValueError where ``limit`` rows are to be read and that is none."""
    if limit is not None and limit < 1:
        raise ValueError(f"dataset.limit is {limit}; at least 1 is needed")


def whole_records(records: Sequence[bytes], numbers: Sequence[int]) -> list[bytes]:
    """Some serialised examples of a TFDS source.

    Of a file that is cut where a block of array_record ends, records come back empty and without
    any error.

    Raises:
        ValueError: a record is empty.
    """
    found = records.__getitems__(numbers)  # pyrefly: ignore[missing-attribute]  (TFDS's)
    for number, record in zip(numbers, found, strict=True):
        if not record:
            raise ValueError(f"record {number} is empty")
    return found


def open_located(located: Located, image_size: int) -> Stored:
    """Opens a data set by TFDS, its images to be brought to ``image_size``; reads no row.

    Raises:
        DataError: it has no images or classes, or images of many sizes and no ``image_size``.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(located.folder, file_format="array_record")
        features = dict(builder.info.features.items())
    except Exception as error:  # whatever the parsers of damaged descriptions raise
        raise unreadable(located, "dataset_info.json, features.json", error) from error
    image, label = features.get("image"), features.get("label")
    if not isinstance(image, tfds.features.Image) or not isinstance(
        label, tfds.features.ClassLabel
    ):
        raise DataError(
            f"{located.full_name} has the features {', '.join(sorted(features))}; an image called "
            "image and a class called label are needed"
        )
    if image.np_dtype != np.uint8 or not label.num_classes:
        raise DataError(
            f"{located.full_name} has images of {image.np_dtype} and {label.num_classes} "
            "classes; images of bytes and named classes are needed"
        )
    shape = (image.shape[0], image.shape[1])
    if None in shape and not image_size:
        raise DataError(
            f"{located.full_name} has images of many sizes; set dataset.image_size, the side that "
            "all are brought to, such as 224"
        )
    id_feature = next((key for key in ID_FEATURES if key in features), None)
    wanted = ("image", "label") if id_feature is None else ("image", "label", id_feature)
    return Stored(
        located=located,
        builder=builder,
        features=tfds.features.FeaturesDict({key: features[key] for key in wanted}),
        id_feature=id_feature,
        grey=image.shape[2] == 1,
        size=0 if shape == (image_size, image_size) else image_size,
        shape=shape,
        class_names=tuple(label.names),
    )


def files_of(stored: Stored, split: str) -> Files:
    """The records of a split, or of several such as ``train+test``; reads none of them.

    Raises:
        DataError: TFDS cannot open them.
    """
    import tensorflow_datasets as tfds

    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    try:
        records = stored.builder.as_data_source(split=split, deserialize_method=raw)
    except (OSError, RuntimeError, ValueError) as error:
        raise unreadable(stored.located, split, error) from error
    return Files(records, stored.features, stored.id_feature)


def read(stored: Stored, files: Files, numbers: np.ndarray, what: str) -> Iterator[Row]:
    """Reads ``int64[n]`` records in that order, ``READ_ROWS`` at a time.

    Raises:
        DataError: one of them cannot be read; it calls them ``what``.
    """
    for start in range(0, len(numbers), READ_ROWS):
        try:
            rows = files.rows(numbers[start : start + READ_ROWS].tolist())
        except (OSError, RuntimeError, ValueError, IndexError) as error:
            raise unreadable(stored.located, what, error) from error
        yield from rows


def classes(stored: Stored, labels: np.ndarray, numbers: np.ndarray, what: str) -> np.ndarray:
    """The ``int64[n]`` labels of ``int64[n]`` records as int32[n].

    Raises:
        DataError: some are of no class; it calls the records ``what``.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= len(stored.class_names)))
    if len(wrong):
        raise DataError(
            f"{stored.located.full_name} ({what}): {len(wrong)} of {len(labels)} rows have no "
            f"class, the first is row {numbers[wrong[0]]}"
        )
    return labels.astype(np.int32)


def unreadable(located: Located, what: str, error: Exception) -> DataError:
    """The error of files that are there and cannot be read; ``what`` of them."""
    reason = (str(error) or type(error).__name__).partition("\n")[0]
    again = tfds_folder.command(located.name, located.data_dir)
    return DataError(
        f"{located.full_name} ({what}) in {located.folder} cannot be read: {reason}; delete that "
        f"folder and prepare it again: {again}"
    )


@contextmanager
def quiet_absl() -> Iterator[None]:
    """Holds back TFDS's warnings, such as the one that OpenCV is not installed."""
    from absl import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
