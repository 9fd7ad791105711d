"""The data sets that can be prepared, and the official archives that each is made from."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from sparse_mu.data import recipes
from sparse_mu.data.recipes import Features, Files, Rows


class Archive(NamedTuple):
    """An official file.

    Attributes:
        file: its official name.
        url: where TFDS downloads it, or where a person gets it.
        size: bytes.
        page: where a person registers for it; "" where TFDS can download it.
    """

    file: str
    url: str
    size: int
    page: str = ""


class Recipe(NamedTuple):
    """A data set.

    Attributes:
        archives: what it is made from.
        splits: ``(files, features) -> {split: rows}``; see the module.
        growth: bytes of the prepared data set for each byte of its archives, roughly.
    """

    archives: tuple[Archive, ...]
    splits: Callable[[Files, Features], dict[str, Rows]]
    growth: float


def find(name: str) -> Recipe:
    """The recipe of a data set.

    Raises:
        ValueError: there is none; names those there are.
    """
    if name not in RECIPES:
        raise ValueError(f"no recipe for {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]


_CIFAR = "https://www.cs.toronto.edu/~kriz/"
_SVHN = "http://ufldl.stanford.edu/housenumbers/"
_PETS = "https://thor.robots.ox.ac.uk/~vgg/data/pets/"
_SUN = "https://vision.princeton.edu/projects/2010/SUN/"
_IMAGENET = "http://www.image-net.org/challenges/LSVRC/2012/nnoupb/"
_REGISTER = "https://image-net.org/download-images"
_SUN_IMAGES = Archive("SUN397.tar.gz", f"{_SUN}SUN397.tar.gz", 39_077_296_924)
_SUN_LISTS = Archive("Partitions.zip", f"{_SUN}download/Partitions.zip", 18_293_705)


def _archive(folder: str, file: str, size: int, page: str = "") -> Archive:
    return Archive(file, folder + file, size, page)


RECIPES = {
    "cifar10": Recipe(
        (_archive(_CIFAR, "cifar-10-binary.tar.gz", 170_052_171),), recipes.cifar10, 0.8
    ),
    "cifar100": Recipe(
        (_archive(_CIFAR, "cifar-100-binary.tar.gz", 168_513_733),), recipes.cifar100, 0.8
    ),
    "svhn_cropped": Recipe(
        (
            _archive(_SVHN, "train_32x32.mat", 182_040_794),
            _archive(_SVHN, "test_32x32.mat", 64_275_384),
        ),
        recipes.svhn,
        0.9,
    ),
    "oxford_iiit_pet": Recipe(
        (
            _archive(_PETS, "images.tar.gz", 791_918_971),
            _archive(_PETS, "annotations.tar.gz", 19_173_078),
        ),
        recipes.oxford_pets,
        1.0,
    ),
    "imagenet2012": Recipe(
        (
            _archive(_IMAGENET, "ILSVRC2012_img_train.tar", 147_897_477_120, _REGISTER),
            _archive(_IMAGENET, "ILSVRC2012_img_val.tar", 6_744_924_160, _REGISTER),
        ),
        recipes.imagenet,
        1.0,
    ),
    "sun397": Recipe((_SUN_IMAGES,), recipes.sun397, 0.12),
    "sun397/tfds": Recipe((_SUN_IMAGES,), recipes.sun397, 0.12),
    **{
        f"sun397/standard-part{number}-120k": Recipe(
            (_SUN_IMAGES, _SUN_LISTS), functools.partial(recipes.sun397, partition=number), 0.03
        )
        for number in range(1, 11)
    },
}
