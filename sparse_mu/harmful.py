"""The act that scores source classes by what they cost a target data set.

Backbones are trained on random subsets of the classes; each is probed on the target's training rows
and its loss told on the target's validation rows. The coefficient of a class in a regression of
these losses on the subsets is its influence, the cheap form of Jain et al., "A data-based
perspective on transfer learning", CVPR 2023. The target's test rows have no part in it.
"""

from typing import NamedTuple

import numpy as np
from absl import logging

from sparse_mu.acts import VERSIONS, Run, fresh
from sparse_mu.config import ConfigError
from sparse_mu.standing import Keeper
from sparse_mu.transfer import (
    ClassInfluence,
    class_influence,
    of_each,
    random_subsets,
    validation_losses,
)
from sparse_mu.trial_keys import BACKBONES, apart

VERSION = 1  # raise by hand when what its stage means changes


class Backbones(NamedTuple):
    """``bool[M, K]`` classes that each of M backbones was trained on; ``float64[M]`` losses, nats.

    A backbone's loss is that of its linear probe on the target's validation rows, at the
    regulariser of least loss, mean over the draws of these rows; NaN where it diverged.
    """

    trained_on: np.ndarray
    losses: np.ndarray


def class_scores(run: Run) -> ClassInfluence:
    """The influence of every source class on the target's loss; above 0 it is harmful. One stage.

    Args:
        run: an experiment that has a target and as many trials as backbones.

    Raises:
        ConfigError: if a backbone diverged.
    """
    how, x = run.x.transfer, run.x
    assert how is not None
    classes, count = x.network.num_classes, run.trials
    inside = random_subsets(classes, count, x.config["seed"])
    keys = apart(run.keys, BACKBONES)  # no model that is reported begins or goes on as they do
    run.total = x.training.epochs + 3.0

    def make(keeper: Keeper) -> tuple[Backbones, dict]:
        labels = x.data.labels[: x.data.train_rows]
        seen = inside[:, labels] & run.trained
        result = run.fit(
            x.training,
            fresh(x.network, keys),
            run.dense,
            forget=~seen,
            retain=seen,
            keys=keys,
            label=("train", f"{count} backbones"),
            keeper=keeper,
        )
        found, _ = run.forward(x.network.features_fn, result.model, how.inputs, "backbones")
        found, target = found[:, : how.train_rows], how.labels[: how.train_rows]
        finite = np.isfinite(found).all(axis=(1, 2)) & np.asarray(result.finite)

        def loss(backbone: int, draw: int) -> tuple[float, bool]:
            if not finite[backbone]:
                return np.nan, True
            seed = x.config["seed"] + draw
            given = {"validation": how.validation, "seed": seed}
            tried = validation_losses(found[backbone], target, **given)
            return min(tried.losses), tried.converged

        probes = np.array(of_each(loss, count, how.probe_seeds))  # [M, S, 2]
        run.done += 3
        unfinished = int((probes[:, :, 1] == 0).any(axis=1).sum())
        return Backbones(inside, probes[:, :, 0].mean(axis=1)), {"unfinished": unfinished}

    parts = (
        VERSION,
        VERSIONS["train"],
        run.data_print,
        run.config_of("train.", "transfer."),
        how.digest,
    )
    like = Backbones(inside, np.zeros(count))
    stage = run.workdir.stage("harmful", parts, make, like)
    told: Backbones = stage.tree
    if unfinished := stage.meta["unfinished"]:
        logging.warning(
            "the linear probes of %d of %d backbones did not converge: classes are chosen by them",
            unfinished,
            count,
        )
    if not np.isfinite(told.losses).all():
        which = int(np.flatnonzero(~np.isfinite(told.losses))[0])
        raise ConfigError(
            f"config.train.learning_rate = {x.config['train.learning_rate']}: backbone {which} of "
            "those that classes are scored by diverged; must be lower"
        )
    return class_influence(told.trained_on, told.losses)
