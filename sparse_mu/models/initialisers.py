"""Initial values as plain scaled draws.

flax's ``he_normal`` draws from a *truncated* normal, which torch does not. Draws are flat and
reshaped afterwards: XLA:CPU compiles a draw of four axes several times slower (four kernels under
``vmap``: 14 s against 1.7 s).
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Initialiser = Callable[[jax.Array, Sequence[int], DTypeLike], jax.Array]


def kaiming_normal(
    key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """Draws a kernel from ``N(0, 2 / fan_in)``, fan_in the product of all axes but the last.

    This is torch's ``kaiming_normal_`` (fan_in, gain sqrt 2), the official initialisation of
    ResNet-20s (SPEC section 2).

    Args:
        key: PRNG key.
        shape: inputs before the last axis, outputs on the last axis.
        dtype: of the result.

    Returns:
        float[shape].
    """
    return _normal(key, shape, dtype, math.sqrt(2.0 / math.prod(shape[:-1])))


def kaiming_normal_fan_out(
    key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """Draws a kernel from ``N(0, 2 / fan_out)``, fan_out = kernel size times output channels.

    This is torch's ``kaiming_normal_(mode="fan_out", nonlinearity="relu")``, the initialisation of
    the convolutions of ResNet-18, ResNet-50 and VGG-16 (SPEC section 2).

    Args:
        key: PRNG key.
        shape: [S, S, C, D] for a convolution from C to D channels.
        dtype: of the result.

    Returns:
        float[shape].
    """
    return _normal(key, shape, dtype, math.sqrt(2.0 * shape[-2] / math.prod(shape)))


def normal(deviation: float) -> Initialiser:
    """Makes the draw of ``N(0, deviation^2)``."""

    def draw(key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return _normal(key, shape, dtype, deviation)

    return draw


def linear_kernel(
    key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """Draws torch's default for the weight of a linear layer: ``U(-fan_in^-.5, fan_in^-.5)``.

    Args:
        key: PRNG key.
        shape: [fan_in, outputs].
        dtype: of the result.

    Returns:
        float[shape].
    """
    return _uniform(key, shape, dtype, shape[0] ** -0.5)


def linear_bias(fan_in: int) -> Initialiser:
    """Makes torch's default for the bias of a linear layer: ``U(-fan_in^-.5, fan_in^-.5)``.

    Args:
        fan_in: number of inputs of the layer.

    Returns:
        A function of (key, shape, dtype).
    """

    def draw(key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return _uniform(key, shape, dtype, fan_in**-0.5)

    return draw


def _normal(key: jax.Array, shape: Sequence[int], dtype: DTypeLike, deviation: float) -> jax.Array:
    return deviation * jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)


def _uniform(key: jax.Array, shape: Sequence[int], dtype: DTypeLike, bound: float) -> jax.Array:
    drawn = jax.random.uniform(key, (math.prod(shape),), dtype, minval=-bound, maxval=bound)
    return drawn.reshape(shape)
