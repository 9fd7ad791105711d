"""Masks of whole filters and channels, of each leaf alone, and inside other masks: exact counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_mu import masks

# a convolution kernel HWIO, a vector that is never pruned, a matrix [in, out]
SHAPES = {"a": (2, 1, 2, 3), "b": (3,), "c": (4, 5)}
ENTRIES = 35
PRUNABLE = ("a", "c")
SIZES = {"entries": (12, 20), "filters": (3, 5), "channels": (2, 4)}
AXIS = {"filters": -1, "channels": -2}

scopes = st.sampled_from(["global", "leaf"])
structures = st.sampled_from(list(SIZES))
# small whole numbers: ties everywhere, and sums of them are exact in float32
values = st.lists(st.integers(-2, 3), min_size=ENTRIES, max_size=ENTRIES)
sixteenths = st.integers(0, 15)  # exact in float32, so that traced and concrete counts agree


def tree_of(numbers, dtype=np.float32):
    parts = np.split(np.asarray(numbers, dtype), [12, 15])
    return {name: part.reshape(SHAPES[name]) for name, part in zip(SHAPES, parts, strict=True)}


def units(leaf, structure, reduce):
    """One number per unit, by numpy."""
    if structure == "entries":
        return np.ravel(leaf)
    rows = np.moveaxis(np.asarray(leaf), AXIS[structure], 0)
    return np.array([reduce(row) for row in rows])


def kept_units(found, structure):
    return [units(found[name], structure, np.any) for name in PRUNABLE]


def highest(scores, count, kept=None):
    """All kept units but the ``count`` lowest of them, ties by index: Python's sort is stable."""
    kept = np.ones(len(scores), bool) if kept is None else kept
    gone = sorted(np.flatnonzero(kept), key=lambda index: scores[index])[:count]
    return kept & ~np.isin(np.arange(len(scores)), gone)


# one compiled program instead of thirty operations compiled one by one
prune = jax.jit(masks.from_scores, static_argnames=("sparsity", "prunable", "scope", "structure"))


@functools.partial(jax.jit, static_argnames=("scope", "structure"))
def traced(scores, sparsity, scope, structure):
    return masks.from_scores(scores, sparsity, masks.matrices, scope=scope, structure=structure)


@pytest.mark.ci
@settings(deadline=None, max_examples=25)
@given(numbers=values, share=sixteenths, scope=scopes, structure=structures)
def test_counts_are_exact_and_ties_go_by_index(numbers, share, scope, structure):
    scores, sparsity = tree_of(numbers), share / 16
    found = traced(scores, jnp.float32(sparsity), scope, structure)
    means = [units(scores[name], structure, np.mean) for name in PRUNABLE]
    sizes = SIZES[structure]
    if scope == "leaf":
        expected = [highest(mean, round(sparsity * mean.size)) for mean in means]
    else:
        together = np.concatenate(means)
        expected = np.split(highest(together, round(sparsity * sum(sizes))), [sizes[0]])
    for kept, wanted in zip(kept_units(found, structure), expected, strict=True):
        np.testing.assert_array_equal(kept, wanted)
    assert np.asarray(found["b"]).all()


@settings(deadline=None, max_examples=20)
@given(numbers=values, share=sixteenths, scope=scopes, structure=st.sampled_from(list(AXIS)))
def test_a_unit_is_pruned_whole_or_not_at_all(numbers, share, scope, structure):
    found = traced(tree_of(numbers), jnp.float32(share / 16), scope, structure)
    for name in PRUNABLE:
        some = units(found[name], structure, np.any)
        every = units(found[name], structure, np.all)
        np.testing.assert_array_equal(some, every)


def test_filters_are_outputs_and_channels_are_inputs():
    scores = {"w": jnp.arange(6.0).reshape(2, 3)}  # [in, out]; means of columns 1.5, 2.5, 3.5
    by_filter = prune(scores, 1 / 3, masks.matrices, structure="filters")
    assert by_filter["w"].tolist() == [[False, True, True]] * 2
    by_channel = prune(scores, 1 / 2, masks.matrices, structure="channels")
    assert by_channel["w"].tolist() == [[False] * 3, [True] * 3]


def test_units_of_unequal_size_are_ranked_by_their_mean():
    # a filter of 4 entries, mean 1, against one of 1 entry, mean 2: sums would say otherwise
    scores = {"big": jnp.ones((4, 1)), "small": jnp.full((1, 1), 2.0)}
    found = prune(scores, 0.5, masks.matrices, structure="filters")
    assert not found["big"].any() and found["small"].all()


def test_global_pruning_may_empty_a_leaf_that_leaf_pruning_shares():
    scores = {"low": jnp.zeros((2, 2)), "high": jnp.ones((2, 2))}
    together = prune(scores, 0.5, masks.matrices)
    assert not together["low"].any() and together["high"].all()
    alone = prune(scores, 0.5, masks.matrices, scope="leaf")
    assert int(alone["low"].sum()) == int(alone["high"].sum()) == 2


@functools.partial(jax.jit, static_argnames=("scope", "structure"))
def traced_lowest(given_masks, scores, counts, scope, structure):
    return masks.prune_lowest(
        given_masks, scores, counts, masks.matrices, scope=scope, structure=structure
    )


@pytest.mark.ci
@settings(deadline=None, max_examples=25)
@given(
    numbers=values,
    kept=st.lists(st.booleans(), min_size=ENTRIES, max_size=ENTRIES),
    wanted=st.tuples(st.integers(0, 12), st.integers(0, 20)),
    scope=scopes,
    structure=structures,
)
def test_pruning_further_takes_exactly_so_many_of_the_unpruned(
    numbers, kept, wanted, scope, structure
):
    before, scores = tree_of(kept, bool), tree_of(numbers)
    before["b"][:] = True
    counts = np.array(wanted if scope == "leaf" else sum(wanted), np.int32)
    after = traced_lowest(before, scores, counts, scope, structure)
    had, has = kept_units(before, structure), kept_units(after, structure)
    for name in SHAPES:
        assert not (np.asarray(after[name]) & ~before[name]).any(), "a pruned entry came back"
    lost = [old.sum() - new.sum() for old, new in zip(had, has, strict=True)]
    if scope == "leaf":
        assert lost == [min(n, old.sum()) for n, old in zip(wanted, had, strict=True)]
    else:
        assert sum(lost) == min(sum(wanted), sum(old.sum() for old in had))
    if structure == "entries" and scope == "global":
        old, new, value = (
            np.concatenate([np.ravel(tree[name]) for name in PRUNABLE])
            for tree in (before, after, scores)
        )
        np.testing.assert_array_equal(new, highest(value, sum(wanted), old))


def test_each_round_prunes_its_share_of_what_is_left_half_to_even():
    scores = {"w": jnp.arange(45.0).reshape(5, 9)}
    found, left = masks.ones_like(scores), []
    for _ in range(4):
        earlier, found = found, masks.prune_further(found, scores, 0.5, masks.matrices)
        assert not (found["w"] & ~earlier["w"]).any()
        left.append(int(found["w"].sum()))
    assert left == [23, 11, 5, 3]  # less round(22.5) = 22, round(11.5) = 12, round(5.5) = 6, 2
    assert found["w"].ravel()[-3:].all()


def test_a_traced_mask_gives_the_count_of_a_concrete_one():
    scores = {"w": jnp.arange(45.0).reshape(5, 9)}
    before = masks.from_scores(scores, 0.2, masks.matrices)
    further = functools.partial(masks.prune_further, scores=scores, rate=0.25)
    concrete = further(before, prunable=masks.matrices)
    inside = jax.jit(lambda given: further(given, prunable=masks.matrices))(before)
    assert int(concrete["w"].sum()) == 27
    np.testing.assert_array_equal(inside["w"], concrete["w"])


def test_the_share_of_a_concrete_mask_is_rounded_in_double_precision():
    # 0.7 * 45 is just below 31.5 in double precision, as in the official code, and rounds to 31;
    # the float32 product of a traced mask rounds to 32
    scores = {"w": jnp.arange(45.0).reshape(5, 9)}
    dense = masks.ones_like(scores)
    assert int(masks.prune_further(dense, scores, 0.7, masks.matrices)["w"].sum()) == 45 - 31


def test_within_a_mask_the_count_is_that_of_the_whole():
    scores = {"w": jnp.arange(20.0).reshape(4, 5)}
    # the other mask prunes the highest five, which stay pruned and count
    outer = {"w": jnp.arange(20).reshape(4, 5) < 15}
    found = prune(scores, 0.5, masks.matrices, within=outer)
    assert np.flatnonzero(found["w"]).tolist() == list(range(5, 15))
    unchanged = prune(scores, 0.1, masks.matrices, within=outer)
    np.testing.assert_array_equal(unchanged["w"], outer["w"])


@pytest.mark.ci
def test_a_unit_with_pruned_entries_scores_by_those_it_keeps():
    scores = {"w": jnp.array([[9.0, 2.0], [1.0, 2.0]])}
    outer = {"w": jnp.array([[False, True], [True, True]])}  # filter 0 keeps 1, filter 1 mean 2
    found = masks.prune_further(outer, scores, 0.5, masks.matrices, structure="filters")
    assert found["w"].tolist() == [[False, True], [False, True]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scope": "layer"}, "scope = 'layer'"),
        ({"structure": "rows"}, "structure = 'rows'"),
        ({"prunable": lambda name, leaf: name == "b", "structure": "filters"}, "leaf 'b'"),
        ({"within": {"a": np.ones((2, 2), bool)}}, "do not fit"),
    ],
)
def test_what_cannot_be_pruned_so_is_refused(change, message):
    arguments = {"prunable": masks.matrices} | change
    with pytest.raises(ValueError, match=message):
        masks.from_scores(tree_of(np.zeros(ENTRIES)), 0.5, **arguments)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_a_rate_outside_zero_and_one_is_refused(rate):
    scores = tree_of(np.zeros(ENTRIES))
    with pytest.raises(ValueError, match="rate"):
        masks.prune_further(masks.ones_like(scores), scores, rate, masks.matrices)


def test_nan_has_no_rank():
    scores = tree_of(np.zeros(ENTRIES))
    scores["b"][0] = np.nan  # not prunable: not read
    masks.from_scores(scores, 0.5, masks.matrices)
    scores["c"][1, 2] = np.nan
    with pytest.raises(ValueError, match="leaf 'c' holds NaN"):
        masks.from_scores(scores, 0.5, masks.matrices)
    # compiled code cannot raise: NaN ranks above every number
    assert bool(traced(scores, jnp.float32(0.9375), "global", "entries")["c"][1, 2])
