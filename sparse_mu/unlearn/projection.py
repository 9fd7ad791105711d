"""From dense weights to a mask of a given count, by the rule that made another mask."""

import functools
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sparse_mu import masks as mask_trees
from sparse_mu import scores, units
from sparse_mu.masks import Prunable, Scope, Structure, convolution_kernels
from sparse_mu.trees import of_trial
from sparse_mu.types import Masks, Params, Units


class ProjectFn(Protocol):
    """The rule that made a mask, of one trial."""

    def __call__(self, weights: Params, like: Masks) -> Masks:
        """Dense weights, and the mask whose counts the new one is to have, to the new mask."""
        ...


@functools.lru_cache(maxsize=64)
def by_magnitude(
    prunable: Prunable = convolution_kernels,
    scope: Scope = "global",
    structure: Structure = "entries",
) -> ProjectFn:
    """Magnitude pruning to exactly the units that the other mask keeps, ties by index.

    The counts are taken from that mask, over all leaves or leaf by leaf as ``scope`` says, so they
    are met whatever fraction they are.
    """

    def find(weights: Params, like: Masks) -> Masks:
        gone = jnp.array(mask_trees.unit_counts(like, prunable, structure), jnp.int32)
        gone -= mask_trees.unpruned_counts(like, prunable, structure)
        counts = gone if scope == "leaf" else jnp.sum(gone)
        dense, found = mask_trees.ones_like(weights), scores.magnitude(weights)
        return mask_trees.prune_lowest(
            dense, found, counts, prunable, scope=scope, structure=structure
        )

    compiled = jax.jit(find)
    return lambda weights, like: jax.tree.map(np.asarray, compiled(weights, like))


def each(project: ProjectFn, weights: Params, like: Masks) -> Masks:
    """``project`` of every trial of ``[T]`` trees, one after another."""
    count = jax.tree.leaves(like)[0].shape[0]
    found = [project(*of_trial((weights, like), trial)) for trial in range(count)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *found)


def by_norm(tied: Units) -> ProjectFn:
    """Pruning of whole units by :func:`sparse_mu.units.norms`, as many of each layer as M_o keeps.

    Args:
        tied: which entries belong together.
    """

    def find(weights: Params, like: Masks) -> Masks:
        left = units.stays(like, tied)
        found, stay = units.norms(weights, tied), np.zeros(left.shape, bool)
        for layer in np.unique(tied.layers):
            inside = np.flatnonzero(tied.layers == layer)
            ranked = inside[np.argsort(found[inside], kind="stable")]
            stay[ranked[len(inside) - int(left[inside].sum()) :]] = True
        return units.keep(stay, weights, tied)

    return find
