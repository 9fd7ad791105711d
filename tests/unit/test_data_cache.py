"""Decoded images on disk: whole, of the right files, or not there."""

import errno
import json
import logging
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_mu.data import cache
from sparse_mu.data.types import DataError, Source

FACTS = [["a", 1, 2], 0]


def source(rows=6, seed=0):
    rng = np.random.default_rng(seed)
    return Source(
        name="small",
        train_inputs=rng.integers(0, 256, (rows, 4, 4, 3), np.uint8),
        train_labels=np.arange(rows, dtype=np.int32) % 3,
        train_ids=[f"row é {row}" for row in range(rows)],
        test_inputs=rng.integers(0, 256, (3, 4, 4, 3), np.uint8),
        test_labels=np.arange(3, dtype=np.int32),
        class_names=("a", "b", "c"),
    )


def assert_same(found, expected):
    for name, value in expected._asdict().items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(found, name), value)
            assert getattr(found, name).dtype == value.dtype
        else:
            assert getattr(found, name) == value


@pytest.fixture(autouse=True)
def user_folder(tmp_path, monkeypatch):
    folder = tmp_path / "user"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def beside(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def entry(beside, cache_dir="", name="small:1.0.0", facts=FACTS):
    return cache.entry_of(name, facts, beside, cache_dir)


def files_below(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_what_is_stored_is_loaded_again(beside, user_folder):
    assert cache.load(entry(beside)) is None
    kept = cache.store(entry(beside), source())
    assert_same(kept, source())
    found = cache.load(entry(beside))
    assert_same(found, source())
    assert isinstance(found.train_inputs, np.memmap) and not found.train_inputs.flags.writeable
    assert [path.name for path in beside.iterdir()] == [".sparse_mu"]
    assert len(files_below(beside)) == 5 and not user_folder.exists()


def test_ids_may_be_absent_and_grey_stays(beside):
    grey = source()._replace(train_ids=None, train_inputs=np.zeros((6, 4, 4, 1), np.uint8))
    cache.store(entry(beside), grey)
    assert_same(cache.load(entry(beside)), grey)


def test_other_files_have_another_entry(beside):
    cache.store(entry(beside), source())
    assert cache.load(entry(beside, facts=[["a", 1, 3], 0])) is None
    assert cache.load(entry(beside, facts=[["a", 1, 2], 64])) is None
    assert cache.load(entry(beside, name="small:1.0.1")) is None
    assert cache.load(entry(beside)) is not None


def test_a_new_version_of_the_reader_has_another_entry(beside, monkeypatch):
    cache.store(entry(beside), source())
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    assert cache.load(entry(beside)) is None


def test_the_chosen_place_wins(beside, tmp_path):
    chosen = entry(beside, str(tmp_path / "new" / "place"))
    cache.store(chosen, source())
    assert_same(cache.load(chosen), source())
    assert not list(beside.iterdir()) and cache.load(entry(beside)) is None


def test_the_users_folder_takes_what_the_data_folder_does_not(beside, user_folder, caplog):
    (beside / ".sparse_mu").write_text("a file where the folder would be")
    assert_same(cache.store(entry(beside), source()), source())
    assert len(files_below(user_folder / "sparse_mu" / "data")) == 5
    assert len(caplog.records) == 1 and "decoded images are kept in" in caplog.text
    assert_same(cache.load(entry(beside)), source())


def test_a_chosen_place_that_cannot_be_written_is_refused(beside, tmp_path):
    file = tmp_path / "file"
    file.write_text("text")
    with pytest.raises(DataError, match=r"dataset\.cache_dir=.*file.* cannot be written: ") as info:
        cache.store(entry(beside, str(file)), source())
    assert "\n" not in str(info.value)


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("chosen", [True, False])
def test_a_full_disk_leaves_nothing_and_the_run_goes_on(
    beside, user_folder, tmp_path, monkeypatch, caplog, chosen
):
    place = tmp_path / "place"
    wanted = entry(beside, str(place) if chosen else "")
    given = source()
    monkeypatch.setattr(cache.os, "fsync", full)
    assert cache.store(wanted, given) is given
    assert len(caplog.records) == 1 and "No space left on device" in caplog.text
    assert "are not kept" in caplog.text
    assert not [path for folder in (beside, user_folder, place) for path in files_below(folder)]
    monkeypatch.undo()
    assert cache.load(wanted) is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which is always full")
def test_a_full_disk_is_told_as_such():
    with pytest.raises(OSError) as info:
        cache._save(Path("/dev/full"), np.zeros(10**6, np.uint8))
    assert info.value.errno == errno.ENOSPC


DAMAGE = {
    "cut": lambda folder: os.truncate(folder / "train_inputs.npy", 200),
    "cut by one": lambda folder: os.truncate(
        folder / "test_inputs.npy", (folder / "test_inputs.npy").stat().st_size - 1
    ),
    "empty": lambda folder: os.truncate(folder / "train_labels.npy", 0),
    "gone": lambda folder: (folder / "test_labels.npy").unlink(),
    "another array": lambda folder: np.save(folder / "train_inputs.npy", np.zeros((6, 4, 4, 1))),
    "a label of no class": lambda folder: np.save(
        folder / "train_labels.npy", np.full(6, 3, np.int32)
    ),
    "no meta": lambda folder: (folder / "meta.json").unlink(),
    "half a meta": lambda folder: os.truncate(folder / "meta.json", 30),
    "another meta": lambda folder: (folder / "meta.json").write_text("[]"),
    "an id missing": lambda folder: edit(folder / "meta.json", "train_ids", ["one"]),
    # for these numpy raises TokenError and TypeError
    "no bracket": lambda folder: replaced(folder / "train_inputs.npy", b", }", b", {"),
    "a key of no kind": lambda folder: replaced(
        folder / "train_inputs.npy", b"'descr': '|u1'", b"[]: 1, 'a': 22"
    ),
    "objects": lambda folder: np.save(folder / "train_labels.npy", np.array([{}], object)),
}


def replaced(path, old, new):
    content = path.read_bytes()
    assert len(old) == len(new) and content.count(old) == 1
    path.write_bytes(content.replace(old, new))


def edit(path, key, value):
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_noticed_and_replaced(beside, caplog, damage):
    wanted = entry(beside)
    cache.store(wanted, source())
    DAMAGE[damage](beside / ".sparse_mu" / wanted.key)
    assert cache.load(wanted) is None
    assert len(caplog.records) == 1 and "are damaged" in caplog.text
    assert_same(cache.store(wanted, source()), source())
    assert_same(cache.load(wanted), source())
    assert len(files_below(beside)) == 5


@settings(deadline=None, max_examples=100)
@given(position=st.integers(0, 127), byte=st.integers(0, 255))
def test_any_byte_of_a_header_may_be_wrong(tmp_path_factory, position, byte):
    folder = tmp_path_factory.getbasetemp() / "flipped"
    wanted = cache.entry_of("small", FACTS, folder, str(folder))
    if not (folder / wanted.key).exists():
        cache.store(wanted, source())
    path = folder / wanted.key / "train_inputs.npy"
    whole = path.read_bytes()
    assert whole[127] == ord("\n")  # the header ends there
    path.write_bytes(whole[:position] + bytes([byte]) + whole[position + 1 :])
    try:
        found = cache.load(wanted)
        assert found is None or found.train_inputs.shape == (6, 4, 4, 3)
    finally:
        path.write_bytes(whole)


def test_an_entry_of_another_process_is_kept(beside):
    wanted = entry(beside)
    cache.store(wanted, source())
    before = [(path, path.stat().st_ino) for path in files_below(beside)]
    assert_same(cache.store(wanted, source()), source())
    assert [(path, path.stat().st_ino) for path in files_below(beside)] == before


def _store_at_once(beside, barrier):
    wanted = cache.entry_of("small:1.0.0", FACTS, beside, "")
    for _ in range(10):
        barrier.wait()
        assert_same(cache.store(wanted, source()), source())
        assert_same(cache.load(wanted), source())


def test_two_processes_fill_it_at_once(beside):
    context = multiprocessing.get_context("spawn")  # where JAX has begun, a fork may hang
    barrier = context.Barrier(2, timeout=60)
    both = [context.Process(target=_store_at_once, args=(beside, barrier)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert len(files_below(beside)) == 5


def test_what_a_killed_process_left_is_removed(beside, caplog):
    caplog.set_level(logging.DEBUG)
    place = beside / ".sparse_mu"
    key = entry(beside).key
    old, new = place / f".{key}.17-0123abcd.tmp", place / f".{key}.18-0123abcd.tmp"
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "train_inputs.npy").write_bytes(b"half")
    past = time.time() - 2 * cache._ABANDONED
    os.utime(old, (past, past))
    cache.store(entry(beside), source())
    assert not old.exists() and new.exists()  # the new one may be another process at work


def test_what_it_writes_is_what_it_sweeps(beside, monkeypatch):
    seen = []
    monkeypatch.setattr(cache, "_save", lambda path, array: seen.append(path.parent.name))
    cache.store(entry(beside), source())  # nothing is saved, so nothing is kept
    assert seen and all(cache._WRITING.fullmatch(name) for name in seen)


FOREIGN = (".notes.tmp", ".small-0.1-a.tmp", ".a-0123456789abcdef.tmp", ".vim-0123abcd.tmp")


def test_what_others_left_is_not_swept(beside, tmp_path):
    place = tmp_path / "place"
    wanted = entry(beside, str(place))
    named_as_ours = f".{wanted.key}.17-0123abcd.tmp"
    past = time.time() - 2 * cache._ABANDONED
    for name in FOREIGN:
        (place / name).mkdir(parents=True)
        (place / name / "thesis.tex").write_text("mine")
        os.utime(place / name, (past, past))
    (place / named_as_ours).write_text("a file, which we never leave")
    os.utime(place / named_as_ours, (past, past))
    before = files_below(place)
    assert len(before) == len(FOREIGN) + 1
    cache.store(wanted, source())
    assert set(before) <= set(files_below(place))
