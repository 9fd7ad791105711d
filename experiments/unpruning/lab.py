"""A laboratory for masks: one network, one data set, T seeds, and every training that is asked for.

Everything runs through :func:`sparse_mu.training.fit`, the seeds as its trials: the same theta_0,
optimiser and orders of rows for the original, for every retraining and for every un-pruning.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_mu import losses, units, unlearn
from sparse_mu import masks as mask_trees
from sparse_mu.epoch import Prepare, as_they_are
from sparse_mu.evaluation import predict
from sparse_mu.execution import over_trials
from sparse_mu.masks import Prunable, Scope, Structure
from sparse_mu.optimiser import hyper_parameters
from sparse_mu.passes import stretched
from sparse_mu.training import FitResult, fit
from sparse_mu.types import (
    ApplyFn,
    Dataset,
    EnoughFn,
    Execution,
    Masks,
    Model,
    Params,
    PathFn,
    TrainFn,
    Trials,
    Units,
    Unlearner,
)
from sparse_mu.unlearn.projection import ProjectFn, each


class Setting(NamedTuple):
    """A network, its data and its recipe.

    Attributes:
        name: what it is called in tables.
        inputs: ``[N + M, ...]``, training rows first.
        labels: ``int32[N + M]``.
        train_rows: N.
        classes: K.
        init: a key to fresh weights.
        apply_fn: the network.
        prepare: rows to network inputs.
        prunable: which leaves are pruned.
        scope: over all leaves or within each.
        structure: entries, filters or channels.
        tied: units that are pruned whole, by their norm; None for magnitude pruning.
        sparsity: fraction pruned.
        epochs: T of every dense and of every sparse training.
        batch_size: rows per step.
        learning_rate: constant.
        momentum: of SGD.
        weight_decay: of SGD.
    """

    name: str
    inputs: np.ndarray
    labels: np.ndarray
    train_rows: int
    classes: int
    init: Callable[[jax.Array], Model]
    apply_fn: ApplyFn
    prepare: Prepare = as_they_are
    prunable: Prunable = mask_trees.convolution_kernels
    scope: Scope = "global"
    structure: Structure = "entries"
    tied: Units | None = None
    sparsity: float = 0.9
    epochs: int = 400
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4


class Trained(NamedTuple):
    """What a pipeline ends with: dense weights, the mask found on them, and the sparse model."""

    dense: Model
    masks: Masks
    sparse: Model
    snapshots: dict[int, Model]


class Lab:
    """The trainings of one setting, T seeds at a time."""

    def __init__(
        self, setting: Setting, seeds: Sequence[int], execution: Execution | None = None
    ) -> None:
        """Draws theta_0 and the orders of every seed; places the data."""
        self.setting, self.seeds = setting, tuple(seeds)
        self.execution = execution or over_trials(jax.local_devices())
        n = setting.train_rows
        rows = Dataset(jnp.asarray(setting.inputs[:n]), jnp.asarray(setting.labels[:n]))
        self.rows = self.execution.put_shared(rows)
        self.labels = np.asarray(setting.labels[:n])
        keys = [jax.random.key(seed) for seed in seeds]
        draw = jax.jit(setting.init)
        drawn = [draw(jax.random.fold_in(key, 0)) for key in keys]
        self.theta_0: Model = jax.tree.map(lambda *leaves: np.stack(leaves), *drawn)
        self.orders = {
            other: jnp.stack([jax.random.fold_in(key, 1 + other) for key in keys])
            for other in range(2)
        }
        self.keys = jnp.stack([jax.random.fold_in(key, 9) for key in keys])
        self.everything = np.ones((len(seeds), n), bool)
        self.dense_masks: Masks = jax.tree.map(
            lambda leaf: np.ones(leaf.shape, bool), self.theta_0.params
        )
        self.hyper = hyper_parameters(
            learning_rate=setting.learning_rate,
            momentum=setting.momentum,
            weight_decay=setting.weight_decay,
        )
        self.loss_fn = losses.classification(setting.apply_fn, train=True)
        self.frozen_loss_fn = losses.classification(setting.apply_fn, train=False)
        self.recipe = unlearn.finetune(self.loss_fn, hyper=self.hyper)
        self.project = self._project()

    def _project(self) -> ProjectFn:
        setting = self.setting
        if (tied := setting.tied) is not None:
            return lambda weights, like: units.norm_masks(weights, setting.sparsity, tied)

        @jax.jit
        def find(weights: Params) -> Masks:
            found = jax.tree.map(jnp.abs, weights)
            return mask_trees.from_scores(
                found,
                setting.sparsity,
                setting.prunable,
                scope=setting.scope,
                structure=setting.structure,
            )

        return lambda weights, like: jax.tree.map(np.asarray, find(weights))

    def masks_of(self, model: Model) -> Masks:
        """The masks that the pipeline finds on ``[T]`` dense models."""
        return each(self.project, model.params, self.dense_masks)

    def fit(
        self,
        unlearner: Unlearner,
        model: Model,
        masks: Masks,
        *,
        retain: np.ndarray,
        forget: np.ndarray | None = None,
        start: int = 0,
        stop: int,
        snapshots: tuple[int, ...] = (),
        enough: EnoughFn | None = None,
        other_order: bool = False,
        batch_size: int | None = None,
    ) -> FitResult:
        """Runs an unlearner, or the recipe, on all seeds."""
        setting = self.setting
        forget = np.zeros_like(retain) if forget is None else forget
        size = batch_size or setting.batch_size
        at_least = np.zeros(len(retain), np.int32)
        if unlearner is self.recipe:  # training: as many steps an epoch as the original has
            at_least = stretched(retain.sum(axis=1), setting.train_rows, size)
        return fit(
            unlearner,
            model,
            masks,
            self.keys,
            Trials(forget, retain, self.orders[int(other_order)], at_least),
            self.rows,
            batch_size=size,
            epochs=stop,
            start=start,
            horizon=max(stop, setting.epochs),
            execution=self.execution,
            prepare=setting.prepare,
            snapshot_epochs=snapshots,
            enough=enough,
        )

    def epoch_rows(self, retain: np.ndarray) -> np.ndarray:
        """``int[T]``, rows of an epoch of the recipe on a set."""
        rows = retain.sum(axis=1)
        setting = self.setting
        return np.maximum(rows, stretched(rows, setting.train_rows, setting.batch_size))

    def train(self, retain: np.ndarray, *, other_order: bool = False) -> TrainFn:
        """Training by the recipe on a set, dense or masked."""

        def go(model: Model, masks: Masks, *, start: int, stop: int) -> Model:
            return self.fit(
                self.recipe,
                model,
                masks,
                retain=retain,
                start=start,
                stop=stop,
                other_order=other_order,
            ).model

        return go

    def path(self, retain: np.ndarray) -> PathFn:
        """Dense training from theta_0 on a set, seen at some of its epochs."""

        def go(epochs: tuple[int, ...], enough: EnoughFn | None = None) -> dict[int, Model]:
            return self.fit(
                self.recipe,
                self.theta_0,
                self.dense_masks,
                retain=retain,
                stop=max(epochs),
                snapshots=epochs,
                enough=enough,
            ).snapshots

        return go

    def pipeline(
        self,
        retain: np.ndarray,
        *,
        snapshots: tuple[int, ...] = (),
        other_order: bool = False,
        sparse: bool = True,
    ) -> Trained:
        """Dense training, pruning, rewinding to theta_0 and sparse training, all on one set."""
        setting = self.setting
        dense = self.fit(
            self.recipe,
            self.theta_0,
            self.dense_masks,
            retain=retain,
            stop=setting.epochs,
            snapshots=snapshots,
            other_order=other_order,
        )
        masks = self.masks_of(dense.model)
        ended = self.theta_0
        if sparse:
            ended = self.rewound(masks, retain, other_order=other_order)
        return Trained(dense.model, masks, ended, dense.snapshots)

    def rewound(self, masks: Masks, retain: np.ndarray, *, other_order: bool = False) -> Model:
        """theta_0 under a mask, trained for T epochs."""
        train = self.train(retain, other_order=other_order)
        return train(self.theta_0, masks, start=0, stop=self.setting.epochs)

    def unlearner(
        self, unlearner: Unlearner, retain: np.ndarray, forget: np.ndarray, batch_size: int = 0
    ) -> TrainFn:
        """Any unlearner as the weight phase of an un-pruning."""

        def go(model: Model, masks: Masks, *, start: int, stop: int) -> Model:
            return self.fit(
                unlearner,
                model,
                masks,
                retain=retain,
                forget=forget,
                start=start,
                stop=stop,
                batch_size=batch_size or None,
            ).model

        return go

    def logits(self, model: Model) -> np.ndarray:
        """``float[T, N + M, K]`` of all rows."""
        setting = self.setting
        return predict(
            setting.apply_fn,
            model,
            setting.inputs,
            batch_size=600,
            execution=self.execution,
            prepare=setting.prepare,
        )

    def gradient(self, retain: np.ndarray) -> Callable[[Model], Params]:
        """The mean gradient over a set, of models as if nothing were pruned."""
        summed = unlearn.gradient_sum(self.frozen_loss_fn)

        def go(model: Model) -> Params:
            told = self.fit(summed, model, self.dense_masks, retain=retain, stop=1).told
            count = retain.sum(axis=1)
            return jax.tree.map(lambda leaf: leaf / count.reshape(-1, *[1] * (leaf.ndim - 1)), told)

        return go

    # who is forgotten

    def classes(self, offset: int = 0) -> np.ndarray:
        """``bool[T, N]``: of seed s the rows of class ``(s + offset) mod K``."""
        chosen = (np.array(self.seeds) + offset) % self.setting.classes
        return self.labels[None] == chosen[:, None]

    def random(self, fraction: float, draw: int = 0) -> np.ndarray:
        """``bool[T, N]``: a fraction of the rows, by seed."""
        n = len(self.labels)
        sets = np.zeros((len(self.seeds), n), bool)
        for own, seed in zip(sets, self.seeds, strict=True):
            chosen = np.random.default_rng((seed, draw)).permutation(n)[: round(fraction * n)]
            own[chosen] = True
        return sets
