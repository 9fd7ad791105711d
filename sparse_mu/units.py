"""Units that are pruned whole, across leaves: their norms, and the masks of those that stay.

Host side, float64. :class:`sparse_mu.types.Units` says which entries belong together;
:func:`chain` makes it for networks whose layers follow each other, and
:func:`sparse_mu.models.channel_units` for the bundled residual ones. (Filters or channels of one
leaf at a time are ``structure=`` of :func:`sparse_mu.masks.from_scores`.) Source: UNPRUNING
section 2.7.
"""

import itertools
from collections.abc import Sequence

import jax
import numpy as np
from numpy.typing import NDArray

from sparse_mu import trees
from sparse_mu.types import Masks, Params, UnitAxis, Units


def chain(params: Params, leaves: Sequence[str]) -> Units:
    """The hidden units of kernels ``[..., inputs, outputs]`` that follow each other.

    A unit is one output of a kernel together with the input of the next that reads it; biases and
    BatchNorms are not in it. The inputs of the first kernel and the outputs of the last are none.

    Args:
        params: the parameters.
        leaves: names of two or more kernels, first to last.

    Raises:
        ValueError: if a name is none of a leaf, or two kernels do not follow each other.
    """
    shapes = {n: np.shape(x) for n, x in zip(*_named(params), strict=True)}
    if len(leaves) < 2:
        raise ValueError(f"leaves = {tuple(leaves)!r}: must be two or more names")
    axes: list[UnitAxis] = []
    layers: list[NDArray] = []
    first = 0
    for index, (name, following) in enumerate(itertools.pairwise(leaves)):
        for given in (name, following):
            if len(shapes.get(given, ())) < 2:
                raise ValueError(f"leaves holds {given!r}: must be names of kernels of params")
        size = shapes[name][-1]
        if shapes[following][-2] != size:
            raise ValueError(
                f"leaf '{following}' reads {shapes[following][-2]} inputs, but '{name}' has {size} "
                "outputs"
            )
        units = np.arange(first, first + size, dtype=np.int32)
        axes.append(UnitAxis(name, len(shapes[name]) - 1, units))
        axes.append(UnitAxis(following, len(shapes[following]) - 2, units))
        layers.append(np.full(size, index, np.int32))
        first += size
    return Units(tuple(axes), np.concatenate(layers))


def norms(params: Params, units: Units) -> NDArray[np.float64]:
    """The l2 norm of all scored weights of each unit, incoming and outgoing, ``float64[U]``.

    Raises:
        ValueError: if a leaf of ``units`` is none of ``params``.
    """
    leaves = _leaves(params, units)
    squares = np.zeros(len(units.layers))
    for axis in units.axes:
        if axis.scored:
            leaf = np.square(np.asarray(leaves[axis.leaf], np.float64))
            along = leaf.sum(axis=tuple(a for a in range(leaf.ndim) if a != axis.axis))
            belongs = axis.units >= 0
            np.add.at(squares, axis.units[belongs], along[belongs])
    return np.sqrt(squares)


def keep(stay: NDArray[np.bool_], params: Params, units: Units) -> Masks:
    """The masks under which the units of ``stay`` (``bool[U]``) are kept and the others pruned.

    Unlike every other mask these are False outside the prunable leaves, too: in the BatchNorm scale
    and bias and wherever else a unit stands, so that nothing of a pruned one is left.

    Raises:
        ValueError: if a leaf of ``units`` is none of ``params``.
    """
    names, leaves = _named(params)
    _leaves(params, units)
    masks = {name: np.ones(np.shape(leaf), bool) for name, leaf in zip(names, leaves, strict=True)}
    for axis in units.axes:
        along = np.where(axis.units >= 0, stay[axis.units], True)
        mask = masks[axis.leaf]
        shape = [1] * mask.ndim
        shape[axis.axis] = mask.shape[axis.axis]
        mask &= along.reshape(shape)
    return jax.tree.unflatten(jax.tree.structure(params), [masks[name] for name in names])


def stays(masks: Masks, units: Units) -> NDArray[np.bool_]:
    """Which units a mask keeps, ``bool[U]``: those of which any entry is left.

    Raises:
        ValueError: if a leaf of ``units`` is none of ``masks``.
    """
    leaves = _leaves(masks, units)
    left = np.zeros(len(units.layers), bool)
    for axis in units.axes:
        leaf = np.asarray(leaves[axis.leaf])
        others = tuple(a for a in range(leaf.ndim) if a != axis.axis)
        along = np.asarray(np.any(leaf, axis=others))
        belongs = axis.units >= 0
        np.logical_or.at(left, axis.units[belongs], along[belongs])
    return left


def highest(found: NDArray[np.float64], sparsity: float, units: Units) -> NDArray[np.bool_]:
    """Which units stay: in each layer of n all but the ``round(sparsity * n)`` lowest.

    Ties go by number. ``float[U] -> bool[U]``.

    Raises:
        ValueError: if ``sparsity`` is no fraction in [0, 1), or a norm is not finite.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity = {sparsity!r}: must be a fraction in [0, 1)")
    if not np.isfinite(found).all():
        raise ValueError("the norms hold numbers that are not finite, which have no rank")
    stay = np.ones(found.shape, bool)
    for layer in np.unique(units.layers):
        inside = np.flatnonzero(units.layers == layer)
        lowest = inside[np.argsort(found[inside], kind="stable")]
        stay[lowest[: round(sparsity * inside.size)]] = False
    return stay


def norm_masks(params: Params, sparsity: float, units: Units) -> Masks:
    """The masks that prune the units of lowest norm, ``round(sparsity * n)`` of each layer's n."""
    return keep(highest(norms(params, units), sparsity, units), params, units)


def _leaves(params: Params, units: Units) -> dict[str, NDArray]:
    """All leaves by name; ``ValueError`` unless those of ``units`` are among them."""
    leaves = dict(zip(*_named(params), strict=True))
    unknown = [axis.leaf for axis in units.axes if axis.leaf not in leaves]
    if unknown:
        raise ValueError(f"units names the leaf {unknown[0]!r}, which the tree does not have")
    return leaves


def _named(params: Params) -> tuple[list[str], list]:
    return trees.leaf_names(params), jax.tree.leaves(params)
