"""Importance scores: trees of floats shaped like the parameters; the lowest are pruned."""

import jax
import jax.numpy as jnp

from sparse_mu.types import Params, Scores


def magnitude(params: Params) -> Scores:
    """``|w|`` of every weight (one-shot magnitude pruning, SPEC section 3)."""
    return jax.tree.map(jnp.abs, params)
