"""The search of un-pruning for a mask: it looks at a dense training and ends where masks settle."""

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike

from sparse_mu import masks as mask_trees
from sparse_mu import topology
from sparse_mu.masks import Prunable, Scope, Structure
from sparse_mu.trees import of_trial
from sparse_mu.types import Masks, Model, Params, PathFn, PyTree
from sparse_mu.unlearn import estimates
from sparse_mu.unlearn.modes import Difference, Given, Projected, Rescored, Rewind, Snapshots
from sparse_mu.unlearn.projection import ProjectFn, each

Estimated = Difference | Projected | Rewind


class Cost(NamedTuple):
    """What un-pruning took of each trial.

    Attributes:
        retain_epochs: ``int[T]``, epochs of dense training over Dr.
        all_epochs: ``int[T]``, epochs of dense training over D; 0 where snapshots were kept.
        gradient_passes: ``int[T]``, passes over Dr for gradients that weights were grown by.
        forget_passes: ``int[T]``, passes over Df for gradients that were subtracted.
        unlearn_epochs: ``int[T]``, epochs of the weight phase, or of it inside the re-growing loop.
        stored_bytes: of what a trial must have kept of the original's training: theta_0 (which its
            key can draw again), dense weights and snapshots, or the gradients over D. Of dense
            weights the parameters alone are read.
    """

    retain_epochs: np.ndarray
    all_epochs: np.ndarray
    gradient_passes: np.ndarray
    forget_passes: np.ndarray
    unlearn_epochs: np.ndarray
    stored_bytes: int

    def gradient_evaluations(
        self,
        *,
        epoch_rows: ArrayLike,
        all_rows: ArrayLike,
        retain_rows: ArrayLike,
        forget_rows: ArrayLike,
    ) -> np.ndarray:
        """``int[T]``, gradients of one row each, without those of ``unlearn_epochs``.

        Args:
            epoch_rows: ``int[T]``, rows of an epoch of dense training over Dr; more than
                ``retain_rows`` where it takes as many steps as one over D.
            all_rows: ``int[T]``, rows of D.
            retain_rows: ``int[T]``, rows of Dr.
            forget_rows: ``int[T]``, rows of Df.
        """
        return (
            self.retain_epochs * np.asarray(epoch_rows)
            + self.all_epochs * np.asarray(all_rows)
            + self.gradient_passes * np.asarray(retain_rows)
            + self.forget_passes * np.asarray(forget_rows)
        )


class Found(NamedTuple):
    """A mask for each trial, what it was found on, and theta_K(Dr) where it was found."""

    masks: Masks
    estimate: Params
    trained: Model
    epochs: np.ndarray
    agreement: list[list[float]]
    cost: Cost


class Rule(NamedTuple):
    """How the masks were made: what :func:`sparse_mu.unlearn.unprune.unprune` says of each."""

    project: ProjectFn
    prunable: Prunable
    scope: Scope
    structure: Structure


class Stop(NamedTuple):
    """When the search looks, and when a trial ends: see ``unprune``."""

    looks: tuple[int, ...]
    tolerance: float

    def ended(self, agreement: list[float]) -> bool:
        """Whether the last two masks agreed, each with the one before."""
        return len(agreement) >= 2 and min(agreement[-2:]) >= 1 - self.tolerance


def looks_of(epochs: int, block: int) -> tuple[int, ...]:
    """Every ``block`` epochs, and at the last."""
    return tuple(dict.fromkeys([*range(block, epochs, block), epochs]))


def without_training(mode: Rescored | Given, theta_0: Model, masks: Masks, rule: Rule) -> Found:
    """The masks of scores at theta_0, or masks that are given: nothing is trained for them."""
    trials = jax.tree.leaves(masks)[0].shape[0]
    scored, found = theta_0.params, jax.tree.map(np.asarray, mode[0])
    cost = no_cost(trials)
    if isinstance(mode, Rescored):
        scored = estimates.retained_scores(theta_0.params, *mode)
        found = each(rule.project, scored, masks)
        kept = _bytes_of_one(theta_0) + _bytes_of_one(mode.total)
        cost = cost._replace(forget_passes=np.ones(trials, int), stored_bytes=kept)
    return Found(
        masks=found,
        estimate=scored,
        trained=theta_0,
        epochs=np.zeros(trials, int),
        agreement=[[] for _ in range(trials)],
        cost=cost,
    )


def search(
    train: PathFn, theta_0: Model, masks: Masks, mode: Estimated, rule: Rule, stop: Stop
) -> Found:
    """Trains on Dr and estimates, look by look, until every trial's mask has settled."""
    count = jax.tree.leaves(masks)[0].shape[0]
    before = {} if isinstance(mode, Rewind) else _snapshots(mode.snapshots, stop.looks, masks)
    known: dict[tuple[int, int], Masks] = {}

    def estimate(epoch: int, trained: Params, trial: int) -> Params:
        """One trial's dense weights, from its theta_K(Dr)."""
        if isinstance(mode, Rewind):
            return jax.tree.map(np.asarray, trained)
        then = of_trial(before[epoch].params, trial)
        if isinstance(mode, Difference):
            return estimates.difference(of_trial(mode.dense.params, trial), trained, then)
        end = estimates.projected(then, of_trial(masks, trial), *rule[1:])
        return estimates.difference(end, trained, then)

    def mask_at(epoch: int, trained: Params, trial: int) -> Masks:
        if (epoch, trial) not in known:
            weights = estimate(epoch, trained, trial)
            known[epoch, trial] = rule.project(weights, of_trial(masks, trial))
        return known[epoch, trial]

    def agreement(seen: Mapping[int, Model], place: int, trial: int) -> list[float]:
        """Of one trial, which stands at ``place`` of what was seen, up to where it ends."""
        found: list[float] = []
        for pair in itertools.pairwise(sorted(set(seen) & set(stop.looks))):
            first, second = (mask_at(e, of_trial(seen[e].params, place), trial) for e in pair)
            found.append(topology.iou(first, second, rule.prunable))
            if stop.ended(found):
                break
        return found

    def enough(seen: dict[int, Model], trials: np.ndarray) -> np.ndarray:
        told = [agreement(seen, place, int(trial)) for place, trial in enumerate(trials)]
        return np.array([stop.ended(found) for found in told])

    seen = train(stop.looks, enough)
    known.clear()  # a training that was begun anew ends with other weights, equal up to rounding
    told = [agreement(seen, trial, trial) for trial in range(count)]
    ends = [stop.looks[len(found)] for found in told]
    models = [of_trial(seen[end], trial) for trial, end in enumerate(ends)]
    places = [(ends[trial], models[trial].params, trial) for trial in range(count)]
    return Found(
        masks=_stacked([mask_at(*place) for place in places]),
        estimate=_stacked([estimate(*place) for place in places]),
        trained=_stacked(models),
        epochs=np.array(ends),
        agreement=told,
        cost=_cost(mode, theta_0, before, np.array(ends), stop.looks),
    )


def _snapshots(given: Snapshots, looks: tuple[int, ...], masks: Masks) -> Mapping[int, Model]:
    """theta_K(D) at each look."""
    found = given if isinstance(given, Mapping) else given(looks)
    missing = [epoch for epoch in looks if epoch not in found]
    if missing:
        raise ValueError(
            f"snapshots has no model of epoch {missing[0]}, which is looked at; it has "
            f"{sorted(found)}"
        )
    for epoch in looks:
        mask_trees.check(masks, found[epoch].params)
    return found


def _cost(
    mode: Estimated,
    theta_0: Model,
    before: Mapping[int, Model],
    ends: np.ndarray,
    looks: tuple[int, ...],
) -> Cost:
    kept = _bytes_of_one(theta_0)
    cost = no_cost(len(ends))._replace(retain_epochs=ends, stored_bytes=kept)
    if isinstance(mode, Rewind):
        return cost
    were_kept = isinstance(mode.snapshots, Mapping)
    one = _bytes_of_one(before[looks[0]].params)
    copies = len(looks) * were_kept + isinstance(mode, Difference)
    again = np.zeros_like(ends) if were_kept else np.full_like(ends, looks[-1])
    return cost._replace(all_epochs=again, stored_bytes=kept + copies * one)


def _bytes_of_one(tree: PyTree) -> int:
    """Of one trial of a ``[T]`` tree."""
    return sum(np.asarray(leaf).nbytes // len(leaf) for leaf in jax.tree.leaves(tree))


def no_cost(trials: int) -> Cost:
    """Nothing spent yet."""
    none = np.zeros(trials, int)
    return Cost(none, none, none, none, none, 0)


def _stacked(trees: list[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
