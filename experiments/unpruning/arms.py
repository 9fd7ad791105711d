"""The arms of a sweep: what is done about the mask, for one deletion, on all seeds."""

import functools
from typing import NamedTuple

import jax
import numpy as np

from experiments.unpruning.lab import Lab, Trained
from experiments.unpruning.pieces import moved, pieces_of, swapped
from sparse_mu import unlearn
from sparse_mu.trees import of_trial
from sparse_mu.types import EnoughFn, Masks, Model, PathFn, PyTree, TrainFn
from sparse_mu.unlearn.modes import Mode
from sparse_mu.unlearn.projection import each

GROWN = {
    "regrow all, theta_0": unlearn.Regrow(grow="all", start="initial", rounds=1),
    "regrow all, zero": unlearn.Regrow(grow="all", start="zero", rounds=1),
    "regrow all, clip": unlearn.Regrow(grow="all", start="clip", rounds=1),
    "regrow 5 rounds, theta_0": unlearn.Regrow(rounds=5, cap=0.0),
    "regrow 5 rounds, gradient": unlearn.Regrow(grow="gradient", start="zero", rounds=5, cap=0.0),
}


class Deletion(NamedTuple):
    """Who is deleted, and who is deleted in the placebo."""

    name: str
    forget: np.ndarray
    placebo: np.ndarray


class Targets(NamedTuple):
    """What a deletion is held against.

    Attributes:
        original: the pipeline on D, with its snapshots.
        retrained: the pipeline on Dr (R2), sparse model too.
        floor: masks of the pipeline on Dr in another order of rows (the seed floor).
        inherited: a model under the original's masks, trained on Dr from theta_0 (R1).
    """

    original: Trained
    retrained: Trained
    floor: Masks
    inherited: Model


class Arm(NamedTuple):
    """What an arm found.

    Attributes:
        masks: ``[T]`` masks.
        estimate: ``[T]`` dense weights they were found on; None where there are none.
        gradients: ``float[T]``, gradients of one row each: of the search for the mask, and of the
            unlearner where that is a part of it.
        stored_bytes: of theta_0 and of the dense copies that had to be kept.
        inside: ``int[T]``, epochs of an unlearner that are a part of the search.
        model: ``[T]`` models the arm ends with by itself; None where only its mask is meant.
    """

    masks: Masks
    estimate: object = None
    gradients: np.ndarray | float = 0.0
    stored_bytes: int = 0
    inside: np.ndarray | int = 0
    model: Model | None = None


class Phase(NamedTuple):
    """A weight phase: how to run it, for how long, and the gradients of an epoch of each trial."""

    train: TrainFn
    epochs: int
    rows: np.ndarray


class Bench:
    """One setting and one deletion: its targets, made once, and every arm on demand."""

    def __init__(
        self,
        lab: Lab,
        deletion: Deletion,
        original: Trained,
        quarter: int,
        block: int,
        *,
        with_outputs: bool = True,
        with_unlearners: bool = True,
    ) -> None:
        """Trains the targets; the original holds snapshots at every epoch that is looked at.

        Without outputs no sparse model is trained beside the original's. Without unlearners no arm
        runs one: neither the re-growing loop nor stored dense weights and an unlearner.
        """
        self.lab, self.deletion = lab, deletion
        self.quarter, self.block, self.with_unlearners = quarter, block, with_unlearners
        self.retain, self.placebo = ~deletion.forget, ~deletion.placebo
        looks = tuple(original.snapshots)
        retrained = lab.pipeline(self.retain, snapshots=looks, sparse=with_outputs)
        other = lab.pipeline(self.retain, other_order=True, sparse=False)
        self.targets = Targets(
            original=original,
            retrained=retrained,
            floor=other.masks,
            inherited=lab.rewound(original.masks, self.retain) if with_outputs else lab.theta_0,
        )
        # the dense training on Dr is the retrained model's, seen on its way
        self._seen = {self.retain.tobytes(): retrained.snapshots}

    def path(self, retain: np.ndarray) -> PathFn:
        """The dense training on a set, run once and shown again."""

        def go(epochs: tuple[int, ...], enough: EnoughFn | None = None) -> dict[int, Model]:
            del enough  # it was trained to the end; what an end costs is told by the search
            seen = self._seen.setdefault(retain.tobytes(), {})
            if not set(epochs) <= set(seen):
                seen |= self.lab.path(retain)(epochs)
            return {epoch: seen[epoch] for epoch in epochs}

        return go

    # un-pruned masks

    def unpruned(
        self,
        mode: Mode,
        retain: np.ndarray | None = None,
        *,
        unlearner: TrainFn | None = None,
        epochs: int | None = None,
        unlearn_epochs: int = 1,
        tolerance: float = 0.0,
        block: int | None = None,
        weights: unlearn.Weights = "carry",
    ) -> Arm:
        """An arm of :func:`sparse_mu.unlearn.unprune`."""
        lab, setting, old = self.lab, self.lab.setting, self.targets.original
        retain = self.retain if retain is None else retain
        epochs = epochs or self.quarter
        found = unlearn.unprune(
            self.path(retain),
            unlearner,
            theta_0=lab.theta_0,
            original=old.sparse,
            masks=old.masks,
            mode=mode,
            epochs=epochs,
            block=block or epochs,
            tolerance=tolerance,
            weights=weights,
            unlearn_epochs=unlearn_epochs,
            settle=self.settle() if weights == "carry" and unlearner is not None else None,
            project=None if setting.tied is None else unlearn.by_norm(setting.tied),
            prunable=setting.prunable,
            scope=setting.scope,
            structure=setting.structure,
            batched=True,
        )
        rows = retain.sum(axis=1)
        spent = found.cost.gradient_evaluations(
            epoch_rows=lab.epoch_rows(retain),
            all_rows=setting.train_rows,
            retain_rows=rows,
            forget_rows=setting.train_rows - rows,
        )
        model = None if unlearner is None else found.model
        inside = found.cost.unlearn_epochs
        return Arm(found.masks, found.estimate, spent, found.cost.stored_bytes, inside, model)

    def regrown(self, how: unlearn.Regrow, phase: Phase, retain: np.ndarray, epochs: int) -> Arm:
        """An arm of the re-growing loop, whose unlearner is part of its cost."""
        mode = how._replace(gradient=self.lab.gradient(retain))
        arm = self.unpruned(mode, retain, unlearner=phase.train, unlearn_epochs=epochs, epochs=1)
        return arm._replace(gradients=arm.gradients + arm.inside * phase.rows)

    def settle(self) -> TrainFn | None:
        """Statistics made anew from Dr, where the network has any."""
        lab = self.lab
        if not jax.tree.leaves(lab.theta_0.net_state):
            return None
        steps = -(-lab.setting.train_rows // lab.setting.batch_size)
        train = lab.unlearner(
            unlearn.refresh_statistics(lab.loss_fn), self.retain, self.deletion.forget
        )
        passes = -(-66 // steps)  # 0.9^66 is a thousandth
        return lambda model, masks, *, start, stop: train(model, masks, start=0, stop=passes)

    def difference(self) -> unlearn.Difference:
        """Stored dense weights and snapshots."""
        old = self.targets.original
        return unlearn.Difference(old.dense, old.snapshots)

    def projected(self) -> unlearn.Projected:
        """Stored snapshots alone."""
        return unlearn.Projected(self.targets.original.snapshots)

    # arms that are no un-pruning

    def kept(self) -> Arm:
        """No-op: the original's mask."""
        return Arm(self.targets.original.masks, self.targets.original.dense.params)

    def retrained(self) -> Arm:
        """R2's mask, at the cost of R2: dense and sparse training from theta_0."""
        lab, new = self.lab, self.targets.retrained
        whole = 2 * lab.setting.epochs * lab.epoch_rows(self.retain)
        return Arm(new.masks, new.dense.params, whole, _bytes_of_one(lab.theta_0))

    def first_weights(self) -> Arm:
        """The mask of theta_0 alone."""
        params = self.lab.theta_0.params
        return Arm(each(self.lab.project, params, self.lab.dense_masks), params)

    def swapped(self) -> Arm:
        """The original's mask with as many random swaps as the deletion makes."""
        return Arm(self._swaps(self.targets.original.masks, near=False))

    def as_far(self, *, near: bool) -> Masks:
        """Masks as far from the retrained ones as the original's are, made without the deletion.

        The retrained masks with as many pieces exchanged as the deletion exchanges: at random, or
        those nearest to the threshold.
        """
        old, new = self.targets.original.masks, self.targets.retrained.masks
        found = self._swaps(new, near=near)
        for trial in range(len(self.lab.seeds)):
            pieces = pieces_of(self.lab.setting, of_trial(new, trial))
            own, kept, target = (pieces.read(of_trial(m, trial)) for m in (found, old, new))
            assert (own != target).sum() == (kept != target).sum()
        return found

    def _swaps(self, start: Masks, *, near: bool) -> Masks:
        """The masks with as many swaps as lie between the original's and the retrained ones."""
        lab, targets = self.lab, self.targets
        found = []
        for trial, seed in enumerate(lab.seeds):
            old, new, mask, dense = (
                of_trial(tree, trial)
                for tree in (
                    targets.original.masks,
                    targets.retrained.masks,
                    start,
                    targets.retrained.dense.params,
                )
            )
            pieces = pieces_of(lab.setting, dense)
            found.append(
                swapped(
                    pieces,
                    mask,
                    moved(pieces, old, new),
                    np.random.default_rng((seed, 77)),
                    near=pieces.scores(dense) if near else None,
                )
            )
        return jax.tree.map(lambda *leaves: np.stack(leaves), *found)

    def stored_then(self, phase: Phase) -> Arm:
        """Stored dense weights, an unlearner on them, and pruning: no difference is taken."""
        lab = self.lab
        dense = self.targets.original.dense
        ended = phase.train(dense, lab.dense_masks, start=0, stop=phase.epochs)
        spent = phase.epochs * phase.rows
        return Arm(lab.masks_of(ended), ended.params, spent, _bytes_of_one(dense.params))

    # unlearners, of as many passes as the dense training has epochs

    def phases(self, forget: np.ndarray | None = None) -> dict[str, Phase]:
        """Weight phases by name, for the deletion or for another set in its place."""
        lab = self.lab
        forget = self.deletion.forget if forget is None else forget
        retain = ~forget
        hyper, size = lab.hyper, min(lab.setting.batch_size, 512)
        kept, gone = retain.sum(axis=1), forget.sum(axis=1)
        epochs = self.quarter
        slow = hyper._replace(learning_rate=hyper.learning_rate / 2)
        bind = functools.partial(lab.unlearner, retain=retain, forget=forget)
        capped = unlearn.negative_gradient(
            lab.loss_fn, retain_weight=2 / 3, ceiling=4.0, hyper=slow
        )
        labels = unlearn.random_label(lab.loss_fn, num_classes=lab.setting.classes, hyper=slow)
        fisher = unlearn.fisher_forgetting(
            lab.setting.apply_fn, 1e-7, num_classes=lab.setting.classes
        )
        repair = bind(lab.recipe)
        half, rows = max(epochs // 2, 1), lab.epoch_rows(retain)

        def ascend_and_repair(model: Model, masks: Masks, *, start: int, stop: int) -> Model:
            passes = stop - start
            risen = bind(capped)(model, masks, start=0, stop=passes)
            return repair(risen, masks, start=0, stop=passes)

        return {
            "finetune": Phase(repair, epochs, rows),
            "negative gradient, repaired": Phase(
                ascend_and_repair, half, kept + np.maximum(kept, gone) + rows
            ),
            "random labels": Phase(bind(labels), epochs, 2 * np.maximum(kept, gone)),
            "fisher": Phase(bind(fisher, batch_size=size), 1, kept * lab.setting.classes),
        }


def _bytes_of_one(tree: PyTree) -> int:
    """Of one trial of a ``[T]`` tree."""
    return sum(np.asarray(leaf).nbytes // len(leaf) for leaf in jax.tree.leaves(tree))
