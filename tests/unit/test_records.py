"""A prepared data set read at once and as a stream: the same rows, and the same refusals."""

import json
import os
import pickle
import shutil

import archives
import numpy as np
import prepared_images
import pytest
import tfds_sets
from tfds_sets import plain

from sparse_mu.data import records
from sparse_mu.data.encoded import tfds_files
from sparse_mu.data.prepare import prepare
from sparse_mu.data.sources import tfds_images
from sparse_mu.data.types import DataError

NAME = prepared_images.NAME
TRAIN = f"{NAME}-train.array_record-00000-of-00001"


def at_once(name, data_dir, limit=None, **more):
    return tfds_images(name, data_dir, limit, image_size=32, **more)


def as_a_stream(name, data_dir, limit=None, **more):
    return tfds_files(name, data_dir, limit, image_size=32, **more).source


BOTH = pytest.mark.parametrize("read", [at_once, as_a_stream])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A prepared set, not to be changed."""
    folder = tmp_path_factory.mktemp("pictures")
    prepared_images.write(folder)
    return folder


@pytest.fixture
def copy(pictures, tmp_path):
    """A prepared set, to be damaged."""
    shutil.copytree(pictures / NAME, tmp_path / "copy" / NAME)
    return tmp_path / "copy"


# ---- every data set that is prepared here ----------------------------------------------------


@pytest.mark.parametrize("name", archives.WRITERS)
def test_what_is_prepared_is_read(name, tmp_path):
    manual, data = tmp_path / "manual", tmp_path / "data"
    expected = archives.WRITERS[name](manual)
    prepare(name, data, manual, checksums=archives.checksums(name, manual))
    train, test = expected["train"], expected.get("test") or expected["validation"]
    if name == "sun397/standard-part1-120k":  # the list of partition 1 takes the test images
        train, test = expected["test"], expected["validation"]
    for read in (at_once, as_a_stream):
        source = read(name, data, cache_dir=str(tmp_path / "cache"))
        labels = dict(zip(source.train_ids, source.train_labels.tolist(), strict=True))
        wanted = {id_: row["label"] for id_, row in train.items()}
        if any(isinstance(label, str) for label in wanted.values()):
            labels = {id_: source.class_names[label] for id_, label in labels.items()}
        assert labels == wanted
        assert len(source.test_labels) == len(test)
        assert len(source.train_inputs) == len(train) and len(source.test_inputs) == len(test)
        if read is at_once:
            assert source.train_inputs.shape[1:] == (32, 32, 3)
            for id_, pixels in zip(source.train_ids, source.train_inputs, strict=True):
                if name in ("cifar10", "cifar100", "svhn_cropped"):  # kept without loss, at 32
                    np.testing.assert_array_equal(pixels, train[id_]["image"])


# ---- folders that must not be taken for each other -------------------------------------------


def alike(data_dir, label):
    """A set whose files have the same names, sizes and times whatever the label and colour."""
    import tensorflow_datasets as tfds

    examples = [{"image": plain((100 + label, 20, 30)), "label": label} for _ in range(3)]
    features = {
        "image": tfds.features.Image(shape=(8, 8, 3)),
        "label": tfds.features.ClassLabel(num_classes=2),
    }
    folder = tfds_sets.prepare(data_dir, NAME, {"train": examples, "test": examples}, features)
    for path in folder.iterdir():
        os.utime(path, ns=(10**18, 10**18))
    return sorted((path.name, path.stat().st_size) for path in folder.iterdir())


def test_folders_alike_have_entries_of_their_own(tmp_path):
    cache = str(tmp_path / "cache")
    assert alike(tmp_path / "0", 0) == alike(tmp_path / "1", 1)
    for label in (0, 1):
        source = tfds_images(NAME, tmp_path / str(label), cache_dir=cache)
        assert (source.train_inputs[..., 0] == 100 + label).all()
        assert (
            as_a_stream(NAME, tmp_path / str(label), cache_dir=cache).test_labels == label
        ).all()
    assert len(list((tmp_path / "cache").iterdir())) == 4


def test_the_digest_of_a_stream_stays_where_its_folder_moves(copy, tmp_path):
    def digest(data_dir):
        return tfds_files(NAME, data_dir, image_size=32, cache_dir=str(tmp_path / "cache")).digest

    before = digest(copy)
    copy.rename(tmp_path / "moved")
    assert digest(tmp_path / "moved") == before
    assert len(list((tmp_path / "cache").iterdir())) == 2
    os.utime(tmp_path / "moved" / NAME / "1.0.0" / TRAIN)
    assert digest(tmp_path / "moved") != before


# ---- what is wrong is said in one line -------------------------------------------------------


def refused(read, match, data_dir):
    for limit in (5, None):
        with pytest.raises(DataError, match=match) as info:
            read(NAME, data_dir, limit)
        assert "\n" not in str(info.value)
        assert not (data_dir / ".sparse_mu").exists()


@BOTH
def test_a_file_cut_where_a_block_ends(read, copy):
    os.truncate(copy / NAME / "1.0.0" / TRAIN, 2**16)  # a block of array_record
    refused(read, rf"{NAME}:1.0.0 \(.*\) in .* cannot be read: record 0 is empty; delete", copy)


def test_a_file_cut_while_it_is_streamed(copy):
    files = tfds_files(NAME, copy, image_size=32).files
    os.truncate(copy / NAME / "1.0.0" / TRAIN, 2**16)
    with pytest.raises(ValueError, match="record 7 is empty"):
        pickle.loads(pickle.dumps(files)).__getitems__([7])  # as a worker opens them


def test_a_record_without_a_feature_is_named():
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "label": np.int64})
    kept = tfds.features.FeaturesDict({"label": np.int64})

    class Records(list):
        def __getitems__(self, numbers):
            return [self[number] for number in numbers]

    files = records.Files(Records([kept.serialize_example({"label": 3})]), features, None)
    with pytest.raises(ValueError, match="record 0 has no image"):
        files.rows([0])


def changed(info, value, *path):
    for key in path[:-1]:
        info = info[key]
    info[path[-1]] = value


FACTS = {
    "fewer than no rows": (-5, "splits", 0, "shardLengths", 0),
    "rows without end": (float("inf"), "splits", 0, "shardLengths", 0),
    "more rows than bytes": (10**15, "splits", 0, "shardLengths", 0),
    "lengths are no list": (3, "splits", 0, "shardLengths"),
    "splits are no list": (3, "splits"),
    "a split is a word": ("train", "splits", 0),
    "formats are no list": (3, "alternativeFileFormats"),
    "no formats": (None, "alternativeFileFormats"),
    "a path is a number": (3, "splits", 0, "filepathTemplate"),  # TFDS's own reader says so
}


@BOTH
@pytest.mark.parametrize("kind", FACTS)
def test_damaged_facts_are_named(read, kind, copy):
    info = copy / NAME / "1.0.0" / "dataset_info.json"
    facts = json.loads(info.read_text())
    changed(facts, *FACTS[kind])
    info.write_text(json.dumps(facts))
    refused(
        read, r"dataset_info\.json(, features\.json\) in .* cannot be read| is damaged): ", copy
    )


@BOTH
def test_a_limit_below_one_is_refused(read, pictures):
    with pytest.raises(ValueError, match=r"dataset\.limit is 0"):
        read(NAME, pictures, 0)
