"""How the official archives of each data set become rows: one pure function per data set.

A recipe takes ``files``, the path of each archive by its official name, and ``features``, what
TFDS says that a row holds. It returns for each split an iterator over ``(key, row)``: TFDS orders
the rows by a hash of the key, so keys are those of TFDS's own code, and so are the rows.
"""

import os
import posixpath
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from sparse_mu.data import archives

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

Files = dict[str, Path]
Rows = Iterator[tuple[int | str, dict[str, Any]]]  # (key, row) pairs
Features = Any  # a tfds.features.FeaturesDict


def cifar10(files: Files, features: Features) -> dict[str, Rows]:
    """CIFAR-10: five files of 10,000 training images and one of test images."""
    train = [f"data_batch_{number}.bin" for number in range(1, 6)]
    names = {"label": "batches.meta.txt"}
    return _cifar(
        files["cifar-10-binary.tar.gz"],
        "cifar-10-batches-bin",
        train,
        "test_batch.bin",
        names,
        features,
    )


def cifar100(files: Files, features: Features) -> dict[str, Rows]:
    """CIFAR-100: one file of training and one of test images, with coarse labels before fine."""
    names = {"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"}
    return _cifar(
        files["cifar-100-binary.tar.gz"],
        "cifar-100-binary",
        ["train.bin"],
        "test.bin",
        names,
        features,
    )


def _cifar(
    archive: Path,
    folder: str,
    train: list[str],
    test: str,
    label_names: dict[str, str],
    features: Features,
) -> dict[str, Rows]:
    """Reads a CIFAR archive into memory; ``label_names`` are {feature: file of its names}."""
    with archives.reading(archive):
        wanted = {f"{folder}/{file}" for file in [*train, test, *label_names.values()]}
        read = archives.members(archive, wanted)
        for feature, file in label_names.items():
            text = read[f"{folder}/{file}"].decode()
            features[feature].names = [name for name in text.split("\n") if name]
        limits = {feature: features[feature].num_classes for feature in label_names}
        splits = {"train": train, "test": [test]}
        parts = {
            split: np.concatenate(
                [_cifar_records(file, read[f"{folder}/{file}"], limits) for file in parts]
            )
            for split, parts in splits.items()
        }
    return {split: _cifar_rows(f"{split}_", part, limits) for split, part in parts.items()}


def _cifar_records(file: str, content: bytes, limits: dict[str, int]) -> np.ndarray:
    """uint8[N, labels + 3072] of a file, each label below its limit."""
    width = len(limits) + 3072
    if not content or len(content) % width:
        raise ValueError(f"{file} in it holds {len(content)} bytes, no multiple of {width}")
    records = np.frombuffer(content, np.uint8).reshape(-1, width)
    for column, (feature, limit) in enumerate(limits.items()):
        if records[:, column].max() >= limit:
            raise ValueError(f"{file} in it holds a {feature} above {limit - 1}")
    return records


def _cifar_rows(prefix: str, records: np.ndarray, limits: dict[str, int]) -> Rows:
    from PIL import Image

    for index, record in enumerate(records):
        planes = record[len(limits) :].reshape(3, 32, 32)
        row = dict(zip(limits, record.tolist(), strict=False))  # the labels stand before the pixels
        image = Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))
        yield index, {**row, "id": f"{prefix}{index:05d}", "image": image}


def svhn(files: Files, features: Features) -> dict[str, Rows]:
    """SVHN's training and test digits, cropped; its split ``extra`` is left out."""
    del features
    return {
        split: _svhn_rows(f"{split}_", files[f"{split}_32x32.mat"]) for split in ("train", "test")
    }


def _svhn_rows(prefix: str, file: Path) -> Rows:
    import scipy.io
    from PIL import Image

    with archives.reading(file):
        held = scipy.io.loadmat(os.fspath(file), variable_names=("X", "y"))
        images, labels = held["X"], held["y"].reshape(-1)
        if images.shape != (32, 32, 3, len(labels)) or images.dtype != np.uint8:
            raise ValueError(
                f"its X is {images.dtype}{list(images.shape)}, not uint8[32, 32, 3, {len(labels)}]"
            )
        if labels.min() < 1 or labels.max() > 10:
            raise ValueError("its y holds labels outside 1..10")
    for index, label in enumerate(labels.tolist()):
        image = Image.fromarray(np.ascontiguousarray(images[..., index]))
        # the digit 0 is filed as 10
        yield index, {"image": image, "label": label % 10, "id": f"{prefix}{index:06d}"}


def oxford_pets(files: Files, features: Features) -> dict[str, Rows]:
    """Oxford-IIIT Pets: 37 breeds, with species, trimap and the box around the head.

    Images stay as they are, but for twelve that TFDS lists as damaged and encodes anew.
    """
    del features
    archive = files["annotations.tar.gz"]
    lists = {"train": "annotations/trainval.txt", "test": "annotations/test.txt"}
    with archives.reading(archive):
        notes = {name: content.read() for name, content in archives.tar_files(archive)}
        archives.refuse_missing(lists.values(), notes)
        listed = {
            split: dict(_pet(line, notes) for line in notes[file].decode().splitlines() if line)
            for split, file in lists.items()
        }
    images = files["images.tar.gz"]
    return {split: _pet_rows(images, rows) for split, rows in listed.items()}


def _pet(line: str, notes: dict[str, bytes]) -> tuple[str, dict[str, Any]]:
    """The name in a line of a list, and its row but for the image."""
    name, label, species, _ = line.split()
    mask = f"annotations/trimaps/{name}.png"
    archives.refuse_missing([mask], notes)
    archives.refuse_no_image(mask, notes[mask])
    if not (1 <= int(label) <= 37 and 1 <= int(species) <= 2):
        raise ValueError(f"{name} in it has label {label} and species {species}")
    row = {
        "label": int(label) - 1,
        "species": int(species) - 1,
        "file_name": f"{name}.jpg",
        "segmentation_mask": notes[mask],
        "head_bbox": _head(notes.get(f"annotations/xmls/{name}.xml")),
    }
    return name, row


def _head(xml: bytes | None) -> "tfds.features.BBox":
    """The box of a head as fractions of the image; the empty box where there is no file."""
    import tensorflow_datasets as tfds

    if xml is None:
        return tfds.features.BBox(0.0, 0.0, 0.0, 0.0)
    root = ElementTree.fromstring(xml)

    def number(path: str) -> float:
        return float(root.findtext(path, ""))

    width, height = number("size/width"), number("size/height")
    box = "object/bndbox/"
    return tfds.features.BBox(
        ymin=number(box + "ymin") / height,
        xmin=number(box + "xmin") / width,
        ymax=number(box + "ymax") / height,
        xmax=number(box + "xmax") / width,
    )


def _pet_rows(archive: Path, rows: dict[str, dict[str, Any]]) -> Rows:
    from tensorflow_datasets.datasets.oxford_iiit_pet import (
        oxford_iiit_pet_dataset_builder as stock,
    )

    seen = set()
    with archives.reading(archive):
        for path, content in archives.tar_files(archive):
            folder, _, file = path.rpartition("/")
            name = file.removesuffix(".jpg")
            if folder != "images" or name not in rows or name == file:
                continue
            seen.add(name)
            encoded = content.read()
            archives.refuse_no_image(path, encoded)
            if name in stock._CORRUPT_SAMPLES:
                encoded = archives.jpeg(path, encoded, quality=95)
            yield file, {**rows[name], "image": encoded}
        archives.refuse_missing(
            [f"images/{n}.jpg" for n in rows], {f"images/{n}.jpg" for n in seen}
        )


def sun397(files: Files, features: Features, partition: int | None = None) -> dict[str, Rows]:
    """SUN397: scenes of at most 120,000 pixels, encoded anew as JPEG of quality 95.

    TFDS makes images smaller and encodes them with OpenCV, this with Pillow: sizes are the same,
    pixels differ by rounding, at most 1 of 255 before they are encoded (on noise of 60 sizes).

    Args:
        files: the archives.
        features: of the rows.
        partition: 1..10, an official partition into train and test; None is TFDS's own random one
            into train, validation and test (70, 10 and 20%).
    """
    import tensorflow_datasets as tfds

    if partition is None:
        stock = {"train": "tr", "test": "te", "validation": "va"}
        texts = {
            split: tfds.core.tfds_path(f"image_classification/sun397_tfds_{part}.txt").read_text()
            for split, part in stock.items()
        }
    else:
        names = {"train": f"Training_{partition:02d}.txt", "test": f"Testing_{partition:02d}.txt"}
        texts = _sun_lists(files["Partitions.zip"], names)
    classes = set(features["label"].names)
    return {
        split: _sun_rows(
            files["SUN397.tar.gz"], {line.strip() for line in text.splitlines()}, classes
        )
        for split, text in texts.items()
    }


def _sun_lists(archive: Path, names: dict[str, str]) -> dict[str, str]:
    """The text of the list of each split; ``names`` are {split: file}."""
    with archives.reading(archive), zipfile.ZipFile(archive) as lists:
        paths = {posixpath.basename(path): path for path in lists.namelist()}
        archives.refuse_missing(names.values(), paths)
        return {split: lists.read(paths[name]).decode() for split, name in names.items()}


def _sun_rows(archive: Path, wanted: set[str], classes: set[str]) -> Rows:
    """Rows of the images ``wanted``, such as "/a/abbey/sun_aaaulhwrhqgejnyt.jpg"."""
    from tensorflow_datasets.datasets.sun397 import sun397_dataset_builder as stock

    with archives.reading(archive):
        for path, content in archives.tar_files(archive):
            name = path.removeprefix("SUN397")
            if name not in wanted or path in stock._SUN397_IGNORE_IMAGES:
                continue
            label = posixpath.dirname(name)
            if label not in classes:
                raise ValueError(f"{path} in it is of no known class")
            image = archives.jpeg(path, content.read(), quality=95, most_pixels=120_000)
            yield name, {"file_name": name, "image": image, "label": label}


def imagenet(files: Files, features: Features) -> dict[str, Rows]:
    """ImageNet's training and validation images as they are; its test split has no labels.

    Twenty-three training images of other kinds (CMYK, PNG) become RGB JPEGs, as in TFDS.
    """
    import tensorflow_datasets as tfds

    text = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text()
    classes = set(features["label"].names)
    return {
        "train": _imagenet_train(files["ILSVRC2012_img_train.tar"], classes),
        "validation": _imagenet_validation(files["ILSVRC2012_img_val.tar"], text.split()),
    }


def _imagenet_train(archive: Path, classes: set[str]) -> Rows:
    """Rows of an archive of archives, one per class, such as "n01440764.tar"."""
    from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder as stock

    others = {*stock.CMYK_IMAGES, *stock.PNG_IMAGES}
    with archives.reading(archive):
        for inner, images in archives.tar_files(archive):
            label = inner.removesuffix(".tar")
            if label not in classes:
                raise ValueError(f"{inner} in it is the archive of no known class")
            for name, content in archives.tar_files(images):
                encoded = content.read()
                archives.refuse_no_image(f"{inner}/{name}", encoded)
                if name in others:
                    encoded = archives.jpeg(name, encoded, quality=100)
                yield name, {"file_name": name, "image": encoded, "label": label}


def _imagenet_validation(archive: Path, labels: list[str]) -> Rows:
    """Rows of the validation images; number n has the n-th of ``labels``."""
    with archives.reading(archive):
        for name, content in archives.tar_files(archive):
            numbered = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", name)
            if not numbered or not 1 <= int(numbered[1]) <= len(labels):
                raise ValueError(f"{name} in it is no validation image")
            encoded = content.read()
            archives.refuse_no_image(name, encoded)
            label = labels[int(numbered[1]) - 1]
            yield name, {"file_name": name, "image": encoded, "label": label}
