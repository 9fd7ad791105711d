"""A two-layer network of plain dicts and rows it can learn: 53 weights, compiled in no time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sparse_mu import masks
from sparse_mu.types import Batch, Dataset, Model, Trials, UnlearnBatch

FEATURES, HIDDEN, CLASSES = 6, 5, 3


def apply_fn(params, net_state, inputs, *, train, key):
    del train, key
    hidden = jnp.tanh(inputs @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
    return hidden @ params["head"]["kernel"] + params["head"]["bias"][None], net_state


def noisy_apply_fn(params, net_state, inputs, *, train, key):
    """The same with its weights dropped at random, so that the key is read."""
    kept = jax.random.bernoulli(key, 0.7, (FEATURES, HIDDEN))
    hidden = params["hidden"] | {"kernel": params["hidden"]["kernel"] * kept}
    return apply_fn(params | {"hidden": hidden}, net_state, inputs, train=train, key=key)


def draw(key):
    """A model whose net state is not empty and which the network hands through."""
    first, second = jax.random.split(key)
    params = {
        "hidden": {
            "kernel": jax.random.normal(first, (FEATURES, HIDDEN)),
            "bias": jnp.full(HIDDEN, 0.1, jnp.float32),
        },
        "head": {
            "kernel": jax.random.normal(second, (HIDDEN, CLASSES)),
            "bias": jnp.full(CLASSES, 0.2, jnp.float32),
        },
    }
    return Model(params, {"seen": jnp.zeros(2)})


HEAD = {"hidden": {"kernel": False, "bias": False}, "head": {"kernel": True, "bias": True}}


def half_masks(model):
    return masks.from_scores(jax.tree.map(jnp.abs, model.params), 0.5, masks.matrices)


def examples(seed, count):
    """Rows of unit normal features whose label is the largest of three of them."""
    inputs = np.random.default_rng(seed).standard_normal((count, FEATURES)).astype(np.float32)
    return inputs, inputs[:, :CLASSES].argmax(axis=1).astype(np.int32)


def batch(seed, count=8, padding=0):
    inputs, labels = examples(seed, count)
    weights = (np.arange(count) < count - padding).astype(np.float32)
    return Batch(jnp.asarray(inputs), jnp.asarray(labels), jnp.asarray(weights))


def both_sets(seed, count=8, padding=0):
    return UnlearnBatch(forget=batch(seed, count, padding), retain=batch(seed + 100, count))


def dataset(seed=0, count=30):
    inputs, labels = examples(seed, count)
    return Dataset(jnp.asarray(inputs), jnp.asarray(labels))


@functools.lru_cache(maxsize=8)
def batched_trials(count, rows=30):
    """T models, dense masks, keys and sets; trial t forgets its own 4 + 2 t rows of ``rows``."""
    keys = jax.random.split(jax.random.key(7), count)
    model = jax.vmap(draw)(keys)
    dense = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), model.params)
    forget = np.stack([(np.arange(rows) + 5 * t) % rows < 4 + 2 * t for t in range(count)])
    orders = jax.random.split(jax.random.key(8), count)
    return model, dense, keys, Trials(forget, ~forget, orders)
