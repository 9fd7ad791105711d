"""One model as a batch of one: trees get a leading axis, functions of one model become batched."""

from collections.abc import Mapping

import jax
import numpy as np

from sparse_mu.types import EnoughFn, Masks, Model, PathFn, PyTree, TrainFn
from sparse_mu.unlearn.modes import Difference, Given, Mode, Projected, Rescored, Snapshots
from sparse_mu.unlearn.regrow import Regrow


def lifted(tree: PyTree) -> PyTree:
    """The same with a leading axis of length 1."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[None], tree)


def lowered(tree: PyTree) -> PyTree:
    """Without its leading axis, which has length 1."""
    return jax.tree.map(lambda leaf: leaf[0], tree)


def phase(train: TrainFn) -> TrainFn:
    """A training of one model as one of a batch of one."""

    def go(model: Model, masks: Masks, *, start: int, stop: int) -> Model:
        return lifted(train(lowered(model), lowered(masks), start=start, stop=stop))

    return go


def path(train: PathFn) -> PathFn:
    """A dense training of one model as one of a batch of one."""

    def go(epochs: tuple[int, ...], enough: EnoughFn | None = None) -> dict[int, Model]:
        def enough_of_one(seen: dict[int, Model], trials: np.ndarray) -> np.ndarray:
            assert enough is not None
            return enough({epoch: lifted(model) for epoch, model in seen.items()}, trials)

        seen = train(epochs, None if enough is None else enough_of_one)
        return {epoch: lifted(model) for epoch, model in seen.items()}

    return go


def mode(given: Mode) -> Mode:
    """A mode of one model as one of a batch of one."""
    if isinstance(given, Difference):
        return Difference(lifted(given.dense), _snapshots(given.snapshots))
    if isinstance(given, Projected):
        return Projected(_snapshots(given.snapshots))
    if isinstance(given, Rescored):
        return Rescored(lifted(given.total), lifted(given.forgotten), given.score)
    if isinstance(given, Given):
        return Given(lifted(given.masks))
    if isinstance(given, Regrow) and (gradient := given.gradient) is not None:
        return given._replace(gradient=lambda model: lifted(gradient(lowered(model))))
    return given


def _snapshots(given: Snapshots) -> Snapshots:
    if isinstance(given, Mapping):
        return {epoch: lifted(model) for epoch, model in given.items()}
    return path(given)
