"""Chooses the hyper-parameters of ``configs/digits.py`` on the tuning pool.

    python -m experiments.tune_digits --workdir=runs/tuning

The pool is 40% of the training images, set aside once by ``dataset.split_seed``; two thirds of it
are trained on and forgotten, one third is its test part. No reported trial meets any of its images.
Batches are smaller in proportion (28 rows), so that an epoch has as many steps as in the reported
runs. The score of a setting is the mean of its dense and its 90% sparse disparity to ``retrain``;
the smallest wins. Prints the table that is kept as ``experiments/results/tuning_digits.md``.
"""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging

from configs import digits
from sparse_mu import acts, builders, config, judge
from sparse_mu import workdir as workdirs
from sparse_mu.pruned_arms import prune
from sparse_mu.standing import not_kept
from sparse_mu.statistics import disparity
from sparse_mu.summary_words import DISPARITY_METRICS

WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the models that settings start from.")

GRID = {
    "finetune": {"learning_rate": (0.03, 0.1, 0.2, 0.3, 0.5, 0.7), "epochs": (5, 10)},
    "gradient_ascent": {"learning_rate": (1e-3, 3e-3, 1e-2, 3e-2)},
    "fisher": {"alpha": (1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5)},
    "influence": {"alpha": (0.01, 0.03, 0.1, 0.3, 1.0), "damping": (1e-4, 1e-3, 1e-2, 1e-1)},
    "l1_sparse": {"learning_rate": (0.03, 0.1, 0.2), "gamma": (5e-4, 1e-3, 2e-3, 4e-3)},
}
BATCH = 28


def tuning_config() -> dict[str, object]:
    """The digits config on the tuning pool."""
    flat = config.flatten(digits.get_config().to_dict())
    flat["dataset.pool"] = "tuning"
    for key in flat:
        if key.endswith("batch_size") and flat[key] == 64:
            flat[key] = BATCH
    return flat


def settings(name: str) -> Iterator[dict[str, float]]:
    """Every setting of a method's grid."""
    keys = GRID[name]
    for values in itertools.product(*keys.values()):
        yield dict(zip(keys, values, strict=True))


def columns(rows: list[dict]) -> dict[str, list[float]]:
    """The metrics of disparity, a value per trial."""
    return {metric: [row[metric] for row in rows] for metric in DISPARITY_METRICS}


def main(argv: list[str]) -> None:
    """Trains the starting points once, then scores every setting."""
    del argv
    logging.set_verbosity(logging.WARNING)
    flat = tuning_config()
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    experiment = builders.build(flat)
    with workdirs.held(Path(WORKDIR.value), flat) as workdir:
        run = acts.Run(experiment, workdir, lambda *_: None)
        trained, kept = run.trained, experiment.data.retain
        dense = acts.train(run, "original", 0.0, masks=run.dense, retain=trained)
        starts = {0.0: dense}
        targets = {0.0: acts.train(run, "retrain", 0.0, masks=run.dense, retain=kept)}
        for sparsity in experiment.sparsities:
            sparse = prune(run, "original", sparsity, dense=dense, retain=trained)
            starts[sparsity] = sparse
            targets[sparsity] = acts.train(
                run, "retrain", sparsity, masks=sparse.masks, retain=kept
            )
        judged = {s: columns(judge.judge(run, arm, 0.0)) for s, arm in targets.items()}
        names = [f"{s:.0%} sparse" if s else "dense" for s in starts]
        print("| method | setting | " + " | ".join(names) + " | score |")
        print("|---|---|" + "---|" * (len(names) + 1))
        for name in GRID:
            best: tuple[float, str] | None = None
            for setting in settings(name):
                chosen = flat | {f"unlearn.{name}.{key}": v for key, v in setting.items()}
                method = builders.build_method(
                    name, chosen, experiment.network, experiment.data.forgotten_classes
                )
                scores = []
                for sparsity, start in starts.items():
                    result = run.fit(
                        method,
                        start.model,
                        start.masks,
                        forget=experiment.data.forget,
                        retain=kept,
                        keys=run.keys,
                        label=("tune", name),
                        keeper=not_kept(),
                    )
                    meta = start.meta | {"diverged": [not f for f in result.finite]}
                    arm = start._replace(method=name, model=result.model, meta=meta)
                    rows = columns(judge.judge(run, arm, 0.0))
                    scores.append(disparity(rows, judged[sparsity], resamples=1).value)
                text = ", ".join(f"{key} {value:g}" for key, value in setting.items())
                shown = " | ".join(f"{100 * score:.2f}" for score in scores)
                score = float(np.mean(scores))
                print(f"| {name} | {text} | {shown} | {100 * score:.2f} |", flush=True)
                best = min(best or (score, text), (score, text))
            print(f"| **{name}** | **{best[1]}** | | | **{100 * best[0]:.2f}** |", flush=True)


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    app.run(main)
