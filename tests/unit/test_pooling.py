"""Pooling against loops in numpy, and which of equal values receives a gradient."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from sparse_mu.models.pooling import adaptive_mean, max_pool


def windows(images, size, stride, padding):
    sides = (padding, padding)
    padded = np.pad(images, ((0, 0), sides, sides, (0, 0)), constant_values=-np.inf)
    height = (padded.shape[1] - size) // stride + 1
    width = (padded.shape[2] - size) // stride + 1
    for y in range(height):
        for x in range(width):
            top, left = y * stride, x * stride
            yield y, x, padded[:, top : top + size, left : left + size]


@pytest.mark.parametrize(
    ("size", "stride", "padding", "shape"),
    [(2, 2, 0, (8, 6)), (2, 2, 0, (7, 9)), (3, 2, 1, (8, 8)), (3, 2, 1, (7, 5)), (3, 1, 1, (1, 4))],
)
def test_max_pool_equals_a_loop(size, stride, padding, shape):
    images = np.random.default_rng(0).standard_normal((2, *shape, 3)).astype(np.float32)
    found = np.asarray(max_pool(jnp.asarray(images), size=size, stride=stride, padding=padding))
    cells = list(windows(images, size, stride, padding))
    assert found.shape == (2, cells[-1][0] + 1, cells[-1][1] + 1, 3)
    for y, x, window in cells:
        np.testing.assert_array_equal(found[:, y, x], window.max((1, 2)))


@pytest.mark.ci
def test_max_pool_has_the_gradient_of_xlas():
    images = jnp.asarray(np.random.default_rng(1).standard_normal((2, 7, 8, 3)), jnp.float32)

    def xlas(x):
        sides = ((0, 0), (1, 1), (1, 1), (0, 0))
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), sides)

    def ours(x):
        return max_pool(x, size=3, stride=2, padding=1)

    gradients = [
        jax.grad(lambda x, pool=pool: jnp.sin(pool(x)).sum())(images) for pool in (ours, xlas)
    ]
    # a pixel is the largest of up to four windows, whose gradients are summed in another order
    np.testing.assert_allclose(*gradients, rtol=1e-6, atol=1e-6)
    tangent = jnp.cos(images)  # forward mode, which curvature needs
    change = jax.jvp(ours, (images,), (tangent,))[1]
    np.testing.assert_allclose(
        jnp.vdot(change, change),
        jax.vjp(ours, images)[1](change)[0].ravel() @ tangent.ravel(),
        rtol=1e-5,
    )


def test_of_equal_values_the_first_receives_the_gradient():
    gradient = jax.grad(lambda x: max_pool(x, size=2, stride=2).sum())(jnp.zeros((1, 4, 2, 1)))
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[1, 0], [0, 0], [1, 0], [0, 0]])


@pytest.mark.parametrize("place", range(4))
def test_a_nan_comes_through(place):
    images = jnp.arange(4.0).at[place].set(jnp.nan).reshape(1, 2, 2, 1)
    assert jnp.isnan(max_pool(images, size=2, stride=2)).all()


def test_an_image_smaller_than_a_window_raises():
    with pytest.raises(ValueError, match="images of 1x4 are too small for windows of 2"):
        max_pool(jnp.zeros((1, 1, 4, 1)), size=2, stride=2)


@pytest.mark.parametrize("shape", [(2, 2), (4, 4), (5, 3), (1, 7)])
@pytest.mark.parametrize("side", [1, 2])
def test_adaptive_mean_has_torchs_windows(shape, side):
    images = np.random.default_rng(2).standard_normal((2, *shape, 3)).astype(np.float32)
    found = np.asarray(adaptive_mean(jnp.asarray(images), side))
    assert found.shape == (2, side, side, 3)
    for y in range(side):
        for x in range(side):
            rows, columns = (
                slice(math.floor(i * n / side), math.ceil((i + 1) * n / side))
                for i, n in zip((y, x), shape, strict=True)
            )
            expected = images[:, rows, columns].mean((1, 2), dtype=np.float64)
            np.testing.assert_allclose(found[:, y, x], expected, atol=1e-6)
