"""Fisher forgetting: its two estimates, its laws of noise and what becomes of the head."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_network as tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_mu import masks
from sparse_mu.types import Batch, Model, UnlearnBatch
from sparse_mu.unlearn import fisher_forgetting, fisher_gaussian
from sparse_mu.unlearn.fisher import NEVER, FisherSums, official_fisher

ALPHA, FLOOR = 1e-4, 1e-3
WIDTH, CLASSES = 4, 3


jit_of = functools.lru_cache(maxsize=16)(jax.jit)


def fisher(**more):
    return fisher_forgetting(tiny.apply_fn, ALPHA, num_classes=tiny.CLASSES, floor=FLOOR, **more)


def with_fisher(unlearner, kept, sums):
    """A state whose pass over the retain set is done: ``sums`` over four rows."""
    state = unlearner.init(tiny.draw(jax.random.key(0)), kept, jax.random.key(1))
    return state._replace(aux=FisherSums(sums, jnp.float32(4)))


def spread(tree):
    """A Fisher diagonal from a tenth of the floor to a thousand of it, in every leaf."""
    return jax.tree.map(
        lambda leaf: np.geomspace(1e-4, 1, leaf.size, dtype=np.float32).reshape(leaf.shape), tree
    )


# ---- the estimates ---------------------------------------------------------------------------


def softmax_linear(params, net_state, inputs, *, train, key):
    return inputs @ params["w"] + params["b"][None], net_state


def linear_rows(seed, rows):
    rng = np.random.default_rng(seed)
    params = {"w": rng.standard_normal((WIDTH, CLASSES)), "b": rng.standard_normal(CLASSES)}
    return params, rng.standard_normal((rows, WIDTH)), rng.random(rows) + 0.5


def probabilities_of(params, inputs):
    p = np.exp(inputs @ params["w"] + params["b"])
    return p / p.sum(1, keepdims=True)


def numpy_official(params, inputs, weights):
    """SPEC 4.7, step 1, as written: a loop over the labels of one batch."""
    p, share = probabilities_of(params, inputs), weights / weights.sum()
    sums = {"w": 0.0, "b": 0.0}
    for label in range(CLASSES):
        away = p - np.eye(CLASSES)[label]
        sums["w"] += (share @ p)[label] * np.einsum("i,ij,ik->jk", share, inputs, away) ** 2
        sums["b"] += (share @ p)[label] * (share @ away) ** 2
    return sums


def numpy_exact(params, inputs, weights):
    """Of one row: ``x_j^2 * p_k (1 - p_k)``, in closed form."""
    p = probabilities_of(params, inputs)
    own = p * (1 - p)
    return {
        "w": np.einsum("i,ij,ik->jk", weights, inputs**2, own) / weights.sum(),
        "b": weights @ own / weights.sum(),
    }


@functools.lru_cache(maxsize=8)
def stepping(estimate):
    unlearner = fisher_forgetting(softmax_linear, 1.0, num_classes=CLASSES, estimate=estimate)
    return unlearner, jax.jit(unlearner.step)


def estimated(estimate, params, parts):
    """The estimate after the batches of ``parts``, ``(inputs, weights)`` each."""
    unlearner, step = stepping(estimate)
    model = Model(jax.tree.map(jnp.asarray, params))
    state = unlearner.init(model, masks.ones_like(model.params), jax.random.key(0))
    for inputs, weights in parts:
        labels = jnp.zeros(len(inputs), jnp.int32)
        batch = Batch(jnp.asarray(inputs), labels, jnp.asarray(weights))
        state, stats = step(state, UnlearnBatch(None, batch))
        np.testing.assert_allclose(stats.weight, weights.sum(), rtol=1e-6)
    return jax.tree.map(lambda leaf: leaf / state.aux.weight, state.aux.fisher)


def compare(found, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_both_estimates_of_a_softmax_model_are_their_formulas(seed):
    with jax.enable_x64(True):
        params, inputs, weights = linear_rows(seed, 8)
        parts = [(inputs[:4], weights[:4]), (inputs[4:], weights[4:])]
        exact = estimated("exact", params, parts)
        # sums of weights are float32 beside float64 gradients: 6e-8 relative
        compare(exact, numpy_exact(params, inputs, weights), rtol=1e-6)
        official = estimated("official", params, parts)
        halves = [numpy_official(params, *part) for part in parts]
        expected = jax.tree.map(lambda a, b: (a + b) / 2, *halves)
        # squares of batch means that nearly cancel: absolute, of values of order 0.1
        compare(official, expected, rtol=1e-6, atol=1e-9)


def test_the_official_estimate_of_one_row_is_the_exact_one_and_shrinks_with_the_batch():
    with jax.enable_x64(True):
        # one row of weight 1 in batches of four, so that the programs are known already
        params, inputs, _ = linear_rows(0, 16)
        alone = np.array([1.0, 0, 0, 0])
        rows = [(np.roll(inputs, -i, axis=0)[:4], alone) for i in range(16)]
        exact = estimated("exact", params, rows)
        compare(estimated("official", params, rows), exact, rtol=1e-6)
        fours = [(inputs[i : i + 4], np.ones(4)) for i in range(0, 16, 4)]
        whole = estimated("official", params, fours)
        ratio = sum(leaf.sum() for leaf in whole.values()) / sum(v.sum() for v in exact.values())
        assert 1 / 4 < float(ratio) < 1


def test_official_batches_count_alike_whatever_their_weight_and_empty_ones_do_not_count():
    with jax.enable_x64(True):
        params, inputs, _ = linear_rows(1, 8)
        ones, one, none = np.ones(4), np.array([1.0, 0, 0, 0]), np.zeros(4)
        found = estimated(
            "official", params, [(inputs[:4], ones), (inputs[4:], one), (inputs[4:], none)]
        )
        expected = jax.tree.map(
            lambda a, b: (a + b) / 2,
            numpy_official(params, inputs[:4], ones),
            numpy_official(params, inputs[4:5], one[:1]),
        )
        compare(found, expected, rtol=1e-6, atol=1e-9)


def test_classes_in_groups_give_the_official_estimate_too():
    # 19 classes: one full group of 16 and one of 3
    classes = 19
    rng = np.random.default_rng(2)
    params = {"w": rng.standard_normal((WIDTH, classes)), "b": rng.standard_normal(classes)}
    inputs = rng.standard_normal((5, WIDTH))
    p = probabilities_of(params, inputs)
    away = p[None] - np.eye(classes)[:, None, :]
    expected = np.einsum("c,ck->k", p.mean(0), away.mean(1) ** 2)
    with jax.enable_x64(True):
        batch = Batch(jnp.asarray(inputs), jnp.zeros(5, jnp.int32), jnp.ones(5))
        model = Model(jax.tree.map(jnp.asarray, params))
        found = jax.jit(official_fisher, static_argnums=0)(
            softmax_linear, model, batch, jax.random.key(0)
        )
    np.testing.assert_allclose(found["b"], expected, rtol=1e-9)


def test_the_pass_adds_the_fisher_of_the_retain_rows_only():
    unlearner = fisher()
    model = tiny.draw(jax.random.key(0))
    state = unlearner.init(model, masks.ones_like(model.params), jax.random.key(1))
    for seed, padding in ((0, 0), (1, 3)):
        batch = UnlearnBatch(None, tiny.batch(seed, 8, padding))
        state, stats = jit_of(unlearner.step)(state, batch)
        assert float(stats.weight) == 8 - padding
    assert float(state.aux.weight) == 13
    jax.tree.map(np.testing.assert_array_equal, state.model, model)


# ---- the laws --------------------------------------------------------------------------------

KERNEL = (2, 2, 3, 4)  # height, width, input channels, output channels: 4 is no class count
SHAPES = {
    "conv": KERNEL,
    "scale": (4,),
    "square": (CLASSES, CLASSES),
    "w": (5, CLASSES),
    "b": (CLASSES,),
}
HEAD = {name: name in ("w", "b") for name in SHAPES}


def drawn_trees(seed):
    rng = np.random.default_rng(seed)
    weights = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    # 10^-6 .. 10: on both sides of both clips
    values = {name: 10 ** rng.uniform(-6, 1, shape) for name, shape in SHAPES.items()}
    return weights, values


def numpy_official_law(weights, fisher, alpha, forgotten=None):
    """SPEC 4.7, steps 2 to 6, in torch's layout and order; the class is the first dimension."""
    means, variances = {}, {}
    for name, leaf in fisher.items():
        in_head = HEAD[name]
        torch_axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[leaf.ndim]
        v, mean = leaf.transpose(torch_axes), weights[name].transpose(torch_axes).copy()
        v = np.minimum(1 / (v + 1e-8), 1e2 if in_head else 1e3) * alpha
        if v.ndim >= 2:
            v = np.broadcast_to(v.mean(1, keepdims=True), v.shape).copy()
        if in_head and forgotten is not None:
            mean[forgotten], v[forgotten] = 0, 1e-4
        if in_head or v.ndim == 1:
            v = v * 10
        back = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[leaf.ndim]
        means[name], variances[name] = mean.transpose(back), v.transpose(back)
    return means, variances


@pytest.mark.ci
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([None, 0, 2]), st.floats(1e-9, 1e-2))
def test_the_official_law_is_the_codes_in_its_order(seed, forgotten, alpha):
    with jax.enable_x64(True):
        weights, values = drawn_trees(seed)
        found = fisher_gaussian(
            weights,
            values,
            alpha,
            noise="official",
            head=HEAD,
            head_treatment="intact" if forgotten is None else "zeroed",
            classes=None if forgotten is None else jnp.arange(CLASSES) == forgotten,
        )
        mean, variance = numpy_official_law(weights, values, alpha, forgotten)
        compare(found.mean, mean, rtol=0)
        compare(found.variance, variance, rtol=1e-12)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-9, 1e-2), st.floats(1e-5, 1.0))
def test_the_floored_and_the_quarter_law_by_their_formulas(seed, alpha, floor):
    with jax.enable_x64(True):
        weights, values = drawn_trees(seed)
        for noise, power in (("floored", 1.0), ("quarter", 0.5)):
            found = fisher_gaussian(weights, values, alpha, noise=noise, floor=floor)
            expected = jax.tree.map(lambda f, p=power: alpha / np.maximum(f, floor) ** p, values)
            compare(found.variance, expected, rtol=1e-12)
            compare(found.mean, weights, rtol=0)


def test_a_head_that_looks_like_any_other_leaf_is_found_by_its_name_only():
    # "square" ends in the class count too: it is clipped at 1e3 and not multiplied by 10
    weights, values = drawn_trees(0)
    zeros = jax.tree.map(np.zeros_like, values)
    found = fisher_gaussian(weights, zeros, 1.0, noise="official", head=HEAD)
    constants = {name: float(np.unique(leaf)[0]) for name, leaf in found.variance.items()}
    assert constants == {"conv": 1e3, "scale": 1e4, "square": 1e3, "w": 1e3, "b": 1e3}


def flat_noise(unlearner, state):
    finished = unlearner.finish(state).model.params
    return flat(finished) - flat(state.model.params)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@functools.lru_cache(maxsize=1)
def floored_draws():
    """The mask, the variance by the law, and 2000 draws of the noise, all flat."""
    unlearner, model = fisher(), tiny.draw(jax.random.key(0))
    mean = spread(model.params)
    state = with_fisher(
        unlearner, tiny.half_masks(model), jax.tree.map(lambda leaf: 4 * leaf, mean)
    )

    def noise_of(trial_key):
        finished = unlearner.finish(state._replace(key=trial_key)).model.params
        return jax.tree.map(jnp.subtract, finished, state.model.params)

    keys = jax.random.split(jax.random.key(3), 2000)
    drawn = jax.jit(lambda keys: jax.lax.map(noise_of, keys))(keys)
    drawn = np.concatenate([np.reshape(leaf, (2000, -1)) for leaf in jax.tree.leaves(drawn)], 1)
    law = fisher_gaussian(model.params, mean, ALPHA, floor=FLOOR).variance
    return flat(state.masks), np.float64(flat(law)), np.float64(drawn)


@pytest.mark.ci
def test_noise_has_the_variance_of_its_law():
    kept, variance, noise = floored_draws()
    # five standard errors: of a variance sqrt(2 / n) relative, of a mean sqrt(var / n)
    ratio = (noise**2).mean(0)[kept] / variance[kept]
    np.testing.assert_allclose(ratio, 1, atol=5 * np.sqrt(2 / len(noise)))
    assert (np.abs(noise.mean(0)) < 5 * np.sqrt(variance / len(noise))).all()
    assert not noise[:, ~kept].any()


@pytest.mark.parametrize("noise", ["quarter", "official"])
def test_the_laws_differ_in_their_scale_only(noise):
    # one key, one draw: noise divided by its deviation is the same normal numbers
    model = tiny.draw(jax.random.key(0))
    sums, kept = spread(model.params), tiny.half_masks(model)
    normal = []
    for name in ("floored", noise):
        unlearner = fisher(noise=name, head=tiny.HEAD)
        law = fisher_gaussian(
            model.params,
            jax.tree.map(lambda leaf: leaf / 4, sums),
            ALPHA,
            noise=name,
            floor=FLOOR,
            head=tiny.HEAD,
        ).variance
        noisy = flat_noise(unlearner, with_fisher(unlearner, kept, sums))
        assert not noisy[~flat(kept)].any()
        normal.append(noisy / np.sqrt(flat(law)))
    # float32 weights of order 1 carry noise of 0.01 and more: 6e-8 / 0.01
    np.testing.assert_allclose(*normal, atol=1e-4)


def test_noise_differs_between_leaves_and_trials_but_not_with_the_number_of_batches():
    unlearner, model = fisher(), tiny.draw(jax.random.key(0))
    ones = jax.tree.map(jnp.ones_like, model.params)
    state = with_fisher(unlearner, masks.ones_like(model.params), ones)
    first, second = (
        flat_noise(unlearner, state._replace(key=jax.random.key(number))) for number in (1, 2)
    )
    assert len(np.unique(first)) == first.size == 53
    assert not np.any(first == second)
    later = state._replace(key=jax.random.key(1), step=jnp.int32(7))
    np.testing.assert_array_equal(flat_noise(unlearner, later), first)


# ---- the head --------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["floored", "official"])
@pytest.mark.parametrize("treatment", ["intact", "zeroed", "removed"])
def test_the_forgotten_classes_lose_their_columns_of_the_head(noise, treatment):
    unlearner = fisher(
        noise=noise, head=tiny.HEAD, head_treatment=treatment, forgotten_classes=(1,)
    )
    model = tiny.draw(jax.random.key(0))
    huge = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e16), model.params)  # noise of 1e-10
    finished = unlearner.finish(with_fisher(unlearner, masks.ones_like(model.params), huge))
    params = jax.tree.map(np.array, finished.model.params)
    expected = jax.tree.map(np.array, model.params)
    if treatment != "intact":
        expected["head"]["kernel"][:, 1] = 0
        expected["head"]["bias"][1] = NEVER if treatment == "removed" else 0
    if treatment == "zeroed" and noise == "official":  # its own variance, 10 * 1e-4
        noisy = np.r_[params["head"]["kernel"][:, 1], params["head"]["bias"][1]]
        # six draws of deviation 0.032: 0.16 is five of them, 1e-4 far below
        assert 1e-4 < np.abs(noisy).max() < 0.16
        params["head"]["kernel"][:, 1] = 0
        params["head"]["bias"][1] = 0
    compare(params, expected, atol=1e-6)


@pytest.mark.ci
def test_a_removed_class_never_wins_and_the_other_logits_stay():
    unlearner = fisher(head=tiny.HEAD, head_treatment="removed", forgotten_classes=(2,))
    model = tiny.draw(jax.random.key(0))
    huge = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e16), model.params)
    params = unlearner.finish(
        with_fisher(unlearner, masks.ones_like(model.params), huge)
    ).model.params
    inputs = 50 * tiny.examples(0, 40)[0]
    before, after = (
        tiny.apply_fn(given, (), inputs, train=False, key=None)[0]
        for given in (model.params, params)
    )
    assert 2 in np.argmax(before, axis=1)
    assert 2 not in np.argmax(after, axis=1)
    np.testing.assert_allclose(after[:, :2], before[:, :2], atol=1e-5)
    np.testing.assert_array_equal(jax.nn.softmax(after)[:, 2], 0)
    assert np.isfinite(jax.nn.log_softmax(after)).all()


def test_each_trial_may_forget_classes_of_its_own():
    unlearner = fisher(head=tiny.HEAD, head_treatment="zeroed")
    model = tiny.draw(jax.random.key(0))
    huge = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e16), model.params)
    state = with_fisher(unlearner, masks.ones_like(model.params), huge)
    for classes in ([True, False, True], [False, False, False]):
        given = state._replace(hyper=state.hyper._replace(classes=jnp.array(classes)))
        kernel = unlearner.finish(given).model.params["head"]["kernel"]
        np.testing.assert_array_equal(np.abs(kernel).max(0) < 1e-6, classes)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"alpha": 0.0}, "alpha = 0.0"),
        ({"alpha": math.nan}, "alpha = nan"),
        ({"floor": 0.0}, "floor = 0.0"),
        ({"estimate": "batch"}, "'batch': must be 'exact' or 'official'"),
        ({"noise": "fourth"}, "'fourth': must be 'floored', 'official' or 'quarter'"),
        ({"noise": "official"}, "needs head="),
        ({"head_treatment": "zeroed"}, "needs head="),
        ({"head_treatment": "cut"}, "must be 'intact', 'zeroed' or 'removed'"),
        ({"forgotten_classes": (3,)}, r"must be in \[0, 3\)"),
        ({"forgotten_classes": (-1,)}, r"must be in \[0, 3\)"),
    ],
)
def test_fisher_refuses_bad_arguments(more, message):
    given = {"alpha": ALPHA, "num_classes": tiny.CLASSES} | more
    with pytest.raises(ValueError, match=message):
        fisher_forgetting(tiny.apply_fn, **given)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"head": {"kernel": True, "bias": True}}, "does not fit the parameters"),
        (tiny.HEAD | {"hidden": {"kernel": True, "bias": False}}, r"'hidden/kernel'.*\(6, 5\)"),
        (tiny.HEAD | {"head": {"kernel": True, "bias": False}}, "needs a bias"),
    ],
)
def test_a_head_that_does_not_fit_is_refused_at_init(head, message):
    unlearner = fisher(head=head, head_treatment="removed")
    model = tiny.draw(jax.random.key(0))
    with pytest.raises(ValueError, match=message):
        unlearner.init(model, masks.ones_like(model.params), jax.random.key(0))
