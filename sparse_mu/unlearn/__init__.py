"""The unlearning methods: factories that close over functions and return pure functions."""

from sparse_mu.unlearn.contract import OneSet, begin, unchanged
from sparse_mu.unlearn.first_order import finetune, gradient_ascent, l1_sparse, retrain
from sparse_mu.unlearn.fisher import FisherGaussian, fisher_forgetting, fisher_gaussian
from sparse_mu.unlearn.influence import convergence, influence_direction, influence_unlearning
from sparse_mu.unlearn.negative_gradient import negative_gradient
from sparse_mu.unlearn.parts import in_parts
from sparse_mu.unlearn.progressive import finetune_and_prune
from sparse_mu.unlearn.projection import by_norm
from sparse_mu.unlearn.random_label import random_label
from sparse_mu.unlearn.salun import salun
from sparse_mu.unlearn.scrub import scrub, scrub_passes
from sparse_mu.unlearn.search import looks_of
from sparse_mu.unlearn.sweeps import gradient_sum, refresh_statistics
from sparse_mu.unlearn.unprune import (
    Cost,
    Difference,
    Given,
    Projected,
    Regrow,
    Rescored,
    Rewind,
    Unpruned,
    Weights,
    unprune,
)

__all__ = [
    "Cost",
    "Difference",
    "FisherGaussian",
    "Given",
    "OneSet",
    "Projected",
    "Regrow",
    "Rescored",
    "Rewind",
    "Unpruned",
    "Weights",
    "begin",
    "by_norm",
    "convergence",
    "finetune",
    "finetune_and_prune",
    "fisher_forgetting",
    "fisher_gaussian",
    "gradient_ascent",
    "gradient_sum",
    "in_parts",
    "influence_direction",
    "influence_unlearning",
    "l1_sparse",
    "looks_of",
    "negative_gradient",
    "random_label",
    "refresh_statistics",
    "retrain",
    "salun",
    "scrub",
    "scrub_passes",
    "unchanged",
    "unprune",
]
