"""The acts that un-prune: masks that forget, and what is run under them."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from sparse_mu import unlearn as methods
from sparse_mu.acts import Arm, Models, Run, title, train, unlearn
from sparse_mu.builders import Method, Unpruner
from sparse_mu.passes import rows_of_epoch
from sparse_mu.standing import Keeper, not_kept
from sparse_mu.summary_words import UNPRUNED
from sparse_mu.training import FitResult
from sparse_mu.types import EnoughFn, Masks, Model, Params, PyTree, TrainFn, Trials
from sparse_mu.unlearn.modes import Mode

VERSION = 2  # raise by hand when what an un-pruned stage means changes
MASKS = "unprune"  # what the arm of the masks is called


def called(method: str) -> str:
    """What a method is called that runs after un-pruning."""
    return UNPRUNED + method


def unprune(run: Run, how: Unpruner, sparse: Arm, dense: Arm) -> Arm:
    """The un-pruned masks of the sparse originals, and the weights that methods begin from.

    Masks that are found before training (SNIP, GraSP) are found again on the retain sets, exactly;
    those that saw no data are what they were.

    Args:
        run: the experiment.
        how: the way of un-pruning; not by re-growing, which has no masks without a method.
        sparse: the sparse original models.
        dense: the dense ones, with their early weights.
    """
    x = run.x

    def make(keeper: Keeper) -> tuple[Models, dict]:
        def go(only_first: bool) -> _Done:
            phases = _Phases(run, MASKS, sparse.sparsity, keeper, only_first)
            arms = _first(only_first, (run.theta_0, sparse.model, sparse.masks))
            began = time.perf_counter()
            mode = _mode(run, how, sparse, dense, only_first)
            found = methods.unprune(
                phases.path,
                None,
                theta_0=arms[0],
                original=arms[1],
                masks=arms[2],
                mode=mode,
                epochs=how.epochs,
                block=how.block,
                tolerance=how.tolerance,
                weights=how.weights,
                settle=phases.of(how.settle) if how.settle else None,
                scope=x.pruner.scope,
                structure=x.pruner.structure,
                batched=True,
            )
            return _Done(found, phases.told, time.perf_counter() - began)

        models, meta = _kept(run, go, sparse)
        if x.pruner.when == "before":  # looked for again
            spent = meta[MASKS]["gradients"]
            meta[MASKS]["gradients"] = [n + x.pruner.evaluations for n in spent]
        return models, meta

    config = run.config_of("train.", "prune.", "unprune.")
    return run.arm(
        MASKS, sparse.sparsity, (VERSION, config, sparse.fingerprint, dense.fingerprint), make
    )


def after(run: Run, name: str, unpruned: Arm) -> Arm:
    """A method, or a retraining, under the un-pruned masks; its seconds hold un-pruning's."""
    if name == "retrain":
        arm = train(
            run,
            called(name),
            unpruned.sparsity,
            masks=unpruned.masks,
            retain=run.x.data.retain,
            timed=True,
            depends_on=(unpruned.fingerprint,),
        )
    else:
        arm = unlearn(run, name, unpruned, called=called(name))
    both = {}
    for key in ("rte_seconds", "rte_batched_seconds", "compile_seconds"):
        own, before = arm.meta[key], unpruned.meta[key]
        both[key] = None if own is None or before is None else own + before
    return arm._replace(meta={**arm.meta, **both, MASKS: unpruned.meta[MASKS]})


def regrow(run: Run, how: Unpruner, loop: methods.Regrow, name: str, sparse: Arm) -> Arm:
    """The re-growing loop around a method, which is begun anew if it is interrupted."""
    x = run.x
    method = x.methods[name]

    def make(keeper: Keeper) -> tuple[Models, dict]:
        def go(only_first: bool) -> _Done:
            phases = _Phases(run, called(name), sparse.sparsity, keeper, only_first)
            arms = _first(only_first, (run.theta_0, sparse.model, sparse.masks))
            began = time.perf_counter()
            found = methods.unprune(
                phases.path,
                phases.of(method),
                theta_0=arms[0],
                original=arms[1],
                masks=arms[2],
                mode=loop._replace(gradient=lambda model: phases.gradient(how, model)),
                epochs=how.epochs,
                tolerance=how.tolerance,
                unlearn_epochs=method.epochs,
                structure=x.pruner.structure,
                batched=True,
            )
            return _Done(found, phases.told, time.perf_counter() - began)

        models, meta = _kept(run, go, sparse)
        sets = Trials(x.data.forget, x.data.retain, run.keys.order)
        rounds = np.array(meta[MASKS].pop("epochs"))
        inside = rounds * method.epochs
        meta[MASKS] |= {"rounds": rounds.tolist(), "epochs": inside.tolist()}
        spent = meta[MASKS]["gradients"] + inside * rows_of_epoch(method.unlearner.reads, sets)
        meta[MASKS]["gradients"] = spent.tolist()
        return models, meta

    config = run.config_of("prune.", "unprune.", f"unlearn.{name}.", "train.")
    return run.arm(called(name), sparse.sparsity, (VERSION, config, sparse.fingerprint), make)


class _Told(NamedTuple):
    """What is kept of a training inside an un-pruning."""

    finite: np.ndarray
    compile_seconds: float
    halved: bool


class _Done(NamedTuple):
    """An un-pruning, what its trainings tell and its seconds, compiling included."""

    found: methods.Unpruned
    told: list[_Told]
    seconds: float

    @property
    def compile_seconds(self) -> float:
        return sum(told.compile_seconds for told in self.told)


class _Phases:
    """The trainings of one un-pruning, of all trials or of the first alone, and what came of them.

    The dense training leaves checkpoints; the short ones after it are done again.
    """

    def __init__(
        self, run: Run, what: str, sparsity: float, keeper: Keeper, only_first: bool
    ) -> None:
        self.run, self.label = run, ("unprune", title(what, sparsity))
        self.keeper, self.only_first = keeper, only_first
        self.told: list[_Told] = []

    def path(self, epochs: tuple[int, ...], enough: EnoughFn | None = None) -> dict[int, Model]:
        """The dense training on the retain sets."""
        run = self.run
        result = self._fit(
            run.x.training, run.theta_0, run.dense, self.keeper, max(epochs), epochs, enough
        )
        return result.snapshots

    def of(self, method: Method) -> TrainFn:
        """A method as a weight phase: run as it is configured, whatever epochs are asked for."""

        def go(model: Model, masks: Masks, *, start: int, stop: int) -> Model:
            del start, stop
            return self._fit(method, model, masks, self._unkept()).model

        return go

    def gradient(self, how: Unpruner, model: Model) -> Params:
        """The mean gradient over each retain set, as if nothing were pruned."""
        told = self._fit(how.gradient, model, self.run.dense, self._unkept()).told
        count = self.run.x.data.retain[: len(jax.tree.leaves(told)[0])].sum(axis=1)
        return jax.tree.map(lambda leaf: leaf / count.reshape(-1, *[1] * (leaf.ndim - 1)), told)

    def _unkept(self) -> Keeper:
        return not_kept(self.keeper.stop_asked)

    def _fit(
        self,
        method: Method,
        model: Model,
        masks: Masks,
        keeper: Keeper,
        stop: int | None = None,
        snapshots: tuple[int, ...] = (),
        enough: EnoughFn | None = None,
    ) -> FitResult:
        run = self.run
        result = run.fit(
            method,
            model,
            masks,
            forget=run.x.data.forget,
            retain=run.x.data.retain,
            keys=run.keys,
            label=self.label,
            keeper=keeper,
            only_first=self.only_first,
            stop=stop,
            snapshot_epochs=snapshots,
            enough=enough,
        )
        self.told.append(_Told(result.finite, result.compile_seconds, result.chunk.halved))
        return result


def _mode(run: Run, how: Unpruner, sparse: Arm, dense: Arm, only_first: bool) -> Mode:
    x = run.x
    if x.pruner.when == "before":
        if x.pruner.data_free:
            return methods.Given(_first(only_first, sparse.masks))
        model, retain, keys = _first(only_first, (run.theta_0, x.data.retain, run.keys.method))
        assert x.pruner.find is not None
        return methods.Given(x.pruner.find(model, retain, keys, sparse.sparsity))
    stored = {epoch: _first(only_first, dense.early[str(epoch)]) for epoch in how.snapshots}
    assert how.mode_of is not None
    return how.mode_of(_first(only_first, dense.model), stored)


def _first(only_first: bool, tree: PyTree) -> PyTree:
    """Of ``[T]`` trees the first trial, if it is to be alone."""
    return jax.tree.map(lambda leaf: leaf[:1], tree) if only_first else tree


def _kept(run: Run, go: Callable[[bool], _Done], sparse: Arm) -> tuple[Models, dict]:
    """What a stage keeps of an un-pruning, its seconds alone measured too."""
    done = go(False)
    seconds: list[float] = []
    if run.x.config["evaluate.rte_repeats"]:
        if run.trials > 1 and run.x.alone is not run.x.execution:
            go(True)  # another program: compiles here
        for _ in range(run.x.config["evaluate.rte_repeats"]):
            alone = go(True)
            seconds.append(alone.seconds - alone.compile_seconds)
    found = done.found
    data, cost = run.x.data, found.cost
    retain_rows = data.retain.sum(axis=1)
    gradients = cost.gradient_evaluations(
        epoch_rows=np.maximum(retain_rows, run.stretched(data.retain)),
        all_rows=run.trained.sum(axis=1),
        retain_rows=retain_rows,
        forget_rows=data.forget.sum(axis=1),
    )
    finite = np.logical_and.reduce([told.finite for told in done.told], initial=True)
    finite = np.broadcast_to(finite, run.trials)
    meta = {
        "diverged": [
            bool(d or not f) for d, f in zip(sparse.meta["diverged"], finite, strict=True)
        ],
        "rte_seconds": statistics.median(seconds) if seconds else None,
        "rte_repeats": seconds,
        "rte_batched_seconds": (done.seconds - done.compile_seconds) / run.trials,
        "compile_seconds": done.compile_seconds,
        "prune_seconds": 0.0,
        "halved": any(told.halved for told in done.told),
        MASKS: {
            "epochs": found.epochs.tolist(),
            "agreement": found.agreement,
            "gradients": gradients.tolist(),
            "stored_bytes": cost.stored_bytes,
        },
    }
    return Models(found.model, found.masks, {}), meta
