"""A folder of images per class and arrays in an .npz, as data sets."""

import os
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tfds_sets import encoded, plain

from sparse_mu.data import limits, own_arrays, own_images, splits
from sparse_mu.data.types import DataError

CLASSES = ("bird", "cat")


def fill(root, train=3, test=2, size=(8, 8)):
    """A folder whose images have their own colour each: (class, row, part)."""
    for part, count in (("train", train), ("test", test)):
        for label, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for row in range(count):
                image = plain((label, row, part == "test"), size)
                (root / part / name / f"{row}.png").write_bytes(encoded(image))
    return root


@pytest.fixture
def images(tmp_path):
    return fill(tmp_path / "pets")


def refused(call, match):
    with pytest.raises(DataError, match=match) as info:
        call()
    assert "\n" not in str(info.value)


# a folder


def test_a_folder_is_read_by_class_and_name(images):
    (images / "train" / "cat" / ".DS_Store").write_text("hidden")
    (images / "train" / ".hidden").mkdir()
    (images / "notes.txt").write_text("what is beside the parts is not looked at")
    source = own_images.folder(images)
    assert source.name == "pets" and source.class_names == CLASSES
    assert source.train_ids == [f"train/{name}/{row}.png" for name in CLASSES for row in range(3)]
    np.testing.assert_array_equal(source.train_labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(source.test_labels, [0, 0, 1, 1])
    assert source.train_labels.dtype == source.test_labels.dtype == np.int32
    assert source.train_inputs.shape == (6, 8, 8, 3) and source.train_inputs.dtype == np.uint8
    colours = [(label, row, 0) for label in range(2) for row in range(3)]
    np.testing.assert_array_equal(source.train_inputs[:, 0, 0], colours)
    np.testing.assert_array_equal(source.test_inputs[:, 7, 7], [(0, 0, 1), (0, 1, 1), *RESTS])


RESTS = [(1, 0, 1), (1, 1, 1)]


def test_a_folder_is_decoded_once(images, monkeypatch):
    first = own_images.folder(images)
    monkeypatch.setattr(own_images.pictures, "decode", None)  # calling it would fail
    again = own_images.folder(images)
    np.testing.assert_array_equal(again.train_inputs, first.train_inputs)
    assert again.train_ids == first.train_ids
    part = own_images.folder(images, 2)
    np.testing.assert_array_equal(part.train_inputs[:, 0, 0, 0], [0, 1])
    assert part.train_ids == ["train/bird/0.png", "train/cat/0.png"]
    monkeypatch.undo()
    (images / "train" / "cat" / "9.png").write_bytes(encoded(plain((9, 9, 9))))
    assert own_images.folder(images).train_inputs.shape[0] == 7
    (images / "train" / "cat" / "9.png").write_bytes(encoded(plain((77, 9, 9))))
    assert own_images.folder(images).train_inputs[-1, 0, 0, 0] == 77


def test_two_folders_of_equal_files_share_a_cache_folder(tmp_path, monkeypatch):
    roots, place = [fill(tmp_path / name) for name in "ab"], str(tmp_path / "cache")
    changed = roots[1] / "train" / "bird" / "1.png"
    size = changed.stat().st_size
    changed.write_bytes(encoded(plain((0, 8, 0))))
    assert changed.stat().st_size == size  # else the entries would differ by that
    for root in roots:
        for path in root.rglob("*.png"):
            os.utime(path, (0, 0))
    file = own_images._File
    with monkeypatch.context() as patched:  # not told apart by the times that no tool sets
        patched.setattr(own_images, "_File", lambda *facts: file(*facts)._replace(changed=0))
        first, second = (own_images.folder(root, cache_dir=place) for root in roots)
    assert first.train_inputs[1, 0, 0, 1] == 1 and second.train_inputs[1, 0, 0, 1] == 8
    assert own_images.folder(roots[1], cache_dir=place).train_inputs[1, 0, 0, 1] == 8
    # the same folder, written anew with the old time
    changed.write_bytes(encoded(plain((0, 9, 0))))
    assert changed.stat().st_size == size
    os.utime(changed, (0, 0))
    assert own_images.folder(roots[1], cache_dir=place).train_inputs[1, 0, 0, 1] == 9


@pytest.mark.parametrize("cached", [False, True])
def test_rows_keep_their_numbers_under_a_limit(images, cached):
    whole = own_images.folder(images, cache_dir="" if cached else str(images.parent / "other"))
    assert whole.train_rows is None and (images / ".sparse_mu").exists() == cached
    part = own_images.folder(images, 4)
    np.testing.assert_array_equal(part.train_rows, [0, 1, 3, 4])
    np.testing.assert_array_equal(part.train_inputs, whole.train_inputs[part.train_rows])


def test_a_part_keeps_the_share_of_every_class_and_is_not_cached(images):
    source = own_images.folder(images, 4)
    # rows 0, 1, 3, 4 of 6; the test part is one row, max(1, 4 // 5)
    assert source.train_ids == [f"train/{name}/{row}.png" for name in CLASSES for row in range(2)]
    assert len(source.test_labels) == 1
    assert not (images / ".sparse_mu").exists()
    np.testing.assert_array_equal(limits.spread(10, 4), [0, 2, 5, 7])
    np.testing.assert_array_equal(limits.spread(3, 4), [0, 1, 2])


def test_images_of_many_sizes_need_a_size(images):
    culprit = images / "train" / "cat" / "1.png"
    culprit.write_bytes(encoded(plain((200, 1, 1), (20, 12))))
    refused(
        lambda: own_images.folder(images),
        r"train/cat/1.png is 20x12 pixels and train/bird/0.png is 8x8; set dataset\.image_size",
    )
    source = own_images.folder(images, image_size=16)
    assert source.train_inputs.shape == (6, 16, 16, 3)
    np.testing.assert_array_equal(source.train_inputs[4, 8, 8], (200, 1, 1))


def test_a_grey_image_among_others_becomes_rgb(images):
    grey = Image.new("L", (8, 8), 40)
    (images / "test" / "bird" / "0.png").write_bytes(encoded(grey, "JPEG"))
    np.testing.assert_array_equal(own_images.folder(images).test_inputs[0, 0, 0], (40, 40, 40))


LAYOUT = "the layout is DIR/train/CLASS/"
WRONG = {
    "no folder": (lambda root: root.rename(root.with_name("moved")), "is no folder; the"),
    "no test part": (lambda root: (root / "test").rename(root / "val"), "has no folder test; the"),
    "a class only in train": (
        lambda root: (root / "train" / "dog").mkdir(),
        "class 'dog' is in train and not in test; " + LAYOUT,
    ),
    "a class only in test": (
        lambda root: (root / "test" / "dog").mkdir(),
        "class 'dog' is in test and not in train",
    ),
    "no images": (
        lambda root: [(root / part / "dog").mkdir() for part in ("train", "test")],
        "train/dog holds no image",
    ),
    "an image outside": (
        lambda root: (root / "train" / "x.png").write_bytes(b""),
        "train/x.png is in no class; " + LAYOUT,
    ),
    "a folder inside": (
        lambda root: (root / "test" / "cat" / "more").mkdir(),
        "test/cat/more is a folder inside a class",
    ),
    "a text": (
        lambda root: (root / "test" / "cat" / "notes.txt").write_text("no image"),
        "test/cat/notes.txt cannot be read as an image: it is no image",
    ),
    "a broken link": (
        lambda root: (root / "test" / "cat" / "9.png").symlink_to(root / "none.png"),
        "test/cat/9.png cannot be read: No such file",
    ),
    "one class": (
        lambda root: [(root / part / "cat").rename(root / part / ".x") for part in PARTS],
        "has 1 classes, 2 are needed",
    ),
}
PARTS = ("train", "test")


@pytest.mark.parametrize("name", WRONG)
def test_a_folder_of_another_kind_is_refused(images, name):
    change, expected = WRONG[name]
    change(images)
    refused(lambda: own_images.folder(images), expected)
    assert not (images / ".sparse_mu").exists()


# arrays


def arrays(rows=20, classes=2, **changes):
    rng = np.random.default_rng(0)
    found = {
        "train_images": rng.integers(0, 256, (rows, 6, 6, 3), np.uint8),
        "train_labels": np.arange(rows) % classes,
        "test_images": rng.integers(0, 256, (4, 6, 6, 3), np.uint8),
        "test_labels": np.arange(4) % classes,
    } | changes
    return {name: value for name, value in found.items() if value is not None}


def saved(path, **given):
    np.savez(path, **given)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_in_two_parts(tmp_path, save):
    file, given = tmp_path / "mine.npz", arrays()
    ids = np.array([f"scan {row}" for row in range(20)])
    save(file, **given, class_names=np.array(["healthy", "ill"]), train_ids=ids)
    source = own_arrays.npz(file)
    assert source.name == "mine" and source.class_names == ("healthy", "ill")
    assert source.train_ids == list(ids)
    for name in ("train", "test"):
        np.testing.assert_array_equal(getattr(source, f"{name}_inputs"), given[f"{name}_images"])
        np.testing.assert_array_equal(getattr(source, f"{name}_labels"), given[f"{name}_labels"])
    assert source.train_labels.dtype == np.int32
    part = own_arrays.npz(file, 5)
    assert source.train_rows is None
    np.testing.assert_array_equal(part.train_rows, [0, 4, 8, 12, 16])
    np.testing.assert_array_equal(part.train_inputs, given["train_images"][part.train_rows])
    assert part.train_ids == ["scan 0", "scan 4", "scan 8", "scan 12", "scan 16"]


def test_arrays_without_names(tmp_path):
    source = own_arrays.npz(saved(tmp_path / "a.npz", **arrays()))
    assert source.class_names == ("0", "1") and source.train_ids is None


def test_arrays_in_one_part_give_a_test_part(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (30, 6, 6, 1), np.uint8)
    labels = np.arange(30, dtype=np.uint8) % 3
    source = own_arrays.npz(saved(tmp_path / "a.npz", images=images, labels=labels))
    train, test = splits.hold_out(labels.astype(np.int32), 0.2, 0)
    np.testing.assert_array_equal(source.train_rows, train)
    np.testing.assert_array_equal(source.train_inputs, images[train])
    part = own_arrays.npz(tmp_path / "a.npz", 5)
    np.testing.assert_array_equal(part.train_inputs, images[part.train_rows])
    np.testing.assert_array_equal(source.test_inputs, images[test])
    np.testing.assert_array_equal(np.bincount(source.test_labels), [2, 2, 2])
    assert source.train_ids == [f"row_{row}" for row in train]
    ids = np.array([f"scan {row}" for row in range(30)])
    file = saved(tmp_path / "b.npz", images=images, labels=labels, ids=ids)
    assert own_arrays.npz(file).train_ids == [f"scan {row}" for row in train]


def test_arrays_are_brought_to_a_size(tmp_path):
    file = saved(tmp_path / "a.npz", **arrays())
    source = own_arrays.npz(file, image_size=12)
    assert source.train_inputs.shape == (20, 12, 12, 3)
    assert source.test_inputs.shape == (4, 12, 12, 3)
    same = own_arrays.npz(file, image_size=6)
    np.testing.assert_array_equal(same.train_inputs, arrays()["train_images"])


BAD = {
    "missing": ({"test_labels": None}, "has no array test_labels"),
    "fractions": (
        {"train_images": np.zeros((20, 6, 6, 3), np.float32)},
        r"train_images is float32\[20, 6, 6, 3\]; images are uint8\[N, H, W, C\]",
    ),
    "flat": ({"test_images": np.zeros((4, 6, 6), np.uint8)}, r"test_images is uint8\[4, 6, 6\]"),
    "channels": (
        {"test_images": np.zeros((4, 6, 6, 4), np.uint8)},
        r"test_images is uint8\[4, 6, 6, 4\]; .* with C = 1 or 3",
    ),
    "empty": ({"test_images": np.zeros((0, 6, 6, 3), np.uint8)}, r"test_images is uint8\[0, "),
    "other size": (
        {"test_images": np.zeros((4, 5, 6, 3), np.uint8)},
        r"test_images are of shape \(5, 6, 3\) and train_images of \(6, 6, 3\)",
    ),
    "lengths": ({"train_labels": np.arange(19) % 2}, "train_labels has 19 rows, train_images has"),
    "labels": ({"train_labels": np.arange(20) / 2}, "train_labels is float64"),
    "columns": ({"train_labels": np.eye(20, dtype=int)}, "train_labels .* one dimension"),
    "below 0": ({"test_labels": np.array([0, 1, -1, 0])}, "test_labels holds -1; labels are 0 to"),
    "huge": ({"train_labels": np.arange(20) * 10**15}, "train_labels holds 1000000000000000"),
    "gap": ({"train_labels": np.arange(20) % 2 * 2}, "train_labels has no row of class 1 of 0 to"),
    "gap in test": ({"test_labels": np.zeros(4, int)}, "test_labels has no row of class 1"),
    "one class": (
        {"train_labels": np.zeros(20, int), "test_labels": np.zeros(4, int)},
        "train_labels knows 1 class; 2 are needed",
    ),
    "few names": (
        {"class_names": np.array(["a", "b"]), "train_labels": np.arange(20) % 3},
        "train_labels holds 2; labels are 0 to K - 1, as many as class_names",
    ),
    "objects": ({"class_names": np.array(["a", None], object)}, "class_names is object"),
    "object images": ({"train_images": np.array([{}], object)}, "train_images is object"),
    "ids": ({"train_ids": np.array(["a", "b"])}, "train_ids has 2 rows"),
    "same ids": ({"train_ids": np.array(["a"] * 20)}, "train_ids holds 'a' more than once"),
}


@pytest.mark.parametrize("name", BAD)
def test_arrays_that_do_not_fit_are_named(tmp_path, name):
    changes, expected = BAD[name]
    file = saved(tmp_path / "bad.npz", **arrays(**changes))
    refused(lambda: own_arrays.npz(file), f"bad.npz: {expected}")


def test_a_class_too_small_to_hold_out_is_named(tmp_path):
    given = {"images": np.zeros((9, 6, 6, 3), np.uint8), "labels": np.array([0] * 5 + [1] * 4)}
    file = saved(tmp_path / "a.npz", **given)
    refused(lambda: own_arrays.npz(file), "labels has 4 rows of class 1; 5 are needed")


def test_sizes_are_checked_before_anything_is_allocated(tmp_path):
    header = {"descr": "|u1", "fortran_order": False, "shape": (2**40, 64, 64, 3)}
    file = tmp_path / "bomb.npz"
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays().items():
            with archive.open(f"{name}.npy", "w") as member:
                if name == "train_images":
                    np.lib.format.write_array_header_1_0(member, header)
                else:
                    np.lib.format.write_array(member, array)
    refused(lambda: own_arrays.npz(file), r"train_images: 1,099,511,627,776 images of 64x64x3")
    header["shape"] = (2000, 64, 64, 3)
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays().items():
            with archive.open(f"{name}.npy", "w") as member:
                if name == "train_images":
                    np.lib.format.write_array_header_1_0(member, header)
                else:
                    np.lib.format.write_array(member, array)
    refused(lambda: own_arrays.npz(file), "train_images has 128 bytes, not those of its shape")


def test_files_that_are_no_npz_are_refused(tmp_path):
    file = tmp_path / "x.npz"
    refused(lambda: own_arrays.npz(file), "x.npz cannot be read: No such file")
    file.write_text("text")
    refused(lambda: own_arrays.npz(file), "is no .npz file, which numpy.savez writes")
    saved(file, **arrays())
    whole = file.read_bytes()
    file.write_bytes(whole[:1000])
    refused(lambda: own_arrays.npz(file), "is no .npz file")
    at = whole.index(b"train_labels.npy") + 200
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    refused(lambda: own_arrays.npz(file), r"x.npz cannot be read: train_labels\.npy: Bad CRC-32")


# for these numpy raises TokenError and TypeError
HEADERS = {
    "no bracket": (b", }", b", {"),
    "a key of no kind": (b"'descr': '|u1'", b"[]: 1, 'a': 22"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_damaged_header_is_named(tmp_path, name):
    file = saved(tmp_path / "x.npz", **arrays())
    content, (old, new) = file.read_bytes(), HEADERS[name]
    assert len(old) == len(new)
    at = content.index(old)
    file.write_bytes(content[:at] + new + content[at + len(old) :])
    refused(lambda: own_arrays.npz(file), r"x.npz cannot be read: train_images\.npy: ")


@settings(deadline=None, max_examples=150)
@given(data=st.data(), byte=st.integers(0, 255))
def test_any_byte_of_an_npz_may_be_wrong(tmp_path_factory, data, byte):
    file = tmp_path_factory.getbasetemp() / "flipped.npz"
    content = bytearray(saved(file, **arrays()).read_bytes())
    headers = range(content.index(b"\x93NUMPY"), content.index(b"\x93NUMPY") + 128)
    position = data.draw(st.one_of(st.sampled_from(headers), st.integers(0, len(content) - 1)))
    content[position] = byte
    file.write_bytes(content)
    try:
        source = own_arrays.npz(file)
    except DataError as error:
        assert "\n" not in str(error)
    else:
        np.testing.assert_array_equal(source.train_inputs, arrays()["train_images"])


def test_what_is_no_folder_is_named_as_the_key(tmp_path):
    for name, said in (("nowhere", "is no folder"), ("mine.npz", "set dataset.name=npz")):
        with pytest.raises(DataError, match=said) as caught:
            own_images.folder(tmp_path / name)
        assert str(caught.value).startswith(f"dataset.data_dir={tmp_path / name} is ")
