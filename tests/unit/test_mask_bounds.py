"""The mask-error bounds are theorems: asserted on masks of random and of chosen scores."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_mu import mask_bounds, masks


def everything(name, leaf):
    return True


def assert_theorems(target, estimate, kept):
    found = mask_bounds.mask_errors(target, estimate, kept)
    assert found.flips % 2 == 0
    assert found.flips <= min(found.band, found.widest_band, found.absolute, found.square)
    assert found.band <= found.widest_band
    assert found.threshold <= found.largest_error * (1 + 1e-12) + 1e-300
    assert found.iou >= found.iou_bound - 1e-12
    return found


SCORES = st.one_of(
    st.floats(0, 10),
    st.sampled_from((0.0, 1.0, 1.0, 2.0)),  # many ties
    st.floats(0, 1e-30),
)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(2, 40))
def test_the_bounds_hold_on_any_scores(data, n):
    vector = st.lists(SCORES, min_size=n, max_size=n).map(np.array)
    target, estimate = data.draw(vector), data.draw(vector)
    kept = data.draw(st.integers(1, n - 1))
    assert_theorems(target, estimate, kept)
    signs = data.draw(st.lists(st.sampled_from((-1.0, 1.0)), min_size=n, max_size=n))
    weights = mask_bounds.weight_error(target * signs, estimate * signs[::-1], kept)
    assert weights.error <= weights.bound + 1e-9


@pytest.mark.parametrize("noise", [1e-3, 1e-2, 1e-1, 1.0])
def test_the_bounds_hold_and_the_masks_are_those_of_the_library(noise):
    rng = np.random.default_rng(0)
    target = np.abs(rng.standard_normal(2000)).astype(np.float32)
    estimate = np.abs(target + noise * rng.standard_normal(2000)).astype(np.float32)
    found = assert_theorems(target, estimate, 200)
    made = [masks.from_scores(jnp.asarray(s), 0.9, everything) for s in (target, estimate)]
    assert found.flips == int((made[0] != made[1]).sum())
    both = int((made[0] & made[1]).sum())
    assert found.iou == pytest.approx(both / (400 - both))  # (iii)


def test_without_an_error_nothing_may_flip():
    scores = np.arange(10.0)
    found = mask_bounds.mask_errors(scores, scores, 3)
    assert found.flips == found.absolute == found.square == 0
    assert found.iou == found.iou_bound == 1


def test_one_swapped_pair_is_met_exactly():
    target = np.array([0.0, 1.0, 2.0, 3.0])
    estimate = np.array([0.0, 2.1, 2.0, 3.0])  # entry 1 overtakes entry 2
    found = mask_bounds.mask_errors(target, estimate, 2)
    assert found.flips == found.absolute == found.square == 2
    assert found.band < found.widest_band or found.band == 2


def test_the_bound_is_sharp():
    """One pair just overtaken: with 0.9 of the error the same inequality would promise no flip."""
    target = np.array([0.0, 1.0, 2.0, 3.0])
    estimate = np.array([0.0, 2.0 + 1e-6, 2.0, 3.0])
    assert mask_bounds.mask_errors(target, estimate, 2).flips == 2
    scaled = target + 0.9 * (estimate - target)
    found = mask_bounds.mask_errors(target, scaled, 2)
    assert found.flips == found.absolute == 0


def test_bad_scores_are_refused():
    with pytest.raises(ValueError, match="kept = 3"):
        mask_bounds.mask_errors(np.zeros(3), np.zeros(3), 3)
    with pytest.raises(ValueError, match="equal length"):
        mask_bounds.mask_errors(np.zeros(3), np.zeros(4), 1)
    with pytest.raises(ValueError, match="finite"):
        mask_bounds.mask_errors(np.array([1.0, np.nan]), np.zeros(2), 1)
