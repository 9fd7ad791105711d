"""The acts that make models, but for pruning: train and unlearn, plain functions of a run.

Every act makes an :class:`Arm`, the T models of one method at one sparsity, and each arm is a stage
on disk: a run that was stopped continues with the first stage that is not finished.
"""

import functools
import statistics
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from sparse_mu import digests, memory
from sparse_mu.builders import Data, Experiment, Method, Network, Transfer
from sparse_mu.config import Flat
from sparse_mu.curvature import Convergence
from sparse_mu.evaluation import predict
from sparse_mu.passes import stretched
from sparse_mu.progress import OnProgress, plan, units
from sparse_mu.retry import Portion, within_memory
from sparse_mu.stages import fingerprint
from sparse_mu.standing import Keeper, not_kept
from sparse_mu.training import FitResult, fit
from sparse_mu.trial_keys import Keys, trial_keys
from sparse_mu.types import ApplyFn, Dataset, EnoughFn, Masks, Model, Streamed, Trials
from sparse_mu.unlearn import in_parts
from sparse_mu.workdir import Workdir

VERSIONS = {"train": 2, "unlearn": 2}  # raise one by hand when what its stages mean changes


class Arm(NamedTuple):
    """The T models of one method at one sparsity.

    Attributes:
        method: the method, a target, or "original".
        sparsity: fraction of the prunable weights that is pruned.
        model: ``[T]`` models.
        masks: ``[T]`` masks.
        early: ``[T]`` models at earlier epochs of the same training, by epoch as text: where
            pruning goes back to, and where un-pruning looks.
        meta: seconds, which trials diverged, and whether memory was short in the making of it or
            of what it comes from.
        fingerprint: what the arm depends on.
        stage: the folder of its stage; arms may share one.
    """

    method: str
    sparsity: float
    model: Model
    masks: Masks
    early: dict[str, Model]
    meta: dict
    fingerprint: str
    stage: str


class Models(NamedTuple):
    """The arrays of an arm, as its stage holds them; see :class:`Arm`."""

    model: Model
    masks: Masks
    early: dict[str, Model]


class Run:
    """One experiment in one workdir: holds what all acts share and counts progress."""

    def __init__(self, experiment: Experiment, workdir: Workdir, on_progress: OnProgress) -> None:
        """Places the data and draws fresh weights."""
        self.x, self.workdir, self.on_progress = experiment, workdir, on_progress
        data = experiment.data
        self.trials = len(data.forget)
        self.shared = self._placed(data, "the data set; lower config.dataset.limit")
        self.trained = data.trained
        self.keys = trial_keys(experiment.config["seed"], self.trials)
        self.fresh_keys = trial_keys(experiment.config["seed"], self.trials, reseed=True)
        self.theta_0 = fresh(experiment.network, self.keys)
        self.dense = jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), self.theta_0.params)
        # with one split, the forget sets say which rows are trained on and which are retained
        sets = (data.forget,) if data.trained.all() else (data.forget, data.retain, data.trained)
        self.data_print = fingerprint(data.inputs, data.labels, *sets)
        self.recorded: dict[str, dict[str, str]] = {}  # of every arm so far, by its title
        self.halved: set[str] = set()  # fingerprints of the arms that are equal up to rounding only
        self.done, self.total = 0.0, plan(experiment)

    @functools.cached_property
    def target(self) -> Dataset | Streamed:
        """The training rows of the data set that models are judged on as backbones."""
        assert self.x.transfer is not None
        return self._placed(self.x.transfer, "the target; lower config.transfer.limit")

    def _placed(self, data: Data | Transfer, what: str) -> Dataset | Streamed:
        """Training rows where methods read them; ``what`` is said where memory is short."""
        if isinstance(data.inputs, Streamed):
            return data.inputs  # its first rows are the training rows, too
        rows = Dataset(data.inputs[: data.train_rows], data.labels[: data.train_rows])
        with memory.told(what):
            return self.x.execution.put_shared(rows)

    @functools.cached_property
    def other_theta_0(self) -> Model:
        """``[T]`` fresh weights of the second retraining."""
        return fresh(self.x.network, self.fresh_keys)

    def fit(
        self,
        method: Method,
        model: Model,
        masks: Masks,
        *,
        forget: np.ndarray,
        retain: np.ndarray,
        keys: Keys,
        label: tuple[str, str],
        keeper: Keeper,
        only_first: bool = False,
        start: int = 0,
        stop: int | None = None,
        snapshot_epochs: tuple[int, ...] = (),
        enough: EnoughFn | None = None,
        shared: Dataset | Streamed | None = None,
    ) -> FitResult:
        """Runs a method on all trials, or on the first alone, as memory allows.

        Alone it is timed, and not kept. ``shared`` holds other rows than the experiment's.
        """
        x = self.x
        keep = slice(0, 1) if only_first else slice(None)
        model, masks = jax.tree.map(lambda leaf: leaf[keep], (model, masks))
        share = units(method) * (stop or method.epochs) / method.epochs
        if only_first:  # all repeats together count half of what all trials count
            share *= 0.5 / x.config["evaluate.rte_repeats"]
        before = self.done
        at_least = self.stretched(retain) if method is x.training else np.zeros(len(retain), int)

        def on_epoch(done: int, total: int) -> None:
            self.done = before + share * done / total
            self.on_progress(*label, self.done, self.total)

        def attempt(portion: Portion) -> FitResult:
            unlearner, kept = method.unlearner, not only_first
            if portion.rows is not None and portion.rows < method.batch_size:
                # not kept, lest whole batches go on from there and the arm is not marked
                unlearner, kept = in_parts(unlearner, portion.rows), False
            return fit(
                unlearner,
                model,
                masks,
                keys.method[keep],
                Trials(forget[keep], retain[keep], keys.order[keep], at_least[keep]),
                self.shared if shared is None else shared,
                batch_size=method.batch_size,
                epochs=stop or method.epochs,
                horizon=method.epochs,
                start=start,
                execution=portion.execution,
                prepare=x.prepare_train,
                snapshot_epochs=snapshot_epochs,
                enough=enough,
                adapt=method.adapt,
                on_epoch=on_epoch,
                keeper=keeper if kept else not_kept(keeper.stop_asked),
            )

        execution = x.alone if only_first else x.execution
        # rows of a batch that is split over devices are not in one order, so not in parts
        parted = method.in_parts and execution.parts == 1
        asked = Portion(execution, method.batch_size if parted else None)
        what = label[1] + (", one trial alone" if only_first else "")
        result, portion = within_memory(attempt, asked, what=what, lower=method.lower)
        return result._replace(
            chunk=result.chunk._replace(
                rows=portion.rows or method.batch_size, halved=portion != asked
            )
        )

    def forward(
        self, apply_fn: ApplyFn, model: Model, inputs: np.ndarray | Streamed, what: str
    ) -> tuple[np.ndarray, bool]:
        """``[T, N, ...]`` outputs of T models on rows as they are; whether memory was short."""
        batch_size = self.x.config["evaluate.batch_size"]

        def attempt(portion: Portion) -> np.ndarray:
            return predict(
                apply_fn,
                model,
                inputs,
                batch_size=portion.rows or batch_size,
                execution=portion.execution,
                prepare=self.x.prepare_eval,
            )

        asked = Portion(self.x.judging, batch_size)
        found, portion = within_memory(attempt, asked, what=what, lower="evaluate.batch_size")
        return found, portion != asked

    def stretched(self, retain: np.ndarray) -> np.ndarray:
        """``int32[T]``, rows that an epoch of training has at least, by the config's budget."""
        rows, whole = (sets.sum(axis=1) for sets in (retain, self.trained))
        return self.x.same_steps * stretched(rows, whole, self.x.training.batch_size)

    def rewound(self, dense: Arm) -> Model:
        """``[T]`` models that pruning goes back to."""
        back = self.x.rewind_epoch
        return dense.early[str(back)] if back else self.theta_0

    def arm(
        self,
        method: str,
        sparsity: float,
        depends_on: tuple[object, ...],
        make: Callable[[Keeper], tuple[Models, dict]],
        early: tuple[int, ...] = (),
    ) -> Arm:
        """One stage: restored where it is finished, else made and saved; ``early`` epochs too."""

        def made(keeper: Keeper) -> tuple[Models, dict]:
            models, meta = make(keeper)
            return jax.tree.map(np.asarray, models), meta

        like = Models(self.theta_0, self.dense, {str(epoch): self.theta_0 for epoch in early})
        name = f"{method}-{sparsity:g}"
        parts = (self.data_print, sparsity, *depends_on)
        stage = self.workdir.stage(name, parts, made, like)
        model, masks, kept = stage.tree
        upstream = [part for part in depends_on if isinstance(part, str)]
        halved = stage.meta.get("halved", False) or not self.halved.isdisjoint(upstream)
        if halved:
            self.halved.add(stage.fingerprint)
        meta, folder = {**stage.meta, "halved": halved}, f"{name}-{stage.fingerprint}"
        arm = Arm(method, sparsity, model, masks, kept, meta, stage.fingerprint, folder)
        self.recorded[title(method, sparsity)] = record(arm)
        return arm

    def config_of(self, *groups: str) -> Flat:
        """The part of the config that lies under ``groups``, for fingerprints.

        Not the path of an imported model: what depends on it depends on its content.
        """
        always = ("seed", "trials", "model.", "execution.")
        return {
            key: value
            for key, value in self.x.config.items()
            if key.startswith((*groups, *always)) and key != "model.checkpoint"
        }


def fresh(network: Network, keys: Keys) -> Model:
    """``[T]`` models of fresh weights."""
    draw = jax.jit(network.init)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *map(draw, keys.init))


def meta_of(result: FitResult, trials: int, seconds: list[float]) -> dict:
    """What a stage tells beside its arrays; ``seconds`` are those of one trial alone."""
    return {
        "diverged": [bool(not finite) for finite in result.finite],
        "rte_seconds": statistics.median(seconds) if seconds else None,
        "rte_repeats": seconds,
        "rte_batched_seconds": result.seconds / trials,
        "compile_seconds": result.compile_seconds,
        "prune_seconds": 0.0,
        "chunk": {
            "trials": result.chunk.trials,
            "batch_size": result.chunk.rows,
            "bytes": result.chunk.bytes,
        },
        "halved": result.chunk.halved,
    }


def latencies(
    run: Run, together: FitResult, alone: Callable[[], FitResult], repeats: int | None = None
) -> list[float]:
    """Seconds of one trial run alone, several times; a run of one trial is one of them.

    Empty when the config asks for no measurement. A run that had to compile is not counted.
    """
    if not run.x.config["evaluate.rte_repeats"]:
        return []
    repeats = repeats or run.x.config["evaluate.rte_repeats"]
    counted = [together.seconds] if run.trials == 1 else []
    if not counted and run.x.alone is not run.x.execution:
        alone()  # another program: compiles here
    return counted + [alone().seconds for _ in range(repeats - len(counted))]


def train(
    run: Run,
    method: str,
    sparsity: float,
    *,
    masks: Masks,
    retain: np.ndarray,
    reseeded: bool = False,
    reordered: bool = False,
    timed: bool = False,
    depends_on: tuple[object, ...] = (),
    snapshots: tuple[int, ...] = (),
) -> Arm:
    """Trains the T models of one arm from fresh weights on ``retain``: D, or each trial's Dr.

    Args:
        run: the experiment.
        method: what the arm is called.
        sparsity: of its masks.
        masks: ``[T]`` masks.
        retain: ``bool[T, N]``, the rows it is trained on.
        reseeded: whether first weights and order are those of the second retraining.
        reordered: whether the order alone is.
        timed: whether the seconds of one trial alone are measured.
        depends_on: fingerprints of what the masks come from.
        snapshots: epochs whose models are kept, too.
    """
    x = run.x
    theta_0 = run.other_theta_0 if reseeded else run.theta_0
    keys = run.fresh_keys if reseeded or reordered else run.keys

    def make(keeper: Keeper) -> tuple[Models, dict]:
        def go(only_first: bool = False) -> FitResult:
            return run.fit(
                x.training,
                theta_0,
                masks,
                forget=x.data.forget,
                retain=retain,
                keys=keys,
                label=("train" if method == "original" else "unlearn", title(method, sparsity)),
                keeper=keeper,
                only_first=only_first,
                snapshot_epochs=snapshots,
            )

        result = go()
        early = {str(epoch): model for epoch, model in result.snapshots.items()}
        seconds = latencies(run, result, lambda: go(only_first=True)) if timed else []
        return Models(result.model, masks, early), meta_of(result, run.trials, seconds)

    recipe = (VERSIONS["train"], run.config_of("train."), snapshots)
    return run.arm(method, sparsity, (*recipe, *depends_on), make, snapshots)


def unlearn(run: Run, name: str, original: Arm, *, called: str = "") -> Arm:
    """One method on the original models of one sparsity; ``called`` by another name if given."""
    x, method = run.x, run.x.methods[name]
    called = called or name

    def make(keeper: Keeper) -> tuple[Models, dict]:
        def go(only_first: bool = False) -> FitResult:
            return run.fit(
                method,
                original.model,
                original.masks,
                forget=x.data.forget,
                retain=x.data.retain,
                keys=run.keys,
                label=("unlearn", title(called, original.sparsity)),
                keeper=keeper,
                only_first=only_first,
            )

        result = go()
        seconds = latencies(run, result, lambda: go(only_first=True))
        meta = meta_of(result, run.trials, seconds)
        started = original.meta["diverged"]  # what starts from a diverged model has diverged
        meta["diverged"] = [a or b for a, b in zip(started, meta["diverged"], strict=True)]
        if isinstance(result.told, Convergence):
            meta["solver"] = {f: leaf.tolist() for f, leaf in result.told._asdict().items()}
        return Models(result.model, result.masks, {}), meta

    recipe = (VERSIONS["unlearn"], run.config_of(f"unlearn.{name}.", "train.augment"))
    return run.arm(called, original.sparsity, (*recipe, original.fingerprint), make)


def record(arm: Arm) -> dict[str, str]:
    """The stage of an arm, and the digests that its arrays have on disk."""
    return {
        "stage": arm.stage,
        "weights": digests.of_tree({"model": arm.model}),
        "masks": digests.of_tree({"masks": arm.masks}),
    }


def title(method: str, sparsity: float) -> str:
    """How an arm is called on the progress bar and in the manifest."""
    return f"{method} at {100 * sparsity:g}%" if sparsity else f"{method}, dense"
