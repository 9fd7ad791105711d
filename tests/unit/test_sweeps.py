"""Passes that move no weight: BatchNorm's statistics anew, and sums of gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_network as tiny

from sparse_mu import unlearn
from sparse_mu.execution import mapped, over_trials, single
from sparse_mu.losses import classification
from sparse_mu.training import fit
from sparse_mu.types import LossAux

EXECUTIONS = {
    "single": single,
    "two devices": lambda: over_trials(jax.devices()[:2]),
    "mapped": lambda: mapped(jax.devices()[:2]),
}


def run(unlearner, execution, epochs=1, model=None):
    given, dense, keys, trials = tiny.batched_trials(2)
    data = execution.put_shared(tiny.dataset())
    return fit(
        unlearner, given if model is None else model, dense, keys, trials, data, batch_size=8,
        epochs=epochs, execution=execution,
    )  # fmt: skip


@functools.cache
def averaging(axis_name=None):
    """A loss whose network state is a running mean of its inputs, with momentum 0.1."""

    def loss_fn(params, net_state, batch, key):
        mean = jnp.mean(batch.inputs)
        if axis_name is not None:
            mean = jax.lax.pmean(mean, axis_name)
        seen = 0.9 * net_state["seen"] + 0.1 * mean
        loss, aux = classification(tiny.apply_fn)(params, net_state, batch, key)
        return loss, LossAux(aux.weight, {"seen": seen}, aux.correct)

    return loss_fn


@pytest.mark.parametrize("name", EXECUTIONS)
def test_statistics_are_made_anew_and_no_weight_moves(name):
    execution = EXECUTIONS[name]()
    axis_name = execution.axis_name
    before = tiny.batched_trials(2)[0]
    before = before._replace(net_state={"seen": before.net_state["seen"] + 1000.0})
    unlearner = unlearn.refresh_statistics(averaging(axis_name), axis_name=axis_name)
    short, long = (run(unlearner, execution, epochs, before) for epochs in (1, 30))
    for a, b in zip(
        jax.tree.leaves(long.model.params), jax.tree.leaves(before.params), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    # what was there decays by 0.9 a batch; 26 and 24 rows are 4 and 3 batches
    left = 1000 * 0.9 ** np.array([[4], [3]])
    np.testing.assert_allclose(short.model.net_state["seen"], left.repeat(2, axis=1), rtol=1e-3)
    assert np.abs(long.model.net_state["seen"]).max() < 0.5
    assert np.isfinite(long.loss).all() and long.finite.all()


def test_a_network_that_is_not_finite_is_told_of():
    before = tiny.batched_trials(2)[0]
    spoiled = before._replace(params=jax.tree.map(lambda leaf: leaf * np.nan, before.params))
    result = run(unlearn.refresh_statistics(averaging()), single(), model=spoiled)
    assert not result.finite.any()


@pytest.mark.parametrize("name", EXECUTIONS)
def test_the_gradient_of_the_sum_over_a_set(name):
    execution = EXECUTIONS[name]()
    loss_fn = classification(tiny.apply_fn, train=False)
    model, _, _, trials = tiny.batched_trials(2)
    result = run(unlearn.gradient_sum(loss_fn, axis_name=execution.axis_name), execution)
    inputs, labels = tiny.dataset()
    for trial in range(2):
        rows = np.flatnonzero(trials.retain[trial])
        batch = tiny.Batch(inputs[rows], labels[rows], jnp.ones(len(rows)))
        one, told = (jax.tree.map(lambda x, t=trial: x[t], tree) for tree in (model, result.told))
        expected = jax.grad(lambda p, one=one, b=batch: loss_fn(p, one.net_state, b, None)[0])(
            one.params
        )
        for a, b in zip(jax.tree.leaves(told), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # another order of sums
    for a, b in zip(jax.tree.leaves(result.model), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(a, b)
