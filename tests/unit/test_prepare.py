"""Official archives, fabricated small, become what TFDS reads by its own names: no TensorFlow."""

import io
import resource
import sys

import archives
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import hashing, shuffle

from sparse_mu.data.catalogue import RECIPES
from sparse_mu.data.prepare import prepare

SKIP = tfds.decode.SkipDecoding()


@pytest.fixture(autouse=True)
def no_tensorflow(tmp_path, monkeypatch):
    """Whoever imports TensorFlow, installed or not, fails."""
    decoy = tmp_path / "decoy" / "tensorflow" / "__init__.py"
    decoy.parent.mkdir(parents=True)
    decoy.write_text("raise AssertionError('TensorFlow was imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "decoy"))
    yield
    assert not [name for name in sys.modules if name.partition(".")[0] == "tensorflow"]


def prepared(name, tmp_path, **kwargs):
    """Writes the archives of a data set and prepares it; returns what must be there."""
    folder = tmp_path / "manual"
    expected = archives.WRITERS[name](folder, **kwargs)
    made = prepare(name, tmp_path / "data", folder, checksums=archives.checksums(name, folder))
    assert made.is_new
    if name.startswith("sun397/"):  # our list of partition 1 takes TFDS's test images for training
        expected = {"train": expected["test"], "test": expected["validation"]}
    assert made.rows == {split: len(rows) for split, rows in expected.items()}
    return expected


def read(name, tmp_path, split, **decoders):
    """Rows of a split in storage order, by the stock name."""
    source = tfds.data_source(
        name, split=split, data_dir=tmp_path / "data", download=False, decoders=decoders or None
    )
    return [source[row] for row in range(len(source))]


def in_order(names, keys, split):
    """Names in TFDS's order, which is that of the hashed keys."""
    by_key = dict(zip(keys, names, strict=True))
    hasher = hashing.Hasher(split)
    return [by_key[key] for key in sorted(by_key, key=hasher.hash_key)]


def opened(encoded):
    return Image.open(io.BytesIO(encoded))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn_cropped"])
def test_small_images_come_back_exactly(name, tmp_path):
    for split, expected in prepared(name, tmp_path, rows=5).items():
        rows = read(name, tmp_path, split)
        ids = [row["id"].decode() for row in rows]
        assert ids == in_order(list(expected), range(len(expected)), split)
        for id_, row in zip(ids, rows, strict=True):
            np.testing.assert_array_equal(row.pop("image"), expected[id_].pop("image"))
            assert {key: int(row[key]) for key in expected[id_]} == expected[id_]


def test_the_order_is_that_of_the_published_data_set():
    # TFDS's catalogue shows these images first; our keys are the integers that it hashes
    first = in_order([f"train_{n:05d}" for n in range(50_000)], range(50_000), "train")[:4]
    assert first == ["train_16399", "train_01680", "train_47917", "train_17307"]


def test_names_of_classes_come_from_the_archive(tmp_path):
    prepared("cifar10", tmp_path)
    info = tfds.builder("cifar10", data_dir=tmp_path / "data").info
    assert info.features["label"].names == archives.CIFAR10


def test_pets_come_back_exactly(tmp_path):
    for split, expected in prepared("oxford_iiit_pet", tmp_path).items():
        rows = read("oxford_iiit_pet", tmp_path, split, image=SKIP)
        names = [row["file_name"].decode() for row in rows]
        assert names == in_order(list(expected), list(expected), split)
        for name, row in zip(names, rows, strict=True):
            wanted = expected[name]
            assert (row["label"], row["species"]) == (wanted["label"], wanted["species"])
            np.testing.assert_array_equal(
                row["segmentation_mask"][..., 0], wanted["segmentation_mask"]
            )
            np.testing.assert_allclose(row["head_bbox"], wanted["head_bbox"], rtol=1e-6)  # float32
            if wanted["image"] is None:  # a PNG of four channels, encoded anew
                image = opened(row["image"])
                assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (40, 50))
            else:
                assert row["image"] == wanted["image"]


@pytest.mark.parametrize("name", ["sun397", "sun397/standard-part1-120k"])
def test_scenes_come_back_small_enough(name, tmp_path):
    for split, expected in prepared(name, tmp_path, rows=4).items():
        rows = read(name, tmp_path, split, image=SKIP)
        names = [row["file_name"].decode() for row in rows]
        assert names == in_order(list(expected), list(expected), split)
        classes = tfds.builder(name, data_dir=tmp_path / "data").info.features["label"]
        for path, row in zip(names, rows, strict=True):
            image, wanted = opened(row["image"]), expected[path]
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert classes.int2str(int(row["label"])) == wanted["label"]
            # a ramp through a filter and two JPEGs (a GIF's palette: steps of up to 51 / 2)
            np.testing.assert_allclose(np.asarray(image, int), wanted["pixels"], atol=26)


def test_imagenet_comes_back_exactly(tmp_path):
    for split, expected in prepared("imagenet2012", tmp_path).items():
        rows = read("imagenet2012", tmp_path, split, image=SKIP)
        names = [row["file_name"].decode() for row in rows]
        assert names == in_order(list(expected), list(expected), split)
        classes = tfds.builder("imagenet2012", data_dir=tmp_path / "data").info.features["label"]
        for name, row in zip(names, rows, strict=True):
            assert classes.int2str(int(row["label"])) == expected[name]["label"]
            if expected[name]["image"] is None:  # of four colours
                image = opened(row["image"])
                assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (32, 32))
            else:
                assert row["image"] == expected[name]["image"]


def test_a_split_too_large_for_memory_is_sorted_on_the_disk(tmp_path, monkeypatch):
    # as SUN397's and ImageNet's are, in a thousand files; few may be open, as on a usual machine
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 10_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        expected = prepared("cifar10", tmp_path, rows=70)["train"]
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (200, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    rows = read("cifar10", tmp_path, "train")
    ids = [row["id"].decode() for row in rows]
    assert ids == in_order(list(expected), range(350), "train")
    np.testing.assert_array_equal(rows[0]["image"], expected[ids[0]]["image"])
    folder = tmp_path / "data" / "cifar10" / "3.0.2"
    assert not list(folder.glob("bucket*"))


def test_the_table_of_archives_is_that_of_tfds():
    for name, recipe in RECIPES.items():
        known = tfds.builder_cls(name.partition("/")[0]).url_infos
        for archive in recipe.archives:
            assert archive.size == int(known[archive.url].size)
            assert archive.file == known[archive.url].filename or archive.url.endswith(archive.file)
        dataset, _, config = name.partition("/")
        assert not config or config in tfds.builder_cls(dataset).builder_configs


def test_what_was_prepared_before_is_left_as_it_is(tmp_path):
    prepared("cifar10", tmp_path)
    folder = tmp_path / "data" / "cifar10" / "3.0.2"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = prepare("cifar10", tmp_path / "data", tmp_path / "no such folder")
    assert again == (again.name, "3.0.2", folder, {"train": 20, "test": 4}, False, ())
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_leaves_nothing_beside_the_data_set(tmp_path):
    folder = tmp_path / "data"
    (folder / "incomplete.cifar10" / "half-made").mkdir(parents=True)
    half = folder / "downloads" / "cifar10" / "archive.tmp.0123"
    half.mkdir(parents=True)
    (folder / "cifar10" / "3.0.1").mkdir(parents=True)
    manual = tmp_path / "manual"
    archives.write_cifar10(manual)
    made = prepare("cifar10", folder, manual, checksums=archives.checksums("cifar10", manual))
    assert made.others == (folder / "cifar10" / "3.0.1",)
    assert sorted(path.name for path in folder.iterdir()) == ["cifar10", "downloads"]
    left = sorted(path.name for path in (folder / "downloads").rglob("*"))
    assert left == ["cifar10", "cifar10.lock"]


def test_tfds_is_given_back_as_it_was(tmp_path):
    from tensorflow_datasets.core.download import downloader

    before = shuffle.tf, downloader.MAX_RETRIES, sys.stdout
    prepared("svhn_cropped", tmp_path)
    assert (shuffle.tf, downloader.MAX_RETRIES, sys.stdout) == before


def test_broken_off_images_are_filled_up(tmp_path):
    from sparse_mu.data.archives import jpeg

    whole = archives.encode(archives.smooth(400, 64))
    broken = whole[: len(whole) * 3 // 4]
    kept = np.asarray(opened(jpeg("x", broken, quality=95)), int)
    assert kept.shape == (400, 64, 3)
    # half of the rows are surely there; two JPEGs
    np.testing.assert_allclose(kept[:200], archives.smooth(400, 64)[:200], atol=12)
    with pytest.raises(OSError, match=r"(?i)truncated"):  # Pillow's own way is as before
        opened(broken).load()


@pytest.mark.parametrize(("height", "width"), [(400, 600), (347, 1033), (1201, 333)])
def test_scenes_are_made_smaller_as_opencv_does(height, width):
    from sparse_mu.data.archives import smaller

    noise = archives.pixels(np.random.default_rng(0), height, width)
    factor = (120_000 / (height * width)) ** 0.5
    rows, columns = (np.arange(round(side * factor)) for side in (height, width))

    def around(places, side):  # the two pixels beside each centre, and the weight of the second
        centres = np.clip((places + 0.5) / factor - 0.5, 0, side - 1)
        first = centres.astype(int)
        return first, np.minimum(first + 1, side - 1), centres - first

    top, bottom, down = around(rows, height)
    left, right, across = around(columns, width)
    down, across = down[:, None, None], across[None, :, None]
    lines = noise[top] * (1 - down) + noise[bottom] * down
    wanted = lines[:, left] * (1 - across) + lines[:, right] * across
    found = np.asarray(smaller(Image.fromarray(noise), 120_000), float)
    assert abs(found.shape[0] * found.shape[1] - 120_000) < 1_000
    # rounded to whole levels once by Pillow; its own resize differs by up to 200
    np.testing.assert_allclose(found, wanted, atol=1)


def test_scenes_are_turned_upright():
    from sparse_mu.data.archives import jpeg

    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise
    written = io.BytesIO()
    Image.fromarray(archives.smooth(30, 40)).save(written, "JPEG", exif=exif)
    turned = opened(jpeg("x", written.getvalue(), quality=95, most_pixels=10_000))
    assert turned.size == (30, 40)
    wanted = np.rot90(archives.smooth(30, 40), -1)
    np.testing.assert_allclose(np.asarray(turned, int), wanted, atol=12)  # two JPEGs
