"""The weighted cross entropy against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_mu.losses import classification
from sparse_mu.types import Batch


def apply_fn(params, net_state, inputs, *, train, key):
    return inputs * params, {"train": train, "key": key, "was": net_state}


def batch(weights, rows=4):
    logits = np.random.default_rng(0).standard_normal((rows, 3)).astype(np.float32)
    return Batch(jnp.asarray(logits), jnp.arange(rows) % 3, jnp.asarray(weights, jnp.float32))


@pytest.mark.ci
def test_the_loss_is_the_weighted_sum(key):
    given = batch([1.0, 0.5, 0.0, 2.0])
    loss, aux = classification(apply_fn)(jnp.float32(1), (), given, key)
    logits = np.asarray(given.inputs, np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(4), np.asarray(given.labels)]
    right = logits.argmax(1) == np.asarray(given.labels)
    weights = np.asarray(given.weights)
    assert float(loss) == pytest.approx(weights @ losses, rel=1e-6)  # float32
    assert float(aux.weight) == 3.5
    assert float(aux.correct) == weights @ right


def test_a_row_of_weight_zero_adds_nothing_even_when_its_loss_is_infinite(key):
    given = batch([1.0, 1.0, 1.0, 0.0])
    broken = given._replace(inputs=given.inputs.at[3].set(jnp.array([jnp.inf, 0.0, 0.0])))
    loss_fn = classification(apply_fn)
    assert float(loss_fn(1.0, (), broken, key)[0]) == float(loss_fn(1.0, (), given, key)[0])


@pytest.mark.ci
def test_sums_add_over_parts_of_a_batch(key):
    given = batch([1.0, 0.5, 0.0, 2.0])
    loss_fn = classification(apply_fn)
    parts = [jax.tree.map(lambda leaf, s=s: leaf[s], given) for s in (slice(2), slice(2, 4))]
    total = sum(float(loss_fn(jnp.float32(1), (), part, key)[0]) for part in parts)
    assert float(loss_fn(jnp.float32(1), (), given, key)[0]) == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("train", [True, False])
def test_the_mode_the_key_and_the_state_reach_the_network(train, key):
    loss_fn = classification(apply_fn, train=train)
    _, aux = loss_fn(jnp.float32(1), "state", batch(np.ones(4)), key)
    assert aux.net_state["train"] is train
    assert aux.net_state["was"] == "state"
    assert aux.net_state["key"] is key


def test_the_same_arguments_give_the_same_object():
    assert classification(apply_fn) is classification(apply_fn)
    assert classification(apply_fn, train=False) is not classification(apply_fn, train=True)
