"""Estimates of the dense weights that a retraining would have pruned, as plain functions of trees.

Float64 on the host, cast back at the end; a difference of two equal trainings leaves the mask alone
to the last tie.
"""

from typing import Literal

import jax
import numpy as np
from numpy.typing import NDArray

from sparse_mu import masks as mask_trees
from sparse_mu import trees
from sparse_mu.masks import Prunable, Scope, Structure, convolution_kernels
from sparse_mu.types import Masks, Params

_APART = 1e-6  # relative distance from the threshold at which a projected weight stands


def difference(end: Params, retained: Params, everything: Params) -> Params:
    """``theta_T(D) + (theta_K(Dr) - theta_K(D))``, signed weights.

    Where the second equals the third it is the first to the bit, and the other way round.

    Args:
        end: theta_T(D), or what stands for it.
        retained: theta_K(Dr).
        everything: theta_K(D).

    Source: UNPRUNING section 2.4, mode C.
    """

    def of_leaf(a: NDArray, b: NDArray, c: NDArray) -> NDArray:
        a, b, c = (np.asarray(leaf) for leaf in (a, b, c))
        wide = (a.astype(np.float64) - c.astype(np.float64)) + b.astype(np.float64)
        # of numbers 2^53 apart the sum would lose the smaller one
        return np.where(b == c, a, np.where(a == c, b, wide)).astype(a.dtype)

    return jax.tree.map(of_leaf, end, retained, everything)


def projected(
    weights: Params,
    masks: Masks,
    prunable: Prunable = convolution_kernels,
    scope: Scope = "global",
    structure: Structure = "entries",
) -> Params:
    """theta_K(D) moved to where M_o says that theta_T(D) was: what stands for it in its absence.

    With s the magnitude of a weight (the mean magnitude of a unit) and tau the middle between the
    k-th and the (k+1)-th largest s, a kept weight is scaled up to at least tau, a pruned one down
    to at most tau; signs stay. Where M_o is the mask of ``weights`` nothing moves.

    Args:
        weights: theta_K(D) of one trial.
        masks: M_o of that trial, k units kept.
        prunable: which leaves were pruned.
        scope: over all leaves, or within each.
        structure: what was pruned.

    Source: UNPRUNING section 2.4, mode C'.
    """
    flags = jax.tree.leaves(trees.prunable_leaves(weights, prunable))
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(weights)]
    kept = [np.asarray(mask) for mask in jax.tree.leaves(masks)]
    names = trees.leaf_names(weights)
    chosen = [index for index, flag in enumerate(flags) if flag]
    inside = {i: mask_trees.axes_within_unit(names[i], leaves[i], structure) for i in chosen}
    sizes = {i: _unit_means(np.abs(leaves[i].astype(np.float64)), inside[i]) for i in chosen}
    stays = {i: kept[i].any(axis=inside[i], keepdims=True) for i in chosen}
    groups = [[i] for i in chosen] if scope == "leaf" else [chosen]
    for group in groups:
        s = np.concatenate([sizes[i].ravel() for i in group])
        keep = np.concatenate([stays[i].ravel() for i in group])
        tau = _threshold(s, int(keep.sum()))
        if tau is None:
            continue
        for i in group:
            wanted = np.where(
                stays[i],
                np.maximum(sizes[i], tau * (1 + _APART)),
                np.minimum(sizes[i], tau * (1 - _APART)),
            )
            factor = np.divide(wanted, sizes[i], out=np.ones_like(wanted), where=sizes[i] > 0)
            moved = leaves[i] * factor + np.where(sizes[i] > 0, 0.0, wanted)
            leaves[i] = moved.astype(leaves[i].dtype)
    return jax.tree.unflatten(jax.tree.structure(weights), leaves)


def retained_scores(
    theta_0: Params, total: Params, forgotten: Params, score: Literal["snip", "gradient"]
) -> Params:
    """What is ranked by magnitude: ``theta_0 * g`` or ``g``, with ``g = total - forgotten``.

    Args:
        theta_0: the first weights.
        total: the gradient at theta_0 of the sum of losses over D.
        forgotten: the same over Df.
        score: ``"snip"`` or ``"gradient"``.

    Raises:
        ValueError: if ``score`` is neither.

    Source: UNPRUNING section 2.3.
    """
    if score not in ("snip", "gradient"):
        raise ValueError(f"score = {score!r}: must be 'snip' or 'gradient'")

    def of_leaf(w: NDArray, g: NDArray, f: NDArray) -> NDArray:
        retained = np.asarray(g, np.float64) - np.asarray(f, np.float64)
        return retained * np.asarray(w, np.float64) if score == "snip" else retained

    return jax.tree.map(of_leaf, theta_0, total, forgotten)


def _unit_means(magnitudes: NDArray, inside: tuple[int, ...]) -> NDArray[np.float64]:
    return magnitudes.mean(axis=inside, keepdims=True) if inside else magnitudes


def _threshold(sizes: NDArray[np.float64], kept: int) -> float | None:
    """The middle between the k-th and the (k+1)-th largest; None where all or none are kept."""
    if not 0 < kept < sizes.size:
        return None
    ordered = np.sort(sizes)
    return float(ordered[-kept] + ordered[-kept - 1]) / 2
