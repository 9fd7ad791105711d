"""First-order methods: ascent's ceiling and penalty, the proximal l1-sparse, divergence."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_network as tiny

from sparse_mu import masks, unlearn
from sparse_mu.execution import single
from sparse_mu.losses import classification
from sparse_mu.optimiser import hyper_parameters
from sparse_mu.proximal import GAMMA_SCHEDULES, gamma_at, soft_threshold
from sparse_mu.training import fit
from sparse_mu.types import Batch, LossAux, Model, UnlearnBatch
from sparse_mu.unlearn import finetune, gradient_ascent, l1_sparse

LOSS = classification(tiny.apply_fn)
PLAIN = hyper_parameters(learning_rate=0.1)
STILL = hyper_parameters()  # a learning rate of 0
# float32 rounding of one step, values of order one
CLOSE = {"rtol": 1e-5, "atol": 1e-6}

jit_of = functools.lru_cache(maxsize=8)(jax.jit)


def stepped(unlearner, model, batch, kept=None, steps=1):
    kept = masks.ones_like(model.params) if kept is None else kept
    state = unlearner.init(model, kept, jax.random.key(1))
    step = jit_of(unlearner.step.on_batch)
    for _ in range(steps):
        state, stats = step(state, batch)
    return state, stats


def compare(found, expected, **tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **(tolerance or CLOSE)), found, expected
    )


@jax.jit
def _mean_loss_and_gradient(model, batch):
    def loss(params):
        return LOSS(params, model.net_state, batch, jax.random.key(0))[0] / batch.weights.sum()

    return jax.value_and_grad(loss)(model.params)


def mean_loss_and_gradient(model, batch):
    """As numpy, so that expected values are computed without compiling anything."""
    return jax.device_get(_mean_loss_and_gradient(model, batch))


def numbers(tree):
    return jax.device_get(tree)


# ---- gradient ascent -------------------------------------------------------------------------


def ascent(**more):
    decay = hyper_parameters(learning_rate=0.1, momentum=0.9, weight_decay=0.01)
    return gradient_ascent(LOSS, hyper=decay, **more)


def test_ascent_follows_the_loss_up_and_the_penalty_and_the_decay_down():
    model, batch = tiny.draw(jax.random.key(0)), tiny.batch(0, padding=2)
    _, gradient = mean_loss_and_gradient(model, batch)
    for gamma in (None, 0.05):
        state, _ = stepped(ascent(gamma=gamma), model, batch)
        expected = jax.tree.map(
            lambda w, g, gamma=gamma: w - 0.1 * (-g + (gamma or 0) * np.sign(w) + 0.01 * w),
            numbers(model.params),
            gradient,
        )
        compare(state.model.params, expected)


def test_the_official_penalty_of_ascent_is_constant_over_the_epochs():
    hyper = ascent(gamma=0.05).init(*_dense(0)).hyper
    ten = hyper._replace(epochs=jnp.float32(10))
    found = [gamma_at(ten.gamma, ten.gamma_schedule, jnp.float32(t), ten.epochs) for t in range(10)]
    np.testing.assert_allclose(found, 0.05, rtol=1e-6)


def _dense(seed):
    model = tiny.draw(jax.random.key(seed))
    return model, masks.ones_like(model.params), jax.random.key(1)


@pytest.mark.parametrize("above", [True, False])
def test_above_the_ceiling_a_step_follows_penalty_and_decay_only(above):
    model, batch = tiny.draw(jax.random.key(0)), tiny.batch(0, padding=2)
    loss, gradient = mean_loss_and_gradient(model, batch)
    ceiling = float(loss) * (0.999 if above else 1.001)
    state, stats = stepped(ascent(gamma=0.05, loss_ceiling=ceiling), model, batch)
    expected = jax.tree.map(
        lambda w, g: w - 0.1 * ((0 if above else -g) + 0.05 * np.sign(w) + 0.01 * w),
        numbers(model.params),
        gradient,
    )
    compare(state.model.params, expected)
    np.testing.assert_allclose(stats.loss / stats.weight, loss, rtol=1e-5)  # still told


def test_a_ceiling_bounds_what_ascent_without_momentum_reaches():
    model, batch = tiny.draw(jax.random.key(0)), tiny.batch(0)
    free = hyper_parameters(learning_rate=0.5)
    ends = [
        stepped(gradient_ascent(LOSS, hyper=free, **more), model, batch, steps=60)[1].loss / 8
        for more in ({}, {"loss_ceiling": 3.0})
    ]
    # one step of 0.5 past the ceiling, no further
    assert float(ends[0]) > 20 > 8 > float(ends[1]) > 3


def test_a_descent_has_no_ceiling():
    model, batch = tiny.draw(jax.random.key(0)), tiny.batch(0)
    hyper = hyper_parameters(learning_rate=0.1, loss_ceiling=1e-3)
    state, _ = stepped(finetune(LOSS, hyper=hyper), model, batch)
    _, gradient = mean_loss_and_gradient(model, batch)
    compare(
        state.model.params, jax.tree.map(lambda w, g: w - 0.1 * g, numbers(model.params), gradient)
    )


def test_ascent_leaves_penalty_and_ceiling_of_its_hyper_parameters_unless_told():
    given = hyper_parameters(gamma=0.3, gamma_schedule=1, loss_ceiling=2.0)
    kept = gradient_ascent(LOSS, hyper=given).init(*_dense(0)).hyper
    assert (float(kept.gamma), int(kept.gamma_schedule), float(kept.loss_ceiling)) == (
        pytest.approx(0.3),
        1,
        2.0,
    )
    told = gradient_ascent(LOSS, hyper=given, gamma=0.1, loss_ceiling=math.inf)
    hyper = told.init(*_dense(0)).hyper
    assert (int(hyper.gamma_schedule), float(hyper.loss_ceiling)) == (0, math.inf)


def test_batch_statistics_follow_the_loss_function_given():
    # the tiny network hands its net state through: here the loss notes the mode in it
    def noting(train):
        def apply_fn(params, net_state, inputs, *, train, key):
            logits, _ = tiny.apply_fn(params, net_state, inputs, train=train, key=key)
            seen = net_state["seen"] + inputs[:, :2].mean(0) if train else net_state["seen"]
            return logits, {"seen": seen}

        return classification(apply_fn, train=train)

    model, batch = tiny.draw(jax.random.key(0)), tiny.batch(0)
    moved = [
        np.any(
            stepped(gradient_ascent(noting(train), hyper=PLAIN), model, batch)[0].model.net_state[
                "seen"
            ]
        )
        for train in (True, False)
    ]
    assert moved == [True, False]


# ---- l1-sparse by its proximal step ----------------------------------------------------------


def prox(gamma=0.05, **more):
    hyper = hyper_parameters(learning_rate=0.1, momentum=0.9, weight_decay=0.01, lr_schedule=1)
    hyper = hyper._replace(epochs=jnp.float32(4), steps_per_epoch=jnp.float32(1))
    more = {"prunable": masks.matrices} | more
    return l1_sparse(LOSS, gamma=gamma, penalty="proximal", hyper=hyper, **more)


def test_the_proximal_step_reads_the_scheduled_rate_and_the_scheduled_gamma():
    model, batch = tiny.draw(jax.random.key(0)), tiny.batch(0, padding=2)
    unlearner = prox()
    state, _ = stepped(unlearner, model, batch)
    for epoch, rate, gamma in ((1, 0.1, 1.5), (2, 0.01, 1.0), (3, 0.001, 0.5)):
        before = state.model
        _, gradient = mean_loss_and_gradient(before, batch)
        buffers = jax.tree.map(
            lambda buf, g, w: 0.9 * buf + g + 0.01 * w,
            numbers(state.opt_state[0].trace),
            gradient,
            numbers(before.params),
        )
        state, _ = jit_of(unlearner.step.on_batch)(state, batch)
        expected = jax.tree.map(lambda w, buf, r=rate: w - r * buf, numbers(before.params), buffers)
        for part in expected.values():
            part["kernel"] = soft_threshold(part["kernel"], rate * gamma * 0.05)
        compare(state.model.params, expected)
        assert int(state.step) == epoch + 1


def lasso(rows, width, seed):
    """A quadratic with rows of orthonormal columns: its lasso is solved by soft thresholding."""
    rng = np.random.default_rng(seed)
    design = np.linalg.qr(rng.standard_normal((rows, width)))[0] * np.sqrt(rows)
    target = design @ (3 * rng.standard_normal(width)) + rng.standard_normal(rows)
    return design, target


def quadratic(params, net_state, batch, key):
    """Half the squared error, summed; targets ride in the last column of the inputs."""
    del key
    residual = batch.inputs[:, :-1] @ params["w"] - batch.inputs[:, -1]
    aux = LossAux(batch.weights.sum(), net_state, jnp.zeros((), batch.weights.dtype))
    return 0.5 * jnp.sum(batch.weights * residual**2), aux


@pytest.mark.parametrize("seed", [0, 1])
def test_proximal_l1_sparse_solves_the_lasso_and_stays_there(seed):
    # mean loss |Xw - y|^2 / 2n with X^T X = n I: the solution is soft(X^T y / n, gamma)
    design, target = lasso(12, 5, seed)
    gamma, rate = 1.5, 0.5
    with jax.enable_x64(True):
        inputs = jnp.asarray(np.c_[design, target])
        batch = Batch(inputs, jnp.zeros(12, jnp.int32), jnp.ones(12))
        hyper = hyper_parameters(learning_rate=rate)._replace(learning_rate=np.float64(rate))
        unlearner = l1_sparse(
            quadratic, gamma=gamma, schedule="constant", penalty="proximal",
            prunable=lambda name, leaf: True, hyper=hyper,
        )  # fmt: skip
        state, _ = stepped(unlearner, Model({"w": jnp.ones(5)}), batch, steps=60)
        found = np.asarray(state.model.params["w"])
        least_squares = design.T @ target / 12
        solution = np.sign(least_squares) * np.maximum(np.abs(least_squares) - gamma, 0)
        assert 0 < np.count_nonzero(solution) < 5
        # halves its distance every step: 2^-60
        np.testing.assert_allclose(found, solution, atol=1e-12)
        np.testing.assert_array_equal(found == 0, solution == 0)  # exactly
        gradient = design.T @ (design @ found - target) / 12
        moved = found - rate * gradient
        again = np.sign(moved) * np.maximum(np.abs(moved) - rate * gamma, 0)
        np.testing.assert_allclose(found, again, atol=1e-12)


def test_the_proximal_step_makes_zeros_and_the_sub_gradient_does_not():
    model, batch = tiny.draw(jax.random.key(0)), tiny.batch(0)
    hyper = hyper_parameters(learning_rate=0.1)
    zeros = {}
    for penalty, more in (("subgradient", {}), ("proximal", {"prunable": masks.matrices})):
        unlearner = l1_sparse(
            LOSS, gamma=0.3, schedule="constant", penalty=penalty, hyper=hyper, **more
        )
        state, _ = stepped(unlearner, model, batch, steps=20)
        kernels = [leaf for leaf in jax.tree.leaves(state.model.params) if leaf.ndim == 2]
        biases = [leaf for leaf in jax.tree.leaves(state.model.params) if leaf.ndim == 1]
        zeros[penalty] = sum(int((leaf == 0).sum()) for leaf in kernels)
        assert not any((leaf == 0).any() for leaf in biases)
    assert zeros["subgradient"] == 0
    assert zeros["proximal"] > 10


def test_a_proximal_step_keeps_pruned_weights_and_their_momentum_at_zero():
    model = tiny.draw(jax.random.key(0))
    kept = tiny.half_masks(model)
    state, _ = stepped(prox(), model, tiny.batch(0), kept=kept, steps=3)
    for tree in (state.model.params, state.opt_state[0].trace):
        gone = jax.tree.map(lambda leaf, mask: leaf[~mask], tree, kept)
        assert not any(leaf.any() for leaf in jax.tree.leaves(gone))


def test_a_readers_optimiser_is_thresholded_by_the_rate_of_the_hyper_parameters():
    model, batch = tiny.draw(jax.random.key(0)), tiny.batch(0)
    unlearner = l1_sparse(
        LOSS, optax.sgd(0.1), 0.05, schedule="constant", penalty="proximal",
        prunable=masks.matrices, hyper=hyper_parameters(learning_rate=0.1),
    )  # fmt: skip
    state, _ = stepped(unlearner, model, batch)
    _, gradient = mean_loss_and_gradient(model, batch)
    expected = jax.tree.map(lambda w, g: w - 0.1 * g, numbers(model.params), gradient)
    for part in expected.values():
        part["kernel"] = soft_threshold(part["kernel"], 0.005)
    compare(state.model.params, expected)


def test_equal_proximal_methods_share_their_step():
    assert prox(0.1).step == prox(0.2, schedule="growing").step
    assert prox().step != finetune(LOSS, hyper=PLAIN).step
    plain = l1_sparse(LOSS, schedule="growing_matched", hyper=PLAIN).step
    assert plain == finetune(LOSS, hyper=PLAIN).step
    assert plain.on_batch is gradient_ascent(LOSS, gamma=0.1, hyper=PLAIN).step.on_batch


@pytest.mark.parametrize(
    ("make", "more", "message"),
    [
        (l1_sparse, {"schedule": "linear"}, "'linear': must be one of constant, growing"),
        (l1_sparse, {"penalty": "prox"}, "'prox': must be 'subgradient' or 'proximal'"),
        (l1_sparse, {"gamma": -1.0}, "gamma = -1.0"),
        (l1_sparse, {"gamma": math.nan}, "gamma = nan"),
        (l1_sparse, {"prunable": masks.matrices}, "needs penalty='proximal'"),
        (l1_sparse, {"penalty": "proximal", "tx": optax.sgd(0.1)}, "needs hyper="),
        (gradient_ascent, {"gamma": -1.0}, "gamma = -1.0"),
        (gradient_ascent, {"loss_ceiling": 0.0}, "loss_ceiling = 0.0"),
        (gradient_ascent, {"loss_ceiling": math.nan}, "loss_ceiling = nan"),
    ],
)
def test_bad_arguments_are_refused(make, more, message):
    with pytest.raises(ValueError, match=message):
        make(LOSS, **more)


def test_a_proximal_step_without_a_prunable_leaf_says_so():
    # the tiny network has no convolution, the default
    unlearner = prox(prunable=None)
    with pytest.raises(ValueError, match="no leaf of params is prunable"):
        # traced, not run: the names are there
        jax.eval_shape(
            unlearner.step, unlearner.init(*_dense(0)), UnlearnBatch(None, tiny.batch(0))
        )


# ---- schedules in a step ---------------------------------------------------------------------


@pytest.mark.parametrize("schedule", GAMMA_SCHEDULES)
def test_a_step_is_penalised_by_the_gamma_of_its_epoch(schedule):
    model, batch = tiny.draw(jax.random.key(0)), tiny.batch(0)
    hyper = hyper_parameters(learning_rate=1.0, epochs=3, steps_per_epoch=2)
    unlearner = l1_sparse(LOSS, gamma=0.25, schedule=schedule, hyper=hyper)
    _, gradient = mean_loss_and_gradient(model, batch)
    factors = {
        "constant": (1, 1, 1),
        "growing": (0, 2 / 3, 4 / 3),
        "decaying": (2, 4 / 3, 2 / 3),
        "growing_matched": (0, 1, 2),
        "decaying_matched": (1.5, 1, 0.5),
    }[schedule]
    state = unlearner.init(model, masks.ones_like(model.params), jax.random.key(1))
    for step in range(6):
        after, _ = jit_of(unlearner.step.on_batch)(state._replace(step=jnp.int32(step)), batch)
        gamma = 0.25 * factors[step // 2]
        expected = jax.tree.map(
            lambda w, g, gamma=gamma: w - g - gamma * np.sign(w), numbers(model.params), gradient
        )
        compare(after.model.params, expected)


# ---- divergence ------------------------------------------------------------------------------


def test_large_weights_whose_norm_overflows_are_still_finite():
    model, batch = tiny.draw(jax.random.key(0)), tiny.batch(0)
    huge = model._replace(params=model.params | {"extra": jnp.full(3, 1e30)})
    _, stats = stepped(finetune(LOSS, hyper=STILL), huge, batch)
    assert bool(stats.finite)
    _, stats = stepped(
        finetune(LOSS, hyper=STILL), huge._replace(net_state={"seen": jnp.full(2, jnp.inf)}), batch
    )
    assert not bool(stats.finite)


def test_a_diverging_ascent_stops_at_its_last_finite_model_and_net_state():
    def overflowing(params, net_state, batch, key):  # the net state does, before the weights
        loss, aux = LOSS(params, net_state, batch, key)
        return loss, LossAux(aux.weight, {"seen": net_state["seen"] * 1e15 + 1}, aux.correct)

    model, dense, keys, trials = tiny.batched_trials(1)
    result = fit(
        gradient_ascent(overflowing, hyper=hyper_parameters(learning_rate=0.01)),
        model, dense, keys, trials, tiny.dataset(),
        batch_size=4, epochs=9, execution=single(),
    )  # fmt: skip
    assert result.finite.tolist() == [False]
    # 1, 1e15, 1e30; the next is infinite
    np.testing.assert_allclose(result.model.net_state["seen"], [[1e30, 1e30]], rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.model))


@pytest.mark.parametrize(
    "make",
    [
        finetune,
        gradient_ascent,
        l1_sparse,
        unlearn.finetune_and_prune,
        unlearn.negative_gradient,
        lambda loss_fn: unlearn.random_label(loss_fn, num_classes=3),
        lambda loss_fn: unlearn.salun(loss_fn, num_classes=3),
        lambda loss_fn: unlearn.scrub(tiny.apply_fn),
        lambda loss_fn: unlearn.retrain(loss_fn, reinit=tiny.draw),
    ],
)
def test_a_method_without_a_learning_rate_is_refused(make):
    with pytest.raises(ValueError, match="tx = None and hyper = None: give an optimiser"):
        make(LOSS)
