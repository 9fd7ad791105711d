"""Which source classes are forgotten where they are not listed, from a config."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sparse_mu.config import ConfigError, Flat
from sparse_mu.transfer import FEWEST_CLASSES, random_subsets


class Choice(NamedTuple):
    """A choice of source classes that is made by their influence on the target's loss.

    Attributes:
        backbones: the config of the models that classes are scored by, its trials.
        count: how many of the most harmful classes every trial forgets.
        config: the config of the run.
    """

    backbones: Flat
    count: int
    config: Flat

    def check(self, classes: int) -> None:
        """Refuses classes that are too few to choose from, and backbones that are too few for them.

        Raises:
            ConfigError: if they are.
        """
        subsets = self.config["transfer.subsets"]
        if classes < FEWEST_CLASSES:
            raise ConfigError(
                f"config.transfer.choose = 'influence': needs {FEWEST_CLASSES} source classes or "
                f"more, there are {classes}; must be 'given' or 'random'"
            )
        try:
            random_subsets(classes, subsets, self.config["seed"])
        except ValueError as error:
            raise ConfigError(f"config.transfer.subsets = {subsets}: {error}") from error

    def forgetting(self, influence: Sequence[float]) -> Flat:
        """The config of the run with the most harmful classes as its list.

        Args:
            influence: ``float[K]`` of each class.
        """
        highest = np.sort(np.argsort(-np.asarray(influence), kind="stable")[: self.count])
        chosen = (tuple(highest.tolist()),)
        return {**self.config, "forget.classes": chosen, "transfer.choose": "given"}


def build_choice(flat: Flat) -> Choice | None:
    """The choice of the config; None where classes are listed, or drawn at random."""
    if flat["transfer.choose"] != "influence":
        return None
    nothing = {"prune.sparsities": (), "unlearn.methods": (), "unprune.methods": ()}
    backbones = {
        **flat,
        **nothing,
        "trials": flat["transfer.subsets"],
        "transfer.choose": "given",
        "transfer.finetune_epochs": 0,
        "forget.duplicates": "skip",
    }
    return Choice(backbones, flat["transfer.count"], flat)


def random_classes(flat: Flat, classes: int, seeds: list[int]) -> list[tuple[int, ...]]:
    """Of each trial ``transfer.count`` classes, drawn by its seed."""
    count = flat["transfer.count"]
    drawn = [np.random.default_rng((seed, 45)).permutation(classes)[:count] for seed in seeds]
    return [tuple(sorted(rows.tolist())) for rows in drawn]


def check_count(flat: Flat, classes: int) -> None:
    """Refuses to forget so many classes that fewer than two are left."""
    if flat["transfer.count"] > classes - 2:
        raise ConfigError(
            f"config.transfer.count = {flat['transfer.count']}: must be at most {classes - 2}, for "
            f"two of {classes} classes must stay"
        )
