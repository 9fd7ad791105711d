"""What ``jax.tree`` and ``optax.tree`` lack.

Names of leaves, the first difference of two trees, one trial of many, which leaves are prunable,
and whether all numbers are finite.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sparse_mu.types import Array, Params, PyTree

Prunable = Callable[[str, Array], bool]


def leaf_names(tree: PyTree) -> list[str]:
    """Names every leaf by its path, as in ``"Dense_0/kernel"``, in ``jax.tree.leaves``'s order.

    A tree that is itself a leaf is named ``"(root)"``.
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [jax.tree_util.keystr(p, simple=True, separator="/") or "(root)" for p, _ in paths]


def flat(tree: PyTree) -> dict[str, PyTree]:
    """The leaves by their names, joined by dots (``"Dense_0.kernel"``), as checkpoints store them.

    One flat dict, in ``jax.tree.leaves``'s order, whatever containers held them.
    """
    names = [name.replace("/", ".") for name in leaf_names(tree)]
    return dict(zip(names, jax.tree.leaves(tree), strict=True))


def describe_mismatch(tree: PyTree, expected: PyTree, *, dtypes: bool = True) -> str | None:
    """Says in one line where ``tree`` stops having the structure and shapes of ``expected``.

    Args:
        tree: the tree under test.
        expected: a tree of arrays or of ``jax.ShapeDtypeStruct``.
        dtypes: whether the types of the leaves must agree too.

    Returns:
        ``None`` when the trees agree, else a sentence that names the first leaf that does not.
    """
    names, expected_names = leaf_names(tree), leaf_names(expected)
    missing = [name for name in expected_names if name not in set(names)]
    if missing:
        return f"leaf '{missing[0]}' is missing"
    extra = [name for name in names if name not in set(expected_names)]
    if extra:
        return f"leaf '{extra[0]}' is not expected"
    if jax.tree.structure(tree) != jax.tree.structure(expected):
        return "the leaves have the same names but stand in other containers"
    for name, leaf, wanted in zip(
        names, jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True
    ):
        if np.shape(leaf) != tuple(wanted.shape):
            return f"leaf '{name}' has shape {np.shape(leaf)}, expected {tuple(wanted.shape)}"
        if dtypes and _dtype(leaf) != wanted.dtype:
            return f"leaf '{name}' has dtype {_dtype(leaf)}, expected {wanted.dtype}"
    return None


def _dtype(leaf: PyTree) -> np.dtype:
    return leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


def of_trial(tree: PyTree, trial: int) -> PyTree:
    """One trial of a ``[T]`` tree, without its axis, on the host."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[trial], tree)


def all_finite(tree: PyTree) -> Array:
    """Whether every number of every floating leaf is finite, ``bool[]``.

    Integers, bools and keys are passed over. (A norm would not do: it overflows although no leaf
    has.)
    """
    checked = [
        jnp.all(jnp.isfinite(leaf))
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(_dtype(leaf), jnp.inexact)
    ]
    return functools.reduce(jnp.logical_and, checked) if checked else jnp.array(True)


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
        for name, leaf in zip(leaf_names(params), jax.tree.leaves(params), strict=True)
    ]
    if not any(flags):
        raise ValueError(
            "no leaf of params is prunable (the default takes 2-D convolution kernels only); "
            "pass prunable=, for example sparse_mu.masks.matrices"
        )
    return jax.tree.unflatten(jax.tree.structure(params), flags)
