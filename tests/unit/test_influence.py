"""Influence unlearning: its formula, its solvers, and retraining, in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_network as tiny

from experiments import theory
from experiments.theory import (
    LOGISTIC_LOSS,
    RIDGE,
    ROWS,
    WIDTH,
    flat_of,
    logistic_rows,
    model_of,
    optimum,
    original,
    sets_of,
    unlearned,
)
from sparse_mu import bounds, curvature, masks
from sparse_mu.execution import single
from sparse_mu.losses import classification
from sparse_mu.training import fit
from sparse_mu.types import Batch, Model, UnlearnBatch
from sparse_mu.unlearn import convergence, influence_direction, influence_unlearning

LOSS = classification(tiny.apply_fn, train=False)


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
        step, finish = jax.jit(unlearner.step), jax.jit(unlearner.finish)
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
            state, _ = step(state, batch)
        found = finish(state).model.params["w"]
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
        ({"solver": "lanczos"}, "'lanczos'.*one of woodbury, cg, official"),
        ({"curvature": "fisher"}, "'fisher'.*gauss_newton, hessian"),
        ({"weighting": "mean"}, "'mean'.*average, sum"),
        ({"tolerance": -1e-3}, "tolerance = -0.001"),
        ({"solver": "cg"}, "apply_fn = None"),
    ],
)
def test_influence_refuses_bad_numbers(more, message):
    with pytest.raises(ValueError, match=message):
        influence_unlearning(classification(tiny.apply_fn, train=False), **more)


# ---- against retraining ----------------------------------------------------------------------


@functools.cache
def composed_errors():
    return theory.errors(theory.COMPOSED)


def test_influence_is_retraining_to_second_order_each_erm_against_its_own():
    with jax.enable_x64(True):
        found = composed_errors()
    for name in ("average", "sum"):
        assert theory.log_slope(theory.FORGOTTEN, found[name, name]).value >= 1.8
    # the ridge tells them apart: against the other's retraining the error is of first order
    for pair in (("average", "sum"), ("sum", "average")):
        assert theory.log_slope(theory.FORGOTTEN, found[pair]).value < 1.5


def test_the_kept_slopes_are_the_asserted_ones():
    with jax.enable_x64(True):
        rows = list(theory.slope_rows([composed_errors()]))
    kept = theory.RESULTS.read_text()
    for row in rows:  # of three digits; conjugate gradients leave 1e-10
        assert f"| {' | '.join(row)} |" in kept


def test_the_hessian_of_a_linear_model_is_its_gauss_newton_matrix():
    with jax.enable_x64(True):
        retain = np.arange(ROWS) >= 16
        both = [unlearned("average", retain, kind) for kind in ("gauss_newton", "hessian")]
        np.testing.assert_allclose(*both, rtol=1e-9)  # solved to 1e-10


def dense_mean_hessian(model, batch):
    def mean_loss(params):
        return LOGISTIC_LOSS(params, (), batch, None)[0] / batch.weights.sum()

    found = jax.jit(jax.hessian(mean_loss))(model.params)
    w, b = found["w"], found["b"]
    return np.block([[np.asarray(w["w"]), np.c_[w["b"]]], [np.asarray(b["w"]), b["b"]]])


def dense_solver(hessian):
    def solve(vector):
        return model_of(np.linalg.solve(hessian, flat_of(vector))).params

    return solve


@pytest.mark.ci
def test_average_and_sum_directions_at_an_unregularised_optimum_differ_by_a_factor_only():
    with jax.enable_x64(True):  # SPEC 11.10
        retain = np.arange(ROWS) >= 50
        model = model_of(optimum(np.full(ROWS, 1 / ROWS), 0.0))
        batch = sets_of(np.ones(ROWS, bool)).retain
        solve = dense_solver(dense_mean_hessian(model, batch))
        average, summed = (
            influence_direction(LOGISTIC_LOSS, model, batch, w, None, solve=solve, kind=kind)
            for w, kind in (
                (bounds.average_weights(jnp.asarray(retain)), "normalised"),
                (bounds.sum_weights(jnp.asarray(retain)), "boolean"),
            )
        )
        expected = flat_of(summed) * ROWS / retain.sum()
        np.testing.assert_allclose(flat_of(average), expected, rtol=1e-8)  # optimum to 1e-12
        assert np.abs(expected).max() > 1e-2


@pytest.mark.parametrize("weighting", ["average", "sum"])
def test_the_direction_of_any_weights_is_the_unlearners_for_its_own(weighting):
    with jax.enable_x64(True):
        retain = np.arange(ROWS) >= 50
        model = model_of(original())
        batch = sets_of(np.ones(ROWS, bool)).retain
        hessian = dense_mean_hessian(model, sets_of(retain).retain) + RIDGE * np.eye(WIDTH + 1)
        make, kind = {
            "average": (bounds.average_weights, "normalised"),
            "sum": (bounds.sum_weights, "boolean"),
        }[weighting]
        found = influence_direction(
            LOGISTIC_LOSS, model, batch, make(jnp.asarray(retain)), None,
            solve=dense_solver(hessian), kind=kind,
        )  # fmt: skip
        expected = unlearned(weighting, retain) - flat_of(model.params)
        # the unlearner counts rows in float32: 6e-8 relative
        np.testing.assert_allclose(flat_of(found), expected, rtol=1e-6, atol=1e-9)


def test_any_weights_reach_the_direction_and_padding_does_not():
    with jax.enable_x64(True):
        inputs, labels = logistic_rows()
        counted = np.arange(ROWS) < 500
        batch = Batch(jnp.asarray(inputs), jnp.asarray(labels), jnp.asarray(counted, float))
        weights = np.random.default_rng(1).random(ROWS)
        model = model_of(np.linspace(-1, 1, WIDTH + 1))
        found = influence_direction(
            LOGISTIC_LOSS, model, batch, jnp.asarray(weights), None, solve=lambda v: v
        )
        design = np.c_[inputs, np.ones(ROWS)][:500]
        p = 1 / (1 + np.exp(-design @ flat_of(model.params)))
        expected = design.T @ ((1 / 500 - weights[:500]) * (p - labels[:500]))
        np.testing.assert_allclose(flat_of(found), expected, rtol=1e-10)  # 500 float64 terms
        more = {"solve": lambda v: v}
        with pytest.raises(ValueError, match="kind = 'mean'"):
            influence_direction(LOGISTIC_LOSS, model, batch, weights, None, kind="mean", **more)
        with pytest.raises(ValueError, match=r"weights has shape \(3,\)"):
            influence_direction(LOGISTIC_LOSS, model, batch, weights[:3], None, **more)


# ---- conjugate gradients over passes ---------------------------------------------------------


def started(unlearner, kept=None, seed=0):
    """The state after the survey of one batch of each set, and those batches."""
    model = tiny.draw(jax.random.key(seed))
    kept = masks.ones_like(model.params) if kept is None else kept
    state = unlearner.init(model, kept, jax.random.key(1))
    batch = UnlearnBatch(tiny.batch(0, 8, padding=3), tiny.batch(1, 16, padding=2))
    surveyed, stats = jax.jit(unlearner.survey.step)(state, batch)
    assert float(stats.weight) == 5 + 14
    surveyed = unlearner.survey.finish(surveyed)
    assert int(surveyed.step) == 0
    return surveyed, batch


def cg(**more):
    return influence_unlearning(LOSS, solver="cg", apply_fn=tiny.apply_fn, damping=0.1, **more)


def close(actual, expected):
    """Sums of 16 float32 rows taken in another order, three iterations of them at most."""
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def flat53(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(np.float64)


@pytest.mark.ci
def test_cg_through_fit_is_the_dense_solve_on_the_kept_weights():
    model, _, keys, trials = tiny.batched_trials(1)
    kept = jax.vmap(tiny.half_masks)(model)
    data = tiny.dataset()
    result = fit(
        cg(tolerance=1e-6), model, kept, keys, trials, data, batch_size=8, epochs=40,
        execution=single("python"),
    )  # fmt: skip
    one = jax.tree.map(lambda leaf: leaf[0], (model, kept))
    mask = flat53(one[1]).astype(bool)
    params = masks.apply(one[1], one[0].params)

    def logits_of(params, inputs):
        return tiny.apply_fn(params, (), inputs, train=False, key=None)[0]

    def summed(params, batch):
        return LOSS(params, (), batch, None)[0]

    def mean_gradient(rows):
        batch = Batch(data.inputs[rows], data.labels[rows], jnp.ones(int(rows.sum())))
        return flat53(jax.jit(jax.grad(summed))(params, batch)) / rows.sum()

    forget, retain = trials.forget[0], trials.retain[0]
    jacobian = jax.tree.leaves(jax.jit(jax.jacrev(logits_of))(params, data.inputs[retain]))
    jacobian = np.concatenate([j.reshape(*j.shape[:2], -1) for j in jacobian], axis=2)
    p = np.asarray(jax.nn.softmax(logits_of(params, data.inputs[retain])), np.float64)
    inner = np.einsum("rc,cd->rcd", p, np.eye(tiny.CLASSES)) - p[:, :, None] * p[:, None, :]
    matrix = np.einsum("rci,rcd,rdj->ij", jacobian, inner, jacobian) / retain.sum()
    vector = forget.mean() * (mean_gradient(forget) - mean_gradient(retain))
    inside = np.ix_(mask, mask)
    step = np.zeros(53)
    step[mask] = np.linalg.solve(matrix[inside] + 0.1 * np.eye(mask.sum()), vector[mask])
    moved = flat53(result.model.params) - flat53(params)
    # float32: eigenvalues from 0.1 to about 3 over a gradient of 1e-7 relative rounding
    np.testing.assert_allclose(moved, step, atol=2e-5)
    assert np.abs(step).max() > 0.05
    assert not moved[~mask].any()


@pytest.mark.ci
def test_an_iteration_is_a_pass_however_the_rows_are_dealt():
    unlearner = cg(tolerance=0.0)
    state, batch = started(unlearner)
    step = jax.jit(unlearner.step)
    halves = [jax.tree.map(lambda leaf, at=at: leaf[at : at + 8], batch.retain) for at in (0, 8)]
    whole = split = state
    for _ in range(3):
        whole, _ = step(whole, batch)
        for half in halves:
            split, _ = step(split, UnlearnBatch(None, half))
    assert int(whole.aux.solve.iterations) == int(split.aux.solve.iterations) == 3
    jax.tree.map(close, whole.aux.solve, split.aux.solve)
    held, _ = step(split, UnlearnBatch(None, halves[0]))  # half a pass changes no solution
    jax.tree.map(np.testing.assert_array_equal, held.aux.solve, split.aux.solve)


def test_the_finished_state_says_whether_the_solve_converged():
    unlearner = cg(tolerance=1e-3)
    state, batch = started(unlearner)
    step = jax.jit(unlearner.step)
    with pytest.raises(ValueError, match="tells no convergence"):
        convergence(state)
    told = []
    for _ in range(30):
        state, _ = step(state, batch)
        told.append(convergence(unlearner.finish(state)))
    residuals = np.array([one.relative_residual for one in told])
    converged = np.array([one.converged for one in told])
    np.testing.assert_array_equal(converged, residuals <= 1e-3)
    assert not converged[0] and converged[-1]
    first = int(np.argmax(converged))
    assert [int(one.iterations) for one in told] == [min(i, first) + 1 for i in range(30)]
    assert len(set(residuals[first:])) == 1  # held from there on


@pytest.mark.ci
def test_negative_curvature_stops_the_hessian_and_is_told():
    # far from a minimum, with next to no damping, a tanh network's Hessian is indefinite
    unlearner = influence_unlearning(LOSS, solver="cg", curvature="hessian", damping=1e-6)
    state, batch = started(unlearner)
    step = jax.jit(unlearner.step)
    for _ in range(53):
        state, _ = step(state, batch)
    told = convergence(unlearner.finish(state))
    assert told.negative_curvature and not told.converged
    assert int(told.iterations) < 53


@pytest.mark.parametrize("solver", ["cg", "official"])
def test_a_step_before_the_survey_is_refused(solver):
    unlearner = influence_unlearning(LOSS, solver=solver, apply_fn=tiny.apply_fn)
    model = tiny.draw(jax.random.key(0))
    state = unlearner.init(model, masks.ones_like(model.params), jax.random.key(1))
    for refused in (
        lambda: unlearner.step(state, tiny.both_sets(0)),
        lambda: unlearner.finish(state),
    ):
        with pytest.raises(ValueError, match=r"run unlearner\.survey before step"):
            refused()
    with pytest.raises(ValueError, match=r"batch\.forget or batch\.retain is None"):
        unlearner.survey.step(state, UnlearnBatch(None, tiny.batch(0)))


@pytest.mark.ci
@pytest.mark.parametrize("solver", ["cg", "official"])
def test_a_batch_split_over_devices_is_the_whole_batch(solver):
    def made(axis_name):
        return influence_unlearning(
            LOSS, solver=solver, apply_fn=tiny.apply_fn, damping=0.1, rows=7, axis_name=axis_name
        )

    state, batch = started(made(None))
    alone, _ = jax.jit(made(None).step)(state, batch)
    parts = jax.tree.map(lambda leaf: leaf.reshape(4, 4, *leaf.shape[1:]), batch.retain)
    across = jax.pmap(made("devices").step, axis_name="devices", in_axes=(None, 0))
    split, _ = across(state, UnlearnBatch(None, parts))
    for device in (0, 3):
        part = jax.tree.map(lambda leaf, at=device: leaf[at], split.aux)
        jax.tree.map(close, part, alone.aux)


# ---- the official recursion ------------------------------------------------------------------


@jax.jit
def row_gradients(model, batch):
    return curvature.example_gradients(LOSS, model, batch, None)


@pytest.mark.ci
def test_official_is_the_recursion_over_rows_in_their_order():
    count = 5  # so 7 of the 14 rows
    unlearner = influence_unlearning(LOSS, 0.7, solver="official", rows=count)
    model = tiny.draw(jax.random.key(0))
    kept = tiny.half_masks(model)
    state, batch = started(unlearner, kept)
    step = jax.jit(unlearner.step)
    for at in (0, 8):
        part = jax.tree.map(lambda leaf, at=at: leaf[at : at + 8], batch.retain)
        state, _ = step(state, UnlearnBatch(None, part))
    assert int(state.aux.seen) == count + 2
    found = flat53(unlearner.finish(state).model.params)

    params, mask = masks.apply(kept, model.params), flat53(kept).astype(bool)

    def gradients(one_set):
        rows = row_gradients(Model(params, model.net_state), one_set)
        return (
            np.concatenate(
                [np.reshape(leaf, (len(leaf), -1)) for leaf in jax.tree.leaves(rows)], axis=1
            ).astype(np.float64)
            * mask
        )

    forget, retain = gradients(batch.forget)[:5], gradients(batch.retain)[:14]
    vector = 5 / 19 * (forget.mean(0) - retain.mean(0))
    along, solution = retain[0].copy(), vector.copy()
    for index, g in enumerate(retain):
        if index:
            s = along @ g
            solution -= (solution @ g) / (count + s) * along
            along -= s / (count + s) * along
        if index > count:
            break
    assert index == count + 1
    expected = flat53(params) + 0.7 * solution
    np.testing.assert_allclose(found, expected, atol=1e-6)  # float32 sums of 19 gradients
    assert np.abs(solution - vector).max() > 1e-3
    assert not found[~mask].any()


def test_the_official_default_is_the_official_number_of_rows():
    for solver, rows in (("official", 1000), ("woodbury", 256)):
        unlearner = influence_unlearning(LOSS, solver=solver)
        model = tiny.draw(jax.random.key(0))
        state = unlearner.init(model, masks.ones_like(model.params), jax.random.key(1))
        assert float(state.hyper.rows) == rows
