"""A step along a gradient: what every method that follows gradients shares.

:func:`set_sums` differentiates a loss over the rows of one set, :func:`mix` weighs the means of
several sets, and :func:`descend` takes the step: penalty, mask, optimiser, mask.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparse_mu import masks as mask_trees
from sparse_mu import proximal, trees
from sparse_mu.optimiser import hyper_parameters, sgd
from sparse_mu.types import (
    Array,
    Batch,
    Hyper,
    Key,
    LossFn,
    Masks,
    Model,
    Params,
    PyTree,
    Stats,
    UnlearnBatch,
    UnlearnState,
)
from sparse_mu.unlearn.contract import device_own

Transformation = optax.GradientTransformation


class SetSums(NamedTuple):
    """Sums over the rows of one set's batch, over all devices.

    Attributes:
        loss: ``float32[]``, weighted sum of losses.
        weight: ``float32[]``, sum of weights.
        correct: ``float32[]``, weighted count of correct predictions.
        gradients: gradient of ``loss``, a tree like the parameters.
        net_state: the network state after the forward pass.
    """

    loss: Array
    weight: Array
    correct: Array
    gradients: Params
    net_state: PyTree


def set_sums(
    loss_fn: LossFn, model: Model, batch: Batch, key: Key, axis_name: str | None
) -> SetSums:
    """Loss and gradient of one batch as sums, ``psum``-ed where the batch is split.

    Running statistics become their mean over the devices.
    """
    params = device_own(model.params, batch, axis_name)
    (loss, aux), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
        params, model.net_state, batch, key
    )
    sums, net_state = (loss, aux.weight, aux.correct, gradients), aux.net_state
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
        net_state = mean_state(net_state, axis_name)
    return SetSums(*sums, net_state=net_state)


def mean_state(net_state: PyTree, axis_name: str) -> PyTree:
    """What the devices agree on: the mean of floats, which BatchNorm may have made equal already.

    Other leaves are taken to be equal.
    """

    def of_leaf(leaf: Array) -> Array:
        return jax.lax.pmean(leaf, axis_name) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(of_leaf, net_state)


def settings(tx: Transformation | None, hyper: Hyper | None) -> tuple[Transformation, Hyper]:
    """The optimiser and the numbers of a method whose user gave one of them, or both.

    Raises:
        ValueError: if neither is given: a method without a learning rate would change nothing.
    """
    if tx is None and hyper is None:
        raise ValueError(
            "tx = None and hyper = None: give an optimiser, such as tx=optax.sgd(0.01), or "
            "hyper=sparse_mu.hyper_parameters(learning_rate=0.01)"
        )
    return sgd() if tx is None else tx, hyper_parameters() if hyper is None else hyper


def mean_loss(sums: SetSums) -> Array:
    """``float32[]``, 0 where no row counts."""
    return sums.loss / jnp.maximum(sums.weight, 1e-12)


def mix(terms: Sequence[tuple[Array | float, SetSums]]) -> Params:
    """``sum_s c_s * grad(mean loss of set s)`` from pairs ``(c_s, sums of s)``."""
    scales = [coefficient / jnp.maximum(sums.weight, 1e-12) for coefficient, sums in terms]

    def over_sets(*leaves: Array) -> Array:
        scaled = [scale * leaf for scale, leaf in zip(scales, leaves, strict=True)]
        return sum(scaled[1:], start=scaled[0])

    return jax.tree.map(over_sets, *(sums.gradients for _, sums in terms))


def both_sets(batch: UnlearnBatch) -> tuple[Batch, Batch]:
    """The forget and the retain batch of a step that needs both.

    Raises:
        ValueError: if one of them is None.
    """
    if batch.forget is None or batch.retain is None:
        raise ValueError("this unlearner reads both sets: batch.forget or batch.retain is None")
    return batch.forget, batch.retain


def descend(
    state: UnlearnState,
    tx: Transformation,
    hyper: PyTree,
    gradients: Params,
    sums: SetSums,
    trainable: Masks | None = None,
) -> tuple[UnlearnState, Stats]:
    """``w <- tx(gradients + gamma_t * sign(w))`` on the trainable entries; the others do not move.

    ``tx`` sees entries that are not trainable as if they were pruned, value and gradient 0, so that
    neither weight decay nor momentum reaches them and every buffer of theirs stays exactly 0.

    Args:
        state: the state before the step.
        tx: any optax transformation; it is offered ``hyper`` and ``step`` as extra arguments.
        hyper: the :class:`~sparse_mu.types.Hyper` of the step, wherever ``state.hyper`` holds it.
        gradients: direction of ascent of what is minimised (its ``sign`` already applied).
        sums: what the step reports, and the network state it leaves.
        trainable: boolean tree within ``state.masks``; default: all that is kept.
    """
    trainable = state.masks if trainable is None else trainable
    params = state.model.params
    epoch = jnp.floor(state.step / hyper.steps_per_epoch)
    gamma = proximal.gamma_at(hyper.gamma, hyper.gamma_schedule, epoch, hyper.epochs)
    penalty = proximal.l1_subgradient(params, gamma)
    gradients = mask_trees.apply(trainable, jax.tree.map(jnp.add, gradients, penalty))
    updates, opt_state = optax.with_extra_args_support(tx).update(
        gradients,
        state.opt_state,
        mask_trees.apply(trainable, params),
        hyper=hyper,
        step=state.step,
    )
    moved = optax.apply_updates(params, updates)
    params = jax.tree.map(jnp.where, trainable, moved, params)
    model = Model(params, sums.net_state)
    finite = jnp.isfinite(sums.loss) & trees.all_finite(model)
    new_state = state._replace(model=model, opt_state=opt_state, step=state.step + 1)
    return new_state, Stats(sums.loss, sums.weight, sums.correct, finite)
