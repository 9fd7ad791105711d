"""The act that asks what every model is worth as a backbone on another data set."""

from typing import NamedTuple

import jax
import numpy as np

from sparse_mu.acts import Arm, Run, fresh, title
from sparse_mu.builders import Method, Transfer
from sparse_mu.stages import fingerprint
from sparse_mu.standing import Keeper
from sparse_mu.transfer import linear_probe, of_each
from sparse_mu.trial_keys import NEW_HEAD, apart
from sparse_mu.types import Masks, Model

TRANSFER = "transfer"  # of an arm's meta
VERSION = 1  # raise by hand when what its stages mean changes


class Worth(NamedTuple):
    """Of T models.

    Attributes:
        probe: ``float64[T, S]``, accuracy of the linear probe of each seed on the target's test
            rows; NaN where features are not finite.
        converged: ``bool[T, S]``, whether the head's training came to its tolerance.
        finetune: ``float64[T]``, accuracy of the fine-tuned model there; NaN where none is asked
            for or it diverged.
    """

    probe: np.ndarray
    converged: np.ndarray
    finetune: np.ndarray


def transferred(run: Run, how: Transfer, arm: Arm) -> Arm:
    """The arm, with what its models are worth on the target in its ``meta``: one stage."""
    shape = (run.trials, how.probe_seeds)
    like = Worth(np.zeros(shape), np.zeros(shape, bool), np.zeros(run.trials))

    def make(keeper: Keeper) -> tuple[Worth, dict]:
        worth, halved = _worth(run, how, arm, keeper)
        return worth, {"halved": halved}

    # arms that share their stage share this one, too
    parts = (VERSION, run.config_of("transfer."), how.digest, arm.fingerprint)
    stage = run.workdir.stage(f"transfer-{arm.stage.rpartition('-')[0]}", parts, make, like)
    worth = stage.tree
    told = {
        "accuracy": worth.probe.mean(axis=1).tolist(),
        "spread": worth.probe.std(axis=1, ddof=1).tolist(),
        "converged": worth.converged.all(axis=1).tolist(),
    }
    if how.finetune is not None:
        told["finetune"] = worth.finetune.tolist()
    both = fingerprint(arm.fingerprint, stage.fingerprint)
    halved = arm.meta["halved"] or stage.meta["halved"]
    meta = {**arm.meta, "halved": halved, TRANSFER: told}
    return arm._replace(meta=meta, fingerprint=both)


def _worth(run: Run, how: Transfer, arm: Arm, keeper: Keeper) -> tuple[Worth, bool]:
    what, count = title(arm.method, arm.sparsity), how.train_rows
    run.on_progress("transfer", what, run.done, run.total)
    found, halved = run.forward(run.x.network.features_fn, arm.model, how.inputs, what)
    train, test = np.split(how.labels, [count])
    seed = run.x.config["seed"]

    def probed(trial: int, draw: int) -> tuple[float, bool]:
        of_trial = found[trial]
        if not np.isfinite(of_trial).all():
            return np.nan, True
        probe = linear_probe(
            of_trial[:count],
            train,
            of_trial[count:],
            test,
            validation=how.validation,
            seed=seed + draw,  # the same rows for every trial and every arm: they are compared
        )
        return probe.accuracy, probe.converged

    probes = of_each(probed, run.trials, how.probe_seeds)
    accuracy, converged = (
        np.array([[told[which] for told in of_trial] for of_trial in probes]) for which in (0, 1)
    )
    run.done += 3
    tuned = np.full(run.trials, np.nan)
    if how.finetune is not None:
        tuned, short = _finetuned(run, how, how.finetune, arm, keeper)
        halved |= short
    return Worth(accuracy, converged.astype(bool), tuned), halved


def _finetuned(
    run: Run, how: Transfer, method: Method, arm: Arm, keeper: Keeper
) -> tuple[np.ndarray, bool]:
    """Accuracy on the target's test rows of models whose weights were all trained on it."""
    everything = np.ones((run.trials, how.train_rows), bool)
    result = run.fit(
        method,
        *with_new_head(run, how, arm.model, arm.masks),
        forget=~everything,
        retain=everything,
        keys=run.keys,
        label=("fine-tune", title(arm.method, arm.sparsity)),
        keeper=keeper,
        shared=run.target,
    )
    what = f"{title(arm.method, arm.sparsity)}, fine-tuned"
    logits, short = run.forward(how.network.apply_fn, result.model, how.inputs, what)
    logits = logits[:, how.train_rows :]
    finite = np.isfinite(logits).all(axis=(1, 2)) & np.asarray(result.finite)
    right = np.mean(np.argmax(logits, axis=2) == how.labels[how.train_rows :], axis=1)
    return np.where(finite, right, np.nan), short or result.chunk.halved


def with_new_head(run: Run, how: Transfer, model: Model, masks: Masks) -> tuple[Model, Masks]:
    """``[T]`` models whose head is drawn anew for the target's classes and is not pruned."""
    drawn = fresh(how.network, apart(run.keys, NEW_HEAD))

    def chosen(is_head: bool, new: np.ndarray, old: np.ndarray) -> np.ndarray:
        return new if is_head else old

    head = how.network.head
    params = jax.tree.map(chosen, head, drawn.params, model.params)
    whole = jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), drawn.params)
    return Model(params, model.net_state), jax.tree.map(chosen, head, whole, masks)
