"""The unlearning methods: factories that close over functions and return pure functions."""

from sparse_mu.unlearn.contract import OneSet, begin, unchanged
from sparse_mu.unlearn.first_order import finetune, gradient_ascent, l1_sparse, retrain
from sparse_mu.unlearn.fisher import fisher_forgetting
from sparse_mu.unlearn.influence import influence_unlearning

__all__ = [
    "OneSet",
    "begin",
    "finetune",
    "fisher_forgetting",
    "gradient_ascent",
    "influence_unlearning",
    "l1_sparse",
    "retrain",
    "unchanged",
]
