"""The arms of a sweep: what is done about the mask, for one deletion, on all seeds."""

import functools
from typing import NamedTuple

import jax
import numpy as np

from experiments.unpruning.lab import Lab, Trained
from sparse_mu import masks as mask_trees
from sparse_mu import topology, unlearn
from sparse_mu.types import EnoughFn, Masks, Model, PathFn, TrainFn
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
        gradients: ``float[T]``, gradient evaluations beside the weight phase's.
        stored_bytes: of dense copies that had to be kept.
        model: ``[T]`` models the arm ends with by itself; None where only its mask is meant.
    """

    masks: Masks
    estimate: object = None
    gradients: np.ndarray | float = 0.0
    stored_bytes: int = 0
    model: Model | None = None


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
    ) -> None:
        """Trains the targets; the original holds snapshots at every epoch that is looked at.

        Without outputs no sparse model is trained beside the original's.
        """
        self.lab, self.deletion = lab, deletion
        self.quarter, self.block = quarter, block
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
            project=None if setting.rule is None else lab.project,
            prunable=setting.prunable,
            scope=setting.scope,
            structure=setting.structure,
            batched=True,
        )
        rows = retain.sum(axis=1)
        spent = found.cost.gradient_evaluations(rows, np.full(len(rows), setting.train_rows))
        if unlearner is not None:
            spent = spent + found.cost.unlearn_epochs * rows
        return Arm(
            found.masks,
            found.estimate,
            spent,
            found.cost.stored_bytes,
            None if unlearner is None else found.model,
        )

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

    def first_weights(self) -> Arm:
        """The mask of theta_0 alone."""
        params = self.lab.theta_0.params
        return Arm(each(self.lab.project, params, self.lab.dense_masks), params)

    def swapped(self) -> Arm:
        """The original's mask with as many random swaps as the deletion makes."""
        old, new = self.targets.original.masks, self.targets.retrained.masks
        prunable = self.lab.setting.prunable
        found = []
        for trial, seed in enumerate(self.lab.seeds):
            a, b = (jax.tree.map(lambda leaf, t=trial: leaf[t], tree) for tree in (old, new))
            flips = int((topology.flat(a, prunable) != topology.flat(b, prunable)).sum()) // 2
            found.append(_swapped(a, flips, prunable, np.random.default_rng((seed, 77))))
        return Arm(jax.tree.map(lambda *leaves: np.stack(leaves), *found))

    def stored_then(self, unlearner: TrainFn, epochs: int, evaluations: float) -> Arm:
        """Stored dense weights, an unlearner on them, and pruning: no difference is taken."""
        lab = self.lab
        dense = self.targets.original.dense
        moved = unlearner(dense, lab.dense_masks, start=0, stop=epochs)
        one = sum(np.asarray(x).nbytes // len(lab.seeds) for x in jax.tree.leaves(dense.params))
        return Arm(lab.masks_of(moved), moved.params, evaluations, one)

    # unlearners, of as many passes as the dense training has epochs

    def phases(self) -> dict[str, tuple[TrainFn, int, np.ndarray]]:
        """Weight phases by name, their epochs, and the gradients that each takes of a trial."""
        lab, retain, forget = self.lab, self.retain, self.deletion.forget
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
        half = max(epochs // 2, 1)

        def ascend_and_repair(model: Model, masks: Masks, *, start: int, stop: int) -> Model:
            del start, stop
            risen = bind(capped)(model, masks, start=0, stop=half)
            return repair(risen, masks, start=0, stop=half)

        return {
            "finetune": (repair, epochs, epochs * kept),
            "negative gradient, repaired": (
                ascend_and_repair,
                half,
                half * (kept + np.maximum(kept, gone)) + half * kept,
            ),
            "random labels": (bind(labels), epochs, 2 * epochs * kept),
            "fisher": (bind(fisher, batch_size=size), 1, kept * lab.setting.classes),
        }


def _swapped(
    mask: Masks, count: int, prunable: mask_trees.Prunable, rng: np.random.Generator
) -> Masks:
    """A mask with ``count`` kept entries exchanged for pruned ones, anywhere."""
    flags = jax.tree.leaves(mask_trees.prunable_leaves(mask, prunable))
    leaves = [np.array(leaf) for leaf in jax.tree.leaves(mask)]
    chosen = [i for i, flag in enumerate(flags) if flag]
    vector = np.concatenate([leaves[i].ravel() for i in chosen])
    kept, pruned = np.flatnonzero(vector), np.flatnonzero(~vector)
    vector[rng.choice(kept, count, replace=False)] = False
    vector[rng.choice(pruned, count, replace=False)] = True
    for i, part in zip(
        chosen, np.split(vector, np.cumsum([leaves[i].size for i in chosen])[:-1]), strict=True
    ):
        leaves[i] = part.reshape(leaves[i].shape)
    return jax.tree.unflatten(jax.tree.structure(mask), leaves)
