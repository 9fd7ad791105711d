"""The act that judges: every arm's metrics on un-augmented images, and its gaps to the targets."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from sparse_mu import masks as mask_trees
from sparse_mu import membership, metrics, results, trees, unpruned_arms
from sparse_mu.acts import Arm, Run, title
from sparse_mu.distances import Distances
from sparse_mu.stages import fingerprint
from sparse_mu.stopping import Stopped
from sparse_mu.transferred import TRANSFER
from sparse_mu.types import Masks

VERSION = 2  # raise by hand when what a row says means something else
GAP_METRICS = ("ua", "ra", "ta", "mia_efficacy")
HUGE = 1e30  # stands for a logit that is not finite


def stamp(arm: Arm) -> str:
    """What the rows of an arm depend on, besides the targets: its models, and how they are judged.

    The keys of the config that judging reads are those of the workdir, of which there is one set.
    """
    return fingerprint(VERSION, arm.fingerprint)


class Outputs(NamedTuple):
    """``float[T, N, K]`` logits of an arm, the trials that overflowed, whether memory was short."""

    logits: np.ndarray
    overflowed: list[bool]
    halved: bool


def outputs(run: Run, arm: Arm) -> Outputs:
    """Forward passes of an arm over all rows, un-augmented."""
    x, what = run.x, f"{title(arm.method, arm.sparsity)}, judged"
    logits, halved = run.forward(x.network.apply_fn, arm.model, x.data.inputs, what)
    # a finite model can still be too large to compute with: that trial has diverged too
    overflowed = [not np.isfinite(of_trial).all() for of_trial in logits]
    if any(overflowed):  # in place: of ImageNet they are gigabytes
        np.nan_to_num(logits, copy=False, nan=0.0, posinf=HUGE, neginf=-HUGE)
    return Outputs(logits, overflowed, halved)


def judge(
    run: Run, arm: Arm, prune_seconds: float | None, distances: Distances | None = None
) -> list[dict]:
    """The rows of one arm, without gaps: metrics of each trial on un-augmented images.

    Args:
        run: the experiment.
        arm: whom to judge.
        prune_seconds: what made the sparse original that it comes from.
        distances: to the re-pruned retraining; None leaves them out.
    """
    x, data = run.x, run.x.data
    run.on_progress("evaluate", title(arm.method, arm.sparsity), run.done, run.total)
    logits, overflowed, halved = outputs(run, arm)
    if distances is not None:
        distances.prepare(arm, logits)
    sparsity = _mask_sparsity(arm.masks)
    test = data.is_test

    def of_trial(trial: int) -> dict:
        forget, retain = np.zeros((2, len(data.labels)), bool)
        forget[: data.train_rows] = data.forget[trial]
        retain[: data.train_rows] = data.retain[trial]
        members = {"retain": retain, "forget": forget, "test": test}
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
            pools=x.config["evaluate.mia_pools"],
        )
        if data.triggered is not None:
            seen = len(data.labels) - len(data.triggered.wanted)
            judged |= metrics.trojan_metrics(
                logits[trial][seen:],
                logits[trial][test],
                wanted=data.triggered.wanted,
                counted=data.triggered.counted,
            )
        if distances is not None:
            judged |= distances.of_mask(arm, trial)
            judged |= distances.of_outputs(arm, trial, logits[trial], members)
        return {
            "method": arm.method,
            "sparsity": arm.sparsity,
            "trial": trial,
            "seed": x.config["seed"],
            "forgotten_classes": list(classes),
            "n_forget": int(forget.sum()),
            "n_retain": int(retain.sum()),
            **{key: value if np.isfinite(value) else None for key, value in judged.items()},
            "mask_sparsity": sparsity[trial],
            "diverged": arm.meta["diverged"][trial] or overflowed[trial],
            "halved": arm.meta["halved"] or halved,
            "budget": x.config["train.budget"],
            "models": stamp(arm),
            **{
                key: arm.meta[key]
                for key in ("rte_seconds", "rte_batched_seconds", "compile_seconds")
            },
            "prune_seconds": prune_seconds,
            **{f"solver_{key}": told[trial] for key, told in arm.meta.get("solver", {}).items()},
            **_unpruning(arm, trial),
            **_worth(arm, trial),
        }

    with ThreadPoolExecutor(max_workers=2) as pool:  # the attack's solver frees the interpreter
        rows = list(pool.map(of_trial, range(run.trials)))
    run.done += 3
    return rows


def _unpruning(arm: Arm, trial: int) -> dict:
    """What un-pruning took of a trial, of an arm that was un-pruned."""
    told = arm.meta.get(unpruned_arms.MASKS)
    if told is None:
        return {}
    of_loop = {"unprune_rounds": told["rounds"][trial]} if "rounds" in told else {}
    return {
        "unprune_epochs": told["epochs"][trial],
        **of_loop,
        "unprune_gradients": told["gradients"][trial],
        "unprune_stored_bytes": told["stored_bytes"],
    }


def _worth(arm: Arm, trial: int) -> dict:
    """What a model is worth on another data set, of a run that asks for it."""
    told = arm.meta.get(TRANSFER)
    if told is None:
        return {}
    keys = {"accuracy": "probe_accuracy", "spread": "probe_spread", "finetune": "tuned_accuracy"}
    found = {keys[key]: told[key][trial] for key in keys if key in told}
    finite = {key: value if np.isfinite(value) else None for key, value in found.items()}
    return {**finite, "probe_converged": told["converged"][trial]}


def _mask_sparsity(masks: Masks) -> list[float]:
    """Fraction of the convolution weights of each trial that is pruned; 0 where there are none."""
    leaves = jax.tree.leaves(masks)
    if not any(trees.convolution_kernels("", leaf[0]) for leaf in leaves):
        return [0.0] * len(leaves[0])
    pruned, prunable = jax.vmap(mask_trees.pruned, out_axes=(0, None))(masks)
    return [int(of_trial) / int(prunable) for of_trial in pruned]


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


def evaluate(run: Run, all_arms: list[Arm], floors: Mapping[float, Masks]) -> list[dict]:
    """Judges every arm and appends the rows that are not on disk yet.

    Dense arms come first, and targets before the others. A row has gaps to the targets that come
    before it in this order or are its own, whichever rows are on disk already.

    Rows made from other models, and what damaged lines said, are judged again.

    Args:
        run: the experiment.
        all_arms: its arms.
        floors: by sparsity the masks of the re-pruned retraining in another order of rows.

    Returns:
        All rows, by sparsity, method and trial.

    Raises:
        Stopped: if an arm is left to be judged and the run was asked to stop.
        sparse_mu.workdir.WorkdirError: if the rows cannot be read or written.
    """
    file = run.workdir.results
    found = results.read(file, run.trials)
    made_by = set(map(stamp, all_arms))
    if any(row.get("models") not in made_by for row in found.rows):
        logging.warning(
            "%s: its rows are of other models, for the data or the code have changed since; "
            "everything is judged again",
            file,
        )
        found = results.append(run.workdir, found, [], anew=True)
    elif found.damaged:
        logging.warning("%s; what it said is judged again", results.damage(file, found))
        found = results.append(run.workdir, found, found.rows, anew=True)
    known: dict[tuple[str, float], list[dict]] = {}
    for row in found.rows:
        known.setdefault((row["method"], row["sparsity"]), []).append(row)
    is_target = ("retrain", "retrain_repruned")
    so_far: dict[tuple[str, float], list[dict]] = {}
    distances = Distances(
        all_arms,
        floors,
        lambda arm: outputs(run, arm).logits,
        outputs=run.x.unpruner is not None,
    )
    cost = {a.sparsity: a.meta["prune_seconds"] for a in all_arms if a.method == "original"}
    for arm in sorted(all_arms, key=lambda arm: (arm.sparsity, arm.method not in is_target)):
        key = arm.method, arm.sparsity
        if key in known:
            so_far[key] = known[key]
            run.done += 3
            continue
        if run.workdir.stop.asked():
            raise Stopped
        judged = judge(run, arm, cost.get(arm.sparsity, 0.0), distances)
        so_far[key] = judged
        found = results.append(run.workdir, found, with_gaps(judged, so_far))
    return found.rows
