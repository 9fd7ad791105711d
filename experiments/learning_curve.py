"""One training on all of CIFAR-10, its curve kept in ``experiments/results``.

    python -m experiments.learning_curve --data_dir=DIR --epochs=3

trains the network on the 50,000 training images (no tuning pool) with the augmentation and the
optimiser of the config and a cosine over the epochs given, and evaluates the model after every
epoch on all 10,000 test images. It writes ``learning_curve_NETWORK.csv`` and ``.png`` and prints
the same lines. The paper's setting is ``--network=resnet18 --epochs=182 --schedule=step``, for an
accelerator.
"""

import argparse
import csv
from pathlib import Path

import jax
import matplotlib as mpl
import numpy as np
from absl import logging

from configs import cifar10_resnet20s
from experiments.benchmark import machine
from sparse_mu import builders, config
from sparse_mu.evaluation import predict
from sparse_mu.training import fit
from sparse_mu.types import Dataset, Trials

RESULTS = Path(__file__).parent / "results"
COLUMNS = ("epoch", "training_loss", "test_accuracy")


def curve(data_dir: str, network: str, epochs: int, schedule: str) -> tuple[list[dict], float]:
    """Trains once; returns a row per epoch and the seconds of the training."""
    settings = cifar10_resnet20s.get_config()
    settings.update_from_flattened_dict(
        {
            "trials": 1,
            "dataset.data_dir": data_dir,
            "dataset.validation": 0.0,
            "model.name": network,
            "train.epochs": epochs,
            "train.schedule": schedule,
            "train.warmup_epochs": min(1.0, epochs / 4),
            "prune.rewind_epoch": -1,
        }
    )
    flat = config.check(settings.to_dict())
    builders.start_backend(flat)
    x = builders.build(flat)
    data, rows = x.data, x.data.train_rows
    model = jax.tree.map(lambda leaf: np.asarray(leaf)[None], x.network.init(jax.random.key(0)))
    masks = jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), model.params)
    keys = jax.random.split(jax.random.key(1), 1)
    every = tuple(range(1, epochs + 1))
    result = fit(
        x.training.unlearner,
        model,
        masks,
        keys,
        Trials(np.zeros((1, rows), bool), np.ones((1, rows), bool), keys),
        x.execution.put_shared(Dataset(data.inputs[:rows], data.labels[:rows])),
        batch_size=x.training.batch_size,
        epochs=epochs,
        execution=x.execution,
        prepare=x.prepare_train,
        snapshot_epochs=every,
        on_epoch=lambda done, total: logging.info("epoch %d of %d", done, total),
    )
    if not result.finite.all():
        raise SystemExit("the training diverged")
    test = slice(rows, None)

    def test_accuracy(epoch: int) -> float:
        logits = predict(
            x.network.whole_apply_fn,
            result.snapshots[epoch],
            data.inputs[test],
            batch_size=x.config["evaluate.batch_size"],
            execution=x.judging,
            prepare=x.prepare_eval,
        )
        return float((logits[0].argmax(-1) == data.labels[test]).mean())

    lines = [
        dict(zip(COLUMNS, (epoch, result.loss[0, epoch - 1], test_accuracy(epoch)), strict=True))
        for epoch in every
    ]
    return lines, result.seconds


def draw(lines: list[dict], title: str, file: Path) -> None:
    """The curve as a picture: loss on the left axis, test accuracy on the right."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    epochs = [line["epoch"] for line in lines]
    figure, left = plt.subplots(figsize=(5, 3.2), layout="constrained")
    right = left.twinx()
    left.plot(epochs, [line["training_loss"] for line in lines], "o-", color="tab:orange")
    right.plot(epochs, [100 * line["test_accuracy"] for line in lines], "s-", color="tab:blue")
    left.set(xlabel="epochs", ylabel="training loss", title=title, ylim=(0, None))
    left.yaxis.label.set_color("tab:orange")
    right.set(ylabel="test accuracy, percent", ylim=(0, 100))
    right.yaxis.label.set_color("tab:blue")
    if len(epochs) < 20:
        left.set_xticks(epochs)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main() -> None:
    """Trains, writes and prints the curve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True, help="TFDS directory that holds cifar10")
    parser.add_argument("--network", default="resnet20s")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--schedule", default="cosine")
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    lines, seconds = curve(chosen.data_dir, chosen.network, chosen.epochs, chosen.schedule)
    name = f"learning_curve_{chosen.network}"
    with (chosen.results / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(lines)
    draw(lines, f"{chosen.network}, CIFAR-10, 50,000 images", chosen.results / f"{name}.png")
    for line in lines:
        print("  ".join(f"{key} {line[key]:.4g}" for key in COLUMNS))
    print(f"training took {seconds:.0f} s, {machine()}")


if __name__ == "__main__":
    main()
