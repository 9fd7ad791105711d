"""The l1 penalty of l1-sparse unlearning: its sub-gradient, its proximal step and its schedules.

Paper, section 4: ``min_w L(w; Dr) + gamma * ||w||_1``. The official code adds ``alpha * ||w||_1``
to the loss with a linearly decaying alpha; a paper schedule has *mean* gamma, so the code's peak
alpha equals ``2 * gamma`` (SPEC section 4.4).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparse_mu.types import Array, Params, PyTree

GAMMA_SCHEDULES: tuple[str, ...] = ("constant", "growing", "decaying")


def gamma_at(gamma: Array, schedule: Array, epoch: Array, epochs: Array) -> Array:
    """The penalty of epoch t of T, ``float32[]`` (paper, section 4; SPEC section 4.4).

    ``constant``: gamma; ``growing``: ``2 t / T * gamma``; ``decaying``: ``(2 - 2 t / T) * gamma``.

    Args:
        gamma: strength; the mean over the schedule up to 1 / T.
        schedule: index into :data:`GAMMA_SCHEDULES`; may be traced.
        epoch: t, counted from 0.
        epochs: T.
    """
    fraction = jnp.clip(epoch / epochs, 0.0, 1.0)
    factors = jnp.stack([jnp.ones_like(fraction), 2 * fraction, 2 - 2 * fraction])
    return gamma * jnp.take(factors, schedule, axis=0)


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
    learning_rate: float, gamma: float, prunable: PyTree | None = None
) -> optax.GradientTransformation:
    """Proximal step of the l1 penalty; stands last in an optax chain.

    Maps the update u of weight w to ``soft_threshold(w + u, learning_rate * gamma) - w``, so that
    applying it leaves ``soft_threshold(w + u, learning_rate * gamma)``.

    Args:
        learning_rate: the step size of the optimiser before it.
        gamma: strength of the penalty.
        prunable: tree of Python bools; only True leaves are thresholded. Default: all.
    """

    def init(params: Params) -> ProximalState:
        del params
        return ProximalState()

    def update(
        updates: Params, state: optax.OptState, params: Params | None = None
    ) -> tuple[Params, optax.OptState]:
        if params is None:
            raise ValueError("l1_prox needs the parameters: call update(updates, state, params)")
        flags = jax.tree.map(lambda _: True, params) if prunable is None else prunable
        thresholded = jax.tree.map(
            lambda flag, u, w: soft_threshold(w + u, learning_rate * gamma) - w if flag else u,
            flags,
            updates,
            params,
        )
        return thresholded, state

    return optax.GradientTransformation(init, update)
