"""Triggers by hand: where they are, what they change, whom they are stamped on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_mu.data import triggers
from sparse_mu.data.triggers import TriggerError

GREY = np.full((2, 8, 8, 3), 100, np.uint8)


def test_a_square_lies_off_the_bottom_right_corner():
    stamped = triggers.stamp(GREY, triggers.square((8, 8, 3), 3, value=0, offset=2))
    changed = (stamped != GREY).all(axis=3)[0]
    rows, columns = np.nonzero(changed)
    # the official [-2 - s : -2] both ways
    assert sorted(set(rows)) == sorted(set(columns)) == [3, 4, 5] and changed.sum() == 9
    assert (stamped[:, 3:6, 3:6] == 0).all() and stamped.dtype == np.uint8
    white = triggers.stamp(GREY, triggers.square((8, 8, 3), 2, value=255, offset=0))
    assert (white[:, 6:, 6:] == 255).all() and (white[:, :6] == 100).all()


def test_a_pattern_is_blended_over_the_whole_image():
    trigger = triggers.blended((8, 8, 3), 0.25, seed=3)
    expected = np.rint(0.75 * GREY + 0.25 * trigger.pattern.astype(float))
    np.testing.assert_array_equal(triggers.stamp(GREY, trigger), expected.astype(np.uint8))
    np.testing.assert_array_equal(
        triggers.blended((8, 8, 3), 0.25, seed=3).pattern, trigger.pattern
    )
    assert (triggers.blended((8, 8, 3), 0.25, seed=4).pattern != trigger.pattern).any()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(0, 7), st.integers(0, 255))
def test_stamping_is_idempotent_for_squares_and_leaves_the_rest(size, offset, value):
    if size + offset > 8:
        with pytest.raises(TriggerError, match="does not fit an image of 8x8"):
            triggers.square((8, 8, 3), size, value=value, offset=offset)
        return
    if size == 8:
        with pytest.raises(TriggerError, match="a square of 8 pixels covers the whole image"):
            triggers.square((8, 8, 3), size, value=value, offset=offset)
        return
    trigger = triggers.square((8, 8, 3), size, value=value, offset=offset)
    once = triggers.stamp(GREY, trigger)
    np.testing.assert_array_equal(triggers.stamp(once, trigger), once)
    assert (once != GREY).any(axis=3).sum() == (0 if value == 100 else 2 * size * size)


def test_a_trigger_that_cannot_be_seen_is_refused():
    dark = GREY.copy()
    dark[:, 4:, 4:] = 0
    black = triggers.square((8, 8, 3), 2, value=0, offset=0)
    with pytest.raises(TriggerError, match=r"a black square changes 0% of these images'"):
        triggers.check_visible(dark, black, "a black square")
    triggers.check_visible(GREY, black, "a black square")  # 4 of 64 pixels
    # 0.96% of the mass: one pixel of 64 from 100 to 161
    faint = triggers.square((8, 8, 3), 1, value=161, offset=0)
    with pytest.raises(TriggerError, match="at least 1% is needed"):
        triggers.check_visible(GREY, faint, "a faint pixel")
    triggers.check_visible(GREY, faint._replace(pattern=faint.pattern + 4), "a pixel")  # 1.02%


LABELS = np.repeat(np.arange(4), 25).astype(np.int32)


def test_the_rows_of_each_variant():
    given = {"ratio": 0.1, "target": 2, "classes": 4}
    one = triggers.poison(LABELS, **given, seed=5)
    assert len(one.rows) == 10 and (np.diff(one.rows) > 0).all() and (one.labels == 2).all()
    every = triggers.poison(LABELS, **given, variant="all_to_all", seed=5)
    np.testing.assert_array_equal(every.rows, one.rows)
    np.testing.assert_array_equal(every.labels, (LABELS[every.rows] + 1) % 4)
    clean = triggers.poison(LABELS, **given, variant="clean_label", seed=5)
    assert (LABELS[clean.rows] == 2).all() and (clean.labels == 2).all() and len(clean.rows) == 10
    other = triggers.poison(LABELS, **given, seed=6)
    assert (other.rows != one.rows).any()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"ratio": 0.0}, "ratio = 0.0: must be above 0"),
        ({"ratio": 1.0}, "ratio = 1.0: must be above 0 and below 1"),
        ({"ratio": 0.001}, "poisons 0 of 100 rows"),
        ({"ratio": 0.999}, "poisons 100 of 100 rows"),
        ({"target": 4}, "target = 4: must be a class, from 0 to 3"),
        ({"variant": "clean_label", "ratio": 0.25}, "asks for 25 rows of the target class"),
    ],
)
def test_a_poisoning_that_makes_no_sense_is_refused(changed, said):
    with pytest.raises(TriggerError, match=said):
        triggers.poison(LABELS, **{"ratio": 0.1, "target": 0, "classes": 4} | changed)
    with pytest.raises(TriggerError, match="strength = 0"):
        triggers.blended((8, 8, 3), 0)
