"""Pruning as procedures: they score, mask, and (when they rewind) train through ``train``.

``*_masks`` return masks only; :func:`omp`, :func:`imp` and :func:`sparsify` return sparse models
too. Everywhere ``prunable``, ``scope`` and ``structure`` are those of
:func:`sparse_mu.masks.from_scores`, and with ``batched`` models, keys and batches carry a leading
trial axis ``[T]``. What needs no training stands in :mod:`sparse_mu.pruning_at_init` and is handed
on here.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_mu import masks as mask_trees
from sparse_mu import scores
from sparse_mu.masks import Prunable, Scope, Structure, convolution_kernels
from sparse_mu.pruning_at_init import (
    each_trial,
    grasp_masks,
    random_masks,
    score_rows,
    snip_masks,
    synflow_masks,
)
from sparse_mu.types import Masks, Model, TrainFn

__all__ = [
    "ImpRound",
    "Pruned",
    "grasp_masks",
    "imp",
    "imp_masks",
    "imp_plan",
    "magnitude_masks",
    "omp",
    "random_masks",
    "score_rows",
    "snip_masks",
    "sparsify",
    "synflow_masks",
]

_STATIC = ("prunable", "scope", "structure")
_prune_lowest = jax.jit(mask_trees.prune_lowest, static_argnames=_STATIC)
_unpruned_counts = jax.jit(mask_trees.unpruned_counts, static_argnames=("prunable", "structure"))
_magnitude = jax.jit(scores.magnitude)
_apply = jax.jit(mask_trees.apply)


class Pruned(NamedTuple):
    """A sparse model and the mask it was given; pruned weights are exactly 0."""

    model: Model
    masks: Masks


class ImpRound(NamedTuple):
    """One round of iterative magnitude pruning: prune the parent's weights, then train.

    Attributes:
        parent: index of the round that this one starts from; None: the dense model.
        sparsity: of the prunable weights after this round.
        exact: whether the user asked for this sparsity: the round then prunes to exactly
            ``round(sparsity * n)``, else ``round(rate * unpruned)`` more.
    """

    parent: int | None
    sparsity: float
    exact: bool


def magnitude_masks(
    model: Model,
    sparsity: float,
    prunable: Prunable = convolution_kernels,
    *,
    scope: Scope = "global",
    structure: Structure = "entries",
) -> Masks:
    """The mask of one-shot magnitude pruning: the smallest ``|w|`` of all prunable leaves go.

    Exactly ``round(sparsity * n)`` of n prunable weights, ties by index.

    Raises:
        ValueError: as :func:`sparse_mu.masks.from_scores`.
    """
    found = scores.magnitude(model.params)
    return mask_trees.from_scores(found, sparsity, prunable, scope=scope, structure=structure)


def sparsify(
    model: Model, masks: Masks, *, train: TrainFn | None = None, start: int = 0, stop: int = 0
) -> Pruned:
    """Applies masks to a model, then trains it from epoch ``start`` to ``stop`` if it is to be.

    The second half of every pruning: of OMP in place (no ``train``), of OMP with rewinding, and of
    SynFlow, SNIP, GraSP and random masks at initialisation (``start=0``).
    """
    sparse = model._replace(params=_apply(masks, model.params))
    if train is not None:
        sparse = train(sparse, masks, start=start, stop=stop)
    return Pruned(jax.tree.map(jnp.asarray, sparse), masks)


def omp(
    model: Model,
    sparsity: float,
    *,
    prunable: Prunable = convolution_kernels,
    scope: Scope = "global",
    structure: Structure = "entries",
    rewind: Model | None = None,
    train: TrainFn | None = None,
    start: int = 0,
    stop: int = 0,
    batched: bool = False,
) -> Pruned:
    """One-shot magnitude pruning (OMP), with or without rewinding.

    The mask is found on ``model``. Without ``rewind`` the mask is applied to the model in place:
    all that a user with a finished model can do. With ``rewind`` (the weights at epoch k of the
    same training, k = 0 being theta_0) those weights are masked and trained again by ``train``
    from epoch ``start`` to ``stop``, with fresh momentum, as the official code does. A weight that
    is NaN (a diverged trial) ranks above every number and does not stop the other trials.

    Args:
        model: the trained dense model, or ``[T]`` of them when ``batched``.
        sparsity: fraction of the prunable weights to remove, in [0, 1).
        prunable: which leaves are prunable.
        scope: ``"global"`` (as official) or ``"leaf"``.
        structure: ``"entries"`` (as official), ``"filters"`` or ``"channels"``.
        rewind: weights to go back to, or None.
        train: trains a masked model; needed with ``rewind``.
        start: the epoch that ``rewind`` was taken at, for the learning-rate schedule.
        stop: the epoch to train to.
        batched: whether the models carry a leading trial axis.

    Raises:
        ValueError: if ``rewind`` is given without ``train``, or as :func:`magnitude_masks`.

    Source: SPEC section 3 (OMP).
    """
    if (rewind is None) != (train is None):
        raise ValueError("rewind and train go together: rewound weights must be trained again")

    def find(one: Model) -> Masks:
        return magnitude_masks(one, sparsity, prunable, scope=scope, structure=structure)

    found = jax.jit(jax.vmap(find) if batched else find)(model)
    return sparsify(model if rewind is None else rewind, found, train=train, start=start, stop=stop)


def imp_plan(sparsities: Sequence[float], rate: float = 0.2) -> tuple[ImpRound, ...]:
    """The rounds of iterative magnitude pruning that reach all sparsities; parents come first.

    Sparsity s takes ``k = ceil(log(1 - s) / log(1 - rate))`` rounds, each pruning ``rate`` of what
    remains, and the last to exactly s. The requested sparsities share one chain, so the plan is a
    trunk from which each branches off with its last round. Sparsity 0 takes no round.

    Args:
        sparsities: in [0, 1), in any order; repetitions count once.
        rate: in (0, 1).

    Raises:
        ValueError: if one of them lies outside.

    Source: SPEC section 3 (IMP) and section 11, item 14.
    """
    if not 0 < rate < 1:
        raise ValueError(f"rate = {rate!r}: must be a fraction in (0, 1)")
    for value in sparsities:
        if not 0 <= value < 1:
            raise ValueError(f"sparsities holds {value!r}: must be fractions in [0, 1)")
    plan: list[ImpRound] = []
    trunk: list[int | None] = [None]  # trunk[k] is the round after which density is (1 - rate)^k
    for value in sorted(set(sparsities) - {0.0}):
        exponent = math.log1p(-value) / math.log1p(-rate)
        needed = math.ceil(exponent - 1e-9)  # 1 - .8^2 takes two rounds, whatever it rounds to
        while len(trunk) < needed:
            plan.append(ImpRound(trunk[-1], 1 - (1 - rate) ** len(trunk), exact=False))
            trunk.append(len(plan) - 1)
        plan.append(ImpRound(trunk[needed - 1], value, exact=True))
        if len(trunk) == needed and needed - exponent < 1e-9:
            trunk.append(len(plan) - 1)  # it lies on the trunk: deeper ones go on from here
    return tuple(plan)


def imp_masks(
    model: Model,
    masks: Masks,
    this: ImpRound,
    *,
    rate: float = 0.2,
    prunable: Prunable = convolution_kernels,
    scope: Scope = "global",
    structure: Structure = "entries",
    batched: bool = False,
) -> Masks:
    """The mask of one round: the smallest ``|w|`` of what the parent's ``masks`` keep go.

    Args:
        model: the parent round's trained model (of the first round: the dense model).
        masks: the parent round's masks (of the first round: dense ones).
        this: the round, of :func:`imp_plan`.
        rate: as given to :func:`imp_plan`.
        prunable: which leaves are prunable.
        scope: ``"global"`` (as official) or ``"leaf"``.
        structure: ``"entries"`` (as official), ``"filters"`` or ``"channels"``.
        batched: whether model and masks carry a leading trial axis.
    """

    def find(model: Model, masks: Masks) -> Masks:
        sizes = np.array(mask_trees.unit_counts(masks, prunable, structure))
        left = np.asarray(_unpruned_counts(masks, prunable, structure), np.int64)
        if scope != "leaf":
            sizes, left = sizes.sum(), left.sum()
        if this.exact:
            gone = np.maximum(left - (sizes - np.round(this.sparsity * sizes)), 0)
        else:
            gone = np.round(rate * left)
        found = _magnitude(model.params)
        return _prune_lowest(
            masks, found, gone.astype(np.int32), prunable, scope=scope, structure=structure
        )

    return each_trial(find, batched, model, masks)


def imp(
    model: Model,
    sparsities: Sequence[float],
    *,
    train: TrainFn,
    rewind: Model | None = None,
    start: int = 0,
    stop: int,
    rate: float = 0.2,
    prunable: Prunable = convolution_kernels,
    scope: Scope = "global",
    structure: Structure = "entries",
    batched: bool = False,
) -> list[Pruned]:
    """Iterative magnitude pruning (IMP): prune a little, rewind, train, and again.

    Runs :func:`imp_plan`: every round masks the smallest weights of its parent's trained model, and
    trains the masked ``rewind`` weights again (without ``rewind``: goes on from the parent's). The
    optimiser starts fresh in every round, for ``train`` starts it.

    Args:
        model: the trained dense model, or ``[T]`` of them when ``batched``.
        sparsities: fractions of the prunable weights to remove, each in [0, 1).
        train: trains a masked model; called once a round.
        rewind: the weights at epoch ``start`` of the same training (epoch 0: initialisation), or
            None to fine-tune on from the present ones.
        start: the epoch to train from, for the learning-rate schedule.
        stop: the epoch to train to.
        rate: share of the remaining weights that a round prunes, in (0, 1).
        prunable: which leaves are prunable.
        scope: ``"global"`` (as official) or ``"leaf"``.
        structure: ``"entries"`` (as official), ``"filters"`` or ``"channels"``.
        batched: whether the models carry a leading trial axis.

    Returns:
        One :class:`Pruned` per sparsity, in the order given; of sparsity 0 the model as it is.

    Raises:
        ValueError: as :func:`imp_plan` and :func:`magnitude_masks`.

    Source: SPEC section 3 (IMP) and section 11, item 14.
    """
    plan = imp_plan(sparsities, rate)
    dense = Pruned(model, mask_trees.ones_like(model.params))
    finished: dict[int | None, Pruned] = {None: dense}
    asked: dict[float, Pruned] = {0.0: dense}
    for index, this in enumerate(plan):
        parent = finished[this.parent]
        found = imp_masks(
            parent.model,
            parent.masks,
            this,
            rate=rate,
            prunable=prunable,
            scope=scope,
            structure=structure,
            batched=batched,
        )
        source = parent.model if rewind is None else rewind
        finished[index] = sparsify(source, found, train=train, start=start, stop=stop)
        if this.exact:
            asked[this.sparsity] = finished[index]
        later = {other.parent for other in plan[index + 1 :]}
        finished = {name: kept for name, kept in finished.items() if name in later}
    return [asked[value] for value in sparsities]
