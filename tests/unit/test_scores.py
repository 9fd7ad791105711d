"""Importance scores against numbers worked out by hand, and what a mask does to them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_network as tiny

from sparse_mu import masks, scores
from sparse_mu.losses import classification
from sparse_mu.types import Batch, LossAux, Model

# a product of a few float32 numbers against the same in float64
FLOAT32 = {"rtol": 1e-5}
LOSS = classification(tiny.apply_fn)

snip = jax.jit(scores.snip, static_argnums=0)
snip_official = jax.jit(scores.snip_official, static_argnums=0)
grasp = jax.jit(scores.grasp, static_argnums=0)
grasp_official = jax.jit(scores.grasp_official, static_argnums=0)
synflow = jax.jit(scores.synflow, static_argnums=0)


def squared_error(params, net_state, batch, key):
    """``sum_i weight_i / 2 * (w . x_i - y_i)^2``."""
    del key
    residuals = batch.inputs @ params["w"] - batch.labels
    loss = jnp.sum(batch.weights * jnp.square(residuals)) / 2
    return loss, LossAux(jnp.sum(batch.weights), net_state, jnp.float32(0))


def test_snip_of_a_linear_model_by_hand(key):
    # residuals 2 * 1 - 3 * 2 - 1 = -5 and 2 * 4 - 3 * 0 - 2 = 6; the gradient of the mean is
    # (-5 * (1, 2) + 6 * (4, 0)) / 2 = (9.5, -5)
    model = Model({"w": jnp.array([2.0, -3.0])})
    batch = Batch(jnp.array([[1.0, 2.0], [4.0, 0.0]]), jnp.array([1, 2]), jnp.ones(2))
    assert snip(squared_error, model, batch, key)["w"].tolist() == [19.0, 15.0]
    assert snip_official(squared_error, model, batch, key)["w"].tolist() == [9.5, 5.0]
    # a small weight with a large gradient: the official form keeps it, the published one does not
    small = Model({"w": jnp.array([0.01, -3.0])})
    published = snip(squared_error, small, batch, key)["w"]
    official = snip_official(squared_error, small, batch, key)["w"]
    assert published[0] < published[1] and official[0] > official[1]


def two_logits(params, net_state, inputs, *, train, key):
    """Logits ``x_c * w_c + bias_c``; BatchNorm-like layers would see train mode."""
    assert train
    del key
    return inputs * params["w"] + params["bias"][None], net_state


def test_grasp_of_two_weights_by_hand(key):
    # label 0, u = z / T, p = softmax(u): dL/dw = p_1 / T * (-a, b), and a step dw changes p_1 by
    # p_0 p_1 (du_1 - du_0), so H g = p_0 p_1^2 / T^3 * (a^2 + b^2) * (-a, b);
    # the bias, when g runs over it too, adds 2 to a^2 + b^2
    a, b, temperature, weights = 1.5, -0.5, 2.0, np.array([0.7, 1.1])
    logits = np.array([a, b]) * weights + np.array([0.2, -0.1])
    p_0, p_1 = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    product = p_0 * p_1**2 / temperature**3 * np.array([-a, b])

    model = Model({"w": jnp.array([weights], jnp.float32), "bias": jnp.array([0.2, -0.1])})
    batch = Batch(jnp.array([[a, b]]), jnp.array([0]), jnp.ones(1))
    published = grasp(two_logits, model, batch, key, temperature=temperature)["w"][0]
    np.testing.assert_allclose(published, weights * product * (a**2 + b**2), **FLOAT32)
    official = grasp_official(two_logits, model, batch, key, temperature=temperature)["w"][0]
    expected = np.abs(weights * product * (a**2 + b**2 + 2))
    np.testing.assert_allclose(official, expected, **FLOAT32)


@pytest.mark.parametrize("temperature", [200.0, 3.0])
def test_grasp_is_what_pruning_does_to_the_gradient_flow(key, temperature):
    # the gradient of g . g / 2 is H g (another route: reverse over reverse), and pruning w moves
    # g . g by -w times it: the lowest scores are those whose pruning keeps the most
    model, batch = tiny.draw(key), tiny.batch(1)

    def half_flow(params):
        def loss(params):
            logits, _ = tiny.apply_fn(params, (), batch.inputs, train=True, key=key)
            chosen = jax.nn.log_softmax(logits / temperature)[jnp.arange(8), batch.labels]
            return -jnp.mean(chosen)

        gradient = jax.grad(loss)(params)
        return sum(jnp.sum(gradient[layer]["kernel"] ** 2) for layer in gradient) / 2

    expected = jax.tree.map(jnp.multiply, model.params, jax.jit(jax.grad(half_flow))(model.params))
    found = grasp(tiny.apply_fn, model, batch, key, temperature=temperature)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    for layer in expected:  # of the largest entry: small ones are differences of larger terms
        np.testing.assert_allclose(
            found[layer]["kernel"], expected[layer]["kernel"], atol=1e-5 * scale
        )


def test_temperature_must_be_positive(key):
    for value in (0, -1.0):
        with pytest.raises(ValueError, match="temperature"):
            scores.grasp(tiny.apply_fn, tiny.draw(key), tiny.batch(1), key, temperature=value)


def chain(params, net_state, inputs, *, train, key):
    """``(x @ first * gain) @ second + bias``."""
    assert not train, "SynFlow runs BatchNorm in evaluation mode"
    del key
    hidden = inputs @ params["first"] * net_state["gain"][None]
    return hidden @ params["second"] + params["bias"][None], net_state


def chain_model():
    params = {
        "first": jnp.array([[2.0, -3.0]]),
        "second": jnp.array([[-5.0], [7.0]]),
        "bias": jnp.array([-11.0]),
    }
    return Model(params, {"gain": jnp.array([-1.0, 2.0]), "steps": jnp.array(-3)})


def test_synflow_of_a_chain_by_hand():
    # R = 2 * 1 * 5 + 3 * 2 * 7 + 11: each factor of a term has the term as its score
    found = synflow(chain, chain_model(), jnp.ones((1, 1)))
    assert found["first"].tolist() == [[10.0, 42.0]]
    assert found["second"].tolist() == [[10.0], [42.0]]
    assert found["bias"].tolist() == [11.0]


def test_synflow_of_a_pruned_chain_has_lost_the_path():
    model = chain_model()
    kept = masks.ones_like(model.params) | {"first": jnp.array([[True, False]])}
    found = synflow(chain, model, jnp.ones((1, 1)), masks=kept)
    assert found["first"].tolist() == [[10.0, 0.0]]
    assert found["second"].tolist() == [[10.0], [0.0]]


SCORES = {
    "magnitude": lambda model, kept, key: scores.magnitude(model.params, masks=kept),
    "random": lambda model, kept, key: scores.random(key, model.params, masks=kept),
    "snip": lambda model, kept, key: snip(LOSS, model, tiny.batch(1), key, masks=kept),
    "snip_official": lambda model, kept, key: snip_official(
        LOSS, model, tiny.batch(1), key, masks=kept
    ),
    "grasp": lambda model, kept, key: grasp(tiny.apply_fn, model, tiny.batch(1), key, masks=kept),
    "grasp_official": lambda model, kept, key: grasp_official(
        tiny.apply_fn, model, tiny.batch(1), key, masks=kept
    ),
    "synflow": lambda model, kept, key: synflow(
        tiny.apply_fn, model, jnp.ones((1, tiny.FEATURES)), masks=kept
    ),
}


@pytest.mark.parametrize("name", SCORES)
def test_a_pruned_weight_scores_zero_and_is_not_read(name, key):
    model = tiny.draw(key)
    kept = tiny.half_masks(model)
    junk = jax.tree.map(lambda mask, leaf: jnp.where(mask, leaf, jnp.nan), kept, model.params)
    zero = masks.apply(kept, model.params)
    found = SCORES[name](model._replace(params=junk), kept, key)
    jax.tree.map(
        np.testing.assert_array_equal, found, SCORES[name](model._replace(params=zero), kept, key)
    )
    for mask, leaf in zip(jax.tree.leaves(kept), jax.tree.leaves(found), strict=True):
        assert np.isfinite(leaf).all()
        assert (np.asarray(leaf)[~np.asarray(mask)] == 0).all()
    assert any(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("name", SCORES)
def test_scores_are_shaped_like_the_parameters(name, key):
    model = tiny.draw(key)
    found = SCORES[name](model, masks.ones_like(model.params), key)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, model.params)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize(
    "score",
    [functools.partial(snip, LOSS), functools.partial(grasp, tiny.apply_fn)],
    ids=["snip", "grasp"],
)
def test_rows_of_weight_zero_are_inert(score, key):
    model, batch = tiny.draw(key), tiny.batch(1, padding=3)
    noise = batch._replace(inputs=batch.inputs.at[5:].set(1e3), labels=batch.labels.at[5:].set(0))
    jax.tree.map(np.testing.assert_array_equal, score(model, batch, key), score(model, noise, key))


def test_random_scores_read_the_key_only():
    params = {"w": jnp.zeros((30, 30)), "v": jnp.ones((30, 30))}
    found = scores.random(jax.random.key(1), params)
    again = scores.random(jax.random.key(1), jax.tree.map(lambda leaf: leaf + 5, params))
    jax.tree.map(np.testing.assert_array_equal, found, again)
    other = scores.random(jax.random.key(2), params)
    assert not (found["w"] == other["w"]).any()
    assert not (found["w"] == found["v"]).any(), "each leaf has its own draw"
    # 900 uniform numbers: the mean has standard deviation .29 / 30 = .0096, five of them
    assert abs(float(found["w"].mean()) - 0.5) < 0.05
