"""sparse_mu: machine unlearning with model sparsity, in JAX.

Prune first, then unlearn, and approximate unlearning comes closer to retraining; or unlearn with an
l1-sparse objective ("Model Sparsity Can Simplify Machine Unlearning", NeurIPS 2023).

The names below are the public ones. Importing this package loads jax, optax and numpy; the bundled
networks, checkpoints and data sets are modules of their own.
"""

from sparse_mu import bounds, curvature, masks, proximal, pruning, scores
from sparse_mu.api import DivergedWarning, NotConvergedWarning, evaluate, forget
from sparse_mu.losses import classification
from sparse_mu.masks import convolution_kernels, matrices
from sparse_mu.optimiser import hyper_parameters, sgd
from sparse_mu.proximal import l1_prox
from sparse_mu.pruning import (
    Pruned,
    grasp_masks,
    imp,
    magnitude_masks,
    omp,
    random_masks,
    snip_masks,
    synflow_masks,
)
from sparse_mu.types import (
    ApplyFn,
    Batch,
    Hyper,
    LossAux,
    LossFn,
    Model,
    Stats,
    UnlearnBatch,
    Unlearner,
    UnlearnState,
)
from sparse_mu.unlearn import (
    finetune,
    finetune_and_prune,
    fisher_forgetting,
    fisher_gaussian,
    gradient_ascent,
    influence_direction,
    influence_unlearning,
    l1_sparse,
    negative_gradient,
    random_label,
    retrain,
    salun,
    scrub,
    scrub_passes,
)

__version__ = "0.1.0"

__all__ = [
    "ApplyFn",
    "Batch",
    "DivergedWarning",
    "Hyper",
    "LossAux",
    "LossFn",
    "Model",
    "NotConvergedWarning",
    "Pruned",
    "Stats",
    "UnlearnBatch",
    "UnlearnState",
    "Unlearner",
    "bounds",
    "classification",
    "convolution_kernels",
    "curvature",
    "evaluate",
    "finetune",
    "finetune_and_prune",
    "fisher_forgetting",
    "fisher_gaussian",
    "forget",
    "gradient_ascent",
    "grasp_masks",
    "hyper_parameters",
    "imp",
    "influence_direction",
    "influence_unlearning",
    "l1_prox",
    "l1_sparse",
    "magnitude_masks",
    "masks",
    "matrices",
    "negative_gradient",
    "omp",
    "proximal",
    "pruning",
    "random_label",
    "random_masks",
    "retrain",
    "salun",
    "scores",
    "scrub",
    "scrub_passes",
    "sgd",
    "snip_masks",
    "synflow_masks",
]
