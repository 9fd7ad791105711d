"""SGD against torch's rule in numpy float64, and the learning-rate schedules by their epochs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_mu.optimiser import (
    LEARNING_RATE_SCHEDULES,
    hyper_parameters,
    learning_rate_at,
    sgd,
)


def torch_sgd(weights, gradients, rate, momentum, decay):
    """torch.optim.SGD, no dampening: the first buffer is the first d itself."""
    buffer, path = None, []
    for gradient in gradients:
        d = gradient + decay * weights
        buffer = d if buffer is None else momentum * buffer + d
        weights = weights - rate * buffer
        path.append(weights)
    return np.stack(path)


@pytest.mark.parametrize(("momentum", "decay"), [(0.9, 5e-2), (0.0, 0.0), (0.9, 0.0)])
def test_sgd_is_torchs(momentum, decay):
    rng = np.random.default_rng(0)
    start, gradients = rng.standard_normal(7), rng.standard_normal((12, 7))
    expected = torch_sgd(start, gradients, 0.1, momentum, decay)
    hyper = hyper_parameters(learning_rate=0.1, momentum=momentum, weight_decay=decay)
    params = {"w": jnp.asarray(start, jnp.float32)}
    state = sgd().init(params)
    for step, gradient in enumerate(gradients):
        updates, state = sgd().update(
            {"w": jnp.asarray(gradient, jnp.float32)}, state, params, hyper=hyper, step=step
        )
        params = optax.apply_updates(params, updates)
        # float32 rounding of values of order 1 to 10, gathered over 12 steps
        np.testing.assert_allclose(params["w"], expected[step], atol=1e-5)


def test_sgd_without_parameters_says_so():
    state = sgd().init(jnp.ones(2))
    with pytest.raises(ValueError, match="needs the parameters"):
        sgd().update(jnp.ones(2), state, hyper=hyper_parameters(), step=0)


def test_the_optimiser_is_one_object():
    assert sgd() is sgd()


def rates(schedule, epochs, steps_per_epoch, warmup=0.0):
    """The rate of every step, ``[epochs, steps_per_epoch]``, traced as in training."""
    hyper = hyper_parameters(
        learning_rate=2.0,
        lr_schedule=LEARNING_RATE_SCHEDULES.index(schedule),
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        warmup_epochs=warmup,
    )
    steps = jnp.arange(epochs * steps_per_epoch, dtype=jnp.int32)
    found = jax.jit(jax.vmap(learning_rate_at, (None, 0)))(hyper, steps)
    return np.asarray(found).reshape(epochs, steps_per_epoch)


@pytest.mark.parametrize("steps_per_epoch", [1, 3, 7, 352])
def test_step_decays_at_epochs_91_and_136_of_182(steps_per_epoch):
    found = rates("step", 182, steps_per_epoch)
    expected = np.repeat([2.0, 0.2, 0.02], [91, 45, 46])  # 136 - 91, 182 - 136
    np.testing.assert_allclose(found, np.broadcast_to(expected[:, None], found.shape), rtol=1e-6)


@pytest.mark.parametrize(
    ("epochs", "factors"),
    [(1, [1]), (2, [1, 0.01]), (3, [1, 0.1, 0.01]), (4, [1, 1, 0.1, 0.01])],
)
def test_a_short_training_begins_at_its_peak(epochs, factors):
    np.testing.assert_allclose(
        rates("step", epochs, 3), np.repeat(2.0 * np.array(factors)[:, None], 3, axis=1), rtol=1e-6
    )


def test_constant_is_constant():
    assert set(rates("constant", 4, 3).ravel().tolist()) == {2.0}


def test_cosine_falls_from_the_peak_to_zero():
    found = rates("cosine", 10, 4).ravel()
    expected = 1.0 + np.cos(np.pi * np.arange(40) / 40)
    np.testing.assert_allclose(found, expected, atol=1e-6)  # cos in float32


def test_warm_up_ramps_linearly_and_then_lets_the_schedule_be():
    found = rates("step", 4, 5, warmup=2.0).ravel()
    np.testing.assert_allclose(found[:10], 2.0 * np.arange(1, 11) / 10, rtol=1e-6)
    np.testing.assert_allclose(found[10:], np.repeat([0.2, 0.02], 5), rtol=1e-6)


def test_cosine_starts_after_the_warm_up():
    found = rates("cosine", 6, 4, warmup=2.0).ravel()
    np.testing.assert_allclose(found[:8], 2.0 * np.arange(1, 9) / 8, rtol=1e-6)
    np.testing.assert_allclose(found[8:], 1 + np.cos(np.pi * np.arange(16) / 16), atol=1e-6)


def test_hyper_parameters_are_strong_scalars_of_two_kinds():
    hyper = hyper_parameters(learning_rate=1, gamma_schedule=2, epochs=10)
    for name, leaf in hyper._asdict().items():
        kind = jnp.int32 if name in ("gamma_schedule", "lr_schedule") else jnp.float32
        assert (leaf.shape, leaf.dtype, leaf.weak_type) == ((), kind, False), name
