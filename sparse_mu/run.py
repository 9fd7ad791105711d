"""The pipeline: train, prune, unlearn, evaluate; each act a plain function of arrays.

Every act makes an :class:`Arm`, the T models of one method at one sparsity. Each is a stage on
disk, so a run that was stopped continues with the first stage that is not finished.
"""

import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sparse_mu import masks as mask_trees
from sparse_mu import membership, metrics, pruning
from sparse_mu.builders import Experiment, Method
from sparse_mu.evaluation import predict
from sparse_mu.stages import Workdir, fingerprint
from sparse_mu.training import FitResult, fit
from sparse_mu.types import Dataset, Key, Masks, Model, PyTree, Trials

STAGE_VERSION = 1  # raise by hand when a stage's meaning changes
RESEED = 1_000_003  # folded into the trial key of the second retraining
GAP_METRICS = ("ua", "ra", "ta", "mia_efficacy")


class OnProgress(Protocol):
    """Told what the run is doing."""

    def __call__(self, act: str, what: str, done: float, total: float) -> None:
        """``done`` of ``total`` units of the whole run."""
        ...


class Arm(NamedTuple):
    """The T models of one method at one sparsity.

    Attributes:
        method: the method, a target, or "original".
        sparsity: fraction of the prunable weights that is pruned.
        model: ``[T]`` models.
        masks: ``[T]`` masks.
        rewind: ``[T]`` models at the rewind epoch; the models themselves where there is none.
        meta: seconds, and which trials diverged.
        fingerprint: what the arm depends on.
    """

    method: str
    sparsity: float
    model: Model
    masks: Masks
    rewind: Model
    meta: dict
    fingerprint: str


class _Keys(NamedTuple):
    """The streams of every trial: fresh weights, order of rows, randomness of the method."""

    init: Key
    order: Key
    method: Key


def _keys(seed: int, trials: int, reseed: bool = False) -> _Keys:
    base = jax.random.key(seed)
    keys = jax.vmap(lambda t: jax.random.fold_in(base, t))(np.arange(trials))
    if reseed:
        keys = jax.vmap(lambda key: jax.random.fold_in(key, RESEED))(keys)
    return _Keys(*(jax.vmap(lambda key, n=n: jax.random.fold_in(key, n))(keys) for n in range(3)))


class Run:
    """One experiment in one workdir: holds what all acts share and counts progress."""

    def __init__(self, experiment: Experiment, workdir: Workdir, on_progress: OnProgress) -> None:
        """Places the data and draws fresh weights."""
        self.x, self.workdir, self.on_progress = experiment, workdir, on_progress
        data = experiment.data
        self.trials = len(data.forget)
        self.dataset = Dataset(
            jnp.asarray(data.inputs[: data.train_rows]),
            jnp.asarray(data.labels[: data.train_rows]),
        )
        self.shared = experiment.execution.put_shared(self.dataset)
        self.everyone = np.ones_like(data.forget)
        self.keys = _keys(experiment.config["seed"], self.trials)
        self.fresh_keys = _keys(experiment.config["seed"], self.trials, reseed=True)
        draw = jax.jit(experiment.network.init)
        self.theta_0, self.other_theta_0 = (
            jax.tree.map(lambda *leaves: np.stack(leaves), *map(draw, keys))
            for keys in (self.keys.init, self.fresh_keys.init)
        )
        self.dense = jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), self.theta_0.params)
        self.data_print = fingerprint(STAGE_VERSION, data.inputs, data.labels, data.forget)
        self.done, self.total = 0.0, self._plan()

    def _plan(self) -> float:
        """Units of the whole run: epochs of a batch of trials, and their like."""
        x = self.x
        trainings = 3 + 4 * len(x.sparsities)
        unlearnings = sum(_units(method) for method in x.methods.values())
        evaluations = 3 + len(x.methods) + (4 + len(x.methods)) * len(x.sparsities)
        return (
            1.5 * trainings * x.training.epochs
            + 1.5 * unlearnings * (1 + len(x.sparsities))
            + 3 * evaluations
        )

    def fit(
        self,
        method: Method,
        model: Model,
        masks: Masks,
        *,
        forget: np.ndarray,
        retain: np.ndarray,
        keys: _Keys,
        label: tuple[str, str],
        only_first: bool = False,
        start: int = 0,
        stop: int | None = None,
        snapshot_epochs: tuple[int, ...] = (),
    ) -> FitResult:
        """Runs a method on all trials, or on the first alone (to time it)."""
        x = self.x
        keep = slice(0, 1) if only_first else slice(None)
        model, masks = jax.tree.map(lambda leaf: leaf[keep], (model, masks))
        units = _units(method) * (0.5 / x.config["evaluate.rte_repeats"] if only_first else 1.0)
        before = self.done

        def on_epoch(done: int, total: int) -> None:
            self.done = before + units * done / total
            self.on_progress(*label, self.done, self.total)

        return fit(
            method.unlearner,
            model,
            masks,
            keys.method[keep],
            Trials(forget[keep], retain[keep], keys.order[keep]),
            self.shared,
            batch_size=method.batch_size,
            epochs=stop or method.epochs,
            horizon=method.epochs,
            start=start,
            execution=x.alone if only_first else x.execution,
            prepare=x.prepare_train,
            snapshot_epochs=snapshot_epochs,
            adapt=method.adapt,
            on_epoch=on_epoch,
        )

    def arm(
        self,
        method: str,
        sparsity: float,
        depends_on: tuple[object, ...],
        make: Callable[[], tuple[Model, Masks, Model, dict]],
    ) -> Arm:
        """One stage: restored where it is finished, else made and saved."""

        def made() -> tuple[tuple[Model, Masks, Model], dict]:
            model, masks, rewind, meta = make()
            arrays = jax.tree.map(np.asarray, (model, masks, rewind))
            return arrays, meta

        like = (self.theta_0, self.dense, self.theta_0)
        name = f"{method}-{sparsity:g}"
        parts = (self.data_print, sparsity, *depends_on)
        stage = self.workdir.stage(name, parts, made, like)
        return Arm(method, sparsity, *stage.tree, stage.meta, stage.fingerprint)

    def config_of(self, *groups: str) -> dict[str, object]:
        """The part of the config that lies under ``groups``, for fingerprints."""
        config = self.x.config
        always = ("seed", "trials", "model.", "execution.")
        return {key: value for key, value in config.items() if key.startswith((*groups, *always))}


def _units(method: Method) -> float:
    return 10.0 if method.unlearner.passes == "once" else float(method.epochs)


def _meta(result: FitResult, trials: int, latencies: list[float]) -> dict:
    return {
        "diverged": [bool(not finite) for finite in result.finite],
        "rte_seconds": statistics.median(latencies) if latencies else None,
        "rte_repeats": latencies,
        "rte_batched_seconds": result.seconds / trials,
        "compile_seconds": result.compile_seconds,
        "prune_seconds": 0.0,
    }


def _latencies(
    run: Run, together: FitResult, alone: Callable[[], FitResult], repeats: int | None = None
) -> list[float]:
    """Seconds of one trial run alone, several times; a run of one trial is one of them.

    A run that had to compile is not counted.
    """
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
    depends_on: tuple[object, ...] = (),
) -> Arm:
    """Trains the T models of one arm from fresh weights on ``retain``: D, or each trial's Dr."""
    x = run.x
    theta_0 = run.other_theta_0 if reseeded else run.theta_0
    keys = run.fresh_keys if reseeded else run.keys
    snapshots = (x.rewind_epoch,) if x.rewind_epoch else ()

    def make() -> tuple[Model, Masks, Model, dict]:
        def go(only_first: bool = False) -> FitResult:
            return run.fit(
                x.training,
                theta_0,
                masks,
                forget=x.data.forget,
                retain=retain,
                keys=keys,
                label=("train" if method == "original" else "unlearn", _title(method, sparsity)),
                only_first=only_first,
                snapshot_epochs=snapshots,
            )

        result = go()
        rewind = result.snapshots[x.rewind_epoch] if snapshots else theta_0
        # what is timed is unlearning: the original is not, and the reseeded model costs the same
        timed = method == "retrain"
        latencies = _latencies(run, result, lambda: go(only_first=True)) if timed else []
        return result.model, masks, rewind, _meta(result, run.trials, latencies)

    recipe = run.config_of("train.", "prune.method", "prune.rewind")
    return run.arm(method, sparsity, (recipe, *depends_on), make)


def prune(run: Run, method: str, sparsity: float, *, dense: Arm, retain: np.ndarray) -> Arm:
    """The sparse model of a dense one by OMP; rewound weights are trained again on ``retain``."""
    x = run.x
    back = x.rewind_epoch

    def make() -> tuple[Model, Masks, Model, dict]:
        fits: list[FitResult] = []

        def go(only_first: bool) -> pruning.Pruned:
            keep = slice(0, 1) if only_first else slice(None)
            trained, rewind = jax.tree.map(lambda leaf: leaf[keep], (dense.model, dense.rewind))

            def again(model: Model, masks: Masks, *, start: int, stop: int) -> Model:
                result = run.fit(
                    x.training,
                    model,
                    masks,
                    forget=x.data.forget,
                    retain=retain,
                    keys=run.keys,
                    label=("prune", _title(method, sparsity)),
                    only_first=only_first,
                    start=start,
                    stop=stop,
                )
                fits.append(result)
                return result.model

            in_place = back is None
            return pruning.omp(
                trained,
                sparsity,
                rewind=None if in_place else rewind,
                train=None if in_place else again,
                start=back or 0,
                stop=(back or 0) + x.training.epochs,
                batched=True,
            )

        pruned = go(only_first=False)
        if not fits:
            meta = dense.meta | {"prune_seconds": 0.0, "rte_seconds": None, "rte_repeats": []}
            return pruned.model, pruned.masks, dense.rewind, meta

        meta = _meta(fits[0], run.trials, [])
        if method == "original":  # the cost of the sparse arm: one trial alone, once

            def alone() -> FitResult:
                go(only_first=True)
                return fits[-1]

            meta["prune_seconds"] = _latencies(run, fits[0], alone, repeats=1)[0]
        return pruned.model, pruned.masks, dense.rewind, meta

    depends_on = (run.config_of("train.", "prune.method", "prune.rewind"), dense.fingerprint)
    return run.arm(method, sparsity, depends_on, make)


def unlearn(run: Run, name: str, original: Arm) -> Arm:
    """One method on the original models of one sparsity."""
    x, method = run.x, run.x.methods[name]

    def make() -> tuple[Model, Masks, Model, dict]:
        def go(only_first: bool = False) -> FitResult:
            return run.fit(
                method,
                original.model,
                original.masks,
                forget=x.data.forget,
                retain=~x.data.forget,
                keys=run.keys,
                label=("unlearn", _title(name, original.sparsity)),
                only_first=only_first,
            )

        result = go()
        latencies = _latencies(run, result, lambda: go(only_first=True))
        meta = _meta(result, run.trials, latencies)
        return result.model, original.masks, run.theta_0, meta

    depends_on = (run.config_of(f"unlearn.{name}.", "train.augment"), original.fingerprint)
    return run.arm(name, original.sparsity, depends_on, make)


def arms(run: Run) -> Iterator[Arm]:
    """Every arm of the experiment, each target before the methods that are compared with it."""
    kept, everyone = ~run.x.data.forget, run.everyone
    original = train(run, "original", 0.0, masks=run.dense, retain=everyone)
    retrained = train(run, "retrain", 0.0, masks=run.dense, retain=kept)
    yield from (original, retrained)
    yield train(run, "retrain_reseeded", 0.0, masks=run.dense, retain=kept, reseeded=True)
    for name in run.x.methods:
        yield unlearn(run, name, original)
    for sparsity in run.x.sparsities:
        sparse = prune(run, "original", sparsity, dense=original, retain=everyone)
        same = {"masks": sparse.masks, "retain": kept, "depends_on": (sparse.fingerprint,)}
        yield sparse
        yield train(run, "retrain", sparsity, **same)
        yield prune(run, "retrain_repruned", sparsity, dense=retrained, retain=kept)
        yield train(run, "retrain_reseeded", sparsity, **same, reseeded=True)
        for name in run.x.methods:
            yield unlearn(run, name, sparse)


def _title(method: str, sparsity: float) -> str:
    return f"{method} at {100 * sparsity:g}%" if sparsity else f"{method}, dense"


def judge(run: Run, arm: Arm, prune_seconds: float) -> list[dict]:
    """The rows of one arm, without gaps: metrics of each trial on un-augmented images."""
    x, data = run.x, run.x.data
    run.on_progress("evaluate", _title(arm.method, arm.sparsity), run.done, run.total)
    logits = predict(
        x.network.apply_fn,
        arm.model,
        data.inputs,
        batch_size=x.config["evaluate.batch_size"],
        execution=x.execution,
        prepare=x.prepare_eval,
    )
    pruned, prunable = jax.vmap(mask_trees.pruned, out_axes=(0, None))(arm.masks)
    test = np.arange(len(data.labels)) >= data.train_rows

    def of_trial(trial: int) -> dict:
        forget = np.zeros(len(data.labels), bool)
        forget[: data.train_rows] = data.forget[trial]
        members = {"retain": ~forget & ~test, "forget": forget, "test": test}
        classes = data.forgotten_classes[trial]
        given = {**members, "forgotten_classes": classes}
        judged = metrics.row_metrics(logits[trial], data.labels, **given)
        judged |= membership.membership_metrics(
            logits[trial],
            data.labels,
            **given,
            seed=x.config["seed"] + trial,
            draws=x.config["evaluate.mia_draws"],
            feature=x.config["evaluate.mia_feature"],
        )
        return {
            "method": arm.method,
            "sparsity": arm.sparsity,
            "trial": trial,
            "seed": x.config["seed"],
            "forgotten_classes": list(classes),
            "n_forget": int(forget.sum()),
            "n_retain": int(members["retain"].sum()),
            **{key: value if np.isfinite(value) else None for key, value in judged.items()},
            "mask_sparsity": int(pruned[trial]) / int(prunable),
            "diverged": arm.meta["diverged"][trial],
            **{
                key: arm.meta[key]
                for key in ("rte_seconds", "rte_batched_seconds", "compile_seconds")
            },
            "prune_seconds": prune_seconds,
        }

    with ThreadPoolExecutor(max_workers=2) as pool:  # the attack's solver frees the interpreter
        rows = list(pool.map(of_trial, range(run.trials)))
    run.done += 3
    return rows


def with_gaps(rows: list[dict], known: dict[tuple[str, float], list[dict]]) -> list[dict]:
    """Adds ``gap_<target>_<metric>``, signed, for the targets judged so far."""
    sparsity = rows[0]["sparsity"]
    targets = {
        "retrain": known.get(("retrain", sparsity)),
        "retrain_dense": known.get(("retrain", 0.0)),
        "retrain_repruned": known.get(("retrain_repruned" if sparsity else "retrain", sparsity)),
    }
    out = []
    for row in rows:
        row = dict(row)
        for target, target_rows in targets.items():
            if target_rows is not None:
                gaps = metrics.signed_gaps(row, target_rows[row["trial"]], GAP_METRICS)
                row |= {f"gap_{target}_{metric}": gap for metric, gap in gaps.items()}
        out.append(row)
    return out


def evaluate(run: Run, all_arms: list[Arm]) -> list[dict]:
    """Judges every arm, targets first, and appends the rows that are not on disk yet."""
    rows = run.workdir.read_rows()
    known: dict[tuple[str, float], list[dict]] = {}
    for row in rows:
        known.setdefault((row["method"], row["sparsity"]), []).append(row)
    is_target = ("retrain", "retrain_repruned")
    cost = {a.sparsity: a.meta["prune_seconds"] for a in all_arms if a.method == "original"}
    for arm in sorted(all_arms, key=lambda arm: arm.method not in is_target):
        if (arm.method, arm.sparsity) in known:
            run.done += 3
            continue
        judged = judge(run, arm, cost[arm.sparsity])
        known[arm.method, arm.sparsity] = judged
        new = with_gaps(judged, known)
        run.workdir.append_rows(new, rows)
        rows = rows + new
    return rows


def run_all(
    experiment: Experiment, workdir: Workdir, on_progress: OnProgress
) -> tuple[list[dict], dict[str, object]]:
    """The whole pipeline; returns the rows of ``results.jsonl`` and digests of what made them."""
    run = Run(experiment, workdir, on_progress)
    all_arms = list(arms(run))
    data = experiment.data
    digests = {
        "data": fingerprint(data.inputs, data.labels),
        "forget_sets": fingerprint(data.forget),
        "weights": {_title(a.method, a.sparsity): digest(a.model) for a in all_arms},
        "masks": {_title(a.method, a.sparsity): digest(a.masks) for a in all_arms},
    }
    return evaluate(run, all_arms), digests


def digest(tree: PyTree) -> str:
    """A short digest of the values, shapes and types of a tree of arrays."""
    return fingerprint(*map(np.asarray, jax.tree.leaves(tree)))
