"""Un-pruning: an estimate of the mask that a retraining without the forget set would have found.

The mask M_o of a sparse model was chosen while looking at Df. Weights alone being unlearned, it
stays. :func:`unprune` estimates the dense weights theta_T(Dr) that a retraining would have pruned,
prunes the estimate by the rule and to the count that made M_o, and hands the new mask with weights
to begin from to any unlearner. A procedure on the host, as OMP is, of one model, or with
``batched`` of T, whose masks are then found trial by trial.

What a mode may read decides what it can promise. :class:`Rewind` reads (theta_0, Dr) alone, so
nothing of Df is left in its mask at any length; the others reach Df through w_o or stored weights.
With as many epochs as the original's training, :class:`Difference`, :class:`Projected` and
:class:`Rewind` give the retrained mask itself.

Source: UNPRUNING sections 2.3 to 2.5; the paper's own loop (:mod:`sparse_mu.unlearn.regrow`) is
known from reviews of it only.
"""

from typing import Literal, NamedTuple

import jax
import numpy as np

from sparse_mu import masks as mask_trees
from sparse_mu.masks import Prunable, Scope, Structure, convolution_kernels
from sparse_mu.trees import of_trial
from sparse_mu.types import Masks, Model, Params, PathFn, TrainFn
from sparse_mu.unlearn import single
from sparse_mu.unlearn.modes import Difference, Given, Mode, Projected, Rescored, Rewind
from sparse_mu.unlearn.projection import ProjectFn, by_magnitude
from sparse_mu.unlearn.regrow import Regrow, regrow
from sparse_mu.unlearn.search import (
    Cost,
    Found,
    Rule,
    Stop,
    looks_of,
    no_cost,
    search,
    without_training,
)

Weights = Literal["carry", "rewind", "continue", "estimate"]
WEIGHTS: tuple[Weights, ...] = ("carry", "rewind", "continue", "estimate")

__all__ = [
    "WEIGHTS",
    "Cost",
    "Difference",
    "Given",
    "Mode",
    "Projected",
    "Regrow",
    "Rescored",
    "Rewind",
    "Unpruned",
    "Weights",
    "unprune",
]


class Unpruned(NamedTuple):
    """A model under its new mask, and how it was come by.

    Attributes:
        model: ``[T]`` models; pruned weights are exactly 0.
        masks: ``[T]`` masks, each of exactly the count of the original's.
        estimate: ``[T]`` dense weights that the masks were found on; of :class:`Rescored` the
            scores with their signs.
        epochs: ``int[T]``, the epoch (of :class:`Regrow`: the round) that each trial ended at.
        agreement: of each trial, the IoU of each mask looked at with the one before.
        cost: see :class:`Cost`.
    """

    model: Model
    masks: Masks
    estimate: Params
    epochs: np.ndarray
    agreement: list[list[float]]
    cost: Cost


def unprune(
    train: PathFn,
    unlearn: TrainFn | None,
    *,
    theta_0: Model,
    original: Model,
    masks: Masks,
    mode: Mode,
    epochs: int,
    block: int | None = None,
    tolerance: float = 0.0,
    weights: Weights = "carry",
    unlearn_epochs: int = 1,
    settle: TrainFn | None = None,
    project: ProjectFn | None = None,
    prunable: Prunable = convolution_kernels,
    scope: Scope = "global",
    structure: Structure = "entries",
    batched: bool = False,
) -> Unpruned:
    """Removes the forget set from the mask of sparse models, then from their weights.

    With a ``block`` it looks at the mask after every so many epochs of the dense training and ends
    a trial where two masks in a row had an IoU of at least ``1 - tolerance`` with the one before;
    else it looks once, after ``epochs``. The same theta_0, optimiser, steps and order of rows as
    the original's are meant: without them the masks differ by their noise.

    Args:
        train: the dense training on Dr, by the original's recipe and in its order of rows. Not
            read by :class:`Rescored`, :class:`Given` and :class:`Regrow`.
        unlearn: the weight phase: any unlearner bound to its data, as
            ``(models, masks, start=, stop=) -> models``. None ends with the weights as they are.
        theta_0: ``[T]`` first weights of the original.
        original: ``[T]`` sparse models w_o.
        masks: ``[T]`` masks M_o.
        mode: how the mask is found; see the classes of this module.
        epochs: K, the most epochs of dense training, up to the length of the original's.
        block: epochs between two looks, at least 1; None: one look, at the end.
        tolerance: in [0, 1); at 0 a trial ends early only where its mask stood still.
        weights: what the weight phase begins from. ``"carry"``: w_o where both masks keep, theta_0
            where only the new one does; ``"rewind"``: theta_0; ``"continue"``: theta_K(Dr);
            ``"estimate"``: the estimate itself. All but ``"rewind"`` and ``"continue"`` carry
            traces of Df that the unlearner must remove. :class:`Regrow` has its own.
        unlearn_epochs: of the weight phase; of :class:`Regrow` in each of its rounds.
        settle: run before the weight phase, such as a pass over Dr that makes BatchNorm's running
            statistics anew (:func:`sparse_mu.unlearn.refresh_statistics`): carried ones hold Df.
        project: the rule that made ``masks``, ``(dense weights, mask whose count to keep) -> mask``
            of one trial, such as :func:`sparse_mu.unlearn.by_norm`. Default: magnitude, with the
            three arguments below. Not for :class:`Projected` and :class:`Regrow`.
        prunable: which leaves are prunable.
        scope: ``"global"`` or ``"leaf"``, as the original was pruned.
        structure: ``"entries"``, ``"filters"`` or ``"channels"``.
        batched: whether all trees, and those that the functions take and give, carry a leading
            trial axis ``[T]``. What is ``[T]`` above then stands for one model where they do not;
            of the result, ``epochs``, ``agreement`` and ``cost`` always have it.

    Raises:
        ValueError: if trees do not fit each other, a number or word is not allowed, a snapshot that
            is looked at was not kept, or a mask that was given or found by ``project`` does not
            keep as many entries as the original's.
    """
    if not batched:
        found = unprune(
            single.path(train),
            None if unlearn is None else single.phase(unlearn),
            theta_0=single.lifted(theta_0),
            original=single.lifted(original),
            masks=single.lifted(masks),
            mode=single.mode(mode),
            epochs=epochs,
            block=block,
            tolerance=tolerance,
            weights=weights,
            unlearn_epochs=unlearn_epochs,
            settle=None if settle is None else single.phase(settle),
            project=project,
            prunable=prunable,
            scope=scope,
            structure=structure,
            batched=True,
        )
        model, found_masks, estimate = (single.lowered(tree) for tree in found[:3])
        return found._replace(model=model, masks=found_masks, estimate=estimate)
    block = epochs if block is None else block
    _check(theta_0, original, masks, epochs, block, tolerance, weights, mode)
    if isinstance(mode, Projected | Regrow) and project is not None:
        kind = type(mode).__name__
        raise ValueError(f"project= is given: {kind} knows the threshold of magnitudes only")
    rule = Rule(project or by_magnitude(prunable, scope, structure), prunable, scope, structure)
    if isinstance(mode, Regrow):
        return _regrown(unlearn, theta_0, original, masks, mode, rule, unlearn_epochs, tolerance)
    if isinstance(mode, Rescored | Given):
        found = without_training(mode, theta_0, masks, rule)
    else:
        stop = Stop(looks_of(epochs, block), tolerance)
        found = search(train, theta_0, masks, mode, rule, stop)
    _check_counts(found.masks, masks, rule)
    model = _begin(weights, found, theta_0, original, masks)
    if settle is not None:
        model = settle(model, found.masks, start=0, stop=1)
    cost = found.cost
    if unlearn is not None:
        model = unlearn(model, found.masks, start=0, stop=unlearn_epochs)
        cost = cost._replace(unlearn_epochs=np.full_like(found.epochs, unlearn_epochs))
    return Unpruned(model, found.masks, found.estimate, found.epochs, found.agreement, cost)


def _regrown(
    unlearn: TrainFn | None,
    theta_0: Model,
    original: Model,
    masks: Masks,
    mode: Regrow,
    rule: Rule,
    epochs: int,
    tolerance: float,
) -> Unpruned:
    if unlearn is None:
        raise ValueError("unlearn = None: regrow trains what it grows, and needs an unlearner")
    if rule.scope != "global":
        raise ValueError(f"scope = {rule.scope!r}: must be 'global' for regrow")
    grown = regrow(
        unlearn,
        theta_0,
        original,
        masks,
        mode,
        rule.project,
        epochs,
        tolerance,
        prunable=rule.prunable,
        structure=rule.structure,
    )
    kept = sum(np.asarray(leaf).nbytes // len(leaf) for leaf in jax.tree.leaves(theta_0))
    cost = no_cost(len(grown.rounds))._replace(
        unlearn_epochs=grown.rounds * epochs,
        gradient_passes=grown.rounds * (mode.grow == "gradient"),
        stored_bytes=kept,
    )
    return Unpruned(grown.model, grown.masks, grown.dense, grown.rounds, grown.agreement, cost)


def _begin(weights: Weights, found: Found, theta_0: Model, original: Model, masks: Masks) -> Model:
    """What the weight phase begins from."""
    source = {
        "carry": original,
        "rewind": theta_0,
        "continue": found.trained,
        "estimate": found.trained._replace(params=found.estimate),
    }[weights]
    params = jax.tree.map(np.asarray, source.params)
    if weights == "carry":
        params = jax.tree.map(
            lambda old, w, first: np.where(old, w, first), masks, params, theta_0.params
        )
    pruned = jax.tree.map(lambda mask, w: np.where(mask, w, np.zeros_like(w)), found.masks, params)
    return Model(pruned, source.net_state)


def _check_counts(found: Masks, masks: Masks, rule: Rule) -> None:
    """Refuses a mask that does not keep as many units as the one that it takes the place of."""

    def kept(tree: Masks, trial: int) -> list[int]:
        one = of_trial(tree, trial)
        by_leaf = np.array(mask_trees.unpruned_counts(one, rule.prunable, rule.structure))
        return by_leaf.tolist() if rule.scope == "leaf" else [int(by_leaf.sum())]

    for trial in range(jax.tree.leaves(masks)[0].shape[0]):
        counts, wanted = kept(found, trial), kept(masks, trial)
        if counts != wanted:
            raise ValueError(
                f"the mask found for trial {trial} keeps {counts} {rule.structure}, the original's "
                f"{wanted}: an un-pruned mask must be as sparse"
            )


def _check(
    theta_0: Model,
    original: Model,
    masks: Masks,
    epochs: int,
    block: int,
    tolerance: float,
    weights: Weights,
    mode: Mode,
) -> None:
    mask_trees.check(masks, original.params)
    mask_trees.check(masks, theta_0.params)
    if isinstance(mode, Difference):
        mask_trees.check(masks, mode.dense.params)
    if epochs < 1 or block < 1:
        raise ValueError(f"epochs = {epochs}, block = {block}: both must be at least 1")
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance = {tolerance!r}: must be in [0, 1)")
    if weights not in WEIGHTS:
        raise ValueError(f"weights = {weights!r}: must be one of {', '.join(WEIGHTS)}")
    if isinstance(mode, Given):
        mask_trees.check(mode.masks, original.params)
    if isinstance(mode, Rescored | Given) and weights in ("continue", "estimate"):
        raise ValueError(f"weights = {weights!r}: must be carry or rewind, for nothing is trained")
