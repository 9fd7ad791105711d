"""Encoded images as a stream: which rows, what becomes of them, and where a reader goes on."""

import io
import json
import multiprocessing
import os
import signal

import numpy as np
import prepared_images
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sparse_mu.data import crops, encoded, pictures, streams
from sparse_mu.data.types import DataError


class InMemory:
    """Image files by number."""

    def __init__(self, files):
        self.files = files

    def __getitems__(self, numbers):
        return [self.files[number] for number in numbers]


def stream_of(count=10, size=16, augmented=True, files=None, workers=0):
    rng = np.random.default_rng(0)
    files = files or [prepared_images.jpeg(row % 3, rng) for row in range(count)]
    labels = np.arange(len(files), dtype=np.int32) % 3
    return streams.Stream(
        "pictures", InMemory(files), np.arange(len(files)), labels, size, True, augmented, workers
    )


def images(stream, rows, draw=None, passes=None):
    return np.concatenate(list(streams.read(stream, np.asarray(rows), draw, passes)))


# ---- plans -----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 7))
def test_every_row_counts_once_on_any_number_of_processes(count, batch_size, processes):
    order = np.random.default_rng(count).permutation(100)[:count]
    plans = [
        streams.plan(order, batch_size, process_index=p, process_count=processes)
        for p in range(processes)
    ]
    assert len({plan.rows.shape for plan in plans}) == 1  # programs that meet need as many steps
    counted = np.concatenate([plan.rows[plan.weights == 1] for plan in plans])
    np.testing.assert_array_equal(np.sort(counted), np.sort(order))
    assert {*np.unique([plan.weights for plan in plans])} <= {0, 1}
    # side by side, the processes' batches are the batches of one process
    together = np.concatenate([plan.rows for plan in plans], axis=1)
    alone = streams.plan(order, batch_size * processes)
    np.testing.assert_array_equal(together, alone.rows)


@pytest.mark.parametrize(("batch_size", "index", "count"), [(0, 0, 1), (2, 2, 2), (2, -1, 2)])
def test_a_plan_that_makes_no_sense_is_refused(batch_size, index, count):
    with pytest.raises(ValueError, match=f"batch_size = {batch_size}, process {index} of {count}"):
        streams.plan(np.arange(4), batch_size, process_index=index, process_count=count)


# ---- what becomes of a row -------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 10**6))
def test_random_boxes_lie_inside_and_have_ratios_of_the_rule(width, height, seed):
    left, top, w, h = crops.random_box(width, height, np.random.default_rng(seed))
    assert 0 <= left and 0 <= top and 0 < w and 0 < h
    assert left + w <= width and top + h <= height
    if min(w, h) >= 20:  # sides are rounded to pixels, by up to 2.5% of 20
        assert 3 / 4 * 0.94 <= w / h <= 4 / 3 * 1.06
        least = min(0.08 * width * height, w * h)
        assert w * h >= 0.94 * least


def test_random_boxes_are_of_uniform_area_and_log_uniform_ratio():
    rng = np.random.default_rng(0)
    boxes = np.array([crops.random_box(1000, 1000, rng) for _ in range(4000)])
    # of a square image only boxes of an area above 3/4 are drawn again
    small = boxes[boxes[:, 2] * boxes[:, 3] < 0.75e6]
    areas, ratios = small[:, 2] * small[:, 3] / 1e6, np.log(small[:, 2] / small[:, 3])
    assert abs(np.mean(areas) - (0.08 + 0.75) / 2) < 0.02  # six standard errors
    assert abs(np.mean(ratios)) < 0.02 and abs(np.std(ratios) - np.log(4 / 3) / 3**0.5) < 0.01


@pytest.mark.parametrize(
    ("shape", "box"), [((600, 10), (293, 0, 13, 10)), ((10, 600), (0, 293, 10, 13))]
)
def test_an_image_too_narrow_for_a_box_gives_its_largest_centre(shape, box):
    assert crops.random_box(*shape, np.random.default_rng(0)) == box


def reference_crop(file, size, seed):
    """The same box by Pillow's plain crop and resize of the whole decoded image."""
    rng = np.random.default_rng(seed)
    image = Image.open(io.BytesIO(file)).convert("RGB")
    left, top, w, h = crops.random_box(*image.size, rng)
    mirrored = rng.random() < 0.5
    crop = image.crop((left, top, left + w, top + h)).resize((size, size), Image.BILINEAR)
    return np.asarray(crop)[:, ::-1] if mirrored else np.asarray(crop), mirrored


def photograph(width=400, height=300):
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (height // 20, width // 20, 3), np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def test_a_training_crop_of_full_size_is_the_plain_crop_and_is_mirrored_half_the_time():
    file, mirrored = photograph(), 0
    for seed in range(40):
        made = crops.training_crop(file, 200, np.random.default_rng(seed))  # no half fits 300
        expected, flipped = reference_crop(file, 200, seed)
        np.testing.assert_array_equal(made, expected)
        mirrored += flipped
    assert 10 < mirrored < 30


def test_a_crop_decoded_at_a_fraction_of_the_size_is_nearly_the_plain_one():
    file = photograph()
    differences = []
    for seed in range(20):
        made = crops.training_crop(file, 16, np.random.default_rng(seed))
        expected, _ = reference_crop(file, 16, seed)
        differences.append(np.abs(made.astype(int) - expected).mean())
    assert 0 < np.mean(differences) < 2  # of 255; shifted by a tenth of a pixel it is 2.7


def test_a_row_becomes_the_same_whatever_the_batch_and_the_company():
    stream = stream_of()
    whole = images(stream, [np.arange(10)], (5, 0))
    by_two = images(stream, np.arange(10)[::-1].reshape(5, 2), (5, 0))
    np.testing.assert_array_equal(by_two, whole[::-1])
    parts = [
        np.concatenate([b.inputs for b in streams.Reader(stream, plan, (5, 0))])
        for plan in (
            streams.plan(np.arange(10), 1, process_index=p, process_count=2) for p in (0, 1)
        )
    ]
    np.testing.assert_array_equal(parts[0], whole[::2])
    np.testing.assert_array_equal(parts[1], whole[1::2])
    for other in ((5, 1), (6, 0)):  # another epoch, another seed
        assert not np.array_equal(images(stream, [np.arange(10)], other), whole)


def test_a_row_becomes_another_in_every_pass():
    stream, rows = stream_of(), np.array([[0, 1, 0, 1]])
    first, again = np.split(images(stream, rows, (5, 0), np.array([[0, 0, 1, 1]])), 2)
    np.testing.assert_array_equal(first, images(stream, rows[:, :2], (5, 0)))  # pass 0
    for one, other in zip(first, again, strict=True):
        assert not np.array_equal(one, other)
    plan = streams.plan(np.arange(2), 4)  # filled up with its own first rows
    np.testing.assert_array_equal(plan.passes, [[0, 0, 1, 1]])
    (batch,) = streams.Reader(stream, plan, (5, 0))
    np.testing.assert_array_equal(batch.inputs, [*first, *again])
    np.testing.assert_array_equal(
        images(stream, rows, None, plan.passes)[:2], images(stream, rows)[2:]
    )  # un-augmented there are no passes


def test_evaluation_is_un_augmented_and_so_is_a_stream_without_augmentation():
    stream = stream_of(size=80)
    expected = [pictures.decode(file, size=80) for file in stream.files.files]
    np.testing.assert_array_equal(images(stream, [np.arange(10)]), expected)
    plain = stream._replace(augmented=False)
    np.testing.assert_array_equal(images(plain, [np.arange(10)], (5, 0)), expected)


def test_rows_are_looked_up_by_their_file():
    stream = stream_of()
    turned = stream._replace(stored=np.arange(10)[::-1].copy())
    np.testing.assert_array_equal(images(turned, [[9, 0]]), images(stream, [[0, 9]]))


# ---- readers ---------------------------------------------------------------------------------


def assert_same_batches(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        for mine, other in zip(a, b, strict=True):
            np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("taken", [0, 1, 3, 4])
def test_a_restored_reader_gives_exactly_the_batches_that_remain(taken):
    stream, plan = stream_of(), streams.plan(np.arange(10)[::-1], 3)
    whole = list(streams.Reader(stream, plan, (1, 2)))
    assert [batch.weights.sum() for batch in whole] == [3, 3, 3, 1]
    np.testing.assert_array_equal(whole[0].labels, [0, 2, 1])
    reader = streams.Reader(stream, plan, (1, 2))
    for _ in range(taken):
        next(reader)
    state = reader.state()
    assert isinstance(state, bytes) and json.loads(state)["next"] == taken
    next(reader, None)  # what is read after the state was taken does not count
    other = streams.Reader(stream, plan, (1, 2))
    for restored in (other, reader):
        restored.restore(state)
        assert_same_batches(list(restored), whole[taken:])


@pytest.mark.parametrize("change", ["order", "draw", "size"])
def test_a_state_of_other_batches_is_refused(change):
    stream, plan = stream_of(), streams.plan(np.arange(10), 3)
    state = streams.Reader(stream, plan, (1,)).state()
    other = {
        "order": (stream, streams.plan(np.arange(10)[::-1], 3), (1,)),
        "draw": (stream, plan, (2,)),
        "size": (stream._replace(size=8), plan, (1,)),
    }[change]
    with pytest.raises(ValueError, match="of other batches"):
        streams.Reader(*other).restore(state)


def test_an_image_that_cannot_be_decoded_is_named_in_one_line():
    files = [prepared_images.jpeg(0, np.random.default_rng(0))] * 3
    for broken in (b"no image", files[0][:400]):
        for draw in (None, (0,)):
            stream = stream_of(files=[*files, broken])
            with pytest.raises(
                DataError, match=r"^pictures cannot be read: the image of row 3: "
            ) as e:
                images(stream, [[0, 1], [2, 3]], draw)
            assert "\n" not in str(e.value)


@pytest.mark.parametrize("side", [(16, 1), (1, 16), (20, 20)])
def test_an_image_of_another_size_in_a_set_of_one_size_is_named(side):
    file = io.BytesIO()
    Image.new("RGB", side, (250, 0, 0)).save(file, "PNG")
    stream = stream_of(files=[file.getvalue()])._replace(resized=False)
    width, height = side
    said = rf"image of row 0: it is of shape \({height}, {width}, 3\), not \(16, 16, 3\)$"
    with pytest.raises(DataError, match=said):
        images(stream, [[0]])


@pytest.mark.slow  # starting two processes takes seconds
def test_processes_decode_the_same_batches():
    plan = streams.plan(np.arange(30), 3)
    threads = list(streams.Reader(stream_of(30), plan, (1, 2)))
    reader = streams.Reader(stream_of(30, workers=2), plan, (1, 2))
    first = next(reader)
    decoding = multiprocessing.active_children()
    assert len(decoding) == 2
    for process in decoding:  # Ctrl-C: the process that reads finishes its step, so they go on
        os.kill(process.pid, signal.SIGINT)
    state = reader.state()
    rest = list(reader)
    assert_same_batches([first, *rest], threads)
    reader.restore(state)
    assert_same_batches([first, *reader], threads)


# ---- a prepared TFDS directory ---------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    prepared_images.write(folder)
    return folder


def opened(folder, limit=None, **more):
    return encoded.tfds_files(prepared_images.NAME, folder, limit, image_size=16, **more)


def test_files_of_a_prepared_set_with_labels_and_names(prepared, tmp_path):
    found = opened(prepared, cache_dir=str(tmp_path))
    source = found.source
    assert source.class_names == prepared_images.CLASSES and source.name == prepared_images.NAME
    assert [len(source.train_labels), len(source.test_labels)] == [48, 12]
    np.testing.assert_array_equal(source.train_inputs, np.arange(48))
    np.testing.assert_array_equal(source.test_inputs, np.arange(48, 60))
    for row, name in enumerate(source.train_ids):
        split, number = name.removesuffix(".JPEG").split("_")
        assert split == "train" and int(number) % 3 == source.train_labels[row]
    for file, label in zip(found.files.__getitems__([0, 47, 48, 59]), [0, 47, 48, 59], strict=True):
        labels = np.concatenate([source.train_labels, source.test_labels])
        colour = np.asarray(Image.open(io.BytesIO(file))).mean(axis=(0, 1))
        assert np.argmax(colour) == labels[label]
    again = opened(prepared, cache_dir=str(tmp_path))  # from the cache
    np.testing.assert_array_equal(again.source.train_labels, source.train_labels)
    assert again.source.train_ids == source.train_ids and again.digest == found.digest
    assert len(list(tmp_path.iterdir())) == 1


def test_the_first_files_alone_are_the_same_rows(prepared, tmp_path):
    few = opened(prepared, 10, cache_dir=str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()  # a part is not kept
    whole = opened(prepared, cache_dir=str(tmp_path))
    cached = opened(prepared, 10, cache_dir=str(tmp_path))
    for source in (few.source, cached.source):
        np.testing.assert_array_equal(source.train_labels, whole.source.train_labels[:10])
        np.testing.assert_array_equal(source.test_labels, whole.source.test_labels[:2])
        np.testing.assert_array_equal(source.test_inputs, [48, 49])
