"""Pruning as procedures: they score, mask, and (when they rewind) train through ``train``."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sparse_mu import masks as mask_trees
from sparse_mu import scores
from sparse_mu.masks import Prunable, convolution_kernels
from sparse_mu.types import Masks, Model, TrainFn


class Pruned(NamedTuple):
    """A sparse model and the mask it was given; pruned weights are exactly 0."""

    model: Model
    masks: Masks


def magnitude_masks(
    model: Model, sparsity: float, prunable: Prunable = convolution_kernels
) -> Masks:
    """The mask of one-shot magnitude pruning: the smallest ``|w|`` of all prunable leaves go.

    Exactly ``round(sparsity * n)`` of n prunable weights, ties by index.

    Raises:
        ValueError: if ``sparsity`` is outside [0, 1), or nothing is prunable.
    """
    return mask_trees.from_scores(scores.magnitude(model.params), sparsity, prunable)


def omp(
    model: Model,
    sparsity: float,
    *,
    prunable: Prunable = convolution_kernels,
    rewind: Model | None = None,
    train: TrainFn | None = None,
    start: int = 0,
    stop: int = 0,
    batched: bool = False,
) -> Pruned:
    """One-shot magnitude pruning (OMP), with or without rewinding.

    The mask is found on ``model``. Without ``rewind`` the mask is applied to the model in place:
    all that a user with a finished model can do. With ``rewind`` (the weights at epoch k of the
    same training, k = 0 being theta_0) those weights are masked and trained again by ``train``
    from epoch ``start`` to ``stop``, with fresh momentum, as the official code does.

    Args:
        model: the trained dense model, or ``[T]`` of them when ``batched``.
        sparsity: fraction of the prunable weights to remove, in [0, 1).
        prunable: which leaves are prunable.
        rewind: weights to go back to, or None.
        train: trains a masked model; needed with ``rewind``.
        start: the epoch that ``rewind`` was taken at, for the learning-rate schedule.
        stop: the epoch to train to.
        batched: whether the models carry a leading trial axis.

    Raises:
        ValueError: if ``rewind`` is given without ``train``, or as :func:`magnitude_masks`.

    Source: SPEC section 3 (OMP).
    """
    if (rewind is None) != (train is None):
        raise ValueError("rewind and train go together: rewound weights must be trained again")

    def find(one: Model) -> Masks:
        return magnitude_masks(one, sparsity, prunable)

    found = jax.jit(jax.vmap(find) if batched else find)(model)
    source = model if rewind is None else rewind
    sparse = source._replace(params=mask_trees.apply(found, source.params))
    if train is not None:
        sparse = train(sparse, found, start=start, stop=stop)
    return Pruned(jax.tree.map(jnp.asarray, sparse), found)
