"""Unlearning by gradient steps: fine-tuning, gradient ascent, l1-sparse, and retraining.

All of them are one step body. They differ in the leaves of their :class:`~sparse_mu.types.Hyper`
(sign, penalty, rate) and in the set they read.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from sparse_mu import proximal
from sparse_mu.optimiser import learning_rate_at
from sparse_mu.trees import Prunable, convolution_kernels
from sparse_mu.types import Batch, Hyper, Key, LossFn, Masks, Model, Stats, Unlearner, UnlearnState
from sparse_mu.unlearn.contract import OneSet, begin, unchanged
from sparse_mu.unlearn.descent import Transformation, descend, mean_loss, mix, set_sums, settings


@functools.lru_cache(maxsize=256)
def first_order_step(
    loss_fn: LossFn, tx: Transformation, axis_name: str | None = None
) -> Callable[[UnlearnState, Batch], tuple[UnlearnState, Stats]]:
    """The one step body of all first-order methods.

    ``d = sign * grad(mean loss) + gamma_t * sign(w)`` with pruned entries set to 0, then ``tx``.
    Pruned weights and every buffer that ``tx`` fills from the gradient stay exactly 0. An ascent
    (``sign < 0``) minimises ``-min(mean loss, loss_ceiling)``: on a batch above the ceiling its
    loss gradient is 0, while penalty, decay and momentum act on. ``finite`` is False once the loss,
    a weight or a floating number of the net state is not; ``fit`` then keeps the state before.

    Args:
        loss_fn: a weighted sum; the step divides by the sum of weights (over ``axis_name`` too).
        tx: any optax transformation; it is offered ``hyper`` and ``step`` as extra arguments.
        axis_name: the axis to sum over when the batch is split by ``pmap`` or ``shard_map``.
    """

    def step(state: UnlearnState, batch: Batch) -> tuple[UnlearnState, Stats]:
        key = jax.random.fold_in(state.key, state.step)
        hyper, sums = state.hyper, set_sums(loss_fn, state.model, batch, key, axis_name)
        capped = (hyper.sign < 0) & (mean_loss(sums) > hyper.loss_ceiling)
        gradients = mix([(jnp.where(capped, 0.0, hyper.sign), sums)])
        return descend(state, tx, hyper, gradients, sums)

    return step


def _first_order(
    loss_fn: LossFn,
    tx: Transformation,
    hyper: Hyper,
    reads: Literal["retain", "forget"],
    axis_name: str | None,
) -> Unlearner:
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
    return _first_order(loss_fn, *settings(tx, hyper), "retain", axis_name)


def gradient_ascent(
    loss_fn: LossFn,
    tx: Transformation | None = None,
    *,
    gamma: float | None = None,
    loss_ceiling: float | None = None,
    hyper: Hyper | None = None,
    axis_name: str | None = None,
) -> Unlearner:
    """Gradient ascent on the forget set: ``w <- tx(-grad mean loss over a batch of Df)``.

    The sign of the loss gradient is turned; weight decay still shrinks the weights. It minimises
    ``-min(L, loss_ceiling) + gamma * ||w||_1``, L the mean loss of a batch; with ``gamma > 0`` that
    is the official code's ``GA_l1``, whose penalty is descended and constant over the epochs.

    ``loss_fn`` decides what BatchNorm does. ``classification(apply_fn, train=True)`` is the
    official form: the forget batches normalise themselves and replace the running statistics, which
    alone costs much of the accuracy on other data. ``train=False`` freezes the statistics: only the
    weights move.

    Args:
        loss_fn: weighted-sum loss of a batch.
        tx: as in :func:`finetune`.
        gamma: strength of the l1 penalty, constant; its sub-gradient acts on all leaves. None
            leaves ``hyper`` as it is, by default without a penalty.
        loss_ceiling: the mean loss above which a batch is not ascended any further (log K is the
            loss of a guess). None leaves ``hyper`` as it is, by default without a ceiling, as
            officially.
        hyper: hyper-parameters as leaves; its ``sign`` is replaced.
        axis_name: axis over which batches are split, or None.

    Raises:
        ValueError: if ``gamma`` is negative or not finite, or ``loss_ceiling`` is not positive.

    Source: paper, section 3 (GA); SPEC sections 4.3 and 4.5.
    """
    if gamma is not None:
        _check_gamma(gamma)
    if loss_ceiling is not None and not loss_ceiling > 0:
        raise ValueError(f"loss_ceiling = {loss_ceiling!r}: must be positive")
    tx, hyper = settings(tx, hyper)
    hyper = hyper._replace(sign=jnp.float32(-1.0))
    if gamma is not None:
        hyper = hyper._replace(gamma=jnp.float32(gamma), gamma_schedule=jnp.int32(0))
    if loss_ceiling is not None:
        hyper = hyper._replace(loss_ceiling=jnp.float32(loss_ceiling))
    return _first_order(loss_fn, tx, hyper, "forget", axis_name)


def _check_gamma(gamma: float) -> None:
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma = {gamma!r}: must be a finite number of at least 0")


@functools.lru_cache(maxsize=64)
def _then_l1_prox(tx: Transformation, prunable: Prunable) -> Transformation:
    """``tx`` and then the proximal step, its rate and strength read from ``hyper``."""
    prox = proximal.l1_prox(learning_rate_at, proximal.proximal_gamma_at, prunable)
    return optax.chain(tx, prox)


def l1_sparse(
    loss_fn: LossFn,
    tx: Transformation | None = None,
    gamma: float = 5e-4,
    *,
    schedule: str = "decaying",
    penalty: Literal["subgradient", "proximal"] = "subgradient",
    prunable: Prunable | None = None,
    hyper: Hyper | None = None,
    axis_name: str | None = None,
) -> Unlearner:
    """l1-sparse unlearning: fine-tuning on Dr with the penalty ``gamma_t * ||w||_1``.

    ``penalty="subgradient"`` (default, the official code's): ``w <- tx(grad mean loss + gamma_t *
    sign(w))`` over all leaves, ``sign(0) = 0``; weights come near 0 and hardly ever reach it.
    ``penalty="proximal"``: ``w <- soft_threshold(w + tx(grad mean loss), lr_t * gamma_t)``, which
    sets weights to exactly 0; convolution kernels only, unless ``prunable`` says otherwise.

    No mask is made; on a pruned model (our extension) pruned weights stay 0. The official code's
    alpha is not gamma: see :mod:`sparse_mu.proximal`.

    Args:
        loss_fn: weighted-sum loss of a batch.
        tx: as in :func:`finetune`.
        gamma: strength of the penalty, per unit of weight.
        schedule: one of :data:`sparse_mu.proximal.GAMMA_SCHEDULES`. All but ``constant`` need to
            know T: ``hyper.epochs`` and ``hyper.steps_per_epoch``, which
            :func:`sparse_mu.forget` fills in.
        penalty: how the penalty enters a step.
        prunable: which leaves the proximal step thresholds.
        hyper: hyper-parameters as leaves; its ``gamma``, ``proximal_gamma`` and
            ``gamma_schedule`` are replaced. The proximal step reads its ``learning_rate`` and
            ``lr_schedule``: with a ``tx`` of your own they must be that optimiser's.
        axis_name: axis over which batches are split, or None.

    Raises:
        ValueError: on an unknown schedule or penalty, a negative gamma, ``prunable`` with the
            sub-gradient, or a proximal step behind your own ``tx`` without ``hyper``.

    Source: paper, section 4, equation 3; SPEC section 4.4.
    """
    if schedule not in proximal.GAMMA_SCHEDULES:
        allowed = ", ".join(proximal.GAMMA_SCHEDULES)
        raise ValueError(f"schedule = {schedule!r}: must be one of {allowed}")
    if penalty not in ("subgradient", "proximal"):
        raise ValueError(f"penalty = {penalty!r}: must be 'subgradient' or 'proximal'")
    _check_gamma(gamma)
    by_prox = penalty == "proximal"
    if prunable is not None and not by_prox:
        raise ValueError("prunable= needs penalty='proximal': the sub-gradient acts on all leaves")
    if by_prox and tx is not None and hyper is None:
        raise ValueError("penalty='proximal' with tx= needs hyper=, for its learning_rate")
    tx, hyper = settings(tx, hyper)
    if by_prox:
        tx = _then_l1_prox(tx, prunable or convolution_kernels)
    hyper = hyper._replace(
        gamma=jnp.float32(0.0 if by_prox else gamma),
        proximal_gamma=jnp.float32(gamma if by_prox else 0.0),
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
