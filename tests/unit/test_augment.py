"""Augmentation against a slow numpy version."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_mu.data import augment

crop_flip = jax.jit(augment.crop_flip, static_argnames="padding")


def slow_crop_flip(image, dy, dx, flip, padding):
    height, width, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    cropped = padded[dy : dy + height, dx : dx + width]
    return cropped[:, ::-1] if flip else cropped


def choices(inputs, outputs, padding):
    """Finds the one (dy, dx, flip) that made each output."""
    found = []
    for image, out in zip(inputs, outputs, strict=True):
        matches = [
            (dy, dx, flip)
            for dy in range(2 * padding + 1)
            for dx in range(2 * padding + 1)
            for flip in (False, True)
            if np.array_equal(slow_crop_flip(image, dy, dx, flip, padding), out)
        ]
        assert len(matches) == 1
        found.append(matches[0])
    return np.array(found)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_every_output_is_a_crop_of_its_own_image(dtype):
    inputs = np.random.default_rng(0).integers(1, 256, (40, 6, 9, 2)).astype(dtype)
    outputs = np.asarray(crop_flip(jax.random.key(0), inputs))
    assert outputs.dtype == dtype
    choices(inputs, outputs, padding=4)


def test_offsets_and_flips_are_uniform_and_independent():
    inputs = np.random.default_rng(1).integers(1, 256, (900, 5, 5, 1)).astype(np.uint8)
    outputs = np.asarray(crop_flip(jax.random.key(1), inputs, padding=1))
    dy, dx, flip = choices(inputs, outputs, padding=1).T
    cells = np.bincount(dy * 6 + dx * 2 + flip, minlength=18)
    assert ((cells - 50) ** 2 / 50).sum() < 41  # 0.1% point of chi-squared, 17 degrees


def test_without_padding_only_flips_are_left():
    inputs = np.random.default_rng(2).integers(0, 256, (16, 4, 4, 3)).astype(np.uint8)
    outputs = np.asarray(crop_flip(jax.random.key(2), inputs, padding=0))
    flip = choices(inputs, outputs, padding=0)[:, 2]
    assert 0 < flip.sum() < 16


def test_inside_a_loop_as_outside():
    inputs = jnp.asarray(np.random.default_rng(3).integers(0, 256, (8, 8, 8, 1)), jnp.uint8)
    keys = jax.random.split(jax.random.key(3), 3)
    looped = jax.jit(lambda keys: jax.lax.map(lambda k: augment.crop_flip(k, inputs), keys))(keys)
    batched = jax.jit(jax.vmap(augment.crop_flip, in_axes=(0, None)))(keys, inputs)
    alone = jnp.stack([crop_flip(key, inputs) for key in keys])
    np.testing.assert_array_equal(looped, alone)
    np.testing.assert_array_equal(batched, alone)


def test_to_float_and_none():
    values = np.arange(256, dtype=np.uint8)
    floats = augment.to_float(jnp.asarray(values))
    assert floats.dtype == jnp.float32
    np.testing.assert_allclose(floats, values / 255, rtol=1e-6)
    assert floats.min() == 0 and floats.max() == 1
    assert augment.none(jax.random.key(0), floats) is floats
