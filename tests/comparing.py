"""How trees are compared: to the bit, or to what rounding allows.

Programs that sum in another order differ by float32 rounding, about 1e-7 of values of order one per
operation. ``CLOSE`` allows that for three steps; where two programs must be the same program, bits
are compared.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

CLOSE = {"rtol": 2e-5, "atol": 2e-6}


def host(tree):
    """Numpy copies; a typed key becomes its numbers."""

    def copied(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.array(jax.random.key_data(leaf) if is_key else leaf)

    return jax.tree.map(copied, tree)


def assert_same_bits(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, host(actual), host(expected))


def assert_close(actual, expected, tolerance=None):
    compare = functools.partial(np.testing.assert_allclose, **(tolerance or CLOSE))
    jax.tree.map(compare, host(actual), host(expected))


def differs(first, second):
    pairs = zip(jax.tree.leaves(host(first)), jax.tree.leaves(host(second)), strict=True)
    return any(not np.array_equal(a, b) for a, b in pairs)
