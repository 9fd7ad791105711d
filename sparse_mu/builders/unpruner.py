"""How masks are un-pruned, from a config."""

from typing import Literal, NamedTuple

from sparse_mu import losses, unlearn
from sparse_mu.builders.methods import Method
from sparse_mu.builders.network import Network
from sparse_mu.config import Flat
from sparse_mu.types import LossFn
from sparse_mu.unlearn.unprune import Weights

Kind = Literal["difference", "projected", "rewind", "regrow"]


class Unpruner(NamedTuple):
    """A way of un-pruning, and the methods it goes around.

    Attributes:
        methods: the weight phases: unlearning methods, or ``"retrain"`` from the first weights.
        kind: how the mask is found.
        epochs: the most epochs of dense training.
        looks: the epochs at which masks are looked at.
        block: epochs between two of them.
        tolerance: a trial ends where two masks in a row agree to this much.
        weights: what the weight phase begins from.
        settle: passes over the retain set that make BatchNorm's statistics anew before it; None
            for none.
        regrow: of the re-growing loop; its gradient is filled in where it is asked for.
        gradient: sums gradients over the retain set, for that.
    """

    methods: tuple[str, ...]
    kind: Kind
    epochs: int
    looks: tuple[int, ...]
    block: int
    tolerance: float
    weights: Weights
    settle: Method | None
    regrow: unlearn.Regrow
    gradient: Method

    @property
    def snapshots(self) -> tuple[int, ...]:
        """Epochs of the original's dense training whose weights must be kept."""
        return self.looks if self.kind in ("difference", "projected") else ()


def build_unpruner(flat: Flat, network: Network) -> Unpruner | None:
    """The un-pruning of the config; None where no method is to go around."""
    if not flat["unprune.methods"]:
        return None
    train: LossFn = losses.classification(network.apply_fn, train=True)
    frozen: LossFn = losses.classification(network.apply_fn, train=False)
    size, passes = flat["train.batch_size"], flat["unprune.settle_epochs"]
    refresh = unlearn.refresh_statistics(train, axis_name=network.axis_name)
    summed = unlearn.gradient_sum(frozen, axis_name=network.axis_name)
    return Unpruner(
        methods=flat["unprune.methods"],
        kind=flat["unprune.mode"],
        epochs=flat["unprune.epochs"],
        looks=unlearn.looks_of(flat["unprune.epochs"], flat["unprune.block"]),
        block=flat["unprune.block"],
        tolerance=flat["unprune.tolerance"],
        weights=flat["unprune.weights"],
        settle=Method(refresh, passes, size) if passes else None,
        regrow=unlearn.Regrow(
            grow=flat["unprune.grow"],
            start=flat["unprune.start"],
            fraction=flat["unprune.fraction"],
            cap=flat["unprune.cap"],
            rounds=flat["unprune.rounds"],
        ),
        gradient=Method(summed, 1, size),
    )
