"""How far an arm is from the re-pruned retraining, in its mask and in its outputs.

The target is ``retrain_repruned`` of the same sparsity (dense: ``retrain``), which never saw the
forget set in its weights nor in its mask. Each row also holds the IoU that the original's own mask
has (through the gain) and the seed floor: how alike two such targets are whose rows came in
different orders.
"""

from collections.abc import Callable, Mapping

import jax
import numpy as np

from sparse_mu import topology, trees
from sparse_mu.acts import Arm
from sparse_mu.trees import of_trial
from sparse_mu.types import Masks

LogitsOf = Callable[[Arm], np.ndarray]


class Distances:
    """What every arm is held against; of the targets' logits those of one sparsity at a time.

    Args:
        arms: every arm of the run.
        floors: by sparsity ``[T]`` masks of the target in another order of rows.
        logits_of: forward passes over all rows, ``float[T, N, K]``.
        outputs: whether outputs are compared, which takes the targets' logits.
    """

    def __init__(
        self,
        arms: list[Arm],
        floors: Mapping[float, Masks],
        logits_of: LogitsOf,
        *,
        outputs: bool,
    ) -> None:
        """Nothing is computed yet."""
        self.targets = {
            arm.sparsity: arm
            for arm in arms
            if arm.method == ("retrain_repruned" if arm.sparsity else "retrain")
        }
        self.originals = {arm.sparsity: arm for arm in arms if arm.method == "original"}
        self.floors, self.logits_of, self.outputs = floors, logits_of, outputs
        self.logits: tuple[float, np.ndarray] | None = None  # a sparsity, its target's

    def prepare(self, arm: Arm, logits: np.ndarray) -> None:
        """Makes ready the target's logits, before the trials of an arm are told of at once.

        Args:
            arm: whose rows come next.
            logits: ``float[T, N, K]`` of that arm, which may be the target itself.
        """
        target = self.targets.get(arm.sparsity)
        if not self.outputs or target is None:
            return
        if arm.method == target.method:
            self.logits = arm.sparsity, logits
        elif self.logits is None or self.logits[0] != arm.sparsity:
            self.logits = arm.sparsity, self.logits_of(target)

    def of_mask(self, arm: Arm, trial: int) -> dict[str, float]:
        """``mask_*`` of one trial: overlap with the target's mask, and which bits were flipped.

        Empty for dense arms, where no target is known, and where nothing can be pruned.
        """
        target, original = (held.get(arm.sparsity) for held in (self.targets, self.originals))
        if not arm.sparsity or target is None or original is None:
            return {}
        ours, theirs, before = (of_trial(a.masks, trial) for a in (arm, target, original))
        if not any(trees.convolution_kernels("", leaf) for leaf in jax.tree.leaves(ours)):
            return {}
        found, flips = topology.similarity(ours, theirs), topology.flips(before, ours, theirs)
        kept = topology.iou(before, theirs)
        row = {
            "mask_iou": found.iou,
            "mask_iou_pruned": found.iou_pruned,
            "mask_iou_corrected": found.corrected_iou,
            "mask_kappa": found.kappa,
            "mask_flip_precision": flips.precision,
            "mask_flip_recall": flips.recall,
        }
        floor = self.floors.get(arm.sparsity)
        if floor is not None:
            row["mask_floor"] = topology.iou(of_trial(floor, trial), theirs)
            row["mask_gain"] = topology.gain(found.iou, kept, row["mask_floor"])
        return row

    def of_outputs(
        self, arm: Arm, trial: int, logits: np.ndarray, sets: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        """``kl_*`` and ``js_*`` of one trial, mean nats, target || arm, on each set of rows.

        Empty where nothing was made ready to compare with.

        Args:
            arm: whose logits they are.
            trial: its number.
            logits: ``float[N, K]`` of that trial.
            sets: ``bool[N]`` by name.
        """
        if self.logits is None or self.logits[0] != arm.sparsity:
            return {}
        wanted, row = self.logits[1][trial], {}
        for name, rows in sets.items():
            found = topology.divergence(logits[rows], wanted[rows])
            row |= {f"kl_{name}": found.kl, f"js_{name}": found.js}
        return row
