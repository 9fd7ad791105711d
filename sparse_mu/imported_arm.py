"""The act that imports: the user's own model in the place of the trained original."""

import jax
import numpy as np
from absl import logging

from sparse_mu.acts import Arm, Models, Run
from sparse_mu.builders import Imported
from sparse_mu.standing import Keeper

VERSION = 2  # raise by hand when what an imported stage means changes


def import_original(run: Run, given: Imported) -> Arm:
    """The original arm of an imported model: every trial gets the same weights and masks.

    It has no early weights and no known seconds. The stage depends on the arrays of the model, not
    on where they lie.
    """
    pool = run.x.config["dataset.validation"]
    if pool:
        logging.warning(
            "the imported model may have been trained on the tuning pool, %g of each class, which "
            "this run takes as not trained on; set config.dataset.validation=0 if it was",
            pool,
        )

    def make(keeper: Keeper) -> tuple[Models, dict]:
        del keeper  # nothing is trained
        model, masks = jax.tree.map(
            lambda leaf: np.broadcast_to(leaf, (run.trials, *leaf.shape)),
            (given.model, given.masks),
        )
        meta = {
            "diverged": [False] * run.trials,
            "rte_seconds": None,
            "rte_repeats": [],
            "rte_batched_seconds": None,
            "compile_seconds": None,
            "prune_seconds": None if given.sparsity else 0.0,
        }
        return Models(model, masks, {}), meta

    return run.arm("original", given.sparsity, (VERSION, given.digest), make)
