"""Topology metrics against hand counts, chance levels against random masks."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_mu import masks, topology

RNG = np.random.default_rng(0)


def tree(*leaves):
    return {f"w{index}": np.asarray(leaf) for index, leaf in enumerate(leaves)}


def everything(name, leaf):
    return True


def random_mask(rng, size, kept):
    mask = np.zeros(size, bool)
    mask[rng.permutation(size)[:kept]] = True
    return mask


def test_by_hand():
    a = tree([[True, True, False, False]])
    b = tree([[True, False, True, False]])
    found = topology.similarity(a, b, everything)
    assert found.iou == pytest.approx(1 / 3)
    assert found.iou_pruned == pytest.approx(1 / 3)
    assert found.hamming == 0.5
    assert found.chance_iou == pytest.approx(1 / 3)  # E = 1 of 4
    assert found.corrected_iou == pytest.approx(0)
    assert found.kappa == pytest.approx(0)
    assert found.overlap == 0.5


def test_equal_masks_score_one():
    a = tree(random_mask(RNG, 200, 20), random_mask(RNG, 50, 30))
    found = topology.similarity(a, a, everything)
    assert found.iou == found.iou_pruned == found.overlap == 1
    assert found.corrected_iou == found.kappa == pytest.approx(1)
    assert found.hamming == 0


@pytest.mark.parametrize(("density", "chance"), [(0.5, 1 / 3), (0.1, 0.1 / 1.9), (0.01, 0.005025)])
def test_independent_masks_are_at_chance(density, chance):
    n, rng = 100_000, np.random.default_rng(1)
    a, b = (tree(random_mask(rng, n, round(density * n))) for _ in range(2))
    found = topology.similarity(a, b, everything)
    # c = d / (2 - d); 0.02 is what UNPRUNING asks, the sampling error here is below 0.005
    assert found.chance_iou == pytest.approx(chance, abs=1e-6)
    assert abs(found.iou - chance) < 0.02
    assert abs(found.kappa) < 0.02 and abs(found.corrected_iou) < 0.02


def test_a_copy_of_densities_alone_scores_zero_only_when_stratified():
    rng = np.random.default_rng(2)
    sizes, kept = (6400, 5000, 500), (320, 900, 400)
    a, b = (
        tree(*(random_mask(rng, n, k) for n, k in zip(sizes, kept, strict=True))) for _ in range(2)
    )
    assert abs(topology.similarity(a, b, everything).kappa) < 0.05
    one = [tree(np.concatenate(list(m.values()))) for m in (a, b)]  # as if it were one layer
    assert topology.similarity(*one, everything).kappa > 0.1


def test_layers_alone_and_what_is_not_prunable_is_left_out():
    a = {"kernel": np.array([[True, False]]), "bias": np.array([True, True])}
    b = {"kernel": np.array([[True, True]]), "bias": np.array([True, True])}
    found = topology.similarity_by_leaf(a, b, masks.matrices)
    assert list(found) == ["kernel"]
    assert found["kernel"] == topology.similarity(a, b, masks.matrices)
    assert found["kernel"].iou == 0.5


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 60), st.data())
def test_symmetric_bounded_and_the_overlap_adds_nothing(seed, n, data):
    rng = np.random.default_rng(seed)
    k = data.draw(st.integers(1, n - 1))
    a, b = (tree(random_mask(rng, n, k)) for _ in range(2))
    there, back = topology.similarity(a, b, everything), topology.similarity(b, a, everything)
    assert there == back
    assert 0 <= there.iou <= 1 and there.kappa <= 1 + 1e-12
    # at equal counts the overlap ratio is a function of the IoU
    assert there.overlap == pytest.approx(2 * there.iou / (1 + there.iou))
    swapped = topology.similarity(
        *(jax.tree.map(np.logical_not, mask) for mask in (a, b)), everything
    )
    assert swapped.iou == pytest.approx(there.iou_pruned)


def test_flips_by_hand():
    original = tree([True, True, False, False, False])
    target = tree([True, False, True, False, False])
    unpruned = tree([True, False, False, True, False])
    found = topology.flips(original, unpruned, target, everything)
    assert (found.should, found.flipped, found.right) == (2, 2, 1)
    assert found.precision == 0.5 and found.recall == 0.5
    still = topology.flips(original, original, target, everything)
    assert np.isnan(still.precision) and still.recall == 0
    assert np.isnan(topology.flips(original, unpruned, original, everything).recall)


def test_gain_is_zero_for_nothing_one_at_the_floor_and_undefined_without_an_effect():
    assert topology.gain(0.7, 0.7, 0.85) == 0
    assert topology.gain(0.85, 0.7, 0.85) == 1
    assert topology.gain(0.6, 0.7, 0.9) == pytest.approx(-0.5)
    assert np.isnan(topology.gain(0.9, 0.9, 0.9))


def test_rank_correlation_everywhere_and_near_the_threshold():
    target = np.arange(100.0)
    estimate = target.copy()
    estimate[85:95] = estimate[85:95][::-1]  # wrong exactly around the threshold of 90
    kept = tree(target >= 90)
    everywhere = topology.rank_correlation(tree(target), tree(estimate), everything)
    near = topology.rank_correlation(tree(target), tree(estimate), everything, kept=kept, near=0.1)
    assert everywhere > 0.99 and near == pytest.approx(-1)
    assert np.isnan(topology.rank_correlation(tree(target), tree(0 * target), everything))


def test_divergences_by_hand_and_of_extreme_logits():
    p, q = np.array([[0.5, 0.5]]), np.array([[0.9, 0.1]])
    found = topology.divergence(np.log(q), np.log(p))
    assert found.kl == pytest.approx(0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1))
    middle = (p + q) / 2
    js = (np.sum(p * np.log(p / middle)) + np.sum(q * np.log(q / middle))) / 2
    assert found.js == pytest.approx(js)
    far = topology.divergence(np.array([[1e4, 0.0]]), np.array([[0.0, 1e4]]))
    assert far.kl == pytest.approx(1e4) and far.js == pytest.approx(np.log(2))
    same = topology.divergence(3 + np.log(q), np.log(q))  # logits are defined up to a constant
    assert same.kl == same.js == pytest.approx(0, abs=1e-12)
    assert np.isnan(topology.divergence(np.zeros((0, 3)), np.zeros((0, 3))).kl)


def test_weight_distance():
    assert topology.weight_distance(tree([3.0, 0.0]), tree([0.0, 4.0]), everything) == 1.25


def test_trees_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="leaf 'w0' has shape"):
        topology.similarity(tree([True]), tree([True, False]), everything)
    turned = {"w0": np.ones((2, 3))}, {"w0": np.ones((3, 2))}  # as many entries
    for call in (topology.rank_correlation, topology.weight_distance):
        with pytest.raises(ValueError, match="leaf 'w0' has shape"):
            call(*turned, everything)
    with pytest.raises(ValueError, match="leaf 'w0' has shape"):
        topology.flips(turned[0], *turned, everything)
    with pytest.raises(ValueError, match="dtype"):
        topology.similarity(tree([True]), tree([1.0]), everything)
    with pytest.raises(ValueError, match="no leaf of params is prunable"):
        topology.similarity(tree([True]), tree([True]))
    with pytest.raises(ValueError, match="logits"):
        topology.divergence(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="near"):
        topology.rank_correlation(
            tree([1.0, 2.0]), tree([1.0, 2.0]), everything, kept=tree([True, False]), near=0
        )
