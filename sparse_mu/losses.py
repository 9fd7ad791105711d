"""Losses as weighted sums, from a network's forward pass."""

import functools

import jax.numpy as jnp
import optax

from sparse_mu.types import ApplyFn, Array, Batch, Key, LossAux, LossFn, Params, PyTree


def weighted_sum(
    losses: Array, logits: Array, net_state: PyTree, batch: Batch
) -> tuple[Array, LossAux]:
    """``sum_i weight_i * losses_i`` and what a :class:`~sparse_mu.types.LossFn` returns beside it.

    Args:
        losses: ``float32[B]``, of each row.
        logits: ``float32[B, K]``, for the count of correct predictions.
        net_state: the network state after the forward pass.
        batch: the rows.
    """
    correct = jnp.argmax(logits, axis=-1) == batch.labels
    aux = LossAux(jnp.sum(batch.weights), net_state, jnp.sum(batch.weights * correct))
    # where, not *: a row of weight 0 adds exactly nothing, whatever its content
    return jnp.sum(jnp.where(batch.weights != 0, batch.weights * losses, 0.0)), aux


@functools.lru_cache(maxsize=64)
def classification(apply_fn: ApplyFn, *, train: bool = True) -> LossFn:
    """Cross entropy ``sum_i weight_i * -log softmax(logits_i)[label_i]`` of a classifier.

    Args:
        apply_fn: the network.
        train: the BatchNorm (and dropout) mode, fixed in the loss: True uses and updates batch
            statistics, False keeps the running ones.

    Returns:
        A :class:`~sparse_mu.types.LossFn`; the same object for the same arguments, so that
        compiled programs are found again.
    """

    def loss_fn(params: Params, net_state: PyTree, batch: Batch, key: Key) -> tuple:
        logits, net_state = apply_fn(params, net_state, batch.inputs, train=train, key=key)
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        return weighted_sum(losses, logits, net_state, batch)

    return loss_fn
