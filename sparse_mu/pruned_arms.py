"""The act that prunes: the sparse model of a dense one, by any method."""

import time

import jax
import numpy as np

from sparse_mu import pruning
from sparse_mu.acts import Arm, Models, Run, latencies, meta_of, title
from sparse_mu.standing import Keeper
from sparse_mu.training import FitResult
from sparse_mu.types import Masks, Model

VERSION = 3  # raise by hand when what a pruned stage means changes
_SECONDS = ("rte_seconds", "rte_batched_seconds", "compile_seconds", "prune_seconds")


def prune(run: Run, method: str, sparsity: float, *, dense: Arm, retain: np.ndarray) -> Arm:
    """The sparse arm that belongs to a dense one.

    Args:
        run: the experiment.
        method: ``"original"``, or ``"retrain_repruned"`` for one that never saw the forget set.
        sparsity: fraction of the prunable weights to remove.
        dense: the dense models.
        retain: ``bool[T, N]``, the rows that pruning and training may look at.
    """
    when = run.x.pruner.when
    if when == "before":
        return _before(run, method, sparsity, dense, retain)
    if when == "iteratively":
        plan = pruning.imp_plan(run.x.sparsities, run.x.pruner.rate)
        index = next(i for i, this in enumerate(plan) if this.exact and this.sparsity == sparsity)
        return _imp_round(run, method, plan, index, dense, retain)
    return _once(run, method, sparsity, dense, retain)


def _recipe(run: Run, dense: Arm) -> tuple[object, ...]:
    config = run.config_of("train.", "prune.")
    return VERSION, config, run.x.sparsities, dense.fingerprint


def magnitude_masks(run: Run, dense: Arm, sparsity: float) -> Masks:
    """The masks that OMP finds on dense models."""
    pruner = run.x.pruner
    pruned = pruning.omp(
        dense.model, sparsity, scope=pruner.scope, structure=pruner.structure, batched=True
    )
    return jax.tree.map(np.asarray, pruned.masks)


class _Training:
    """Trains masked models, all trials or the first alone, and keeps what came of it."""

    def __init__(
        self, run: Run, method: str, sparsity: float, retain: np.ndarray, keeper: Keeper
    ) -> None:
        self.run, self.label = run, ("prune", title(method, sparsity))
        self.retain, self.keeper, self.only_first = retain, keeper, False
        self.fits: list[FitResult] = []

    def __call__(self, model: Model, masks: Masks, *, start: int, stop: int) -> Model:
        result = self.run.fit(
            self.run.x.training,
            model,
            masks,
            forget=self.run.x.data.forget,
            retain=self.retain,
            keys=self.run.keys,
            label=self.label,
            keeper=self.keeper,
            only_first=self.only_first,
            start=start,
            stop=stop,
        )
        self.fits.append(result)
        return result.model


def _untrained(dense: Arm) -> dict:
    """What is known of an arm that was pruned in place, without training."""
    return {"diverged": dense.meta["diverged"], **dict.fromkeys(_SECONDS)}


def _once(run: Run, method: str, sparsity: float, dense: Arm, retain: np.ndarray) -> Arm:
    """OMP: the mask of the trained model; rewound weights are trained again."""
    x, back, source = run.x, run.x.rewind_epoch, run.rewound(dense)

    def make(keeper: Keeper) -> tuple[Models, dict]:
        again = _Training(run, method, sparsity, retain, keeper)

        def go(only_first: bool) -> pruning.Pruned:
            again.only_first = only_first
            keep = slice(0, 1) if only_first else slice(None)
            trained, rewind = jax.tree.map(lambda leaf: leaf[keep], (dense.model, source))
            in_place = back is None
            return pruning.omp(
                trained,
                sparsity,
                scope=x.pruner.scope,
                structure=x.pruner.structure,
                rewind=None if in_place else rewind,
                train=None if in_place else again,
                start=back or 0,
                stop=(back or 0) + x.training.epochs,
                batched=True,
            )

        pruned = go(only_first=False)
        if not again.fits:
            return Models(*pruned, {}), _untrained(dense)
        meta = meta_of(again.fits[0], run.trials, [])

        def alone() -> FitResult:
            go(only_first=True)
            return again.fits[-1]

        if method == "original":  # the cost of the sparse arm: one trial alone, once
            measured = latencies(run, again.fits[0], alone, repeats=1)
            meta["prune_seconds"] = measured[0] if measured else None
        return Models(*pruned, {}), meta

    return run.arm(method, sparsity, _recipe(run, dense), make)


def _imp_round(
    run: Run,
    method: str,
    plan: tuple[pruning.ImpRound, ...],
    index: int,
    dense: Arm,
    retain: np.ndarray,
) -> Arm:
    """IMP: one round of the chain, its parent's first; every round is a stage of its own."""
    x, this, back = run.x, plan[index], run.x.rewind_epoch
    parent = dense
    if this.parent is not None:
        parent = _imp_round(run, method, plan, this.parent, dense, retain)

    def make(keeper: Keeper) -> tuple[Models, dict]:
        found = pruning.imp_masks(
            parent.model,
            parent.masks,
            this,
            rate=x.pruner.rate,
            scope=x.pruner.scope,
            structure=x.pruner.structure,
            batched=True,
        )
        again = _Training(run, method, this.sparsity, retain, keeper)
        source = parent.model if back is None else run.rewound(dense)
        start = back or 0
        stop = start + x.training.epochs
        pruned = pruning.sparsify(source, found, train=again, start=start, stop=stop)
        meta = meta_of(again.fits[0], run.trials, [])

        def alone() -> FitResult:
            again.only_first = True
            one = jax.tree.map(lambda leaf: leaf[:1], (source, found))
            pruning.sparsify(*one, train=again, start=start, stop=stop)
            return again.fits[-1]

        if method == "original":  # all rounds so far are the cost of this one
            measured = latencies(run, again.fits[0], alone, repeats=1)
            before = 0.0 if parent is dense else parent.meta["prune_seconds"]
            meta["prune_seconds"] = before + measured[0] if measured else None
        return Models(*pruned, {}), meta

    name = method if this.exact else f"{method}_round{index}"
    return run.arm(name, this.sparsity, (*_recipe(run, dense), parent.fingerprint), make)


def _before(run: Run, method: str, sparsity: float, dense: Arm, retain: np.ndarray) -> Arm:
    """SynFlow, SNIP, GraSP and random masks: found on fresh weights, which are then trained."""
    x, find = run.x, run.x.pruner.find
    assert find is not None

    def make(keeper: Keeper) -> tuple[Models, dict]:
        found = find(run.theta_0, retain, run.keys.method, sparsity)
        again = _Training(run, method, sparsity, retain, keeper)
        pruned = pruning.sparsify(run.theta_0, found, train=again, stop=x.training.epochs)
        meta = meta_of(again.fits[0], run.trials, [])
        meta["prune_seconds"] = None
        if x.config["evaluate.rte_repeats"]:  # the training itself is the original's: no extra cost
            first = jax.tree.map(lambda leaf: leaf[:1], run.theta_0)
            began = time.perf_counter()
            jax.block_until_ready(find(first, retain[:1], run.keys.method[:1], sparsity))
            meta["prune_seconds"] = time.perf_counter() - began
        return Models(*pruned, {}), meta

    return run.arm(method, sparsity, _recipe(run, dense), make)
