"""Boolean trees that say which weights are kept.

A mask tree has the structure and the shapes of the parameters, True = kept. Leaves that are not
prunable are all True and are left out of every count. Not to be confused with ``optax.masked``,
which takes one bool per leaf.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sparse_mu import trees
from sparse_mu.types import Array, Masks, Params, PyTree, Scores

Prunable = Callable[[str, Array], bool]


def convolution_kernels(name: str, leaf: Array) -> bool:
    """The paper's scope: weights of rank 4, that is 2-D convolution kernels and nothing else."""
    del name
    return np.ndim(leaf) == 4


def matrices(name: str, leaf: Array) -> bool:
    """Every weight of rank 2 or more: dense matrices, embeddings and convolution kernels."""
    del name
    return np.ndim(leaf) >= 2


def prunable_leaves(params: Params, prunable: Prunable = convolution_kernels) -> PyTree:
    """A tree of Python bools: which leaves of ``params`` may be pruned.

    Raises:
        ValueError: if no leaf is.
    """
    flags = [
        bool(prunable(name, leaf))
        for name, leaf in zip(trees.leaf_names(params), jax.tree.leaves(params), strict=True)
    ]
    if not any(flags):
        raise ValueError(
            "no leaf of params is prunable (the default takes 2-D convolution kernels only); "
            "pass prunable=, for example sparse_mu.masks.matrices"
        )
    return jax.tree.unflatten(jax.tree.structure(params), flags)


def ones_like(params: Params) -> Masks:
    """The mask of a dense model: True everywhere."""
    return jax.tree.map(lambda leaf: jnp.ones(jnp.shape(leaf), bool), params)


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
    """``round(sparsity * total)``, half to even, as ``int32[]``; ``sparsity`` may be traced."""
    if isinstance(sparsity, float | int):
        return jnp.int32(round(sparsity * total))
    return jnp.round(sparsity * total).astype(jnp.int32)


def from_scores(
    scores: Scores,
    sparsity: float | Array,
    prunable: Prunable = convolution_kernels,
) -> Masks:
    """Prunes the lowest scores over all prunable leaves together, to an exact count.

    With n prunable entries, ``round(sparsity * n)`` are pruned: those of lowest score, and among
    equal scores those of lowest flat index. The count is met exactly under any ties.

    Args:
        scores: a tree of floats shaped like the parameters.
        sparsity: fraction to prune in [0, 1); a float, or a traced scalar for vmapped trials.
        prunable: which leaves take part; the others stay True.

    Raises:
        ValueError: if a Python ``sparsity`` lies outside [0, 1), or nothing is prunable.

    Source: SPEC section 3 (global magnitude pruning over convolution weights).
    """
    if isinstance(sparsity, float | int) and not 0 <= sparsity < 1:
        raise ValueError(f"sparsity = {sparsity!r}: must be a fraction in [0, 1)")
    flags = jax.tree.leaves(prunable_leaves(scores, prunable))
    leaves, structure = jax.tree.flatten(scores)
    chosen = [jnp.ravel(leaf) for leaf, flag in zip(leaves, flags, strict=True) if flag]
    flat = jnp.concatenate(chosen)
    order = jnp.argsort(flat, stable=True)
    rank = jnp.zeros(flat.size, jnp.int32).at[order].set(jnp.arange(flat.size, dtype=jnp.int32))
    kept = rank >= pruned_count(flat.size, sparsity)
    pieces = iter(jnp.split(kept, np.cumsum([leaf.size for leaf in chosen])[:-1]))
    masks = [
        next(pieces).reshape(leaf.shape) if flag else jnp.ones(leaf.shape, bool)
        for leaf, flag in zip(leaves, flags, strict=True)
    ]
    return jax.tree.unflatten(structure, masks)


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
