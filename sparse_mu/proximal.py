"""The l1 penalty of l1-sparse unlearning: its sub-gradient, its proximal step and its schedules.

Paper, section 4: ``min_w L(w; Dr) + gamma * ||w||_1``.

gamma and alpha: the official code adds ``alpha * (1 - t / T) * ||w||_1`` to the loss, the paper's
``decaying`` schedule is ``gamma * (2 - 2 t / T)``. They are equal for ``alpha = 2 * gamma``: the
code's alpha is the schedule's peak, the paper's gamma its mean (up to 1 / T). All of this library
speaks of gamma; where a penalty is constant the two are the same number (SPEC section 4.4).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparse_mu.trees import Prunable, convolution_kernels, prunable_leaves
from sparse_mu.types import Array, Hyper, Params

GAMMA_SCHEDULES: tuple[str, ...] = (
    "constant",
    "growing",
    "decaying",
    "growing_matched",
    "decaying_matched",
)

Scheduled = Callable[[Hyper, Array], Array]


def gamma_at(
    gamma: Array | float, schedule: Array | int, epoch: Array, epochs: Array | float
) -> Array:
    """The penalty of epoch t of T, ``float32[]``.

    ===================== ========================== =======================
    schedule              gamma_t / gamma            mean over t = 0 .. T-1
    ===================== ========================== =======================
    ``constant``          ``1``                      1
    ``growing``           ``2 t / T``                ``1 - 1 / T``
    ``decaying``          ``2 - 2 t / T``            ``1 + 1 / T``
    ``growing_matched``   ``2 t / (T - 1)``          1
    ``decaying_matched``  ``2 (T - t) / (T + 1)``    1
    ===================== ========================== =======================

    The first three are the paper's; they differ in their total penalty too. The matched ones are
    the same shapes, scaled so that only the order in time differs. A single epoch (T = 1) has
    gamma under every matched schedule.

    Args:
        gamma: strength, per unit of weight.
        schedule: index into :data:`GAMMA_SCHEDULES`; may be traced.
        epoch: t, counted from 0.
        epochs: T.

    Source: paper, section 4 and Table 2; SPEC sections 4.4 and 11.12.
    """
    fraction = jnp.clip(epoch / epochs, 0.0, 1.0)
    growing, decaying = 2 * fraction, 2 - 2 * fraction
    grown = jnp.where(epochs > 1, growing * (epochs / jnp.maximum(epochs - 1, 1e-6)), 1.0)
    factors = [jnp.ones_like(fraction), growing, decaying, grown, decaying * epochs / (epochs + 1)]
    return gamma * jnp.take(jnp.stack(factors), schedule, axis=0)


def proximal_gamma_at(hyper: Hyper, step: Array) -> Array:
    """``hyper.proximal_gamma`` at the epoch of this step, by ``hyper.gamma_schedule``."""
    epoch = jnp.floor(step / hyper.steps_per_epoch)
    return gamma_at(hyper.proximal_gamma, hyper.gamma_schedule, epoch, hyper.epochs)


def l1_subgradient(params: Params, gamma: Array | float) -> Params:
    """``gamma * sign(w)`` with ``sign(0) = 0``, over all leaves as in the official code.

    (``jax.grad`` of ``abs`` is +1 at 0 and would revive pruned weights.)
    """
    return jax.tree.map(lambda leaf: gamma * jnp.sign(leaf), params)


def soft_threshold(values: Array, threshold: Array | float) -> Array:
    """``sign(v) * max(|v| - threshold, 0)``, the proximal operator of ``threshold * |v|``."""
    return jnp.sign(values) * jnp.maximum(jnp.abs(values) - threshold, 0)


class ProximalState(NamedTuple):
    """State of :func:`l1_prox`: none."""


def l1_prox(
    learning_rate: float | Scheduled,
    gamma: float | Scheduled,
    prunable: Prunable = convolution_kernels,
) -> optax.GradientTransformationExtraArgs:
    """Proximal step of the l1 penalty; stands last in an optax chain.

    Maps the update u of weight w to ``soft_threshold(w + u, learning_rate * gamma) - w``, so that
    applying it leaves ``soft_threshold(w + u, learning_rate * gamma)``. With plain gradient steps
    before it this is ISTA: its fixed points minimise ``L(w) + gamma * ||w||_1``.

    Numbers suit any chain, ``optax.chain(optax.sgd(0.1), l1_prox(0.1, 5e-4))``. Functions of
    ``(hyper, step)``, such as :func:`sparse_mu.optimiser.learning_rate_at` and
    :func:`proximal_gamma_at`, read the leaves that a step hands over.

    Args:
        learning_rate: the step size of the optimiser before it.
        gamma: strength of the penalty.
        prunable: ``(name, leaf) -> bool``, which leaves are thresholded. The others (by default
            everything but convolution kernels) keep their update.

    Raises:
        ValueError: in ``update``, without the parameters, when no leaf is prunable, or when a
            function is to be read and ``hyper=`` or ``step=`` is missing.

    Source: Parikh and Boyd, "Proximal algorithms", 2014, section 4.2; not in the official code,
    which adds the sub-gradient to the loss.
    """

    def init(params: Params) -> ProximalState:
        del params
        return ProximalState()

    def at(value: float | Scheduled, hyper: Hyper | None, step: Array | None) -> Array | float:
        if not callable(value):
            return value
        if hyper is None or step is None:
            raise ValueError("l1_prox reads hyper and step: call update(..., hyper=, step=)")
        return value(hyper, step)

    def update(
        updates: Params,
        state: optax.OptState,
        params: Params | None = None,
        *,
        hyper: Hyper | None = None,
        step: Array | None = None,
        **unused: object,
    ) -> tuple[Params, optax.OptState]:
        del unused  # optax's protocol for extra arguments
        if params is None:
            raise ValueError("l1_prox needs the parameters: call update(updates, state, params)")
        threshold = at(learning_rate, hyper, step) * at(gamma, hyper, step)
        thresholded = jax.tree.map(
            lambda flag, u, w: soft_threshold(w + u, threshold) - w if flag else u,
            prunable_leaves(params, prunable),
            updates,
            params,
        )
        return thresholded, state

    return optax.GradientTransformationExtraArgs(init, update)
