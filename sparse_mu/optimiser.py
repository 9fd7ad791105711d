"""SGD whose hyper-parameters are arguments, so that every first-order method shares one program.

``optax.sgd`` closes over its learning rate; here the rate, momentum and decay arrive with each
update as a :class:`~sparse_mu.types.Hyper`, whose leaves may differ between trials.
"""

import functools
import math

import jax
import jax.numpy as jnp
import optax

from sparse_mu.types import Array, Hyper, Params

LEARNING_RATE_SCHEDULES: tuple[str, ...] = ("constant", "step", "cosine")


def learning_rate_at(hyper: Hyper, step: Array) -> Array:
    """The step size of one step, ``float32[]``.

    ``constant``: the peak. ``step``: x0.1 from epoch ``floor(E / 2)`` and again from epoch
    ``floor(3 E / 4)`` of E (the paper's milestones 91 and 136 of 182), neither before epoch 1: a
    training of one epoch keeps its peak, and of two the second runs at 0.01 of it. ``cosine``: half
    a cosine to 0 over the epochs after the warm-up. A warm-up ramps linearly from 0 over
    ``warmup_epochs``.
    """
    exact_epoch = step / hyper.steps_per_epoch
    epoch = jnp.floor(exact_epoch)
    first, second = (jnp.maximum(jnp.floor(hyper.epochs * part), 1.0) for part in (0.5, 0.75))
    decay = jnp.where(epoch < first, 1.0, 0.1) * jnp.where(epoch < second, 1.0, 0.1)
    remaining = jnp.maximum(hyper.epochs - hyper.warmup_epochs, 1e-6)
    progress = jnp.clip((exact_epoch - hyper.warmup_epochs) / remaining, 0.0, 1.0)
    cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    factor = jnp.take(jnp.stack([jnp.ones_like(decay), decay, cosine]), hyper.lr_schedule, axis=0)
    ramp = jnp.clip((exact_epoch + 1 / hyper.steps_per_epoch) / hyper.warmup_epochs, 0.0, 1.0)
    return hyper.learning_rate * factor * jnp.where(hyper.warmup_epochs > 0, ramp, 1.0)


@functools.lru_cache(maxsize=1)
def sgd() -> optax.GradientTransformationExtraArgs:
    """SGD with momentum and L2 decay, in torch's form (SPEC section 3), read from ``hyper``.

    ``d = gradient + weight_decay * w``; ``buf = momentum * buf + d`` (from zero, so the first
    buffer is d); ``w <- w - learning_rate * buf``. No dampening, no Nesterov.

    The update takes two more arguments: ``hyper`` and ``step``. One object serves the whole
    process, so that programs compiled for it are found again.
    """

    def init(params: Params) -> optax.TraceState:
        return optax.TraceState(trace=optax.tree.zeros_like(params))

    def update(
        updates: Params,
        state: optax.TraceState,
        params: Params | None = None,
        *,
        hyper: Hyper,
        step: Array,
        **unused: object,
    ) -> tuple[Params, optax.TraceState]:
        del unused  # optax's protocol for extra arguments
        if params is None:
            raise ValueError("sgd needs the parameters for its weight decay")
        rate = learning_rate_at(hyper, step)
        buffers = jax.tree.map(
            lambda g, buf, w: hyper.momentum * buf + (g + hyper.weight_decay * w),
            updates,
            state.trace,
            params,
        )
        return jax.tree.map(lambda buf: -rate * buf, buffers), optax.TraceState(trace=buffers)

    # pyrefly: ignore[bad-argument-type]  (hyper and step are extra arguments it cannot do without)
    return optax.GradientTransformationExtraArgs(init, update)


def hyper_parameters(
    *,
    learning_rate: float = 0.0,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    sign: float = 1.0,
    gamma: float = 0.0,
    gamma_schedule: int = 0,
    lr_schedule: int = 0,
    warmup_epochs: float = 0.0,
    epochs: float = 1.0,
    steps_per_epoch: float = 1.0,
    loss_ceiling: float = math.inf,
    proximal_gamma: float = 0.0,
    sparsity: float = 0.0,
) -> Hyper:
    """A :class:`Hyper` of strongly typed scalars (``int32`` kinds, ``float32`` for the rest)."""
    values = Hyper(
        learning_rate=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        sign=sign,
        gamma=gamma,
        gamma_schedule=gamma_schedule,
        lr_schedule=lr_schedule,
        warmup_epochs=warmup_epochs,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        loss_ceiling=loss_ceiling,
        proximal_gamma=proximal_gamma,
        sparsity=sparsity,
    )
    kinds = ("gamma_schedule", "lr_schedule")
    return Hyper(
        *(
            jnp.asarray(value, jnp.int32 if name in kinds else jnp.float32)
            for name, value in zip(Hyper._fields, values, strict=True)
        )
    )
