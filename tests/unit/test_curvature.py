"""Curvature against closed forms and dense algebra, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_network as tiny

from sparse_mu import curvature
from sparse_mu.losses import classification
from sparse_mu.types import Batch, Model

CLOSE = {"rtol": 1e-10, "atol": 1e-12}  # float64, sums of some hundred terms


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def double(tree):
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.float64 if leaf.dtype == jnp.float32 else None), tree
    )


def rows_of(count, weights):
    inputs, labels = tiny.examples(3, count)
    return Batch(jnp.asarray(inputs, jnp.float64), jnp.asarray(labels), jnp.asarray(weights))


def tiny_model():
    return double(tiny.draw(jax.random.key(2)))


def test_fisher_diagonal_of_softmax_regression_is_the_closed_form(key):
    def regression(params, net_state, inputs, *, train, key):
        return inputs @ params, net_state

    kernel = jax.random.normal(key, (tiny.FEATURES, 4), jnp.float64)
    weights = np.array([1.0, 2.0, 0.0, 0.5, 1.0])
    batch = rows_of(5, weights)
    found = curvature.fisher_diagonal_sum(regression, Model(kernel), batch, key)
    inputs = np.asarray(batch.inputs)
    p = np.exp(inputs @ np.asarray(kernel))
    p /= p.sum(1, keepdims=True)
    expected = np.einsum("i,ij,ik->jk", weights, inputs**2, p * (1 - p))
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_fisher_diagonal_of_a_network_is_the_sum_over_classes(key):
    model, batch = tiny_model(), rows_of(4, np.ones(4))
    found = curvature.fisher_diagonal_sum(tiny.apply_fn, model, batch, key)

    def log_probabilities(params):
        logits, _ = tiny.apply_fn(params, model.net_state, batch.inputs, train=False, key=key)
        return jax.nn.log_softmax(logits)

    p = np.exp(log_probabilities(model.params))
    jacobian = jax.jacrev(log_probabilities)(model.params)  # [rows, classes, *leaf.shape]
    expected = jax.tree.map(lambda j: np.einsum("ic,ic...->...", p, np.asarray(j) ** 2), jacobian)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), found, expected)


def test_example_gradients_are_each_rows_own_and_sum_to_the_batchs(key):
    model = tiny_model()
    batch = rows_of(5, np.array([1.0, 1.0, 0.0, 2.0, 1.0]))
    loss_fn = classification(tiny.apply_fn, train=False)
    rows = curvature.example_gradients(loss_fn, model, batch, key)
    whole = jax.grad(lambda p: loss_fn(p, model.net_state, batch, key)[0])(model.params)
    jax.tree.map(lambda r, w: np.testing.assert_allclose(r.sum(0), w, **CLOSE), rows, whole)
    alone = jax.tree.map(lambda leaf: leaf[3:4], batch)
    fourth = jax.grad(lambda p: loss_fn(p, model.net_state, alone, key)[0])(model.params)
    jax.tree.map(lambda r, w: np.testing.assert_allclose(r[3], w, **CLOSE), rows, fourth)
    assert all(not np.any(leaf[2]) for leaf in jax.tree.leaves(rows))


@pytest.mark.parametrize("empty_rows", [0, 3])
def test_woodbury_solve_is_the_dense_solve(empty_rows):
    rng = np.random.default_rng(0)
    filled, damping = 6, 0.03
    rows = {"a": rng.standard_normal((filled, 2, 3)), "b": rng.standard_normal((filled, 4))}
    vector = {"a": rng.standard_normal((2, 3)), "b": rng.standard_normal(4)}
    flat = np.concatenate([rows["a"].reshape(filled, -1), rows["b"]], axis=1)
    dense = damping * np.eye(10) + flat.T @ flat / filled
    expected = np.linalg.solve(dense, np.concatenate([vector["a"].ravel(), vector["b"]]))
    padded = jax.tree.map(
        lambda leaf: np.concatenate([leaf, np.zeros((empty_rows, *leaf.shape[1:]))]), rows
    )
    found = curvature.woodbury_solve(
        jax.tree.map(jnp.asarray, padded), jnp.float64(filled), damping, vector
    )
    actual = np.concatenate([np.ravel(found["a"]), np.ravel(found["b"])])
    # the asked-for 1e-10: conditioned by about |g|^2 / damping = 1e3 over float64's 1e-16
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-10)
