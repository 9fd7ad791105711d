"""Passes over a set that change no weight: BatchNorm's statistics anew, and sums of gradients.

Both have the shape of an unlearner, so they run wherever one does: over trials, split batches and
streams.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from sparse_mu import trees
from sparse_mu.types import Batch, Key, LossFn, Masks, Model, Stats, Unlearner, UnlearnState
from sparse_mu.unlearn.contract import OneSet, begin, unchanged
from sparse_mu.unlearn.descent import mean_state, set_sums

_Step = Callable[[UnlearnState, Batch], tuple[UnlearnState, Stats]]


def refresh_statistics(loss_fn: LossFn, *, axis_name: str | None = None) -> Unlearner:
    """Makes running statistics anew from the retain set; no weight moves.

    The network state after each batch is kept, as training would keep it, so statistics that
    decay by 0.9 a batch hold ``0.9^n`` of what they were after n batches: take as many epochs as
    make that small.

    Args:
        loss_fn: in training mode; its loss is reported.
        axis_name: axis over which batches are split, or None.

    Source: UNPRUNING section 2.7 (statistics of a carried model hold Df).
    """

    def init(model: Model, masks: Masks, key: Key) -> UnlearnState:
        return begin(model, masks, key, hyper=(), opt_state=lambda params: ())

    step = OneSet(_refresh_step(loss_fn, axis_name), "retain")
    return Unlearner(init, step, unchanged, "retain", "epochs")


@functools.lru_cache(maxsize=64)
def _refresh_step(loss_fn: LossFn, axis_name: str | None) -> _Step:
    def step(state: UnlearnState, batch: Batch) -> tuple[UnlearnState, Stats]:
        key, model = jax.random.fold_in(state.key, state.step), state.model
        loss, aux = loss_fn(model.params, model.net_state, batch, key)
        weight, correct, net_state = aux.weight, aux.correct, aux.net_state
        if axis_name is not None:
            loss, weight, correct = jax.lax.psum((loss, weight, correct), axis_name)
            net_state = mean_state(net_state, axis_name)
        new = model._replace(net_state=net_state)
        finite = jnp.isfinite(loss) & trees.all_finite(new)
        return state._replace(model=new, step=state.step + 1), Stats(loss, weight, correct, finite)

    return step


def gradient_sum(loss_fn: LossFn, *, axis_name: str | None = None) -> Unlearner:
    """Sums the gradient of the loss over the retain set, and leaves the sum in ``aux``.

    :func:`sparse_mu.training.fit` hands it out as ``told``. Sums over D and over Df give Dr's by
    subtraction (:class:`sparse_mu.unlearn.Rescored`), and their means rank what to re-grow.

    Args:
        loss_fn: a weighted sum. In evaluation mode rows do not depend on each other, and sums over
            sets add up.
        axis_name: axis over which batches are split, or None.
    """

    def init(model: Model, masks: Masks, key: Key) -> UnlearnState:
        return begin(
            model,
            masks,
            key,
            hyper=(),
            opt_state=lambda params: (),
            aux=optax.tree.zeros_like,
        )

    step = OneSet(_sum_step(loss_fn, axis_name), "retain")
    return Unlearner(init, step, _sum_finish, "retain", "once")


@functools.lru_cache(maxsize=64)
def _sum_step(loss_fn: LossFn, axis_name: str | None) -> _Step:
    def step(state: UnlearnState, batch: Batch) -> tuple[UnlearnState, Stats]:
        key = jax.random.fold_in(state.key, state.step)
        sums = set_sums(loss_fn, state.model, batch, key, axis_name)
        total = jax.tree.map(jnp.add, state.aux, sums.gradients)
        finite = jnp.isfinite(sums.loss) & trees.all_finite(total)
        new = state._replace(aux=total, step=state.step + 1)
        return new, Stats(sums.loss, sums.weight, sums.correct, finite)

    return step


def _sum_finish(state: UnlearnState) -> UnlearnState:
    """As :func:`unchanged`; another function, for what ``fit`` does not finish tells nothing."""
    return state
