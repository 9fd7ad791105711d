"""Boolean trees that say which weights are kept.

A mask tree has the structure and the shapes of the parameters, True = kept. Leaves that are not
prunable are all True and are left out of every count. Not to be confused with ``optax.masked``,
which takes one bool per leaf.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from sparse_mu import trees
from sparse_mu.trees import Prunable, convolution_kernels, prunable_leaves
from sparse_mu.trees import matrices as matrices
from sparse_mu.types import Array, Masks, Params, PyTree, Scores

Scope = Literal["global", "leaf"]
Structure = Literal["entries", "filters", "channels"]


def ones_like(params: Params) -> Masks:
    """The mask of a dense model: True everywhere."""
    return jax.tree.map(lambda leaf: jnp.ones(jnp.shape(leaf), bool), params)


def from_zeros(params: Params, prunable: Prunable = convolution_kernels) -> Masks:
    """The masks of a model that was pruned: False where a prunable weight is exactly 0.

    For a model whose masks are not at hand, as after a method that prunes by itself. A kept weight
    that happens to be exactly 0 counts as pruned.
    """
    flags = prunable_leaves(params, prunable)
    return jax.tree.map(
        lambda leaf, flag: leaf != 0 if flag else jnp.ones(jnp.shape(leaf), bool), params, flags
    )


def apply(masks: Masks, tree: PyTree) -> PyTree:
    """Sets pruned entries to exactly 0 (NaN or infinite ones too): ``where(mask, leaf, 0)``."""
    return jax.tree.map(lambda mask, leaf: jnp.where(mask, leaf, jnp.zeros_like(leaf)), masks, tree)


def check(masks: Masks, params: Params) -> None:
    """Raises unless ``masks`` fits ``params``.

    Raises:
        ValueError: naming the first leaf whose name, shape or type does not fit.
    """
    expected = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), bool), params)
    if difference := trees.describe_mismatch(masks, expected):
        raise ValueError(f"the masks do not fit the parameters: {difference}")


def pruned_count(total: int, sparsity: float | Array) -> Array:
    """``round(sparsity * total)``, half to even, as ``int32[]``; ``sparsity`` may be traced.

    A Python ``sparsity`` is multiplied in double precision. A traced one is a float32, whose
    product has 24 bits: above 2^24 entries the count may be off by a few.
    """
    if isinstance(sparsity, float | int):
        return jnp.int32(round(sparsity * total))
    return jnp.round(sparsity * total).astype(jnp.int32)


def unit_counts(
    tree: PyTree, prunable: Prunable = convolution_kernels, structure: Structure = "entries"
) -> list[int]:
    """How many units (entries, filters or channels) each prunable leaf has, in leaf order.

    Raises:
        ValueError: if nothing is prunable, ``structure`` is unknown, or a leaf has no such axis.
    """
    return [math.prod(_unit_shape(*named, structure)) for named in _chosen(tree, prunable)]


def unpruned_counts(
    masks: Masks, prunable: Prunable = convolution_kernels, structure: Structure = "entries"
) -> Array:
    """How many units of each prunable leaf keep an entry, ``int32[L]``; ``masks`` may be traced."""
    units = [_unit_kept(name, leaf, structure) for name, leaf in _chosen(masks, prunable)]
    return jnp.stack([jnp.sum(unit, dtype=jnp.int32) for unit in units])


def from_scores(
    scores: Scores,
    sparsity: float | Array,
    prunable: Prunable = convolution_kernels,
    *,
    scope: Scope = "global",
    structure: Structure = "entries",
    within: Masks | None = None,
) -> Masks:
    """Prunes the lowest scores to an exact count.

    A *unit* is an entry, or with ``structure`` a whole filter (the last axis of a kernel
    ``[H, W, I, O]`` or ``[I, O]``: what one output reads) or a whole channel (the last but one:
    all that reads one input). The score of a unit is the mean over its entries. Of n units
    ``round(sparsity * n)`` are pruned: those of lowest score, and among equal scores those of
    lowest flat index. The count is met exactly under any ties.

    Args:
        scores: a tree of floats shaped like the parameters.
        sparsity: fraction to prune in [0, 1); a float, or a traced scalar for vmapped trials.
        prunable: which leaves take part; the others stay True.
        scope: ``"global"`` ranks the units of all prunable leaves together, n being their sum;
            ``"leaf"`` ranks and counts each leaf alone (which may empty a small leaf).
        structure: ``"entries"``, ``"filters"`` or ``"channels"``.
        within: a mask to stay inside: what it prunes stays pruned and counts among the
            ``round(sparsity * n)``. Nothing more is pruned if it is sparser than that already.

    Raises:
        ValueError: if a Python ``sparsity`` lies outside [0, 1), nothing is prunable, a word is
            unknown, a prunable leaf has no such axis, ``within`` does not fit, or a score is NaN.
            Under ``jit`` a NaN cannot raise: it ranks above every number and is kept.

    Source: SPEC section 3 (global magnitude pruning over convolution weights).
    """
    _check_fraction("sparsity", sparsity)
    sizes = unit_counts(scores, prunable, structure)
    if _scope(scope) == "leaf":
        counts = jnp.stack([pruned_count(size, sparsity) for size in sizes])
    else:
        counts = pruned_count(sum(sizes), sparsity)
    if within is not None:
        check(within, scores)
        gone = jnp.array(sizes, jnp.int32) - unpruned_counts(within, prunable, structure)
        counts = jnp.maximum(counts - (gone if scope == "leaf" else jnp.sum(gone)), 0)
    return _without_lowest(within, scores, counts, prunable, scope, structure)


def prune_further(
    masks: Masks,
    scores: Scores,
    rate: float | Array,
    prunable: Prunable = convolution_kernels,
    *,
    scope: Scope = "global",
    structure: Structure = "entries",
) -> Masks:
    """Prunes the share ``rate`` of what is still unpruned: ``round(rate * unpruned)`` units.

    Only unpruned units are ranked, so the result lies inside ``masks``. This is one round of
    iterative magnitude pruning or of SynFlow in the official code.

    Args:
        masks: the mask so far. If it is concrete the count is rounded in double precision, as in
            the official code; if it is traced, in float32 (see :func:`pruned_count`).
        scores: a tree of floats shaped like the parameters; those of pruned entries are not read.
        rate: in [0, 1); a float, or a traced scalar.
        prunable: as in :func:`from_scores`.
        scope: as in :func:`from_scores`; ``"leaf"`` prunes ``rate`` of each leaf.
        structure: as in :func:`from_scores`; a unit is unpruned while one of its entries is, and
            its score is the mean over those.

    Raises:
        ValueError: as :func:`from_scores`.

    Source: SPEC section 3 ("Counts").
    """
    _check_fraction("rate", rate)
    check(masks, scores)
    left = unpruned_counts(masks, prunable, structure)
    left = left if _scope(scope) == "leaf" else jnp.sum(left)
    if isinstance(rate, float | int) and not isinstance(left, jax.core.Tracer):
        counts = jnp.asarray(np.round(rate * np.asarray(left, np.float64)), jnp.int32)
    else:
        counts = jnp.round(rate * left).astype(jnp.int32)
    return _without_lowest(masks, scores, counts, prunable, scope, structure)


def prune_lowest(
    masks: Masks,
    scores: Scores,
    counts: Array | int,
    prunable: Prunable = convolution_kernels,
    *,
    scope: Scope = "global",
    structure: Structure = "entries",
) -> Masks:
    """Prunes ``counts`` of the unpruned units, those of lowest score; ties by index.

    Args:
        masks: the mask so far.
        scores: a tree of floats shaped like the parameters.
        counts: ``int32[]``, or ``int32[L]``, one per prunable leaf, when ``scope`` is ``"leaf"``;
            may be traced. A count above what is left prunes all that is left.
        prunable: as in :func:`from_scores`.
        scope: as in :func:`from_scores`.
        structure: as in :func:`from_scores`.

    Raises:
        ValueError: as :func:`from_scores`.
    """
    check(masks, scores)
    return _without_lowest(masks, scores, jnp.asarray(counts), prunable, _scope(scope), structure)


def _without_lowest(
    masks: Masks | None,
    scores: Scores,
    counts: Array,
    prunable: Prunable,
    scope: Scope,
    structure: Structure,
) -> Masks:
    """:func:`prune_lowest`, where ``None`` stands for the dense mask and saves a sort key."""
    dense = masks is None
    masks = ones_like(scores) if masks is None else masks
    kept, values = [], []
    named = zip(_chosen(scores, prunable), _chosen(masks, prunable), strict=True)
    for (name, score), (_, mask) in named:
        _refuse_nan(name, score, mask)
        kept.append(_unit_kept(name, mask, structure))
        values.append(_unit_scores(name, score, mask, structure))
    if scope == "leaf":
        rows = zip(values, kept, range(len(kept)), strict=True)
        stay = [_highest(v, None if dense else k, counts[i]) for v, k, i in rows]
    else:
        together = _highest(
            jnp.concatenate(values), None if dense else jnp.concatenate(kept), counts
        )
        stay = jnp.split(together, np.cumsum([unit.size for unit in kept])[:-1])
    pieces = iter(stay)
    flags = jax.tree.leaves(prunable_leaves(masks, prunable))
    leaves, treedef = jax.tree.flatten(masks)
    names = trees.leaf_names(masks)
    pruned_leaves = [
        leaf & next(pieces).reshape(_unit_shape(name, leaf, structure)) if flag else leaf
        for name, leaf, flag in zip(names, leaves, flags, strict=True)
    ]
    return jax.tree.unflatten(treedef, pruned_leaves)


def _highest(values: Array, kept: Array | None, count: Array) -> Array:
    """``bool[n]``: all but the already pruned and the ``count`` lowest of the rest."""
    if kept is None:
        order, gone = jnp.argsort(values, stable=True), 0
    else:
        # by kept, then by value, then by index: what is pruned comes first
        order, gone = jnp.lexsort((values, kept)), jnp.sum(~kept, dtype=jnp.int32)
    rank = jnp.zeros(values.size, jnp.int32).at[order].set(jnp.arange(values.size, dtype=jnp.int32))
    return rank >= gone + count


def _chosen(tree: PyTree, prunable: Prunable) -> list[tuple[str, Array]]:
    """Names and leaves of the prunable leaves, in leaf order."""
    flags = jax.tree.leaves(prunable_leaves(tree, prunable))
    named = zip(trees.leaf_names(tree), jax.tree.leaves(tree), flags, strict=True)
    return [(name, leaf) for name, leaf, flag in named if flag]


def axes_within_unit(name: str, leaf: Array, structure: Structure) -> tuple[int, ...]:
    """The axes of a leaf that lie inside one unit of it; none where units are entries.

    Raises:
        ValueError: if ``structure`` is unknown, or the leaf, which is named, has no such units.
    """
    shape = np.shape(leaf)
    if structure == "entries":
        return ()
    if structure not in ("filters", "channels"):
        raise ValueError(
            f"structure = {structure!r}: must be one of 'entries', 'filters', 'channels'"
        )
    if len(shape) < 2:
        raise ValueError(
            f"structure = {structure!r}: leaf '{name}' has shape {shape}, and only kernels "
            "[..., inputs, outputs] have filters and channels"
        )
    own = len(shape) - (1 if structure == "filters" else 2)
    return tuple(axis for axis in range(len(shape)) if axis != own)


def _unit_shape(name: str, leaf: Array, structure: Structure) -> tuple[int, ...]:
    """The shape that one value per unit broadcasts from: ``(1, 1, 1, O)`` for filters."""
    inside = axes_within_unit(name, leaf, structure)
    return tuple(1 if axis in inside else size for axis, size in enumerate(np.shape(leaf)))


def _unit_kept(name: str, mask: Array, structure: Structure) -> Array:
    return jnp.ravel(jnp.any(mask, axis=axes_within_unit(name, mask, structure)))


def _unit_scores(name: str, score: Array, mask: Array, structure: Structure) -> Array:
    """Mean score over the kept entries of each unit."""
    axes = axes_within_unit(name, score, structure)
    if not axes:
        return jnp.ravel(jnp.asarray(score))
    dtype = jnp.promote_types(jnp.result_type(score), jnp.float32)
    total = jnp.sum(jnp.where(mask, score, 0), axis=axes, dtype=dtype)
    return jnp.ravel(total / jnp.maximum(jnp.sum(mask, axis=axes), 1))


def _scope(scope: Scope) -> Scope:
    if scope not in ("global", "leaf"):
        raise ValueError(f"scope = {scope!r}: must be 'global' or 'leaf'")
    return scope


def _check_fraction(name: str, value: float | Array) -> None:
    if isinstance(value, float | int) and not 0 <= value < 1:
        raise ValueError(f"{name} = {value!r}: must be a fraction in [0, 1)")


def _refuse_nan(name: str, score: Array, mask: Array) -> None:
    if isinstance(score, jax.core.Tracer) or isinstance(mask, jax.core.Tracer):
        return
    if bool(jnp.any(jnp.isnan(score) & mask)):
        raise ValueError(f"scores: leaf '{name}' holds NaN, which has no rank")


def pruned(masks: Masks, prunable: Prunable = convolution_kernels) -> tuple[Array, int]:
    """How many prunable entries are pruned, ``int32[]``, and how many prunable there are."""
    flags = jax.tree.leaves(prunable_leaves(masks, prunable))
    leaves = [leaf for leaf, flag in zip(jax.tree.leaves(masks), flags, strict=True) if flag]
    count = jnp.sum(jnp.stack([jnp.sum(~leaf, dtype=jnp.int32) for leaf in leaves]))
    return count, sum(leaf.size for leaf in leaves)


def sparsity(masks: Masks, prunable: Prunable = convolution_kernels) -> Array:
    """Fraction of pruned entries among the prunable leaves, ``float32[]``."""
    count, total = pruned(masks, prunable)
    return count / total


def union(first: Masks, second: Masks) -> Masks:
    """Kept in either."""
    return jax.tree.map(jnp.logical_or, first, second)


def intersect(first: Masks, second: Masks) -> Masks:
    """Kept in both."""
    return jax.tree.map(jnp.logical_and, first, second)
