"""A control of the class scores: a harmful class, planted in the source, must be found.

Source: the digits 0 to 4, and "planted": their images inverted, white ground and black strokes,
four times each under one label. They are most of what a backbone is trained on, and BatchNorm's
statistics become theirs, which are wrong for the target: the digits 5 to 9 as they are, 60 training
images each, of which three quarters are validation rows.

Then the planted class is forgotten. Tests, stated before they were run and told whichever way they
go, on seeds that nothing else uses (two-sided, paired over trials, level 0.05, n = 10): accuracy of
the linear probe on the target, retrained without the class minus the model that knows it, and
l1-sparse minus that model.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from configs import digits_transfer
from experiments.paper import runs
from experiments.paper.runs import Done, planned
from experiments.paper.tables import paired
from sparse_mu import builders, config
from sparse_mu import workdir as workdirs
from sparse_mu.acts import Run
from sparse_mu.data import sources
from sparse_mu.harmful import class_scores
from sparse_mu.signals import Signals

PLANTED, SUBSETS = 5, 32
COPIES, TARGET_ROWS = 4, 60
SEEDS = tuple(range(3000, 3010))  # used for nothing else
LEAST = 9  # of ten
FORGETTING_SEED = 4000  # of the ten trials that forget it; used for nothing else


class Scores(NamedTuple):
    """Of each seed ``float[6]`` influence of the classes, the planted one last."""

    seeds: tuple[int, ...]
    influence: list[list[float]]

    @property
    def found(self) -> int:
        """In how many seeds the planted class is the most harmful."""
        return sum(int(np.argmax(values) == PLANTED) for values in self.influence)


class Planted(NamedTuple):
    """What came of the planted class: its scores, and a run that forgets it."""

    scores: Scores
    forgetting: Done

    @property
    def holds(self) -> bool:
        """Whether the control does: it is found in nine of ten seeds."""
        return self.scores.found >= LEAST * len(self.scores.seeds) / 10


def perform(folder: Path, signals: Signals) -> Planted:
    """Scores the classes, then forgets the planted one; continued where it stopped."""
    found = scores(folder)
    return Planted(found, runs.perform(forgetting(folder), folder, signals))


def forgetting(folder: Path) -> runs.Planned:
    """The run that forgets the planted class."""
    changes = _sets(folder) | {"seed": FORGETTING_SEED, "forget.classes": (PLANTED,)}
    changes |= {"prune.sparsities": (), "unlearn.methods": ("l1_sparse",)}
    changes |= {"transfer.finetune_epochs": 0, "evaluate.rte_repeats": 0}
    return planned("forgetting", digits_transfer.get_config(), changes)


def _sets(folder: Path) -> dict:
    """Keys of the config that both uses of the sets share."""
    return {
        "dataset.name": "npz",
        "dataset.data_dir": str(folder / "source.npz"),
        "dataset.classes": (),
        "dataset.validation": 0.0,
        "transfer.dataset": "npz",
        "transfer.data_dir": str(folder / "target.npz"),
        "transfer.classes": (),
        "transfer.validation": 0.75,
        "train.epochs": 8,
    }


def write_sets(folder: Path) -> None:
    """Writes ``source.npz`` and ``target.npz``."""
    folder.mkdir(parents=True, exist_ok=True)
    found = sources.digits()
    parts = {}
    for part in ("train", "test"):
        inputs, labels = getattr(found, f"{part}_inputs"), getattr(found, f"{part}_labels")
        early = np.flatnonzero(labels < PLANTED)
        copied = np.repeat(early, COPIES)
        late = [np.flatnonzero(labels == label)[:TARGET_ROWS] for label in range(PLANTED, 10)]
        rest = np.concatenate(late)
        parts[part] = {
            "source": (
                np.concatenate([inputs[early], 255 - inputs[copied]]),
                np.concatenate([labels[early], np.full(len(copied), PLANTED)]),
            ),
            "target": (inputs[rest], labels[rest] - PLANTED),
        }
    for name in ("source", "target"):
        (train, train_labels), (test, test_labels) = (parts[p][name] for p in ("train", "test"))
        np.savez(
            folder / f"{name}.npz",
            train_images=train,
            train_labels=train_labels,
            test_images=test,
            test_labels=test_labels,
        )


def scores(folder: Path, seeds: tuple[int, ...] = SEEDS) -> Scores:
    """Scores the classes with every seed; each a stage in a workdir of its own."""
    write_sets(folder)
    found = []
    for seed in seeds:
        flat = config.check(
            config.flatten(digits_transfer.get_config().to_dict())
            | _sets(folder)
            | {
                "seed": seed,
                "forget.classes": (),
                "transfer.choose": "influence",
                "transfer.count": 1,
                "transfer.subsets": SUBSETS,
            }
        )
        choice = builders.build_choice(flat)
        assert choice is not None
        with workdirs.held(folder / f"seed-{seed}", flat) as workdir:
            run = Run(builders.build(choice.backbones), workdir, lambda *_: None)
            found.append(class_scores(run).value.tolist())
    return Scores(tuple(seeds), found)


def words(told: Planted) -> list[str]:
    """The control and the tests in words."""
    values = np.array(told.scores.influence)
    others = ", ".join(f"{value:+.3f}" for value in values[:, :PLANTED].mean(axis=0))
    known = told.forgetting.by_trial("original", 0.0, "probe_accuracy")
    without, sparse = (
        told.forgetting.by_trial(method, 0.0, "probe_accuracy")
        for method in ("retrain", "l1_sparse")
    )
    return [
        f"- {'holds' if told.holds else 'FAILS'}: a planted class of inverted images has the most "
        f"influence on the target's validation loss in {told.scores.found} of "
        f"{len(told.scores.seeds)} trials (mean {values[:, PLANTED].mean():+.3f} nats; the digits "
        f"0 to 4 {others}; {SUBSETS} backbones each).",
        paired("Pre-stated: retrained without the planted class minus n = 0", without, known),
        paired("Pre-stated: l1-sparse of the planted class minus n = 0", sparse, known),
    ]
