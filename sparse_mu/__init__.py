"""sparse_mu: machine unlearning with model sparsity, in JAX.

Prune first, then unlearn, and approximate unlearning comes closer to retraining; or unlearn with an
l1-sparse objective ("Model Sparsity Can Simplify Machine Unlearning", NeurIPS 2023).

The names below are the public ones. Importing this package loads jax, optax and numpy; the bundled
networks, checkpoints and data sets are modules of their own.
"""

from sparse_mu import masks, proximal, pruning, scores
from sparse_mu.api import DivergedWarning, evaluate, forget
from sparse_mu.losses import classification
from sparse_mu.masks import convolution_kernels, matrices
from sparse_mu.optimiser import hyper_parameters, sgd
from sparse_mu.proximal import l1_prox
from sparse_mu.pruning import Pruned, magnitude_masks, omp
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
    fisher_forgetting,
    gradient_ascent,
    influence_unlearning,
    l1_sparse,
    retrain,
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
    "Pruned",
    "Stats",
    "UnlearnBatch",
    "UnlearnState",
    "Unlearner",
    "classification",
    "convolution_kernels",
    "evaluate",
    "finetune",
    "fisher_forgetting",
    "forget",
    "gradient_ascent",
    "hyper_parameters",
    "influence_unlearning",
    "l1_prox",
    "l1_sparse",
    "magnitude_masks",
    "masks",
    "matrices",
    "omp",
    "proximal",
    "pruning",
    "retrain",
    "scores",
    "sgd",
]
