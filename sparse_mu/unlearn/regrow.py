"""The un-pruning loop of the paper, as far as its reviews tell it: re-grow, unlearn, prune again.

No guarantee stands behind it. Kept weights have T epochs of training behind them and re-grown ones
a few, so their magnitudes do not compare: it moves a mask even where nothing is to be forgotten.
It is here to be compared with, and :mod:`sparse_mu.unlearn.unprune` does not default to it.
"""

import math
from typing import Literal, NamedTuple

import jax
import numpy as np

from sparse_mu import masks as mask_trees
from sparse_mu import topology
from sparse_mu.masks import Prunable, Structure
from sparse_mu.trees import of_trial
from sparse_mu.types import GradientFn, Masks, Model, Params, PyTree, TrainFn
from sparse_mu.unlearn.projection import ProjectFn, each


class Regrow(NamedTuple):
    """Which weights come back, with which values, how often.

    Attributes:
        grow: what pruned weights are ranked by: ``"initial"`` ``|theta_0|``, ``"gradient"`` the
            magnitude of the gradient over Dr as if nothing were pruned, ``"all"``: all come back.
        start: what they begin with: ``"initial"`` theta_0, ``"zero"``, or ``"clip"`` theta_0
            clipped to 0.9 of the smallest kept magnitude.
        fraction: share of the pruned units that come back in a round.
        cap: at most ``cap * (1 + cos(pi r / R)) / 2`` of the kept count in round r of R, as RigL
            does; 0 for no such limit.
        rounds: R, the most rounds.
        gradient: needed by ``grow="gradient"``.
    """

    grow: Literal["initial", "gradient", "all"] = "initial"
    start: Literal["initial", "zero", "clip"] = "initial"
    fraction: float = 0.2
    cap: float = 0.3
    rounds: int = 5
    gradient: GradientFn | None = None


class Regrown(NamedTuple):
    """Where the loop ended, for each trial.

    Attributes:
        model: ``[T]`` sparse models.
        masks: ``[T]`` masks.
        dense: ``[T]`` weights before they were pruned for the last time.
        rounds: ``int[T]``, rounds run.
        agreement: of each trial, IoU of each round's mask with the one before.
    """

    model: Model
    masks: Masks
    dense: Params
    rounds: np.ndarray
    agreement: list[list[float]]


def regrow(
    unlearn: TrainFn,
    theta_0: Model,
    original: Model,
    masks: Masks,
    how: Regrow,
    project: ProjectFn,
    epochs: int,
    tolerance: float,
    *,
    prunable: Prunable,
    structure: Structure,
) -> Regrown:
    """Grows, unlearns for ``epochs`` on the denser model, prunes back to the count, and again.

    A trial ends where two masks in a row had an IoU of at least ``1 - tolerance`` with the one
    before, where a mask comes back that was there before, or after ``how.rounds``.

    Arguments as of :func:`sparse_mu.unlearn.unprune.unprune`, all trees ``[T]``.

    Raises:
        ValueError: on a word or number of ``how`` that is not allowed.

    Source: UNPRUNING sections 2.1 and 2.4, mode A (where the lower-loss mask of a cycle is kept;
    here the last).
    """
    _check(how)
    trials = jax.tree.leaves(masks)[0].shape[0]
    model = Model(*jax.tree.map(np.asarray, (original.params, original.net_state)))
    current, dense = jax.tree.map(np.asarray, masks), model.params
    active = np.ones(trials, bool)
    rounds, told = np.zeros(trials, int), [[] for _ in range(trials)]
    seen = [{_bits(of_trial(current, trial))} for trial in range(trials)]
    for number in range(how.rounds):
        ranked = _growth(how, theta_0, model)
        grown = [
            _grown(of_trial(current, t), of_trial(ranked, t), how, number, prunable, structure)
            for t in range(trials)
        ]
        wider = jax.tree.map(lambda *leaves: np.stack(leaves), *grown)
        params = _started(how, theta_0.params, model.params, current, wider, prunable)
        trained = unlearn(
            model._replace(params=params), wider, start=number * epochs, stop=(number + 1) * epochs
        )
        trained = jax.tree.map(np.asarray, trained)
        pruned = each(project, trained.params, current)
        for trial in np.flatnonzero(active).tolist():
            rounds[trial] += 1
            new = of_trial(pruned, trial)
            told[trial].append(topology.iou(of_trial(current, trial), new, prunable))
            settled = len(told[trial]) >= 2 and min(told[trial][-2:]) >= 1 - tolerance
            returned = told[trial][-1] < 1 and _bits(new) in seen[trial]
            active[trial] = not (settled or returned)
            seen[trial].add(_bits(new))
        moved = rounds == number + 1  # those that ended before keep what they had
        current, dense = _where(moved, (pruned, trained.params), (current, dense))
        kept = Model(mask_trees.apply(current, trained.params), trained.net_state)
        model = _where(moved, jax.tree.map(np.asarray, kept), model)
        if not active.any():
            break
    return Regrown(model, current, dense, rounds, told)


def _check(how: Regrow) -> None:
    if how.grow not in ("initial", "gradient", "all"):
        raise ValueError(f"grow = {how.grow!r}: must be 'initial', 'gradient' or 'all'")
    if how.start not in ("initial", "zero", "clip"):
        raise ValueError(f"start = {how.start!r}: must be 'initial', 'zero' or 'clip'")
    if not 0 < how.fraction <= 1:
        raise ValueError(f"fraction = {how.fraction!r}: must be above 0 and at most 1")
    if not 0 <= how.cap <= 1 or how.rounds < 1:
        raise ValueError(f"cap = {how.cap!r}, rounds = {how.rounds}: must be in [0, 1], at least 1")
    if how.grow == "gradient" and how.gradient is None:
        raise ValueError("gradient = None: grow='gradient' needs the gradient over Dr")


def _growth(how: Regrow, theta_0: Model, model: Model) -> Params:
    """What pruned weights are ranked by."""
    if how.grow == "gradient" and how.gradient is not None:
        return jax.tree.map(np.abs, how.gradient(model))
    return jax.tree.map(np.abs, theta_0.params)


def _grown(
    mask: Masks, ranked: Params, how: Regrow, number: int, prunable: Prunable, structure: Structure
) -> Masks:
    """One trial's mask with the highest-ranked pruned units added."""
    flags = mask_trees.prunable_leaves(mask, prunable)
    gone = jax.tree.map(lambda leaf, flag: ~leaf if flag else leaf, mask, flags)
    pruned = int(np.sum(mask_trees.unpruned_counts(gone, prunable, structure)))
    kept = int(np.sum(mask_trees.unpruned_counts(mask, prunable, structure)))
    count = pruned
    if how.grow != "all":
        count = math.ceil(how.fraction * pruned)
        if how.cap:
            turn = (1 + math.cos(math.pi * number / how.rounds)) / 2
            count = min(count, math.ceil(how.cap * turn * kept))
    back = mask_trees.prune_lowest(gone, ranked, pruned - count, prunable, structure=structure)
    return jax.tree.map(lambda m, b: np.asarray(m) | np.asarray(b), mask, back)


def _started(
    how: Regrow, theta_0: Params, params: Params, masks: Masks, wider: Masks, prunable: Prunable
) -> Params:
    """``[T]`` weights under the wider masks: kept ones as they are, re-grown ones as told."""
    least = np.full(jax.tree.leaves(masks)[0].shape[0], np.inf)
    flags = jax.tree.leaves(mask_trees.prunable_leaves(of_trial(masks, 0), prunable))
    named = zip(jax.tree.leaves(params), jax.tree.leaves(masks), flags, strict=True)
    for leaf, mask, flag in named:
        if flag:
            found = np.where(mask, np.abs(leaf), np.inf).reshape(len(least), -1)
            least = np.minimum(least, found.min(axis=1))

    def of_leaf(w: np.ndarray, first: np.ndarray, mask: np.ndarray, wide: np.ndarray) -> np.ndarray:
        born = np.zeros_like(w) if how.start == "zero" else np.asarray(first)
        if how.start == "clip":
            most = (0.9 * least).reshape(-1, *[1] * (w.ndim - 1)).astype(w.dtype)
            born = np.clip(born, -most, most)
        return np.where(mask, w, born) * wide

    return jax.tree.map(of_leaf, params, theta_0, masks, wider)


def _where(chosen: np.ndarray, new: PyTree, old: PyTree) -> PyTree:
    """The new trials where chosen, the old ones elsewhere."""

    def of_leaf(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.where(chosen.reshape(-1, *[1] * (np.ndim(a) - 1)), a, b)

    return jax.tree.map(of_leaf, new, old)


def _bits(mask: Masks) -> bytes:
    return b"".join(np.packbits(np.asarray(leaf)).tobytes() for leaf in jax.tree.leaves(mask))
