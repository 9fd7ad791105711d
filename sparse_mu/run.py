"""The pipeline: which arms an experiment has, in which order, and what comes of them."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from sparse_mu.acts import Arm, OnProgress, Run, title, train, unlearn
from sparse_mu.builders import Experiment
from sparse_mu.export import write_models
from sparse_mu.judge import evaluate
from sparse_mu.pruned_arms import prune
from sparse_mu.stages import Workdir, fingerprint
from sparse_mu.types import PyTree


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
        same_mask = train(run, "retrain", sparsity, **same)
        yield same_mask
        if run.x.pruner.data_free:  # a mask that saw no data is the same without the forget set
            yield same_mask._replace(method="retrain_repruned")
        else:
            yield prune(run, "retrain_repruned", sparsity, dense=retrained, retain=kept)
        yield train(run, "retrain_reseeded", sparsity, **same, reseeded=True)
        for name in run.x.methods:
            yield unlearn(run, name, sparse)


def run_all(
    experiment: Experiment, workdir: Workdir, on_progress: OnProgress, *, export: bool = False
) -> tuple[list[dict], dict[str, Any]]:
    """The whole pipeline; returns the rows of ``results.jsonl`` and digests of what made them.

    Args:
        experiment: what to run.
        workdir: where.
        on_progress: told what is being done.
        export: whether the unlearned and the retrained models are written as files too.
    """
    run = Run(experiment, workdir, on_progress)
    all_arms = list(arms(run))
    if export:
        asked = {*experiment.methods, "retrain"}
        chosen = [arm for arm in all_arms if arm.method in asked]
        write_models(chosen, workdir.path / "models", experiment.network.channels)
    data = experiment.data
    digests = {
        "data": fingerprint(data.inputs, data.labels),
        "forget_sets": fingerprint(data.forget),
        "weights": {title(a.method, a.sparsity): digest(a.model) for a in all_arms},
        "masks": {title(a.method, a.sparsity): digest(a.masks) for a in all_arms},
    }
    return evaluate(run, all_arms), digests


def digest(tree: PyTree) -> str:
    """A short digest of the values, shapes and types of a tree of arrays."""
    return fingerprint(*map(np.asarray, jax.tree.leaves(tree)))
