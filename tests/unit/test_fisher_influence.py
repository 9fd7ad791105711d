"""The two methods that act once: the law of Fisher's noise, and influence's formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_network as tiny

from sparse_mu import masks
from sparse_mu.losses import classification
from sparse_mu.types import Batch, Model, UnlearnBatch
from sparse_mu.unlearn import fisher_forgetting, influence_unlearning
from sparse_mu.unlearn.fisher import FisherSums

ALPHA, FLOOR = 1e-4, 1e-3


def fisher(**more):
    return fisher_forgetting(tiny.apply_fn, ALPHA, num_classes=tiny.CLASSES, floor=FLOOR, **more)


def with_fisher(unlearner, kept, sums):
    """A state whose pass over the retain set is done: ``sums`` over four rows."""
    state = unlearner.init(tiny.draw(jax.random.key(0)), kept, jax.random.key(1))
    return state._replace(aux=FisherSums(sums, jnp.float32(4)))


def test_noise_has_variance_alpha_over_the_mean_fisher_bounded_by_the_floor(key):
    unlearner, model = fisher(), tiny.draw(jax.random.key(0))
    mean = jax.tree.map(  # from a tenth of the floor to a thousand of it
        lambda leaf: jnp.geomspace(1e-4, 1, leaf.size).reshape(leaf.shape), model.params
    )
    sums = jax.tree.map(lambda leaf: 4 * leaf, mean)
    state = with_fisher(unlearner, tiny.half_masks(model), sums)
    draws = 4000

    def noise(trial_key):
        finished = unlearner.finish(state._replace(key=trial_key)).model.params
        return jax.tree.map(jnp.subtract, finished, state.model.params)

    drawn = jax.jit(jax.vmap(noise))(jax.random.split(key, draws))

    def judge(noise, fisher, kept):
        noise, kept = np.asarray(noise, np.float64), np.asarray(kept)
        variance = ALPHA / np.maximum(np.asarray(fisher, np.float64), FLOOR)
        # five standard errors: of a variance sqrt(2 / n) relative, of a mean sqrt(var / n)
        ratio = (noise**2).mean(0)[kept] / variance[kept]
        np.testing.assert_allclose(ratio, 1, atol=5 * np.sqrt(2 / draws))
        assert (np.abs(noise.mean(0)) < 5 * np.sqrt(variance / draws)).all()
        assert not noise[:, ~kept].any()

    jax.tree.map(judge, drawn, mean, state.masks)


def test_noise_of_different_leaves_and_trials_is_not_the_same():
    unlearner, model = fisher(), tiny.draw(jax.random.key(0))
    ones = jax.tree.map(jnp.ones_like, model.params)
    state = with_fisher(unlearner, masks.ones_like(model.params), ones)
    noise = [
        np.concatenate(
            [
                np.ravel(new - old)
                for new, old in zip(
                    jax.tree.leaves(
                        unlearner.finish(state._replace(key=jax.random.key(k))).model.params
                    ),
                    jax.tree.leaves(state.model.params),
                    strict=True,
                )
            ]
        )
        for k in (1, 2)
    ]
    assert len(np.unique(noise[0])) == noise[0].size == 53
    assert not np.any(noise[0] == noise[1])


def test_the_pass_adds_the_fisher_of_the_retain_rows_only():
    unlearner = fisher()
    model = tiny.draw(jax.random.key(0))
    state = unlearner.init(model, masks.ones_like(model.params), jax.random.key(1))
    for seed, padding in ((0, 0), (1, 3)):
        state, stats = unlearner.step(state, UnlearnBatch(None, tiny.batch(seed, 8, padding)))
        assert float(stats.weight) == 8 - padding
    assert float(state.aux.weight) == 13
    jax.tree.map(np.testing.assert_array_equal, state.model, model)


@pytest.mark.parametrize(("treatment", "gone"), [("zeroed", (1,)), ("intact", ())])
def test_the_forgotten_classes_lose_their_rows_of_the_head(treatment, gone):
    unlearner = fisher(head=tiny.HEAD, head_treatment=treatment, forgotten_classes=(1,))
    model = tiny.draw(jax.random.key(0))
    huge = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e12), model.params)  # noise of 1e-8
    finished = unlearner.finish(with_fisher(unlearner, masks.ones_like(model.params), huge))
    expected = jax.tree.map(np.array, model.params)
    for forgotten in gone:
        expected["head"]["kernel"][:, forgotten] = 0
        expected["head"]["bias"][forgotten] = 0
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), finished.model.params, expected
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"alpha": 0.0}, "alpha = 0.0"),
        ({"alpha": float("nan")}, "alpha = nan"),
        ({"floor": 0.0}, "floor = 0.0"),
        ({"head_treatment": "zeroed"}, "needs head="),
        ({"head_treatment": "removed"}, "must be 'intact' or 'zeroed'"),
        ({"forgotten_classes": (3,)}, r"must be in \[0, 3\)"),
        ({"forgotten_classes": (-1,)}, r"must be in \[0, 3\)"),
    ],
)
def test_fisher_refuses_bad_numbers(more, message):
    given = {"alpha": ALPHA, "num_classes": tiny.CLASSES} | more
    with pytest.raises(ValueError, match=message):
        fisher_forgetting(tiny.apply_fn, **given)


def regression(params, net_state, inputs, *, train, key):
    return inputs @ params["w"], net_state


@pytest.mark.parametrize("rows", [4, 64])
def test_influence_is_the_explicit_newton_step(rows):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        width, classes = 4, 3
        weights = rng.standard_normal((width, classes))
        kept = rng.random((width, classes)) > 0.3
        weights = np.where(kept, weights, 0)
        sets = {}
        for name, count in (("forget", 5), ("retain", 7)):
            sets[name] = rng.standard_normal((count, width)), rng.integers(0, classes, count)

        def gradients(name):  # x (p - onehot), one row each, pruned entries out
            inputs, labels = sets[name]
            p = np.exp(inputs @ weights)
            p = p / p.sum(1, keepdims=True) - np.eye(classes)[labels]
            return (np.einsum("ij,ik->ijk", inputs, p) * kept).reshape(len(labels), -1)

        forget, retain = gradients("forget"), gradients("retain")
        used = retain[:rows]
        curvature = 0.05 * np.eye(width * classes) + used.T @ used / len(used)
        vector = 5 / 12 * (forget.mean(0) - retain.mean(0))
        step = np.linalg.solve(curvature, vector).reshape(width, classes)
        expected = weights + 0.7 * step * kept

        loss_fn = classification(regression, train=False)
        unlearner = influence_unlearning(loss_fn, 0.7, damping=0.05, rows=rows)
        model = Model({"w": jnp.asarray(weights)})
        state = unlearner.init(model, {"w": jnp.asarray(kept)}, jax.random.key(0))

        def part(name, chosen, padding):
            inputs, labels = (array[chosen] for array in sets[name])
            counts = np.r_[np.ones(len(labels)), np.zeros(padding)].astype(np.float32)
            filled = np.r_[inputs, np.full((padding, width), 9.0)]
            return Batch(*map(jnp.asarray, (filled, np.pad(labels, (0, padding)), counts)))

        for first in (slice(0, 4), slice(4, 8)):
            padding = [4 - len(sets[name][1][first]) for name in ("forget", "retain")]
            batch = UnlearnBatch(
                part("forget", first, padding[0]), part("retain", first, padding[1])
            )
            state, _ = unlearner.step(state, batch)
        found = unlearner.finish(state).model.params["w"]
        # alpha and damping are stored as float32: 6e-8 relative of a step of order ten
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert np.abs(expected - weights).max() > 0.1
        assert not np.asarray(found)[~kept].any()


def test_influence_says_how_many_bytes_it_needs_before_it_allocates_them():
    loss_fn = classification(tiny.apply_fn, train=False)
    model = tiny.draw(jax.random.key(0))
    dense = masks.ones_like(model.params)
    # 53 weights x 4 bytes x 10^15 rows: allocating first would fail in another way
    unlearner = influence_unlearning(loss_fn, rows=10**15)
    with pytest.raises(ValueError, match=r"212,000,000,000,000,000 bytes.*byte_budget"):
        unlearner.init(model, dense, jax.random.key(0))
    exact = influence_unlearning(loss_fn, rows=10, byte_budget=2120)
    exact.init(model, dense, jax.random.key(0))
    with pytest.raises(ValueError, match="2,120 bytes"):
        influence_unlearning(loss_fn, rows=10, byte_budget=2119).init(
            model, dense, jax.random.key(0)
        )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"damping": 0.0}, "damping = 0.0"),
        ({"damping": -1.0}, "damping = -1.0"),
        ({"rows": 0}, "rows = 0"),
        ({"solver": "cg"}, "'cg'"),
    ],
)
def test_influence_refuses_bad_numbers(more, message):
    with pytest.raises(ValueError, match=message):
        influence_unlearning(classification(tiny.apply_fn, train=False), **more)
