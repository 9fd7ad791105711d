"""A workdir as a finished run leaves it, made by hand: nothing is trained, everything is real."""

from unittest import mock

import jax
import numpy as np
from synthetic_rows import make_rows

from configs import digits
from sparse_mu import checkpoint, config, manifest, report, results
from sparse_mu import digests as sha256
from sparse_mu.acts import Models, title
from sparse_mu.builders import build_data
from sparse_mu.types import Model
from sparse_mu.workdir import held

ARMS = (("original", 0.0), ("finetune", 0.9))
KEY = b"a secret of the user's, 32 bytes"
FLAT = config.check(
    config.flatten(digits.get_config().to_dict())
    | {"trials": 2, "dataset.limit": 300, "forget.scenario": "random"}
    | {"unlearn.methods": ("finetune",), "evaluate.rte_repeats": 0}
)


def make_models(seed):
    rng = np.random.default_rng(seed)
    params = {
        "Conv_0": {"kernel": rng.standard_normal((2, 3, 3, 1, 4), np.float32)},
        "Dense_0": {"bias": np.zeros((2, 3), np.float32)},
    }
    state = {"batch_stats": {"mean": rng.standard_normal((2, 4), np.float32)}}
    masks = jax.tree.map(lambda leaf: rng.random(leaf.shape) < 0.5, params)
    return Models(Model(params, state), masks, {"3": Model(params, state)})


def save(folder, arm, models):
    """One arm's stage; returns what a run records of it."""
    name = f"{arm[0]}-{arm[1]:g}-0123456789abcdef"
    checkpoint.save(folder / "stages" / name, models, {"rte_seconds": 1.5})
    return {
        "stage": name,
        "weights": sha256.of_tree({"model": models.model}),
        "masks": sha256.of_tree({"masks": models.masks}),
    }


def without_plots():
    """Plots are most of the time that a report takes."""
    return mock.patch.object(report, "_panels", lambda *_: [])


def make(folder, key=None, seconds=9.0):
    """Fills a folder; ``seconds`` are what two runs differ in."""
    with held(folder, FLAT) as workdir:
        made = {title(*arm): save(folder, arm, make_models(i)) for i, arm in enumerate(ARMS)}
        rows = make_rows(trials=2, sparsities=(0.0, 0.9))
        rows = results.in_order([row | {"compile_seconds": seconds} for row in rows])
        workdir.results.write_text("".join(map(results.line, rows)))
        described = manifest.describe(build_data(FLAT), made)
        with without_plots():
            manifest.write_derived(workdir, rows, FLAT, described, key)
    (folder / "lock").write_text("")  # its process is this one, which lives on
    return folder
