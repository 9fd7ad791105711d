"""Wrong implementations, each a small change to one shipped part (PARITY's table of mistakes)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sparse_mu import losses, proximal
from sparse_mu.models.normalisation import BatchNorm
from sparse_mu.optimiser import learning_rate_at
from sparse_mu.types import Array, Params

OPTIMISER = (
    "none", "nesterov", "dampening", "decoupled decay", "decay of kernels only",
    "l1 on convolutions only", "l1 on kernels only",
)  # fmt: skip


class MistakenState(NamedTuple):
    """Momentum, whether it is empty, and which of :data:`OPTIMISER` is made."""

    trace: Params
    first: Array
    kind: Array


def _mistaken_update(updates, state, params=None, *, hyper, step, **unused):
    """Torch's SGD with one mistake; which one is data, so that all share a program."""
    del unused

    def made(name):
        return state.kind == OPTIMISER.index(name)

    epoch = jnp.floor(step / hyper.steps_per_epoch)
    gamma = proximal.gamma_at(hyper.gamma, hyper.gamma_schedule, epoch, hyper.epochs)

    def direction(gradient, weight):  # the gradient has the penalty on all leaves in it
        dropped = made("l1 on convolutions only") & (weight.ndim != 4)
        dropped |= made("l1 on kernels only") & (weight.ndim < 2)
        gradient = gradient - jnp.where(dropped, gamma * jnp.sign(weight), 0)
        decayed = ~(made("decay of kernels only") & (weight.ndim < 2)) & ~made("decoupled decay")
        return gradient + jnp.where(decayed, hyper.weight_decay * weight, 0)

    directions = jax.tree.map(direction, updates, params)
    damped = jnp.where(made("dampening") & ~state.first, 1 - hyper.momentum, 1.0)
    trace = jax.tree.map(lambda d, buf: hyper.momentum * buf + damped * d, directions, state.trace)
    rate = learning_rate_at(hyper, step)

    def step_of(d, buf, weight):
        buf = jnp.where(made("nesterov"), d + hyper.momentum * buf, buf)
        return -rate * (buf + jnp.where(made("decoupled decay"), hyper.weight_decay * weight, 0))

    found = jax.tree.map(step_of, directions, trace, params)
    return found, MistakenState(trace, jnp.zeros((), bool), state.kind)


def _init(params):
    zeros = jax.tree.map(jnp.zeros_like, params)
    return MistakenState(zeros, jnp.ones((), bool), jnp.zeros((), jnp.int32))


MISTAKEN_SGD = optax.GradientTransformationExtraArgs(_init, _mistaken_update)


class BiasedBatchNorm(BatchNorm):
    """Feeds the biased variance to the running one, as flax's own layer does."""

    def _batch_statistics(self, values):
        mean, var, _ = super()._batch_statistics(values)
        return mean, var, 1e30  # count / (count - 1) is 1


def same_padding(inputs, kernel, *, stride, padding, form):
    """XLA's "SAME", which pads one side only at stride 2."""
    del padding, form
    return lax.conv_general_dilated(
        inputs, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def flow_of_convolutions(apply_fn, model, batch, key, *, masked=True):
    """The official GraSP's score with g over the convolutions only."""
    loss_fn = losses.classification(
        lambda params, net_state, inputs, *, train, key: (
            apply_fn(params, net_state, inputs, train=train, key=key)[0] / 200,
            net_state,
        ),
        train=True,
    )

    def mean_loss(params):
        return loss_fn(params, model.net_state, batch, key)[0] / batch.weights.sum()

    gradient = jax.grad(mean_loss)
    direction = jax.tree.map(
        lambda g: g if g.ndim == 4 else jnp.zeros_like(g), gradient(model.params)
    )
    product = jax.jvp(gradient, (model.params,), (direction,))[1]
    return jax.tree.map(lambda w, h: jnp.abs(w * h), model.params, product)
