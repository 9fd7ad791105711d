"""SCRUB: a student leaves its teacher on the forget set and stays with it on the retain set."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparse_mu.losses import weighted_sum
from sparse_mu.types import (
    ApplyFn,
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
    StepFn,
    UnlearnBatch,
    Unlearner,
    UnlearnState,
)
from sparse_mu.unlearn.contract import begin, unchanged
from sparse_mu.unlearn.descent import Transformation, both_sets, descend, mix, set_sums, settings


class ScrubHyper(NamedTuple):
    """Leaves of SCRUB.

    Attributes:
        descent: learning rate and the like; its ``sign`` is not read.
        alpha: weight of the divergence in a pass over Dr.
        gamma: weight of the cross entropy in a pass over Dr.
        temperature: softens both distributions of the divergence.
        max_epochs: SCRUB epochs that begin with a pass over Df.
    """

    descent: Hyper
    alpha: Array | float
    gamma: Array | float
    temperature: Array | float
    max_epochs: Array | int


def scrub_passes(epochs: int, max_epochs: int) -> int:
    """How many of ``fit``'s epochs make ``epochs`` epochs of SCRUB (see :func:`scrub`)."""
    return epochs + min(max_epochs, epochs)


def divergence(teacher: Array, student: Array, temperature: Array | float) -> Array:
    """``T^2 * KL(softmax(teacher / T) || softmax(student / T))``, ``[B, K] -> float32[B]``."""
    wanted = jax.nn.log_softmax(teacher / temperature)
    found = jax.nn.log_softmax(student / temperature)
    return temperature**2 * jnp.sum(jnp.exp(wanted) * (wanted - found), axis=-1)


def _pass_loss(
    apply_fn: ApplyFn, train: bool, hyper: ScrubHyper, forgetting: Array, teacher: Array
) -> LossFn:
    """The loss of one pass: ``-KL`` over Df, ``alpha * KL + gamma * CE`` over Dr."""
    of_divergence = jnp.where(forgetting, -1.0, hyper.alpha)
    of_entropy = jnp.where(forgetting, 0.0, hyper.gamma)

    def loss_fn(params: Params, net_state: PyTree, batch: Batch, key: Key) -> tuple:
        logits, net_state = apply_fn(params, net_state, batch.inputs, train=train, key=key)
        entropy = optax.losses.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        apart = divergence(teacher, logits, hyper.temperature)
        losses = of_divergence * apart + of_entropy * entropy
        return weighted_sum(losses, logits, net_state, batch)

    return loss_fn


@functools.lru_cache(maxsize=64)
def _scrub_step(
    apply_fn: ApplyFn, train: bool, tx: Transformation, axis_name: str | None
) -> StepFn:
    def step(state: UnlearnState, batch: UnlearnBatch) -> tuple[UnlearnState, Stats]:
        hyper: ScrubHyper = state.hyper
        sets = both_sets(batch)
        if sets[0].weights.shape != sets[1].weights.shape:
            raise ValueError(
                f"batch: scrub needs batches of one size, got {sets[0].weights.shape[0]} rows of "
                f"the forget set and {sets[1].weights.shape[0]} of the retain set"
            )
        key = jax.random.fold_in(state.key, state.step)
        now = state.step // jnp.asarray(hyper.descent.steps_per_epoch, jnp.int32)
        forgetting = (now < 2 * hyper.max_epochs) & (now % 2 == 0)
        # one set is chosen before the forward pass: a branch would put the backward convolutions
        # inside a conditional, which XLA on CPU runs 17 times slower
        chosen = jax.tree.map(functools.partial(jnp.where, forgetting), *sets)
        teacher, _ = apply_fn(
            state.aux.params, state.aux.net_state, chosen.inputs, train=False, key=key
        )
        loss_fn = _pass_loss(apply_fn, train, hyper, forgetting, teacher)
        sums = set_sums(loss_fn, state.model, chosen, key, axis_name)
        moved, stats = descend(state, tx, hyper.descent, mix([(1.0, sums)]), sums)
        # past the end of the shorter set nothing moves, momentum and decay neither
        hold = functools.partial(jax.tree.map, functools.partial(jnp.where, sums.weight > 0))
        held = moved._replace(
            model=hold(moved.model, state.model), opt_state=hold(moved.opt_state, state.opt_state)
        )
        return held, stats

    return step


def scrub(
    apply_fn: ApplyFn,
    tx: Transformation | None = None,
    *,
    alpha: float = 0.001,
    gamma: float = 0.99,
    temperature: float = 4.0,
    max_epochs: int = 2,
    train: bool = True,
    hyper: Hyper | None = None,
    axis_name: str | None = None,
) -> Unlearner:
    """SCRUB: raises ``KL(teacher || student)`` on Df and lowers it, with the loss, on Dr, in turn.

    The teacher is the original model in evaluation mode; the student starts from it. A SCRUB epoch
    e = 0, 1, ... is a *max pass* over Df, ``w <- tx(-grad mean T^2 KL)``, as long as
    ``e < max_epochs``, and then a *min pass* over Dr,
    ``w <- tx(grad mean (alpha * T^2 KL + gamma * CE))``, both with one optimiser state.

    A pass is one epoch of ``fit``: max, min, max, min, ..., and after ``2 * max_epochs`` of them
    min passes alone; E epochs of SCRUB are ``scrub_passes(E, max_epochs)`` of ``fit``'s. Schedules
    are laid over the passes. Which pass it is follows from ``hyper.steps_per_epoch``, which ``fit``
    and :func:`sparse_mu.forget` fill in. A pass has as many steps as the longer set needs; past the
    end of its own set a step changes nothing (but costs a step).

    In the very first max pass of a network without dropout or BatchNorm student and teacher agree:
    KL and its gradient are 0, and only weight decay moves the student.

    Args:
        apply_fn: the network; logits of student and teacher enter the loss.
        tx: as in :func:`sparse_mu.unlearn.finetune`.
        alpha: weight of the divergence on Dr.
        gamma: weight of the cross entropy on Dr.
        temperature: T.
        max_epochs: SCRUB epochs with a max pass (the official code's ``msteps``).
        train: BatchNorm and dropout mode of the student, in both passes; official: True.
        hyper: learning rate and the like, as leaves; its ``sign`` is not read.
        axis_name: axis over which batches are split, or None.

    Raises:
        ValueError: if ``alpha`` or ``gamma`` is negative, ``temperature`` not positive, or
            ``max_epochs`` negative.

    Source: Kurmanji et al., "Towards Unbounded Machine Unlearning", NeurIPS 2023, section 3; the
    defaults are those of their large-scale notebook (3 epochs, 2 of them with a max pass). Batches
    of both sets have one size here. SCRUB+R, the rewinding to an earlier checkpoint, is not built.
    """
    if not (alpha >= 0 and gamma >= 0):
        raise ValueError(f"alpha = {alpha!r}, gamma = {gamma!r}: must not be negative")
    if not temperature > 0:
        raise ValueError(f"temperature = {temperature!r}: must be positive")
    if max_epochs < 0:
        raise ValueError(f"max_epochs = {max_epochs!r}: must not be negative")
    tx, descent = settings(tx, hyper)
    leaves = ScrubHyper(
        descent,
        jnp.float32(alpha),
        jnp.float32(gamma),
        jnp.float32(temperature),
        jnp.int32(max_epochs),
    )

    def init(model: Model, masks: Masks, key: Key) -> UnlearnState:
        state = begin(model, masks, key, hyper=leaves, opt_state=tx.init)
        teacher = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), state.model)
        return state._replace(aux=teacher)

    step = _scrub_step(apply_fn, train, tx, axis_name)
    return Unlearner(init, step, unchanged, "both", "epochs")
