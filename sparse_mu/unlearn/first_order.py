"""Unlearning by gradient steps: fine-tuning, gradient ascent, l1-sparse, and retraining.

All of them are one step body. They differ in the leaves of their :class:`~sparse_mu.types.Hyper`
(sign, penalty, rate) and in the set they read.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from sparse_mu import masks as mask_trees
from sparse_mu import proximal
from sparse_mu.optimiser import hyper_parameters, sgd
from sparse_mu.types import Batch, Hyper, Key, LossFn, Masks, Model, Stats, Unlearner, UnlearnState
from sparse_mu.unlearn.contract import OneSet, begin, device_own, unchanged

Transformation = optax.GradientTransformation


@functools.lru_cache(maxsize=256)
def first_order_step(
    loss_fn: LossFn, tx: Transformation, axis_name: str | None = None
) -> Callable[[UnlearnState, Batch], tuple[UnlearnState, Stats]]:
    """The one step body of all first-order methods.

    ``d = sign * grad(mean loss) + gamma_t * sign(w)`` with pruned entries set to 0, then ``tx``.
    Pruned weights and every buffer that ``tx`` fills from the gradient stay exactly 0.

    Args:
        loss_fn: a weighted sum; the step divides by the sum of weights (over ``axis_name`` too).
        tx: any optax transformation; it is offered ``hyper`` and ``step`` as extra arguments.
        axis_name: the axis to sum over when the batch is split by ``pmap`` or ``shard_map``.
    """
    tx = optax.with_extra_args_support(tx)

    def step(state: UnlearnState, batch: Batch) -> tuple[UnlearnState, Stats]:
        hyper, (params, net_state) = state.hyper, state.model
        key = jax.random.fold_in(state.key, state.step)
        (loss, aux), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
            device_own(params, batch, axis_name), net_state, batch, key
        )
        weight, correct = aux.weight, aux.correct
        if axis_name is not None:
            loss, weight, correct, gradients = jax.lax.psum(
                (loss, weight, correct, gradients), axis_name
            )
        scale = hyper.sign / jnp.maximum(weight, 1e-12)
        epoch = jnp.floor(state.step / hyper.steps_per_epoch)
        gamma = proximal.gamma_at(hyper.gamma, hyper.gamma_schedule, epoch, hyper.epochs)
        penalty = proximal.l1_subgradient(params, gamma)
        gradients = jax.tree.map(lambda g, p: scale * g + p, gradients, penalty)
        gradients = mask_trees.apply(state.masks, gradients)
        updates, opt_state = tx.update(
            gradients, state.opt_state, params, hyper=hyper, step=state.step
        )
        params = mask_trees.apply(state.masks, optax.apply_updates(params, updates))
        finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(params))
        for leaf in jax.tree.leaves(aux.net_state):
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                finite &= jnp.all(jnp.isfinite(leaf))
        new_state = state._replace(
            model=Model(params, aux.net_state), opt_state=opt_state, step=state.step + 1
        )
        return new_state, Stats(loss, weight, correct, finite)

    return step


def _first_order(
    loss_fn: LossFn,
    tx: Transformation | None,
    hyper: Hyper,
    reads: Literal["retain", "forget"],
    axis_name: str | None,
) -> Unlearner:
    tx = sgd() if tx is None else tx

    def init(model: Model, masks: Masks, key: Key) -> UnlearnState:
        return begin(model, masks, key, hyper=hyper, opt_state=tx.init)

    step = OneSet(first_order_step(loss_fn, tx, axis_name), reads)
    return Unlearner(init, step, unchanged, reads, "epochs")


def finetune(
    loss_fn: LossFn,
    tx: Transformation | None = None,
    *,
    hyper: Hyper | None = None,
    axis_name: str | None = None,
) -> Unlearner:
    """Fine-tuning on the retain set: ``w <- tx(grad mean loss over a batch of Dr)``.

    Args:
        loss_fn: weighted-sum loss of a batch.
        tx: an optax transformation, for example ``optax.sgd(0.01, momentum=0.9)``. Default:
            :func:`sparse_mu.optimiser.sgd`, which reads its numbers from ``hyper``.
        hyper: hyper-parameters as leaves; needed only by the default ``tx``.
        axis_name: axis over which batches are split, or None.

    Source: paper, section 3 (FT); SPEC section 4.2.
    """
    return _first_order(loss_fn, tx, hyper or hyper_parameters(), "retain", axis_name)


def gradient_ascent(
    loss_fn: LossFn,
    tx: Transformation | None = None,
    *,
    hyper: Hyper | None = None,
    axis_name: str | None = None,
) -> Unlearner:
    """Gradient ascent on the forget set: ``w <- tx(-grad mean loss over a batch of Df)``.

    Arguments as in :func:`finetune`; the sign of the gradient is turned, weight decay is not.
    Whether BatchNorm statistics follow the forget set (the official form) is decided by
    ``loss_fn``.

    Source: paper, section 3 (GA); SPEC section 4.3.
    """
    hyper = (hyper or hyper_parameters())._replace(sign=jnp.float32(-1.0))
    return _first_order(loss_fn, tx, hyper, "forget", axis_name)


def l1_sparse(
    loss_fn: LossFn,
    tx: Transformation | None = None,
    gamma: float = 5e-4,
    *,
    schedule: str = "decaying",
    hyper: Hyper | None = None,
    axis_name: str | None = None,
) -> Unlearner:
    """l1-sparse unlearning: fine-tuning on Dr with ``gamma_t * ||w||_1``, by sub-gradient.

    ``w <- tx(grad mean loss + gamma_t * sign(w))`` over all leaves, ``sign(0) = 0``, with the
    decaying schedule ``gamma_t = (2 - 2t/T) * gamma`` at epoch t of T. The official code's alpha is
    the schedule's peak, ``2 * gamma``. No mask is made; on a pruned model (our extension) pruned
    weights stay 0.

    Args:
        loss_fn: weighted-sum loss of a batch.
        tx: as in :func:`finetune`.
        gamma: strength of the penalty, per unit of weight.
        schedule: one of :data:`sparse_mu.proximal.GAMMA_SCHEDULES`. ``growing`` and ``decaying``
            need to know T: ``hyper.epochs`` and ``hyper.steps_per_epoch``, which
            :func:`sparse_mu.forget` fills in.
        hyper: hyper-parameters as leaves; its ``gamma`` and ``gamma_schedule`` are replaced.
        axis_name: axis over which batches are split, or None.

    Raises:
        ValueError: on an unknown schedule.

    Source: paper, section 4, equation 3; SPEC section 4.4.
    """
    if schedule not in proximal.GAMMA_SCHEDULES:
        allowed = ", ".join(proximal.GAMMA_SCHEDULES)
        raise ValueError(f"schedule = {schedule!r}: must be one of {allowed}")
    hyper = (hyper or hyper_parameters())._replace(
        gamma=jnp.float32(gamma),
        gamma_schedule=jnp.int32(proximal.GAMMA_SCHEDULES.index(schedule)),
    )
    return _first_order(loss_fn, tx, hyper, "retain", axis_name)


def retrain(
    loss_fn: LossFn,
    tx: Transformation | None = None,
    *,
    reinit: Callable[[Key], Model],
    hyper: Hyper | None = None,
    axis_name: str | None = None,
) -> Unlearner:
    """Exact unlearning: forget everything, train ``reinit(key)`` on the retain set.

    The given model's values are not read; its masks are kept, as the paper's baseline does.

    Args:
        loss_fn: weighted-sum loss of a batch.
        tx: as in :func:`finetune`.
        reinit: draws fresh weights from a key.
        hyper: as in :func:`finetune`.
        axis_name: axis over which batches are split, or None.

    Source: paper, section 2 (Retrain); SPEC section 4.1.
    """
    base = finetune(loss_fn, tx, hyper=hyper, axis_name=axis_name)

    def init(model: Model, masks: Masks, key: Key) -> UnlearnState:
        del model
        return base.init(reinit(key), masks, key)

    return base._replace(init=init)
