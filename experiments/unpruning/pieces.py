"""A mask as a vector of what is pruned whole: entries, filters or tied units; swaps of them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from experiments.unpruning.lab import Setting
from sparse_mu import masks as mask_trees
from sparse_mu import units
from sparse_mu.trees import leaf_names
from sparse_mu.types import Masks, Params


class Pieces(NamedTuple):
    """The U pieces of a setting's masks.

    Attributes:
        layers: ``int[U]``, within which of them as many are kept whatever the mask.
        read: which pieces a mask keeps, ``bool[U]``.
        write: the mask that keeps these.
        scores: what dense weights rank them by, ``float64[U]``.
    """

    layers: np.ndarray
    read: Callable[[Masks], np.ndarray]
    write: Callable[[np.ndarray], Masks]
    scores: Callable[[Params], np.ndarray]


def pieces_of(setting: Setting, params: Params) -> Pieces:
    """The pieces of one trial's masks; of ``params`` the shapes are read."""
    if (tied := setting.tied) is not None:
        return Pieces(
            tied.layers,
            lambda mask: units.stays(mask, tied),
            lambda stay: units.keep(stay, params, tied),
            lambda weights: units.norms(weights, tied),
        )
    flags = jax.tree.leaves(mask_trees.prunable_leaves(params, setting.prunable))
    named = list(zip(leaf_names(params), jax.tree.leaves(params), flags, strict=True))
    within = {
        name: mask_trees.axes_within_unit(name, leaf, setting.structure)
        for name, leaf, flag in named
        if flag
    }

    def of_leaves(tree: Params, of: Callable[..., np.ndarray]) -> list[np.ndarray]:
        leaves = dict(zip(leaf_names(tree), jax.tree.leaves(tree), strict=True))
        return [of(np.asarray(leaves[name]), axis=axes) for name, axes in within.items()]

    shapes = [part.shape for part in of_leaves(params, np.any)]
    sizes = [int(np.prod(shape)) for shape in shapes]

    def write(stay: np.ndarray) -> Masks:
        parts = np.split(stay, np.cumsum(sizes)[:-1])
        chosen = {
            name: np.expand_dims(part.reshape(shape), axes)
            for (name, axes), part, shape in zip(within.items(), parts, shapes, strict=True)
        }
        masks = [
            np.broadcast_to(chosen.get(name, True), np.shape(leaf)).copy()
            for name, leaf, _ in named
        ]
        return jax.tree.unflatten(jax.tree.structure(params), masks)

    def scores(weights: Params) -> np.ndarray:
        wide = jax.tree.map(lambda leaf: np.abs(np.asarray(leaf, np.float64)), weights)
        return np.concatenate([part.ravel() for part in of_leaves(wide, np.mean)])

    counted = np.repeat(np.arange(len(sizes)), sizes)
    return Pieces(
        counted if setting.scope == "leaf" else np.zeros_like(counted),
        lambda mask: np.concatenate([part.ravel() for part in of_leaves(mask, np.any)]),
        write,
        scores,
    )


def moved(pieces: Pieces, first: Masks, second: Masks) -> dict[int, int]:
    """Of each layer, the swaps that make one mask of the other: half the pieces that differ."""
    differ = pieces.read(first) != pieces.read(second)
    layers = np.unique(pieces.layers).tolist()
    return {layer: int(differ[pieces.layers == layer].sum()) // 2 for layer in layers}


def swapped(
    pieces: Pieces,
    mask: Masks,
    swaps: dict[int, int],
    rng: np.random.Generator,
    *,
    near: np.ndarray | None = None,
) -> Masks:
    """A mask with kept pieces exchanged for pruned ones of the same layer.

    Args:
        pieces: of the setting.
        mask: one trial's.
        swaps: how many of each layer.
        rng: draws them.
        near: ``float[U]`` scores by which the mask was found: then the lowest kept go and the
            highest pruned come, the least that any error of the scores would exchange.
    """
    stay = pieces.read(mask).copy()
    for layer, count in swaps.items():
        inside = pieces.layers == layer
        kept, gone = np.flatnonzero(inside & stay), np.flatnonzero(inside & ~stay)
        if near is None:
            out, back = (rng.choice(rows, count, replace=False) for rows in (kept, gone))
        else:
            out = kept[np.argsort(near[kept], kind="stable")[:count]]
            back = gone[np.argsort(-near[gone], kind="stable")[:count]]
        stay[out], stay[back] = False, True
    return pieces.write(stay)
