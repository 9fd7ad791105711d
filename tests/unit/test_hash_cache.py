"""Hashes of streamed images: kept, found again, and made again where they are not as written."""

import logging
import os

import numpy as np
import pytest

from sparse_mu.builders.streams import HASHED_ROWS, stream_hashes
from sparse_mu.data import duplicates, hash_cache
from sparse_mu.types import Streamed


@pytest.fixture(autouse=True)
def user_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))


def drawn(count=300, side=16):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)


def entry(tmp_path, digest="of a stream", data="data"):
    return hash_cache.entry_of("pictures", digest, tmp_path / data, "")


def kept_file(tmp_path):
    (file,) = (tmp_path / "data" / ".sparse_mu").iterdir()
    return file


def assert_equal(first, second):
    for mine, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("side", [16, 8])  # with and without hashes of the picture
def test_what_was_kept_is_found_again(tmp_path, side):
    found = duplicates.hashes(drawn(side=side))
    hash_cache.store(entry(tmp_path), found)
    assert_equal(hash_cache.load(entry(tmp_path), 300), found)
    assert kept_file(tmp_path).suffix == ".npz"  # nothing is left of its writing
    # other rows, and another folder whose files look the same
    for other in (entry(tmp_path, "of another"), entry(tmp_path, data="other")):
        assert hash_cache.load(other, 300) is None


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "another size", "another kind"])
def test_what_is_damaged_is_not_read(tmp_path, caplog, damage):
    found = duplicates.hashes(drawn())
    if damage == "another kind":
        found = found._replace(flat=found.flat.astype(np.uint8))
    hash_cache.store(entry(tmp_path), found)
    file = kept_file(tmp_path)
    content = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 3] ^= 1
        file.write_bytes(content)
    elif damage == "empty":
        file.write_bytes(b"")
    assert hash_cache.load(entry(tmp_path), 301 if damage == "another size" else 300) is None
    (record,) = caplog.records
    assert str(file) in record.getMessage() and "are damaged: " in record.getMessage()
    hash_cache.store(entry(tmp_path), duplicates.hashes(drawn()))  # takes its place
    assert_equal(hash_cache.load(entry(tmp_path), 300), duplicates.hashes(drawn()))


def test_any_flipped_bit_is_noticed_or_does_not_matter(tmp_path):
    found = duplicates.hashes(drawn(3))
    hash_cache.store(entry(tmp_path), found)
    content = kept_file(tmp_path).read_bytes()
    for place in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        kept_file(tmp_path).write_bytes(damaged)
        read = hash_cache.load(entry(tmp_path), 3)
        if read is not None:
            assert_equal(read, found)


def streamed(images, asked):
    def read(rows, draw, passes=None):
        assert draw is None and passes is None
        for batch in rows:
            asked.append(len(batch))
            yield images[batch]

    return Streamed(images.shape, np.zeros(len(images), np.int32), read, "of a stream")


def flat(place, cache_dir=""):
    return {
        "dataset.name": "pictures",
        "dataset.data_dir": str(place),
        "dataset.cache_dir": str(cache_dir),
    }


def test_a_stream_is_read_once_and_says_so(tmp_path, caplog):
    images, asked = drawn(), []
    stream = streamed(images, asked)
    made = stream_hashes(flat(tmp_path / "data"), stream)
    assert_equal(made, duplicates.hashes(images))
    assert asked == [HASHED_ROWS] * 2
    (record,) = caplog.records
    assert record.getMessage().startswith("pictures: all 300 images are read once to find copies")
    again = stream_hashes(flat(tmp_path / "data"), stream)
    assert_equal(again, made)
    assert len(asked) == 2 and len(caplog.records) == 1
    stream_hashes(flat(tmp_path / "data"), stream._replace(digest="of other rows"))
    assert len(asked) == 4


def test_where_nothing_can_be_written_a_warning_says_so_and_all_is_read_again(tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    images, asked = drawn(), []
    for _ in range(2):
        caplog.clear()
        made = stream_hashes(flat(tmp_path, tmp_path / "file"), streamed(images, asked))
        assert_equal(made, duplicates.hashes(images))
        (warning,) = [r.getMessage() for r in caplog.records if "not kept" in r.getMessage()]
        assert warning.startswith("hashes of images are not kept") and "file: " in warning
    assert len(asked) == 4


def test_a_write_that_fails_midway_leaves_nothing(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(os, "replace", full)
        hash_cache.store(entry(tmp_path), duplicates.hashes(drawn(3)))
    assert "No space left on device" in caplog.text
    assert not list((tmp_path / "data" / ".sparse_mu").iterdir())
    assert hash_cache.load(entry(tmp_path), 3) is None
