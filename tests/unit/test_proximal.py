"""The l1 penalty: its proximal step, its sub-gradient and its schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_mu import proximal
from sparse_mu.unlearn import l1_sparse

CLOSE = {"rtol": 1e-6, "atol": 1e-7}  # one or two float32 roundings


def test_soft_threshold_shrinks_towards_zero_and_stops_there():
    values = jnp.array([-3.0, -0.5, -0.2, 0.0, 0.2, 0.5, 3.0])
    out = proximal.soft_threshold(values, 0.5)
    assert out.tolist() == [-2.5, 0.0, 0.0, 0.0, 0.0, 0.0, 2.5]
    assert proximal.soft_threshold(values, 0.0).tolist() == values.tolist()


def test_soft_threshold_minimises_its_objective():
    # argmin_w (w - v)^2 / 2 + t |w| on a grid of step 1e-3
    grid = np.linspace(-4, 4, 8001)
    for value in (-2.3, -0.4, 0.1, 1.7):
        best = grid[np.argmin((grid - value) ** 2 / 2 + 0.6 * np.abs(grid))]
        assert float(proximal.soft_threshold(jnp.float32(value), 0.6)) == pytest.approx(
            best, abs=1e-3
        )


def test_the_sub_gradient_is_zero_at_zero_on_every_leaf():
    params = {"kernel": jnp.array([[-2.0, 0.0]]), "bias": jnp.array([-0.0, 5.0])}
    out = proximal.l1_subgradient(params, 0.5)
    assert out["kernel"].tolist() == [[-0.5, 0.0]]
    assert out["bias"].tolist() == [0.0, 0.5]


@pytest.mark.parametrize(
    ("schedule", "mean", "first", "last"),
    [("constant", 1.0, 1.0, 1.0), ("growing", 0.9, 0.0, 1.8), ("decaying", 1.1, 2.0, 0.2)],
)
def test_schedules_over_ten_epochs(schedule, mean, first, last):
    index = proximal.GAMMA_SCHEDULES.index(schedule)
    values = [
        float(proximal.gamma_at(jnp.float32(3.0), index, jnp.float32(t), jnp.float32(10)))
        for t in range(10)
    ]
    assert np.mean(values) == pytest.approx(3.0 * mean, rel=1e-6)
    assert (values[0], values[-1]) == pytest.approx((3.0 * first, 3.0 * last), rel=1e-6)


def test_prox_last_in_a_chain_leaves_the_thresholded_step():
    tx = optax.chain(optax.sgd(0.1), proximal.l1_prox(0.1, 0.5))
    params = {"w": jnp.array([1.0, -1.0, 0.04, 0.0])}
    gradient = {"w": jnp.array([2.0, -2.0, 0.0, 0.3])}
    updates, _ = tx.update(gradient, tx.init(params), params)
    stepped = optax.apply_updates(params, updates)["w"]
    # w - 0.1 g = .8, -.8, .04, -.03; threshold 0.1 * 0.5 = .05
    np.testing.assert_allclose(stepped, [0.75, -0.75, 0.0, 0.0], **CLOSE)
    assert stepped[2:].tolist() == [0.0, 0.0]  # exactly


def test_the_solution_of_a_quadratic_is_a_fixed_point():
    # min (w - v)^2 / 2 + gamma |w| is solved by soft(v, gamma)
    target = jnp.array([2.0, -0.3, 0.1, -4.0])
    tx = optax.chain(optax.sgd(0.2), proximal.l1_prox(0.2, 0.5))
    params = proximal.soft_threshold(target, 0.5)
    updates, _ = tx.update(params - target, tx.init(params), params)
    np.testing.assert_allclose(optax.apply_updates(params, updates), params, **CLOSE)
    params = jnp.zeros(4)
    for _ in range(100):  # contracts by 0.8 a step
        updates, _ = tx.update(params - target, tx.init(params), params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, [1.5, 0.0, 0.0, -3.5], **CLOSE)


def test_only_prunable_leaves_are_thresholded():
    tx = proximal.l1_prox(1.0, 10.0, prunable={"w": True, "b": False})
    params = {"w": jnp.ones(2), "b": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    stepped = optax.apply_updates(params, updates)
    assert stepped["w"].tolist() == [0.0, 0.0]
    assert stepped["b"].tolist() == [1.0, 1.0]


def test_prox_without_parameters_says_so():
    tx = proximal.l1_prox(0.1, 0.1)
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update({"w": jnp.ones(1)}, tx.init({"w": jnp.ones(1)}))


def test_l1_sparse_refuses_an_unknown_schedule():
    with pytest.raises(ValueError, match="'linear': must be one of constant, growing, decaying"):
        l1_sparse(lambda *_: None, schedule="linear")
