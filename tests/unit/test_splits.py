"""Hold-outs: the official draws, one split and the official two."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_mu.data.splits import hold_out, one_split, two_splits

LABELS = np.repeat(np.arange(3), 4)


def test_hold_out_has_the_official_overlaps():
    # Only the count per class matters for the overlap, so CIFAR-10's order is not needed.
    labels = np.tile(np.arange(10), 5000)
    held = {seed: hold_out(labels, 0.1, seed)[1] for seed in (1, 2, 3, 4, 5)}
    overlaps = [np.intersect1d(held[1], held[seed]).size for seed in (2, 3, 4, 5)]
    assert overlaps == [512, 502, 471, 533]  # SPEC section 1.2


@settings(deadline=None, max_examples=30)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    fraction=st.floats(0, 0.99),
    seed=st.integers(0, 2**32 - 1),
)
def test_hold_out_partitions_each_class(labels, fraction, seed):
    labels = np.array(labels)
    train, held = hold_out(labels, fraction, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, held])), np.arange(len(labels)))
    assert (np.diff(train) > 0).all() and (np.diff(held) > 0).all()
    for label in np.unique(labels):
        assert (labels[held] == label).sum() == int(fraction * (labels == label).sum())
    np.testing.assert_array_equal(held, hold_out(labels, fraction, seed)[1])


@pytest.mark.parametrize("fraction", [-0.1, 1, float("nan")])
def test_hold_out_refuses_a_bad_fraction(fraction):
    with pytest.raises(ValueError, match="held-out fraction"):
        hold_out(LABELS, fraction, 1)


def test_one_split_trains_on_what_it_unlearns():
    split = one_split(np.array([1, 5, 7]))
    np.testing.assert_array_equal(split.rows, [1, 5, 7])
    assert split.trained.all() and split.unlearned.all() and len(split.trained) == 3


def test_two_splits_have_the_official_mismatch():
    # Exact, no tolerance: both draws are numpy's, and only the count per class matters.
    labels = np.tile(np.arange(10), 5000)
    split = two_splits(labels, 0.1, 1, 2)
    np.testing.assert_array_equal(split.rows[split.trained], hold_out(labels, 0.1, 1)[0])
    np.testing.assert_array_equal(split.rows[split.unlearned], hold_out(labels, 0.1, 2)[0])
    assert split.trained.sum() == split.unlearned.sum() == 45_000
    assert len(split.rows) == 50_000 - 512  # held out by both: in neither
    unseen = split.unlearned & ~split.trained
    counts = np.bincount(labels[split.rows[unseen]])
    assert counts[0] == 459 and counts.min() == 442 and counts.max() == 459  # SPEC section 1.2
    assert (np.bincount(labels[split.rows[split.unlearned]]) == 4500).all()


@settings(deadline=None, max_examples=30)
@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    fraction=st.floats(0, 0.99),
    seeds=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
)
def test_two_splits_hold_the_rows_of_either(labels, fraction, seeds):
    labels = np.array(labels)
    split = two_splits(labels, fraction, *seeds)
    first, second = (set(hold_out(labels, fraction, seed)[0]) for seed in seeds)
    assert (np.diff(split.rows) > 0).all() and set(split.rows) == first | second
    assert set(split.rows[split.trained]) == first
    assert set(split.rows[split.unlearned]) == second
    same = two_splits(labels, fraction, seeds[0], seeds[0])
    np.testing.assert_array_equal(same.rows, sorted(first))
    assert same.trained.all() and same.unlearned.all()
