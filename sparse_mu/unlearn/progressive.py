"""Unlearning while pruning: fine-tuning that removes a few more weights every second epoch."""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparse_mu import masks as mask_trees
from sparse_mu import scores
from sparse_mu.trees import Prunable, convolution_kernels
from sparse_mu.types import (
    Array,
    Batch,
    Hyper,
    Key,
    LossFn,
    Masks,
    Model,
    Stats,
    Unlearner,
    UnlearnState,
)
from sparse_mu.unlearn.contract import OneSet, begin, unchanged
from sparse_mu.unlearn.descent import Transformation, settings
from sparse_mu.unlearn.first_order import first_order_step

Events = Literal["even", "official"]


class AtFirst(NamedTuple):
    """``int32[]``: how many prunable weights were kept before the first step."""

    kept: Array


def event_rate(sparsity: Array | float, epochs: Array | float) -> Array:
    """What each event removes of the remaining weights: ``1 - (1 - sparsity)^(1 / events)``.

    With ``events = floor((E - 1) / 2) + 1`` of E epochs.
    """
    return 1 - (1 - sparsity) ** (1 / (jnp.floor((epochs - 1) / 2) + 1))


def _kept(masks: Masks, prunable: Prunable) -> Array:
    pruned, total = mask_trees.pruned(masks, prunable)
    return total - pruned


@functools.lru_cache(maxsize=64)
def progressive_step(
    loss_fn: LossFn,
    tx: Transformation,
    prunable: Prunable,
    events: Events,
    axis_name: str | None = None,
) -> Callable[[UnlearnState, Batch], tuple[UnlearnState, Stats]]:
    """A first-order step, before which the masks shrink when an event is due."""
    descend = first_order_step(loss_fn, tx, axis_name)

    def epoch_of(state: UnlearnState) -> tuple[Array, Array]:
        """The epoch, and the step within it."""
        steps = state.hyper.steps_per_epoch.astype(jnp.int32)
        return state.step // steps, state.step % steps

    def prune(state: UnlearnState) -> UnlearnState:
        hyper, at_first = state.hyper, state.aux.kept
        remaining = _kept(state.masks, prunable)
        count = jnp.round(event_rate(hyper.sparsity, hyper.epochs) * remaining).astype(jnp.int32)
        if events == "even":
            goal = at_first - mask_trees.pruned_count(at_first, hyper.sparsity)
            missing = jnp.maximum(remaining - goal, 0)
            is_last = epoch_of(state)[0] + 2 >= hyper.epochs
            count = jnp.where(is_last, missing, jnp.minimum(count, missing))
        sizes = scores.magnitude(state.model.params)
        masks = mask_trees.prune_lowest(state.masks, sizes, count, prunable)
        buffers = optax.tree.map_params(
            tx.init, lambda leaf, mask: jnp.where(mask, leaf, 0), state.opt_state, masks
        )
        model = state.model._replace(params=mask_trees.apply(masks, state.model.params))
        return state._replace(model=model, masks=masks, opt_state=buffers)

    def step(state: UnlearnState, batch: Batch) -> tuple[UnlearnState, Stats]:
        epoch, within = epoch_of(state)
        if events == "official":
            epoch = state.hyper.epochs.astype(jnp.int32) - epoch
        due = (within == 0) & (epoch % 2 == 0)
        return descend(jax.lax.cond(due, prune, lambda given: given, state), batch)

    return step


def finetune_and_prune(
    loss_fn: LossFn,
    tx: Transformation | None = None,
    sparsity: float = 0.95,
    *,
    prunable: Prunable = convolution_kernels,
    events: Events = "even",
    hyper: Hyper | None = None,
    axis_name: str | None = None,
) -> Unlearner:
    """Fine-tuning on the retain set that prunes on the way, reaching ``sparsity`` near its end.

    At the start of epochs t = 0, 2, 4, ... the fraction ``p = 1 - (1 - sparsity)^(1 / n)`` of the
    *remaining* prunable weights goes, ``n = floor((E - 1) / 2) + 1`` times in E epochs: the
    smallest ``|w|`` of all leaves together, ``round(p * remaining)`` of them (half to even), ties
    by index; the last event removes what is missing to ``round(sparsity * kept at the start)``,
    and none goes past it. Every epoch is a fine-tuning epoch without a penalty. Pruned weights and
    their momentum are exactly 0 from then on. ``state.masks`` shrinks: at the end it holds the
    sparse model's masks; after :func:`sparse_mu.forget` they are
    ``sparse_mu.masks.from_zeros(model.params)``, to be given to whatever comes next.

    ``events="official"`` prunes where ``E - t`` is even and rounds every event. For even E that is
    the same up to rounding; for odd E one event less happens than p assumes, so that the official
    code ends denser than asked for, and with E = 1 prunes nothing.

    Args:
        loss_fn: weighted-sum loss of a batch.
        tx: as in :func:`~sparse_mu.unlearn.first_order.finetune`.
        sparsity: fraction to remove of the prunable weights that the given masks keep, in [0, 1).
        prunable: which leaves are pruned.
        events: at which epochs, see above.
        hyper: hyper-parameters as leaves; its ``sparsity`` is replaced. ``epochs`` and
            ``steps_per_epoch`` must be the training's own, which :func:`sparse_mu.forget` fills in.
        axis_name: axis over which batches are split, or None.

    Raises:
        ValueError: if ``sparsity`` is outside [0, 1) or ``events`` is unknown; at ``init`` if no
            leaf is prunable.

    Source: SPEC section 4.6 (the official code's ``FT_prune_bi``; not in the paper). Counts are
    rounded float32 products: next to a half, and of more than a million weights, an event may
    remove one more or less than in float64.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity = {sparsity!r}: must be a fraction in [0, 1)")
    if events not in ("even", "official"):
        raise ValueError(f"events = {events!r}: must be 'even' or 'official'")
    tx, hyper = settings(tx, hyper)
    hyper = hyper._replace(sparsity=jnp.float32(sparsity))

    def init(model: Model, masks: Masks, key: Key) -> UnlearnState:
        state = begin(model, masks, key, hyper=hyper, opt_state=tx.init)
        return state._replace(aux=AtFirst(_kept(state.masks, prunable)))

    step = OneSet(progressive_step(loss_fn, tx, prunable, events, axis_name), "retain")
    return Unlearner(init, step, unchanged, "retain", "epochs")
