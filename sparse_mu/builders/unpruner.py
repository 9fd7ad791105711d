"""How masks are un-pruned, from a config."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from sparse_mu import losses, unlearn
from sparse_mu.builders.methods import Method
from sparse_mu.builders.network import Network
from sparse_mu.builders.pruner import Pruner
from sparse_mu.config import Flat
from sparse_mu.types import LossFn, Model
from sparse_mu.unlearn.unprune import Mode, Weights

ModeOf = Callable[[Model, Mapping[int, Model]], Mode]
_MODES: dict[str, ModeOf] = {
    "difference": unlearn.Difference,
    "projected": lambda dense, snapshots: unlearn.Projected(snapshots),
    "rewind": lambda dense, snapshots: unlearn.Rewind(),
}


class Unpruner(NamedTuple):
    """A way of un-pruning, and the methods it goes around.

    Attributes:
        methods: the weight phases: unlearning methods, or ``"retrain"`` from the first weights.
        mode_of: the mode, of the original's dense models and their snapshots; None where masks
            are found before training, and found there again, and for re-growing.
        epochs: the most epochs of dense training.
        block: epochs between two of them.
        tolerance: a trial ends where two masks in a row agree to this much.
        snapshots: epochs of the original's dense training whose weights must be kept.
        weights: what the weight phase begins from.
        settle: passes over the retain set that make BatchNorm's statistics anew before it; None
            for none.
        regrow: the re-growing loop, in the place of all this; its gradient is filled in where it
            is asked for. None for the other modes.
        gradient: sums gradients over the retain set, for that.
    """

    methods: tuple[str, ...]
    mode_of: ModeOf | None
    epochs: int
    snapshots: tuple[int, ...]
    block: int
    tolerance: float
    weights: Weights
    settle: Method | None
    regrow: unlearn.Regrow | None
    gradient: Method


def build_unpruner(flat: Flat, network: Network, pruner: Pruner) -> Unpruner | None:
    """The un-pruning of the config; None where no method is to go around."""
    if not flat["unprune.methods"]:
        return None
    train: LossFn = losses.classification(network.apply_fn, train=True)
    frozen: LossFn = losses.classification(network.apply_fn, train=False)
    size, passes = flat["train.batch_size"], flat["unprune.settle_epochs"]
    refresh = unlearn.refresh_statistics(train, axis_name=network.axis_name)
    summed = unlearn.gradient_sum(frozen, axis_name=network.axis_name)
    mode = flat["unprune.mode"]
    looks: tuple[int, ...] = ()
    if pruner.when == "once" and mode in ("difference", "projected"):
        looks = unlearn.looks_of(flat["unprune.epochs"], flat["unprune.block"])
    regrow = unlearn.Regrow(
        grow=flat["unprune.grow"],
        start=flat["unprune.start"],
        fraction=flat["unprune.fraction"],
        cap=flat["unprune.cap"],
        rounds=flat["unprune.rounds"],
    )
    return Unpruner(
        methods=flat["unprune.methods"],
        mode_of=_MODES.get(mode) if pruner.when == "once" else None,
        epochs=flat["unprune.epochs"],
        snapshots=looks,
        block=flat["unprune.block"],
        tolerance=flat["unprune.tolerance"],
        weights=flat["unprune.weights"],
        settle=Method(refresh, passes, size) if passes else None,
        regrow=regrow if mode == "regrow" else None,
        gradient=Method(summed, 1, size),
    )
