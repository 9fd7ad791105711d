"""Masks from scores: exact counts, ties by index, and what is never pruned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_mu import masks, scores

# two prunable leaves with a leaf between them (by name) that is not
SHAPES = {"a": (3, 5), "b": (7,), "c": (4, 5)}
PRUNABLE = 35


def score_tree(values):
    """Scores from 42 numbers, in the order of the leaves."""
    parts = np.split(np.asarray(values, np.float32), [15, 22])
    return {name: part.reshape(SHAPES[name]) for name, part in zip(SHAPES, parts, strict=True)}


def flat_prunable(tree):
    return np.concatenate([np.ravel(tree["a"]), np.ravel(tree["c"])])


def expected_mask(tree, count):
    """numpy's stable sort: lowest score first, ties by flat index."""
    kept = np.ones(PRUNABLE, bool)
    kept[np.argsort(flat_prunable(tree), kind="stable")[:count]] = False
    return kept


@settings(deadline=None, max_examples=60)
@given(
    # few distinct values: ties everywhere
    values=st.lists(st.integers(0, 3), min_size=42, max_size=42),
    sparsity=st.floats(0, 1, exclude_max=True),
)
def test_the_count_is_exact_and_ties_go_by_index(values, sparsity):
    tree = score_tree(values)
    found = masks.from_scores(tree, sparsity, masks.matrices)
    count = round(sparsity * PRUNABLE)
    np.testing.assert_array_equal(flat_prunable(found), expected_mask(tree, count))
    assert np.asarray(found["b"]).all()
    assert all(leaf.dtype == bool for leaf in jax.tree.leaves(found))
    assert float(masks.sparsity(found, masks.matrices)) == pytest.approx(count / PRUNABLE, abs=1e-6)


@jax.jit
def traced(tree, sparsity):
    return masks.from_scores(tree, sparsity, masks.matrices)


@settings(deadline=None, max_examples=40)
@given(
    values=st.lists(st.integers(0, 3), min_size=42, max_size=42),
    sixteenths=st.integers(0, 15),  # exact in float32, so that both round the same product
)
def test_a_traced_sparsity_gives_the_mask_of_a_concrete_one(values, sixteenths):
    tree, sparsity = score_tree(values), sixteenths / 16
    concrete = masks.from_scores(tree, sparsity, masks.matrices)
    jax.tree.map(np.testing.assert_array_equal, traced(tree, jnp.float32(sparsity)), concrete)


def test_half_a_weight_rounds_to_even():
    assert [int(masks.pruned_count(n, 0.5)) for n in (1, 3, 5, 7)] == [0, 2, 2, 4]
    assert [int(masks.pruned_count(n, jnp.float32(0.5))) for n in (1, 3, 5, 7)] == [0, 2, 2, 4]


def test_trials_of_different_sparsity_are_one_vmap():
    rng = np.random.default_rng(0)
    trees = [score_tree(rng.standard_normal(42)) for _ in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
    levels = np.array([0.0, 0.25, 0.875], np.float32)
    found = jax.vmap(traced)(stacked, levels)
    for index, (tree, level) in enumerate(zip(trees, levels, strict=True)):
        alone = masks.from_scores(tree, float(level), masks.matrices)
        jax.tree.map(
            lambda all_trials, one, i=index: np.testing.assert_array_equal(all_trials[i], one),
            found,
            alone,
        )


def test_negative_and_infinite_scores_keep_their_order():
    tree = score_tree(np.zeros(42))
    tree["a"][0, 0], tree["c"][0, 0], tree["a"][0, 1] = -np.inf, -1.0, np.inf
    found = masks.from_scores(tree, 2 / PRUNABLE, masks.matrices)
    gone = [(name, *index) for name in "ac" for index in np.argwhere(~np.asarray(found[name]))]
    assert gone == [("a", 0, 0), ("c", 0, 0)]


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1, 95.0, float("nan")])
def test_a_sparsity_outside_zero_and_one_is_refused(sparsity):
    with pytest.raises(ValueError, match="sparsity"):
        masks.from_scores(score_tree(np.zeros(42)), sparsity, masks.matrices)


def test_only_convolution_kernels_are_prunable_by_default():
    tree = {"conv": np.zeros((3, 3, 1, 2)), "dense": np.zeros((4, 2)), "bias": np.zeros(2)}
    flags = masks.prunable_leaves(tree)
    assert flags == {"conv": True, "dense": False, "bias": False}
    assert masks.prunable_leaves(tree, masks.matrices) == flags | {"dense": True}
    by_name = masks.prunable_leaves(tree, lambda name, leaf: name == "bias")
    assert by_name == {"conv": False, "dense": False, "bias": True}


def test_nothing_prunable_is_an_error_that_says_what_to_pass():
    with pytest.raises(ValueError, match=r"prunable=, for example sparse_mu\.masks\.matrices"):
        masks.from_scores({"dense": np.zeros((4, 2))}, 0.5)


def test_apply_writes_exact_zeros_over_anything():
    values = {"w": jnp.array([jnp.nan, jnp.inf, -2.0, 3.0])}
    out = masks.apply({"w": jnp.array([False, False, False, True])}, values)["w"]
    assert out.tolist() == [0.0, 0.0, 0.0, 3.0]
    assert not np.signbit(out).any()


def test_ones_like_is_dense_and_fits():
    params = {"w": jnp.zeros((2, 3)), "b": 1.5}
    ones = masks.ones_like(params)
    masks.check(ones, params)
    assert all(bool(leaf.all()) for leaf in jax.tree.leaves(ones))


@pytest.mark.parametrize(
    ("bad", "leaf"),
    [
        ({"w": np.ones((2, 3), bool)}, "'b' is missing"),
        ({"w": np.ones((3, 2), bool), "b": np.ones(3, bool)}, "'w' has shape"),
        ({"w": np.ones((2, 3)), "b": np.ones(3, bool)}, "'w' has dtype float64"),
        ({"w": True, "b": np.ones(3, bool)}, "'w' has shape"),  # optax.masked's kind of mask
    ],
)
def test_a_mask_that_does_not_fit_names_the_leaf(bad, leaf):
    with pytest.raises(ValueError, match=leaf):
        masks.check(bad, {"w": np.zeros((2, 3)), "b": np.zeros(3)})


def test_union_and_intersection():
    first, second = ({"w": np.array(kept, bool)} for kept in ([1, 1, 0, 0], [1, 0, 1, 0]))
    assert masks.union(first, second)["w"].tolist() == [True, True, True, False]
    assert masks.intersect(first, second)["w"].tolist() == [True, False, False, False]


def test_magnitude_scores_are_absolute_values():
    found = scores.magnitude({"w": jnp.array([-3.0, 0.0, 2.0])})
    assert found["w"].tolist() == [3.0, 0.0, 2.0]
