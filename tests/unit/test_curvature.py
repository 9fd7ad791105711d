"""Curvature against closed forms and dense algebra, in float64."""

import functools

import jax
import jax.flatten_util
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


@pytest.mark.parametrize("in_turn", [False, True])
def test_fisher_diagonal_of_softmax_regression_is_the_closed_form(key, in_turn):
    def regression(params, net_state, inputs, *, train, key):
        return inputs @ params, net_state

    kernel = jax.random.normal(key, (tiny.FEATURES, 4), jnp.float64)
    weights = np.array([1.0, 2.0, 0.0, 0.5, 1.0])
    batch = rows_of(5, weights)
    found = curvature.fisher_diagonal_sum(regression, Model(kernel), batch, key, in_turn=in_turn)
    inputs = np.asarray(batch.inputs)
    p = np.exp(inputs @ np.asarray(kernel))
    p /= p.sum(1, keepdims=True)
    expected = np.einsum("i,ij,ik->jk", weights, inputs**2, p * (1 - p))
    np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.parametrize("in_turn", [False, True])
def test_fisher_diagonal_of_linear_gaussian_regression_is_the_closed_form(key, in_turn):
    def regression(params, net_state, inputs, *, train, key):
        return inputs @ params["kernel"] + params["bias"][None], net_state

    params = {"kernel": jax.random.normal(key, (tiny.FEATURES, 3), jnp.float64)}
    params["bias"] = jnp.zeros(3, jnp.float64)
    weights = np.array([1.0, 2.0, 0.0, 0.5])
    batch = rows_of(4, weights)
    found = curvature.fisher_diagonal_sum(
        regression, Model(params), batch, key, likelihood="gaussian", in_turn=in_turn
    )
    # mean x w of each output, variance 1: E[x_j^2 (y - mean)^2] = x_j^2, whatever the weights
    expected = np.einsum("i,ij->j", weights, np.asarray(batch.inputs) ** 2)
    np.testing.assert_allclose(found["kernel"], np.tile(expected[:, None], 3), **CLOSE)
    np.testing.assert_allclose(found["bias"], np.full(3, weights.sum()), **CLOSE)


@pytest.mark.ci
@pytest.mark.parametrize("in_turn", [False, True])
def test_fisher_diagonal_of_a_network_is_the_sum_over_classes(key, in_turn):
    model, batch = tiny_model(), rows_of(4, np.ones(4))
    fisher_of = jax.jit(
        functools.partial(curvature.fisher_diagonal_sum, in_turn=in_turn), static_argnums=0
    )
    found = fisher_of(tiny.apply_fn, model, batch, key)

    def log_probabilities(params):
        logits, _ = tiny.apply_fn(params, model.net_state, batch.inputs, train=False, key=key)
        return jax.nn.log_softmax(logits)

    p = np.exp(log_probabilities(model.params))
    jacobian = jax.jit(jax.jacrev(log_probabilities))(model.params)  # [rows, classes, *leaf.shape]
    expected = jax.tree.map(lambda j: np.einsum("ic,ic...->...", p, np.asarray(j) ** 2), jacobian)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), found, expected)


def dense_matrix(product, params):
    """The matrix whose columns are the products with unit vectors."""
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    columns = jax.vmap(lambda unit: jax.flatten_util.ravel_pytree(product(unravel(unit)))[0])
    return jax.jit(columns)(jnp.eye(flat.size)).T


def test_hessian_product_is_the_dense_hessian(key):
    model, batch = tiny_model(), rows_of(5, np.array([1.0, 1.0, 0.0, 2.0, 1.0]))
    loss_fn = classification(tiny.apply_fn, train=False)
    flat, unravel = jax.flatten_util.ravel_pytree(model.params)
    whole = jax.hessian(lambda p: loss_fn(unravel(p), model.net_state, batch, key)[0])
    expected = jax.jit(whole)(flat)
    found = dense_matrix(
        lambda v: curvature.hessian_product(loss_fn, model, batch, v, key), model.params
    )
    np.testing.assert_allclose(found, expected, **CLOSE)
    assert np.linalg.eigvalsh(expected)[0] < -0.01  # indefinite, as networks are


@pytest.mark.ci
def test_gauss_newton_product_is_the_dense_matrix_and_its_trace_the_fishers(key):
    weights = np.array([1.0, 1.0, 0.0, 2.0, 1.0])
    model, batch = tiny_model(), rows_of(5, weights)
    flat, unravel = jax.flatten_util.ravel_pytree(model.params)

    def logits_of(flat):
        return tiny.apply_fn(unravel(flat), (), batch.inputs, train=False, key=key)[0]

    jacobian, p = jax.jit(jax.jacrev(logits_of))(flat), jax.nn.softmax(logits_of(flat))
    inner = p[:, :, None] * jnp.eye(3)[None] - p[:, :, None] * p[:, None, :]
    expected = jnp.einsum("r,rci,rcd,rdj->ij", weights, jacobian, inner, jacobian)
    found = dense_matrix(
        lambda v: curvature.gauss_newton_product(tiny.apply_fn, model, batch, v, key), model.params
    )
    np.testing.assert_allclose(found, expected, **CLOSE)
    fisher = curvature.fisher_diagonal_sum(tiny.apply_fn, model, batch, key)
    np.testing.assert_allclose(jnp.diag(found), jax.flatten_util.ravel_pytree(fisher)[0], **CLOSE)


def test_gauss_newton_of_a_linear_model_is_its_hessian(key):
    def regression(params, net_state, inputs, *, train, key):
        return inputs @ params, net_state

    model = Model(jax.random.normal(key, (tiny.FEATURES, 3), jnp.float64))
    vector = jax.random.normal(jax.random.key(1), (tiny.FEATURES, 3), jnp.float64)
    batch = rows_of(5, np.array([1.0, 1.0, 0.0, 2.0, 1.0]))
    loss_fn = classification(regression, train=False)
    hessian = curvature.hessian_product(loss_fn, model, batch, vector, key)
    found = curvature.gauss_newton_product(regression, model, batch, vector, key)
    np.testing.assert_allclose(found, hessian, **CLOSE)


def test_example_gradients_are_each_rows_own_and_sum_to_the_batchs(key):
    model = tiny_model()
    batch = rows_of(5, np.array([1.0, 1.0, 0.0, 2.0, 1.0]))
    loss_fn = classification(tiny.apply_fn, train=False)
    rows = jax.jit(curvature.example_gradients, static_argnums=0)(loss_fn, model, batch, key)
    gradient = jax.jit(jax.grad(lambda p, batch: loss_fn(p, model.net_state, batch, key)[0]))
    whole = gradient(model.params, batch)
    jax.tree.map(lambda r, w: np.testing.assert_allclose(r.sum(0), w, **CLOSE), rows, whole)
    alone = jax.tree.map(lambda leaf: leaf[3:4], batch)
    fourth = gradient(model.params, alone)
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


SIZE = 12


def symmetric(lowest, seed=0):
    """A symmetric matrix of eigenvalues from ``lowest`` to 5, and a vector."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.standard_normal((SIZE, SIZE)))
    return turn @ np.diag(np.linspace(lowest, 5, SIZE)) @ turn.T, rng.standard_normal(SIZE)


def two_leaves(flat):
    return {"a": jnp.asarray(flat[:8]).reshape(2, 4), "b": jnp.asarray(flat[8:])}


def one_vector(tree):
    return jnp.concatenate([tree["a"].ravel(), tree["b"]])


@jax.jit
def matrix_product(matrix, tree):
    return two_leaves(matrix @ one_vector(tree))


def test_conjugate_gradient_and_woodbury_are_the_dense_solve():
    rng = np.random.default_rng(1)
    rows, vector, damping = rng.standard_normal((6, SIZE)), rng.standard_normal(SIZE), 0.03
    matrix = rows.T @ rows / 6
    expected = np.linalg.solve(matrix + damping * np.eye(SIZE), vector)
    found, told = curvature.conjugate_gradient(
        functools.partial(matrix_product, matrix), two_leaves(vector), damping=damping,
        iterations=50, tolerance=1e-12,
    )  # fmt: skip
    # the asked-for 1e-8: a residual of 1e-12 over a condition of about 1e3
    np.testing.assert_allclose(one_vector(found), expected, rtol=1e-8, atol=1e-8)
    assert told.converged and not told.negative_curvature
    assert told.relative_residual <= 1e-12
    assert 6 < told.iterations <= 2 * SIZE  # seven different eigenvalues, and rounding
    tree = {"a": jnp.asarray(rows[:, :8]).reshape(6, 2, 4), "b": jnp.asarray(rows[:, 8:])}
    other = curvature.woodbury_solve(tree, jnp.float64(6), damping, two_leaves(vector))
    np.testing.assert_allclose(one_vector(other), expected, rtol=1e-8, atol=1e-8)


def test_conjugate_gradient_says_when_it_did_not_converge_and_tells_the_true_residual():
    matrix, vector = symmetric(0.01)
    found, told = curvature.conjugate_gradient(
        functools.partial(matrix_product, matrix), two_leaves(vector), iterations=4
    )
    assert not told.converged and not told.negative_curvature and told.iterations == 4
    true = np.linalg.norm(vector - matrix @ one_vector(found)) / np.linalg.norm(vector)
    np.testing.assert_allclose(told.relative_residual, true, rtol=1e-10)
    assert true > 0.01


def test_conjugate_gradient_stops_at_negative_curvature():
    matrix, vector = symmetric(-2.0)
    product = functools.partial(matrix_product, matrix)
    found, told = curvature.conjugate_gradient(product, two_leaves(vector), iterations=30)
    assert told.negative_curvature and not told.converged and told.iterations < 30
    assert np.isfinite(one_vector(found)).all()
    _, damped = curvature.conjugate_gradient(
        product, two_leaves(vector), damping=2.5, iterations=30
    )
    assert damped.converged and not damped.negative_curvature


def test_conjugate_gradient_of_zeros_takes_no_product():
    def never(tree):
        raise AssertionError

    found, told = curvature.conjugate_gradient(never, two_leaves(np.zeros(SIZE)))
    assert not one_vector(found).any()
    assert told.converged and told.iterations == 0 and told.relative_residual == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"iterations": 0}, "iterations = 0"),
        ({"tolerance": -1.0}, "tolerance = -1.0"),
        ({"damping": float("nan")}, "damping = nan"),
    ],
)
def test_conjugate_gradient_refuses_bad_numbers(more, message):
    with pytest.raises(ValueError, match=message):
        curvature.conjugate_gradient(lambda v: v, two_leaves(np.ones(SIZE)), **more)


@functools.cache
def scanned_recursion():
    def run(vector, gradients, count):
        def take(state, gradient):
            state = curvature.official_recursion(state, gradient, count)
            return state, state

        return jax.lax.scan(take, curvature.begin_official_recursion(vector), gradients)[1]

    return jax.jit(run)


def test_the_official_recursion_only_moves_along_the_first_gradient():
    rng = np.random.default_rng(2)
    gradients, vector, count = rng.standard_normal((9, SIZE)), rng.standard_normal(SIZE), 5
    tree = {"a": jnp.asarray(gradients[:, :8]).reshape(9, 2, 4), "b": jnp.asarray(gradients[:, 8:])}
    states = scanned_recursion()(two_leaves(vector), tree, count)
    solution = np.c_[np.asarray(states.solution["a"]).reshape(9, 8), states.solution["b"]]
    np.testing.assert_array_equal(states.seen, [1, 2, 3, 4, 5, 6, 7, 7, 7])  # N_w + 2
    np.testing.assert_array_equal(solution[0], vector)
    np.testing.assert_array_equal(solution[7:], solution[[6, 6]])
    first = gradients[0] / np.linalg.norm(gradients[0])
    moved = solution[6] - vector
    np.testing.assert_allclose(moved, (moved @ first) * first, atol=1e-14)  # float64 rounding
    assert np.linalg.norm(moved) > 0.05
    # and so is not what WoodFisher would give
    dense = np.eye(SIZE) + gradients[:7].T @ gradients[:7] / count
    assert np.linalg.norm(solution[6] - np.linalg.solve(dense, vector)) > 0.1


def test_woodbury_holds_nothing_of_the_size_of_the_parameters_squared():
    rows, size = 3, 500
    tree = {"a": jnp.ones((rows, size)), "b": jnp.ones((rows, size))}
    vector = {"a": jnp.ones(size), "b": jnp.ones(size)}
    compiled = jax.jit(curvature.woodbury_solve).lower(tree, 3.0, 0.1, vector).compile()
    used = compiled.memory_analysis()
    bytes_held = used.temp_size_in_bytes + used.output_size_in_bytes
    block = 8 * rows * 2 * size
    assert 0 < bytes_held < 4 * block < 8 * (2 * size) ** 2 / 50
