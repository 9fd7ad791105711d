"""The two sources: digits, and a TFDS directory read without TensorFlow."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from tfds_sets import encoded, plain, prepare

from sparse_mu.data import sources
from sparse_mu.data.sources import digits, tfds_images
from sparse_mu.data.types import DataError

SHARED = Path(os.environ.get("SPARSE_MU_SHARED", Path(__file__).parents[3] / "shared"))
TFDS = SHARED / "data" / "tfds"
PREPARED = pytest.mark.skipif(
    not (TFDS / "cifar10").is_dir(), reason=f"{TFDS} is absent; set SPARSE_MU_SHARED"
)


def test_digits():
    source = digits()
    assert source.train_inputs.shape == (1352, 8, 8, 1)
    assert source.test_inputs.shape == (445, 8, 8, 1)
    assert source.train_inputs.dtype == source.test_inputs.dtype == np.uint8
    assert source.train_labels.dtype == source.test_labels.dtype == np.int32
    assert source.class_names == tuple("0123456789")
    assert source.train_ids is None
    bunch = load_digits()
    totals = np.bincount(bunch.target)
    np.testing.assert_array_equal(np.bincount(source.test_labels), totals // 4)
    np.testing.assert_array_equal(
        np.bincount(source.train_labels) + np.bincount(source.test_labels), totals
    )


def test_digits_keep_their_order_and_values():
    source, again = digits(), digits()
    np.testing.assert_array_equal(source.test_inputs, again.test_inputs)
    bunch = load_digits()
    images = np.round(bunch.images * 255 / 16).astype(np.uint8)[..., None]
    assert images.min() == 0 and images.max() == 255
    train, test = list(source.train_inputs), list(source.test_inputs)
    for image in images:  # both parts are subsequences that together are the whole
        if train and np.array_equal(image, train[0]):
            train.pop(0)
        else:
            np.testing.assert_array_equal(image, test.pop(0))
    assert not train and not test


@PREPARED
def test_tfds_reads_the_first_rows():
    source = tfds_images("cifar10", TFDS, limit=30)
    assert source.name == "cifar10"
    assert source.train_inputs.shape == (30, 32, 32, 3)
    assert source.test_inputs.shape == (6, 32, 32, 3)
    assert source.train_inputs.dtype == np.uint8
    assert source.train_labels.dtype == np.int32
    assert source.class_names[0] == "airplane" and len(source.class_names) == 10
    assert source.train_ids[0] == "train_25346" and len(set(source.train_ids)) == 30
    fewer = tfds_images("cifar10:3.0.2", str(TFDS), limit=3)
    assert len(fewer.test_inputs) == 1
    np.testing.assert_array_equal(fewer.train_inputs, source.train_inputs[:3])
    assert "tensorflow" not in sys.modules


@PREPARED
def test_tfds_decodes_as_tfds_does(caplog):
    import tensorflow_datasets as tfds

    source = tfds_images("cifar10", TFDS, limit=8)
    assert not caplog.records
    rows = tfds.data_source("cifar10", split="train[:8]", data_dir=TFDS, download=False)
    for row, record in enumerate(rows):
        np.testing.assert_array_equal(source.train_inputs[row], record["image"])
        assert source.train_labels[row] == record["label"]
        assert source.train_ids[row] == record["id"].decode()


@PREPARED
@pytest.mark.slow
def test_tfds_reads_a_whole_set_once(tmp_path, monkeypatch):
    source = tfds_images("cifar10", TFDS, cache_dir=str(tmp_path))
    assert source.train_inputs.shape == (50_000, 32, 32, 3)
    assert source.test_inputs.shape == (10_000, 32, 32, 3)
    np.testing.assert_array_equal(np.bincount(source.train_labels), [5000] * 10)
    np.testing.assert_array_equal(np.bincount(source.test_labels), [1000] * 10)
    # of the original release, which JPEG moves by less than 2e-4 on average
    means = source.train_inputs.mean((0, 1, 2)) / 255
    np.testing.assert_allclose(means, (0.4914, 0.4822, 0.4465), atol=5e-4)
    decoded = tfds_images("cifar10", TFDS, 100)
    monkeypatch.setattr(sources, "_decoded", None)  # calling it would fail
    again = tfds_images("cifar10", TFDS, 100, cache_dir=str(tmp_path))
    np.testing.assert_array_equal(again.train_inputs, decoded.train_inputs)
    np.testing.assert_array_equal(again.test_inputs, decoded.test_inputs)
    assert again.train_ids == decoded.train_ids and again.name == "cifar10"


SHARD = "array_record-00000-of-00001"


# sets that TFDS writes here, tiny and in the layout of the real ones


def image_set(data_dir, name="svhn_cropped", shape=(8, 8, 3), rows=6, **given):
    """A set of one colour an image, (row, 100, 200), and three classes."""
    import tensorflow_datasets as tfds

    examples = [{"image": plain((row, 100, 200)), "label": row % 3} for row in range(rows)]
    features = {
        "image": tfds.features.Image(shape=shape),
        "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
    }
    given = {"splits": {"train": examples, "test": examples[:3]}, "features": features} | given
    return prepare(data_dir, name, **given)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A prepared set, not to be changed."""
    folder = tmp_path_factory.mktemp("small")
    image_set(folder)
    return folder


@pytest.fixture
def copy(small, tmp_path):
    """A prepared set, to be damaged."""
    shutil.copytree(small / "svhn_cropped", tmp_path / "copy" / "svhn_cropped")
    return tmp_path / "copy"


def colours(inputs):
    return sorted(map(tuple, inputs[:, 0, 0].tolist()))


def test_a_set_is_read_and_kept(copy, monkeypatch, caplog):
    source = tfds_images("svhn_cropped", copy)
    assert source.train_ids is None and source.class_names == ("a", "b", "c")
    assert colours(source.train_inputs) == [(row, 100, 200) for row in range(6)]
    np.testing.assert_array_equal(source.train_labels, source.train_inputs[:, 0, 0, 0] % 3)
    assert (copy / ".sparse_mu").is_dir() and not caplog.records
    monkeypatch.setattr(sources, "_decoded", None)
    again = tfds_images("svhn_cropped:1.0.0", copy)
    assert again.name == "svhn_cropped:1.0.0" and isinstance(again.train_inputs, np.memmap)
    np.testing.assert_array_equal(again.train_inputs, source.train_inputs)


def test_the_cache_needs_no_tfds(copy):
    tfds_images("svhn_cropped", copy)
    program = (
        "import sys; from sparse_mu.data.sources import tfds_images; "
        f"s = tfds_images('svhn_cropped', {str(copy)!r}); print(len(s.train_inputs), "
        "{'tensorflow_datasets', 'PIL', 'sklearn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.decode().split() == ["6", "set()"]


def test_a_part_is_not_kept(copy):
    part = tfds_images("svhn_cropped", copy, limit=2)
    assert len(part.train_inputs) == 2 and len(part.test_inputs) == 1
    assert not (copy / ".sparse_mu").exists()


def test_a_changed_file_is_read_again(copy):
    tfds_images("svhn_cropped", copy)
    shutil.rmtree(copy / "svhn_cropped")
    image_set(copy, rows=9)
    assert len(tfds_images("svhn_cropped", copy).train_inputs) == 9
    assert len(list((copy / ".sparse_mu").iterdir())) == 2


def test_a_size_may_be_asked_for(small, tmp_path):
    sized = tfds_images("svhn_cropped", small, image_size=16, cache_dir=str(tmp_path))
    assert sized.train_inputs.shape == (6, 16, 16, 3)
    as_stored = tfds_images("svhn_cropped", small, limit=6, image_size=8)
    assert as_stored.train_inputs.shape == (6, 8, 8, 3)


def test_images_of_every_kind_and_size(tmp_path):
    """As ImageNet, Pets and SUN397 hold them: TFDS itself would give other colours or fail."""
    import tensorflow_datasets as tfds

    palette = Image.new("P", (9, 4), 0)
    palette.putpalette([200, 60, 20, 1, 2, 3])
    kinds = {
        "rgb.png": encoded(plain((200, 60, 20), (5, 7))),
        "rgba.png": encoded(plain((200, 60, 20, 99), (20, 30), "RGBA")),
        "palette.gif": encoded(palette, "GIF"),
        "cmyk.jpg": encoded(plain((0, 255, 255, 0), (16, 16), "CMYK"), "JPEG"),
        "grey.jpg": encoded(plain(90, (16, 40), "L"), "JPEG"),
        "grey and alpha.png": encoded(plain((90, 5), (3, 3), "LA")),
    }

    def examples():
        return [
            {"image": io.BytesIO(data), "label": row % 2, "file_name": name, "extra": plain(0)}
            for row, (name, data) in enumerate(kinds.items())
        ]

    features = {
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(num_classes=2),
        "file_name": tfds.features.Text(),
        "extra": tfds.features.Image(shape=(8, 8, 3)),
    }
    splits = {name: examples() for name in ("train", "validation", "test")}
    prepare(tmp_path, "sun397", splits, features, config="tfds")
    refused("has images of many sizes; set dataset.image_size", "sun397", tmp_path)
    for name in ("sun397", "sun397/tfds", "sun397/tfds:1.0.0"):
        source = tfds_images(name, tmp_path, image_size=80)
    assert source.train_inputs.shape == source.test_inputs.shape == (6, 80, 80, 3)
    found = dict(zip(source.train_ids, source.train_inputs[:, 40, 40].tolist(), strict=True))
    assert found == {
        "rgb.png": [200, 60, 20],
        "rgba.png": [200, 60, 20],
        "palette.gif": [200, 60, 20],
        "cmyk.jpg": [255, 0, 0],
        "grey.jpg": [90, 90, 90],
        "grey and alpha.png": [90, 90, 90],
    }


def test_grey_sets_keep_one_channel(tmp_path):
    import tensorflow_datasets as tfds

    examples = [{"image": plain(row, mode="L"), "label": row} for row in range(2)]
    features = {
        "image": tfds.features.Image(shape=(8, 8, 1)),
        "label": tfds.features.ClassLabel(num_classes=2),
    }
    prepare(tmp_path, "mnist", {"train": examples, "test": examples}, features)
    source = tfds_images("mnist", tmp_path, limit=2)
    assert source.train_inputs.shape == (2, 8, 8, 1) and source.class_names == ("0", "1")


def test_imagenet_is_tested_on_its_validation_split(tmp_path):
    labelled = [{"image": plain((row, 0, 0)), "label": row % 3} for row in range(3)]
    hidden = [{"image": plain((99, 0, 0)), "label": -1}]
    splits = {"train": labelled, "validation": labelled, "test": hidden}
    image_set(tmp_path, "imagenet2012", splits=splits)
    source = tfds_images("imagenet2012", tmp_path, limit=20)
    assert colours(source.test_inputs) == [(row, 0, 0) for row in range(3)]
    image_set(tmp_path, "svhn_cropped", splits={"train": hidden, "test": labelled})
    refused(r"\(train\): 1 of 1 rows have no class, the first is row 0", "svhn_cropped", tmp_path)


# what is wrong is said in one line


def refused(match, name, data_dir):
    for limit in (5, None):
        with pytest.raises(DataError, match=match) as info:
            tfds_images(name, data_dir, limit)
        assert "\n" not in str(info.value)
        assert not (Path(data_dir) / ".sparse_mu").exists()


def test_a_set_that_is_not_prepared_names_the_command(tmp_path, caplog):
    command = f"run: python -m sparse_mu.prepare --dataset=cifar10 --data_dir={tmp_path}$"
    refused(
        f"cifar10 is not prepared as array_record in {tmp_path}: there is no folder cifar10 in it; "
        f"{command}",
        "cifar10",
        tmp_path,
    )
    refused("cifar100 is not .* no such folder; run", "cifar100", tmp_path / "missing")
    refused("where TensorFlow is installed, tfds build mnist --file_for", "mnist", tmp_path)
    assert not caplog.records
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "hint"),
    {
        "cifar99": r"\(did you mean 'cifar10'\?\)",
        "svhn": r"\(did you mean 'svhn_cropped'\?\)",
        "imagenet": r"\(did you mean 'imagenet2012'\?\)",
        "no_such_set": "",
        "": "a name is name",
        "../x": "a name is name",
        "cifar10:latest": "a name is name",
    }.items(),
)
def test_an_unknown_set_is_named(name, hint, tmp_path):
    refused(f"TFDS knows no data set '{name}'.*{hint}", name, tmp_path)


def test_another_version_is_named(small):
    refused(
        "svhn_cropped:3.0.0 is not prepared in .*, which holds version 1.0.0; set "
        "dataset.name=svhn_cropped:1.0.0$",
        "svhn_cropped:3.0.0",
        small,
    )


def test_the_newest_version_in_the_right_format_is_read(copy):
    folder = copy / "svhn_cropped"
    for version, file_format in (("1.9.0", "array_record"), ("1.10.0", "tfrecord")):
        shutil.copytree(folder / "1.0.0", folder / version)
        edit(folder / version, "version", version)
        edit(folder / version, "fileFormat", file_format)
    assert sources.tfds_folder.locate("svhn_cropped", copy).folder == folder / "1.9.0"
    refused(
        "1.10.0 holds svhn_cropped as tfrecord, array_record is needed; prepare it in another "
        "folder: python -m sparse_mu.prepare --dataset=svhn_cropped --data_dir=OTHER_DIR$",
        "svhn_cropped:1.10.0",
        copy,
    )


def edit(folder, key, value):
    info = folder / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {key: value}))


def test_other_features_are_named(tmp_path):
    import tensorflow_datasets as tfds

    examples = [{"text": "a", "label": 0}]
    features = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)}
    prepare(tmp_path, "imdb_reviews", {"train": examples, "test": examples}, features)
    refused("has the features label, text; an image called image", "imdb_reviews", tmp_path)


def test_a_missing_split_is_named(tmp_path):
    image_set(tmp_path, splits={"train": [{"image": plain((1, 2, 3)), "label": 0}]})
    refused("has no rows of split 'validation'; it has train", "svhn_cropped", tmp_path)


def test_several_configs_are_offered(copy):
    folder = copy / "svhn_cropped"
    for config in ("one", "two"):
        shutil.copytree(folder / "1.0.0", folder / config / "1.0.0")
    shutil.rmtree(folder / "1.0.0")
    refused("one of svhn_cropped/one, svhn_cropped/two$", "svhn_cropped", copy)
    refused("svhn_cropped/six is not .* there is svhn_cropped/one", "svhn_cropped/six", copy)


TRAIN = f"svhn_cropped-train.{SHARD}"
DAMAGE = {
    "gone": (lambda folder: (folder / TRAIN).unlink(), r"\(train\) in .* cannot be read: "),
    "cut": (lambda folder: os.truncate(folder / TRAIN, 1000), r"\(train\) in .* cannot be read: "),
    "cut where a block ends": (
        lambda folder: os.truncate(folder / TRAIN, 2**16),
        r"\(train\) in .* cannot be read: record 0 is empty",
    ),
    "empty": (lambda folder: os.truncate(folder / TRAIN, 0), r"\(train\) in .* cannot be read: "),
    "noise": (
        lambda folder: (folder / TRAIN).write_bytes(bytes(2**17)),
        r"\(train\) in .* cannot be read: ",
    ),
    "no features": (
        lambda folder: (folder / "features.json").unlink(),
        r"features.json\) in .* cannot be read: ",
    ),
    "half a feature": (
        lambda folder: os.truncate(folder / "features.json", 50),
        r"features.json\) in .* cannot be read: ",
    ),
    "half the facts": (
        lambda folder: os.truncate(folder / "dataset_info.json", 50),
        "dataset_info.json cannot be read: ",
    ),
    "no facts": (
        lambda folder: (folder / "dataset_info.json").unlink(),
        "svhn_cropped is empty or half-prepared: no dataset_info.json; run: python -m",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_named(copy, damage):
    change, expected = DAMAGE[damage]
    change(copy / "svhn_cropped" / "1.0.0")
    refused(expected, "svhn_cropped", copy)


def test_a_broken_image_is_named(tmp_path):
    import tensorflow_datasets as tfds

    broken = encoded(Image.effect_noise((64, 64), 90).convert("RGB"), "JPEG")[:1000]
    examples = [{"image": io.BytesIO(broken), "label": 0, "id": "train_7"}]
    features = {
        "image": tfds.features.Image(shape=(64, 64, 3)),
        "label": tfds.features.ClassLabel(num_classes=2),
        "id": tfds.features.Text(),
    }
    prepare(tmp_path, "cifar10", {"train": examples, "test": examples}, features)
    expected = r"\(train, the image of row 0 \(train_7\)\) in .* image file is truncated.*; delete "
    refused(expected + "that folder and prepare it again: python -m", "cifar10", tmp_path)


def test_images_larger_than_memory_are_refused(small):
    # 6 rows of 2**20 x 2**20 x 3 bytes are 18 TiB
    with pytest.raises(DataError, match=r"6 images of .* GiB of memory; set dataset\.reading"):
        tfds_images("svhn_cropped", small, limit=6, image_size=2**20)
