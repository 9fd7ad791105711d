"""The user's own images as a data set: a folder of image files for each class."""

import os
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sparse_mu.data import cache, pictures
from sparse_mu.data.limits import check_fits, of_tests, spread, spread_rows
from sparse_mu.data.regular import stat_file
from sparse_mu.data.types import DataError, Source

LAYOUT = "DIR/train/CLASS/*.png and DIR/test/CLASS/*.png (or .jpg, ...), the same classes in both"
_PARTS = ("train", "test")


def folder(
    data_dir: str | Path, limit: int | None = None, *, image_size: int = 0, cache_dir: str = ""
) -> Source:
    """Reads ``train/<class>/*`` and ``test/<class>/*``, one image a file, as RGB.

    Classes are the names of the folders, sorted; rows are sorted by class, then by file name. A
    row's id is its path below ``data_dir``, such as ``train/cat/001.png``, its number the place in
    that order among all training rows, from 0, whatever ``limit`` keeps. What begins with a dot is
    skipped; anything else must be an image (``pictures.FORMATS``, told by content).

    Args:
        data_dir: the folder above ``train`` and ``test``.
        limit: keeps ``limit`` training and ``max(1, limit // 5)`` test rows, evenly spread, so
            that every class keeps its share, and decodes no others; None keeps all. A part is not
            cached.
        image_size: side that images are brought to by ``pictures.fit``; 0 leaves them as stored,
            and all must have one size.
        cache_dir: where decoded images are kept, as in ``sources.tfds_images``.

    Raises:
        DataError: the layout is another one, a file is no image, images differ in size and no
            ``image_size`` is given, they do not fit in memory, or ``cache_dir`` cannot be written.
    """
    root = Path(os.path.expanduser(data_dir))
    if not root.is_dir():
        file = "a file, set dataset.name=npz" if root.suffix == ".npz" else "no folder"
        raise DataError(f"dataset.data_dir={root} is {file}; the layout is {LAYOUT}")
    try:
        listed = {part: _listed(root, part) for part in _PARTS}
    except OSError as error:
        raise DataError(f"{error.filename or root} cannot be read: {error.strerror}") from error
    _check_classes(root, *(listed[part] for part in _PARTS))
    class_names = tuple(listed["train"])
    files = {part: [file for name in class_names for file in listed[part][name]] for part in _PARTS}
    # two folders may hold files of the same names, sizes and times, and share cache_dir
    facts = [os.fspath(root.resolve()), files, image_size]
    entry = cache.entry_of("folder", facts, root, cache_dir)
    source = cache.load(entry)
    if source is not None:
        return spread_rows(source, limit)._replace(name=root.resolve().name)
    chosen = {
        "train": spread(len(files["train"]), limit),
        "test": spread(len(files["test"]), None if limit is None else of_tests(limit)),
    }
    paths = {part: [files[part][row].path for row in chosen[part]] for part in _PARTS}
    inputs = _decoded(root, paths, image_size)
    number = {name: label for label, name in enumerate(class_names)}
    labels = {
        part: np.array([number[files[part][row].label] for row in chosen[part]], np.int32)
        for part in _PARTS
    }
    source = Source(
        name=root.resolve().name,
        train_inputs=inputs["train"],
        train_labels=labels["train"],
        train_ids=paths["train"],
        test_inputs=inputs["test"],
        test_labels=labels["test"],
        class_names=class_names,
        train_rows=None if limit is None else chosen["train"],
    )
    return cache.store(entry, source) if limit is None else source


class _File(NamedTuple):
    """An image file.

    Attributes:
        path: below the root.
        label: the name of its class.
        size: in bytes.
        written: when its content was last written, as far as tools tell the truth, in ns.
        changed: when anything of it was, which no tool sets, in ns.
    """

    path: str
    label: str
    size: int
    written: int
    changed: int


def _listed(root: Path, part: str) -> dict[str, list[_File]]:
    """The files of each class of one part, both sorted."""
    if not (root / part).is_dir():
        raise DataError(f"{root} has no folder {part}; the layout is {LAYOUT}")
    found = {}
    for name in _visible(root / part):
        if not (root / part / name).is_dir():
            raise DataError(f"{root / part / name} is in no class; the layout is {LAYOUT}")
        found[name] = []
        for file in _visible(root / part / name):
            path = root / part / name / file
            if path.is_dir():
                raise DataError(f"{path} is a folder inside a class; the layout is {LAYOUT}")
            stat = stat_file(path)
            below = f"{part}/{name}/{file}"
            found[name].append(_File(below, name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    return found


def _visible(path: Path) -> list[str]:
    return sorted(name for name in os.listdir(path) if not name.startswith("."))


def _check_classes(root: Path, train: dict[str, list[_File]], test: dict[str, list[_File]]) -> None:
    for here, there, part, other in (
        (train, test, "train", "test"),
        (test, train, "test", "train"),
    ):
        for name in here:
            if name not in there:
                raise DataError(
                    f"{root}: class {name!r} is in {part} and not in {other}; the layout is "
                    f"{LAYOUT}"
                )
            if not here[name]:
                raise DataError(f"{root / part / name} holds no image")
    if len(train) < 2:
        raise DataError(f"{root} has {len(train)} classes, 2 are needed; the layout is {LAYOUT}")


def _decoded(root: Path, paths: dict[str, list[str]], image_size: int) -> dict[str, np.ndarray]:
    """uint8[N, H, W, 3] of each part, all images of the first one's size."""
    with warnings.catch_warnings():  # of what is odd about an image that can be read
        warnings.filterwarnings("ignore", module="PIL")
        first = _picture(root / paths["train"][0], image_size)
        rows = sum(map(len, paths.values()))
        check_fits(str(root), rows, first.shape)
        inputs = {}
        for part in _PARTS:
            inputs[part] = np.empty((len(paths[part]), *first.shape), np.uint8)
            for row, path in enumerate(paths[part]):
                picture = _picture(root / path, image_size)
                if picture.shape != first.shape:
                    raise DataError(
                        f"{root / path} is {_size(picture)} pixels and {paths['train'][0]} is "
                        f"{_size(first)}; set dataset.image_size, the side that all are brought to"
                    )
                inputs[part][row] = picture
    return inputs


def _size(picture: np.ndarray) -> str:
    return f"{picture.shape[1]}x{picture.shape[0]}"


def _picture(path: Path, image_size: int) -> np.ndarray:
    try:
        return pictures.decode(path, size=image_size)
    except pictures.PictureError as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error
