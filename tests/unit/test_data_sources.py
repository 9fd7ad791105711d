"""The two sources: digits, and a TFDS directory read without TensorFlow."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from sparse_mu.data.sources import DataError, digits, tfds_images

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


def fails(match, name, data_dir):
    with pytest.raises(DataError, match=match) as info:
        tfds_images(name, data_dir, limit=5)
    assert "\n" not in str(info.value)


def test_a_set_that_is_not_prepared_names_the_command(tmp_path, caplog):
    build = f"tfds build cifar10 --file_format=array_record --data_dir={tmp_path}"
    command = f"where TensorFlow is installed, run: {build}$"
    fails(f"cifar10 is not prepared as array_record in {tmp_path}; {command}", "cifar10", tmp_path)
    fails("cifar100 is not prepared", "cifar100", tmp_path / "missing")
    assert not caplog.records
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["no_such_set", "cifar10/no_config", "", "../x"])
def test_an_unknown_set_is_named(name, tmp_path):
    fails(f"TFDS knows no data set '{name}'", name, tmp_path)


@PREPARED
def test_a_set_in_tfrecord_format_is_not_prepared(tmp_path):
    shutil.copytree(TFDS / "cifar10", tmp_path / "cifar10")
    for path in (tmp_path / "cifar10" / "3.0.2").iterdir():
        path.chmod(0o644)
    info = tmp_path / "cifar10" / "3.0.2" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    fails("cifar10 is not prepared as array_record", "cifar10", tmp_path)


@PREPARED
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_damaged_shard_is_named(tmp_path, damage):
    folder = tmp_path / "cifar10" / "3.0.2"
    shutil.copytree(TFDS / "cifar10" / "3.0.2", folder, copy_function=shutil.copyfile)
    shard = folder / "cifar10-train.array_record-00000-of-00001"
    if damage == "gone":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:1000])
    fails(r"cifar10 \(train\) cannot be read", "cifar10", tmp_path)


def test_a_limit_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"dataset\.limit is 0"):
        tfds_images("cifar10", tmp_path, limit=0)
