"""Random labels: train the forget set towards wrong labels while the retain set keeps its own."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sparse_mu.types import (
    Array,
    Hyper,
    Key,
    LossFn,
    Masks,
    Model,
    Stats,
    StepFn,
    UnlearnBatch,
    Unlearner,
    UnlearnState,
)
from sparse_mu.unlearn.contract import begin, unchanged
from sparse_mu.unlearn.descent import (
    Transformation,
    both_sets,
    descend,
    mean_loss,
    mix,
    set_sums,
    settings,
)

_LABELS = 1  # folded into a step's key to draw labels; the network gets the step's key itself


class RandomLabelHyper(NamedTuple):
    """Leaves of random labelling.

    Attributes:
        descent: learning rate and the like; its ``sign`` is not read.
        retain_weight: weight of the retain loss beside the forget loss.
        num_classes: K.
    """

    descent: Hyper
    retain_weight: Array | float
    num_classes: Array | int


def wrong_labels(labels: Array, num_classes: Array | int, key: Key, first_row: Array) -> Array:
    """``int32[B]``: for each row a label uniform over the K - 1 others.

    Row i draws from ``fold_in(key, first_row + i)`` alone, so that a split batch draws what the
    whole one does.
    """
    rows = first_row + jnp.arange(labels.shape[0])

    def draw(row: Array) -> Array:
        return jax.random.randint(jax.random.fold_in(key, row), (), 0, num_classes - 1)

    return (labels + 1 + jax.vmap(draw)(rows)) % num_classes


@functools.lru_cache(maxsize=64)
def random_label_step(
    loss_fn: LossFn,
    tx: Transformation,
    axis_name: str | None,
    trainable: Callable[[UnlearnState], Masks | None] = lambda state: None,
) -> StepFn:
    """The step of random labelling, on the entries that ``trainable`` picks from the state."""

    def step(state: UnlearnState, batch: UnlearnBatch) -> tuple[UnlearnState, Stats]:
        hyper = state.hyper
        forget_batch, retain_batch = both_sets(batch)
        key = jax.random.fold_in(state.key, state.step)
        labels = forget_batch.labels
        device = 0 if axis_name is None else jax.lax.axis_index(axis_name)
        labels = wrong_labels(
            labels,
            hyper.num_classes,
            jax.random.fold_in(key, _LABELS),
            jnp.asarray(device * labels.shape[0]),
        )
        relabelled = forget_batch._replace(labels=labels)
        forget = set_sums(loss_fn, state.model, relabelled, key, axis_name)
        model = state.model._replace(net_state=forget.net_state)
        retain = set_sums(loss_fn, model, retain_batch, key, axis_name)
        gradients = mix([(1.0, forget), (hyper.retain_weight, retain)])
        objective = mean_loss(forget) + hyper.retain_weight * mean_loss(retain)
        told = retain._replace(loss=objective * retain.weight)
        return descend(state, tx, hyper.descent, gradients, told, trainable(state))

    return step


def check_numbers(num_classes: int, retain_weight: float) -> None:
    """Raises unless there is a wrong label to draw and the weight is none below 0.

    Raises:
        ValueError: naming the argument.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes = {num_classes!r}: must be at least 2")
    if not retain_weight >= 0:
        raise ValueError(f"retain_weight = {retain_weight!r}: must not be negative")


def random_label(
    loss_fn: LossFn,
    tx: Transformation | None = None,
    *,
    num_classes: int,
    retain_weight: float = 1.0,
    hyper: Hyper | None = None,
    axis_name: str | None = None,
) -> Unlearner:
    """Random labels: ``w <- tx(grad(E_Df l(x, y') + retain_weight * E_Dr l(x, y)))``.

    y' is uniform over the classes other than y, drawn anew in every step. Each step sees a batch of
    both sets, the shorter set starts again.

    Args:
        loss_fn: weighted-sum loss of a batch; it fixes the BatchNorm mode. Running statistics see
            the forget batch, then the retain batch.
        tx: as in :func:`sparse_mu.unlearn.finetune`.
        num_classes: K, at least 2.
        retain_weight: weight of the retain loss; 0 reads the retain set for nothing.
        hyper: learning rate and the like, as leaves; its ``sign`` is not read.
        axis_name: axis over which batches are split, or None.

    The sums that a step reports are ``objective * n_r``, n_r and the correct rows of Dr.

    Raises:
        ValueError: if ``num_classes`` is below 2 or ``retain_weight`` negative.

    Source: Golatkar et al., "Eternal Sunshine of the Spotless Net", CVPR 2020; the form is that of
    Fan et al., "SalUn", ICLR 2024. SalUn's code draws y' over *all* classes, the true one among
    them, and takes a pass over Df and a pass over Dr in turn instead of their sum.
    """
    check_numbers(num_classes, retain_weight)
    tx, descent = settings(tx, hyper)
    leaves = RandomLabelHyper(descent, jnp.float32(retain_weight), jnp.int32(num_classes))

    def init(model: Model, masks: Masks, key: Key) -> UnlearnState:
        return begin(model, masks, key, hyper=leaves, opt_state=tx.init)

    return Unlearner(init, random_label_step(loss_fn, tx, axis_name), unchanged, "paired", "epochs")
