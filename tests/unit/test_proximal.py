"""The l1 penalty: its proximal step, its sub-gradient and its schedules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_mu import proximal, trees
from sparse_mu.optimiser import hyper_parameters, learning_rate_at

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


def every(name, leaf):
    del name, leaf
    return True


@functools.lru_cache(maxsize=1)
def traced_gamma():
    return jax.jit(jax.vmap(proximal.gamma_at, (None, None, 0, None)))


def gammas(schedule, epochs, gamma=3.0):
    """The penalty of every epoch, traced as in training."""
    index = jnp.int32(proximal.GAMMA_SCHEDULES.index(schedule))
    # padded to one length, so that one program serves
    epoch = jnp.arange(200, dtype=jnp.float32)
    return traced_gamma()(jnp.float32(gamma), index, epoch, jnp.float32(epochs))[:epochs]


@pytest.mark.parametrize(
    ("schedule", "mean", "first", "last"),
    [
        ("constant", 1.0, 1.0, 1.0),
        ("growing", 0.9, 0.0, 1.8),
        ("decaying", 1.1, 2.0, 0.2),
        ("growing_matched", 1.0, 0.0, 2.0),
        ("decaying_matched", 1.0, 20 / 11, 2 / 11),
    ],
)
def test_schedules_over_ten_epochs(schedule, mean, first, last):
    values = gammas(schedule, 10)
    assert np.mean(values) == pytest.approx(3.0 * mean, rel=1e-6)
    assert (values[0], values[-1]) == pytest.approx((3.0 * first, 3.0 * last), rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 200), st.floats(1e-6, 1.0))
def test_means_over_any_number_of_epochs(epochs, gamma):
    means = {
        name: np.mean(np.float64(gammas(name, epochs, gamma))) / gamma
        for name in proximal.GAMMA_SCHEDULES
    }
    expected = {
        "constant": 1,
        "growing": 1 - 1 / epochs,
        "decaying": 1 + 1 / epochs,
        "growing_matched": 1,
        "decaying_matched": 1,
    }
    assert means == pytest.approx(expected, rel=1e-5, abs=1e-6)  # float32 quotients


@pytest.mark.parametrize("shape", ["growing", "decaying"])
def test_a_matched_schedule_is_the_papers_times_a_constant(shape):
    ratio = gammas(f"{shape}_matched", 8)[1:] / gammas(shape, 8)[1:]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)


def test_the_codes_alpha_is_twice_gamma():
    # SPEC 4.4: a_t = alpha (1 - t / E)
    np.testing.assert_allclose(
        gammas("decaying", 10, 5e-4), 1e-3 * (1 - np.arange(10) / 10), rtol=1e-6
    )


def test_prox_last_in_a_chain_leaves_the_thresholded_step():
    tx = optax.chain(optax.sgd(0.1), proximal.l1_prox(0.1, 0.5, every))
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
    tx = optax.chain(optax.sgd(0.2), proximal.l1_prox(0.2, 0.5, every))
    params = proximal.soft_threshold(target, 0.5)
    updates, _ = tx.update(params - target, tx.init(params), params)
    np.testing.assert_allclose(optax.apply_updates(params, updates), params, **CLOSE)
    params = jnp.zeros(4)
    for _ in range(100):  # contracts by 0.8 a step
        updates, _ = tx.update(params - target, tx.init(params), params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, [1.5, 0.0, 0.0, -3.5], **CLOSE)


def test_only_prunable_leaves_are_thresholded_and_by_default_convolutions():
    params = {"conv": jnp.ones((1, 1, 2, 2)), "w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    for more, gone in (({}, {"conv"}), ({"prunable": trees.matrices}, {"conv", "w"})):
        tx = proximal.l1_prox(1.0, 10.0, **more)
        updates, _ = tx.update(zeros, tx.init(params), params)
        stepped = optax.apply_updates(params, updates)
        assert {name for name, leaf in stepped.items() if not leaf.any()} == gone
        assert all((leaf == 1).all() for name, leaf in stepped.items() if name not in gone)


def test_prox_reads_functions_of_the_hyper_parameters():
    tx = proximal.l1_prox(learning_rate_at, proximal.proximal_gamma_at, every)
    hyper = hyper_parameters(
        learning_rate=0.5, proximal_gamma=0.4, gamma_schedule=1, epochs=4, steps_per_epoch=5
    )
    params = {"w": jnp.ones(3)}
    updates, _ = tx.update(
        {"w": jnp.zeros(3)}, tx.init(params), params, hyper=hyper, step=jnp.int32(16)
    )
    # epoch 3 of 4 growing: 0.5 * 0.4 * 6 / 4
    np.testing.assert_allclose(updates["w"], -0.3, rtol=1e-6)
    with pytest.raises(ValueError, match=r"hyper=, step="):
        tx.update({"w": jnp.zeros(3)}, tx.init(params), params)


def test_prox_without_parameters_or_without_a_prunable_leaf_says_so():
    tx = proximal.l1_prox(0.1, 0.1)
    params = {"w": jnp.ones(1)}
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(params, tx.init(params))
    with pytest.raises(ValueError, match="no leaf of params is prunable"):
        tx.update(params, tx.init(params), params)
