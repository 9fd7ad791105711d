"""How far a run is: what is told while it runs, and how much its parts count."""

from typing import Protocol

from sparse_mu import pruning
from sparse_mu.builders import Experiment, Method


class OnProgress(Protocol):
    """Told what the run is doing."""

    def __call__(self, act: str, what: str, done: float, total: float) -> None:
        """``done`` of ``total`` units of the whole run."""
        ...


def plan(x: Experiment) -> float:
    """Units of the whole run: epochs of a batch of trials, and their like."""
    found = len(x.sparsities)
    if x.pruner.when == "iteratively":
        found = len(pruning.imp_plan(x.sparsities, x.pruner.rate))
    trainings = 3 + 2 * len(x.sparsities) + 2 * found
    unlearnings = sum(units(method) for method in x.methods.values())
    evaluations = 3 + len(x.methods) + (4 + len(x.methods)) * len(x.sparsities)
    unprunings = 0.0
    if x.unpruner is not None:
        phases = [x.methods.get(name, x.training) for name in x.unpruner.methods]
        own = x.unpruner.epochs + sum(units(phase) for phase in phases)
        unprunings = x.training.epochs + own * len(x.sparsities)
        evaluations += len(phases) * len(x.sparsities)
    judged = 3.0
    if x.transfer is not None:
        tuning = x.transfer.finetune
        judged += 3.0 + (tuning.epochs if tuning is not None else 0)
    return (
        1.5 * trainings * x.training.epochs
        + 1.5 * unlearnings * (1 + len(x.sparsities))
        + 1.5 * unprunings
        + judged * evaluations
    )


def units(method: Method) -> float:
    """Of a method on all trials: its epochs, or ten where one pass is many."""
    return 10.0 if method.unlearner.passes == "once" else float(method.epochs)
