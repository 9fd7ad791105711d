"""The user's own images as a data set: arrays in an ``.npz``."""

import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

import numpy as np

from sparse_mu.data import npy, pictures, splits
from sparse_mu.data.limits import check_fits, spread_rows
from sparse_mu.data.regular import stat_file
from sparse_mu.data.types import DataError, Source

HELD_OUT = 0.2  # fraction of each class that becomes the test set where the user gives one part
HELD_OUT_SEED = 0

_TWO_PARTS = ("train_images", "train_labels", "test_images", "test_labels")
_ONE_PART = ("images", "labels")
_NAMES = ("class_names", "train_ids", "ids")
T = TypeVar("T")
# what zipfile raises on a damaged table of contents
_DAMAGED = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile)


def npz(path: str | Path, limit: int | None = None, *, image_size: int = 0) -> Source:
    """Reads arrays from an ``.npz``, as ``numpy.savez`` writes it.

    Either ``train_images`` and ``test_images`` uint8[N, H, W, C] with ``train_labels`` and
    ``test_labels`` int[N], and if the user likes ``train_ids``, N names of the training rows. Or
    ``images`` and ``labels``, and if the user likes ``ids``: then ``int(0.2 * n_c)`` rows of each
    class c, drawn by ``splits.hold_out`` with seed 0, become the test set, and the id of row r is
    ``row_r`` where none are given. C is 1 or 3, labels are 0..K-1, ``class_names`` names them.
    A training row's number, as lists of rows to forget give it, is its place in ``train_images``,
    or in ``images``, whatever is held out or left out by ``limit``. There is no cache: reading the
    file takes no longer.

    Args:
        path: the file.
        limit: as in ``own_images.folder``.
        image_size: side that images are brought to by ``pictures.fit``; 0 leaves them.

    Raises:
        DataError: the file is absent or damaged, an array is missing, of another type or shape
            (its name is given), does not fit in memory, or a class has no rows.
    """
    path = Path(os.path.expanduser(path))
    with _refused_as_data_error(path):
        stat_file(path)
        found = _arrays(path)
        source = _one_part(found) if "images" in found else _two_parts(found)
        source = spread_rows(source, limit)
        return _fitted(source, image_size)._replace(name=path.stem)


@contextmanager
def _refused_as_data_error(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except _DAMAGED as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{path} cannot be read: {reason.splitlines()[0]}") from error


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays by name, read once their headers are found to hold what is asked of them."""
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            raise DataError("is no .npz file, which numpy.savez writes")
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            members = {
                info.filename.removesuffix(".npy"): info
                for info in archive.infolist()
                if info.filename.endswith(".npy")
            }
            wanted = _ONE_PART if "images" in members else _TWO_PARTS
            for name in wanted:
                if name not in members:
                    raise DataError(
                        f"has no array {name}; wanted are {', '.join(_TWO_PARTS)}, or "
                        f"{' and '.join(_ONE_PART)}"
                    )
            names = [name for name in (*wanted, *_NAMES) if name in members]
            for name in names:
                shape, dtype = _parsed(archive, members[name], npy.header)
                _check_header(name, shape, dtype)
                claimed = members[name].file_size
                if not 0 <= claimed - npy.size(shape, dtype) < 2 * npy.LARGEST_HEADER:
                    raise DataError(f"{name} has {claimed} bytes, not those of its shape {shape}")
            return {name: _parsed(archive, members[name], _array) for name in names}


def _parsed(archive: zipfile.ZipFile, info: zipfile.ZipInfo, parse: Callable[[IO[bytes]], T]) -> T:
    """What is parsed of a member; whatever damage makes it raise becomes a ``ValueError``."""
    try:
        with archive.open(info) as member:
            return parse(member)
    except Exception as error:  # decompressors, numpy, ast and tokenize raise many kinds
        raise ValueError(f"{info.filename}: {str(error) or type(error).__name__}") from error


def _array(member: IO[bytes]) -> np.ndarray:
    return np.lib.format.read_array(member, allow_pickle=False)


def _check_header(name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    given = f"{name} is {dtype}[{', '.join(map(str, shape))}]"
    if name.endswith("images"):
        if dtype != np.uint8:
            raise DataError(f"{given}; images are uint8[N, H, W, C]")
        if len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape:
            raise DataError(f"{given}; images are uint8[N, H, W, C] with C = 1 or 3")
        check_fits(name, shape[0], shape[1:])
    elif len(shape) != 1:
        raise DataError(f"{given}; it must have one dimension")
    elif name.endswith("labels"):
        if dtype.kind not in "iu":
            raise DataError(f"{given}; labels are whole numbers, int[N]")
        check_fits(name, shape[0], (dtype.itemsize,))
    elif dtype.kind != "U":
        raise DataError(f"{given}; names are texts, saved as an array of str")
    else:
        check_fits(name, shape[0], (dtype.itemsize,))


def _two_parts(found: dict[str, np.ndarray]) -> Source:
    for part in ("train", "test"):
        _check_lengths(found, f"{part}_images", f"{part}_labels")
    train, test = found["train_images"], found["test_images"]
    if train.shape[1:] != test.shape[1:]:
        raise DataError(
            f"test_images are of shape {test.shape[1:]} and train_images of {train.shape[1:]}"
        )
    _check_lengths(found, "train_images", "train_ids")
    class_names = _class_names(found, ("train_labels", "test_labels"))
    return Source(
        name="",
        train_inputs=train,
        train_labels=found["train_labels"].astype(np.int32),
        train_ids=_unique(found, "train_ids"),
        test_inputs=test,
        test_labels=found["test_labels"].astype(np.int32),
        class_names=class_names,
    )


def _one_part(found: dict[str, np.ndarray]) -> Source:
    _check_lengths(found, "images", "labels")
    _check_lengths(found, "images", "ids")
    class_names = _class_names(found, ("labels",))
    labels = found["labels"].astype(np.int32)
    train, test = splits.hold_out(labels, HELD_OUT, HELD_OUT_SEED)
    tested = np.bincount(labels[test], minlength=len(class_names))
    if not tested.all():
        few = int(np.argmin(tested))
        raise DataError(
            f"labels has {int((labels == few).sum())} rows of class {few}; "
            f"{round(1 / HELD_OUT)} are needed, of which one is held out as a test row"
        )
    ids = _unique(found, "ids") or [f"row_{row}" for row in range(len(labels))]
    return Source(
        name="",
        train_inputs=found["images"][train],
        train_labels=labels[train],
        train_ids=[ids[row] for row in train],
        test_inputs=found["images"][test],
        test_labels=labels[test],
        class_names=class_names,
        train_rows=train,
    )


def _check_lengths(found: dict[str, np.ndarray], images: str, other: str) -> None:
    if other in found and len(found[other]) != len(found[images]):
        raise DataError(f"{other} has {len(found[other])} rows, {images} has {len(found[images])}")


def _class_names(found: dict[str, np.ndarray], labels: Sequence[str]) -> tuple[str, ...]:
    """The K names; checks that every label array has rows of each of 0..K-1 and of no other."""
    names = found.get("class_names")
    # without names K is told by the labels, and a class needs a row
    most = len(names) if names is not None else len(found[labels[0]])
    for name in labels:
        outside = found[name][(found[name] < 0) | (found[name] >= most)]
        if len(outside):
            whose = "as many as class_names" if names is not None else "and no class without rows"
            raise DataError(f"{name} holds {outside[0]}; labels are 0 to K - 1, {whose}")
    largest = max(int(found[name].max()) for name in labels)
    count = len(names) if names is not None else largest + 1
    if count < 2:
        raise DataError(f"{labels[0]} knows {count} class; 2 are needed")
    for name in labels:
        rows = np.bincount(found[name].astype(np.int64), minlength=count)
        if not rows.all():
            raise DataError(f"{name} has no row of class {np.argmin(rows)} of 0 to {count - 1}")
    return tuple(str(name) for name in (range(count) if names is None else names))


def _unique(found: dict[str, np.ndarray], name: str) -> list[str] | None:
    if name not in found:
        return None
    values, counts = np.unique(found[name], return_counts=True)
    if (counts > 1).any():
        raise DataError(f"{name} holds {str(values[np.argmax(counts)])!r} more than once")
    return [str(value) for value in found[name]]


def _fitted(source: Source, image_size: int) -> Source:
    """The images brought to ``image_size``, unless they have that size."""
    height, width, channels = source.train_inputs.shape[1:]
    if not image_size or height == width == image_size:
        return source
    rows = len(source.train_inputs) + len(source.test_inputs)
    check_fits("resized images", rows, (image_size, image_size, channels))
    return source._replace(
        train_inputs=pictures.fit_all(source.train_inputs, image_size),
        test_inputs=pictures.fit_all(source.test_inputs, image_size),
    )
