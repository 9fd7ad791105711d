"""Copies of forget images: exact, near, flat, small, and what is said of them."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from synthetic_rows import make_config, make_rows

from sparse_mu.captions import copies
from sparse_mu.data import duplicates, sources
from sparse_mu.data.duplicates import NEAR_BITS, Pair, find_copies, hashes
from sparse_mu.summary import summarise


def scenes(n, side=32, channels=3, seed=0):
    """Smooth random pictures uint8[n, side, side, channels] that differ in their low waves."""
    rng = np.random.default_rng(seed)
    waves = np.cos(np.pi / side * np.outer(np.arange(8), np.arange(side) + 0.5))
    drawn = rng.standard_normal((n, channels, 8, 8))
    pictures = np.einsum("ncij,ih,jw->nhwc", drawn, waves, waves)
    return np.clip(128 + 12 * pictures, 0, 255).astype(np.uint8)


def test_planted_copies_are_counted_and_named():
    images = scenes(40)
    images[17] = images[3]  # exact, in the retain set of both trials
    images[21] = np.clip(images[4] + 3.0, 0, 255)  # near
    images[4, 0, 0, 0] ^= 1
    images[35] = images[3]  # a test row
    images[2] = images[1]  # both forgotten in trial 0: no leak there
    forget = np.zeros((2, 30), bool)
    forget[0, [1, 2, 3, 4]] = True
    forget[1, [2, 17]] = True
    found = find_copies(hashes(images), forget, ~forget)
    assert found.near_bits == NEAR_BITS and found.reason == "" and found.flat == 0
    first, second = found.trials
    assert (first.exact, first.near, first.exact_test, first.near_test) == (1, 1, 1, 0)
    expected = (
        Pair("exact", 3, 17, "retain"),
        Pair("exact", 3, 5, "test"),
        Pair("near", 4, 21, "retain"),
    )
    assert first.first == expected
    assert (second.exact, second.near, second.exact_test) == (2, 0, 1)  # rows 1 and 3
    assert second.first[:2] == (Pair("exact", 2, 1, "retain"), Pair("exact", 17, 3, "retain"))


def test_only_the_retain_set_counts():
    images = scenes(6)
    images[4] = images[5] = images[0]
    forget = np.array([[True, False, False, False, False]])
    retain = np.array([[False, True, True, True, False]])  # row 4 is in no set of this split
    (found,) = find_copies(hashes(images), forget, retain).trials
    assert (found.exact, found.exact_test) == (0, 1)


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_counts_are_those_of_comparing_every_pair(data):
    n, tests = 12, 4
    images = scenes(4)[
        data.draw(st.lists(st.integers(0, 3), min_size=n + tests, max_size=n + tests))
    ]
    for row in data.draw(st.sets(st.integers(0, n + tests - 1))):
        images[row, 5, 5] ^= 2  # the same picture, other pixels
    forget = np.array(
        data.draw(st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=3))
    )
    found = hashes(images)
    report = find_copies(found, forget, ~forget)
    apart = np.bitwise_count(found.picture[:, None] ^ found.picture)
    equal = (images[:, None] == images).all(axis=(2, 3, 4))
    for members, counted in zip(forget, report.trials, strict=True):
        exact = equal[:, :n][:, members].any(axis=1)
        near = (apart[:, :n][:, members] <= NEAR_BITS).any(axis=1) & ~exact
        retain = np.append(~members, np.zeros(tests, bool))
        test = np.arange(n + tests) >= n
        want = [int((of & part).sum()) for of in (exact, near) for part in (retain, test)]
        assert [counted.exact, counted.exact_test, counted.near, counted.near_test] == want
        assert all(members[pair.forget] for pair in counted.first)


@pytest.mark.parametrize("at_once", [1, 7, 2**18])
def test_near_pairs_are_those_of_comparing_every_pair(monkeypatch, at_once):
    monkeypatch.setattr(duplicates, "_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 2**63, 5, dtype=np.uint64)[rng.integers(0, 5, 300)]
    for _ in range(3):  # up to 3 bits flipped in each: pairs are 0 to 6 apart
        picture ^= np.uint64(1) << rng.integers(0, 64, 300).astype(np.uint64)
    ours, theirs = np.arange(0, 300, 3), np.flatnonzero(rng.random(300) < 0.8)
    found = {
        pair
        for rows, others in duplicates._near_pairs(picture, ours, theirs)
        for pair in zip(rows.tolist(), others.tolist(), strict=True)
    }
    apart = np.bitwise_count(picture[ours][:, None] ^ picture[theirs])
    rows, others = np.nonzero(apart <= NEAR_BITS)
    assert found == set(zip(ours[rows].tolist(), theirs[others].tolist(), strict=True))
    assert 0 < len(found) < (apart <= 6).sum()


def test_flat_images_are_copies_only_of_their_own_colour():
    images = scenes(12)
    images[:8] = np.arange(0, 80, 10, np.uint8)[:, None, None, None]  # eight greys
    images[:8, ::2, ::2] += 1  # and next to no texture
    images[9] = images[0]
    forget = np.arange(10)[None] < 4
    report = find_copies(hashes(images), forget, ~forget)
    assert report.flat == 9
    assert (report.trials[0].exact, report.trials[0].near) == (1, 0)


def test_a_picture_keeps_its_hash_when_brightness_and_contrast_change():
    images = scenes(50, channels=1)
    images = (60 + 0.5 * images).astype(np.uint8)  # no clipping below
    before = hashes(images).picture
    for changed in (images + 20, (20 + 0.8 * images).astype(np.uint8)):
        # signs survive but for what rounding to bytes does to waves of next to no strength
        assert (np.bitwise_count(before ^ hashes(changed).picture) <= NEAR_BITS).all()
    assert (np.bitwise_count(before ^ hashes(255 - images).picture) > 40).all()  # a negative
    others = np.bitwise_count(before[:, None] ^ before)[~np.eye(50, dtype=bool)]
    assert others.min() > NEAR_BITS and 28 < others.mean() < 35  # half of 63 bits


def test_a_symmetric_picture_has_a_hash_free_of_rounding():
    stripes = np.zeros((2, 32, 32, 1), np.uint8)
    stripes[:, :, 8:24] = 200
    stripes[1, :, 8:24] = 190
    first, second = hashes(stripes).picture
    assert first == second


@pytest.mark.parametrize("shape", [(16, 24, 3), (17, 40, 1), (64, 32, 4)])
def test_other_shapes(shape):
    height, width, channels = shape
    images = scenes(6, 64, channels)[:, :height, :width]
    found = hashes(images)
    assert found.picture is not None and len(set(found.picture)) == 6
    parts = [hashes(images[:2]), hashes(images[2:])]
    for whole, halves in zip(found, zip(*parts, strict=True), strict=True):
        np.testing.assert_array_equal(whole, np.concatenate(halves))


def test_small_images_and_too_many_pairs_are_not_compared_as_pictures(monkeypatch):
    images = scenes(10, 8)
    images[5] = images[0]
    forget = np.arange(8)[None] < 2
    report = find_copies(hashes(images), forget, ~forget)
    assert report.near_bits is None and "less than 16 pixels" in report.reason
    assert (report.trials[0].exact, report.trials[0].near) == (1, 0)
    monkeypatch.setattr(duplicates, "MOST_COMPARED", 4 * 2 * 10 - 1)  # bands, forget rows, rows
    alike = np.repeat(scenes(1), 10, axis=0)
    report = find_copies(hashes(alike), forget, ~forget)
    assert report.near_bits is None and "80 pairs would have to be compared" in report.reason
    assert (report.trials[0].exact, report.trials[0].near) == (6, 0)


def test_planted_copies_among_real_photographs(shared_folder):
    source = sources.tfds_images("cifar10", shared_folder / "data" / "tfds", limit=500)
    images, labels = source.train_inputs.copy(), source.train_labels
    cat, second = np.flatnonzero(labels == 3)[:2]
    ship, truck = np.flatnonzero(labels == 8)[0], np.flatnonzero(labels == 9)[0]
    forget = (labels == 3)[None]
    (before,) = find_copies(hashes(images), forget, ~forget).trials
    assert (before.exact, before.near) == (0, 0)
    images[ship] = images[cat]
    packed = io.BytesIO()
    Image.fromarray(images[second]).save(packed, "JPEG", quality=90)
    images[truck] = np.asarray(Image.open(packed))
    (after,) = find_copies(hashes(images), forget, ~forget).trials
    assert after.first == (
        Pair("exact", cat, ship, "retain"),
        Pair("near", second, truck, "retain"),
    )


# What is said


def said(exact=0, near=0, near_bits=3):
    first = [
        {"kind": kind, "forget": "train_1", "copy": "train_2", "where": "retain"}
        for kind, count in (("exact", exact), ("near", near))
        if count
    ]
    nothing = {"exact": 0, "near": 0, "exact_test": 0, "near_test": 0, "first": []}
    trial = nothing | {"exact": exact, "near": near, "exact_test": 1, "first": first}
    reason = "" if near_bits else "images of less than 16 pixels a side say too little"
    found = {"near_bits": near_bits, "reason": reason, "flat": 2, "trials": [nothing, trial]}
    rows = make_rows(trials=2, sparsities=(0.0,))
    return summarise(rows, config=make_config(), manifest={"duplicates": found})


def test_copies_in_the_retain_set_are_a_warning():
    assert said()["warnings"] == []
    (line,) = said(exact=1)["warnings"]
    assert line.startswith("1 exact copy of forget images left in the retain set, in 1 of 2 trials")
    assert "row train_2, of forget row train_1: what they show is not forgotten" in line
    exact, near = said(exact=2, near=5)["warnings"]
    assert exact.startswith("2 exact copies") and near.startswith("5 near copies")
    assert "at most 3 of 64 bits apart; look at them" in near


def test_the_report_says_what_was_looked_for():
    text = copies(said())
    assert "in the retain set 0 exact, 0 near; in the test set 1 exact, 0 near" in text
    assert "2 flat images not compared" in text
    text = copies(said(near_bits=None))
    assert "in the retain set 0 exact; in" in text and "not looked for: images of less" in text
    rows = make_rows(trials=2, sparsities=(0.0,))
    for manifest in ({}, {"duplicates": None}):
        assert copies(summarise(rows, config=make_config(), manifest=manifest)) == ""


def test_rows_that_the_original_never_saw_are_a_warning():
    split = {
        "trained_on": 45_000,
        "forget": [4500, 4500],
        "forget_never_trained_on": [459, 442],
        "retain_never_trained_on": [4029, 4046],
    }
    config = make_config() | {"dataset": {"name": "cifar10", "unlearn_split_seed": 2}}
    rows = make_rows(trials=2, sparsities=(0.0,))
    (line,) = summarise(rows, config=config, manifest={"unlearning_split": split})["warnings"]
    assert line.startswith("dataset.unlearn_split_seed = 2: the original model never trained on")
    assert "442 to 459 of the 4,500 forget rows of a trial (10.0% in all)" in line


@pytest.mark.parametrize("side", [32, 8])
def test_hashes_of_parts_are_those_of_the_whole(side):
    images = scenes(20, side)
    parts = [hashes(images[:8]), hashes(images[8:16]), hashes(images[[16, 17, 18, 19, 0, 1, 2, 3]])]
    for whole, together in zip(hashes(images), duplicates.joined(parts, 20), strict=True):
        np.testing.assert_array_equal(whole, together)
