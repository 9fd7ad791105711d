"""The theory's promises in float64: which hold on every mask, and which one does not."""

import functools

import hypothesis.extra.numpy as arrays
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from experiments import theory
from experiments.theory import EVERY_MASK, ROUNDING, SIZE, STEPS, flat, norm_within, tree
from sparse_mu import bounds

few = settings(max_examples=15, deadline=None)
a_mask = arrays.arrays(bool, SIZE)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("rate", [0.01, 0.1, -0.01])
def test_the_theorem_holds_on_every_mask_of_a_quadratic(rate):
    for mask in EVERY_MASK:
        sigma, found = theory.on_quadratic(mask, rate)
        assert found.error <= found.bound * ROUNDING
        if sigma > 0.2:  # and it is no bound of another order
            assert found.error > 0.05 * found.bound


@pytest.mark.ci
@pytest.mark.parametrize("rate", [0.001, 0.1])
def test_the_theorem_holds_on_every_mask_of_logistic_sgd(rate):
    for mask in EVERY_MASK:
        found = theory.on_logistic(mask, rate).found
        assert 0 < found.error <= found.bound * ROUNDING


def test_a_mask_that_keeps_nothing_promises_nothing():
    for run in (theory.on_quadratic, theory.on_logistic):
        assert not np.any(run(np.zeros(SIZE, bool), 0.1).found)


def test_the_bound_on_sigma_of_logistic_sgd_is_above_a_grid_of_the_segments():
    inputs, _, start = theory.sgd_rows()
    path = theory.jitted_logistic()[0](tree(np.ones(SIZE, bool)), 0.1)
    points = np.asarray(jax.vmap(flat)(path))[:-1]
    theta = start + np.linspace(0, 1, 9)[:, None, None] * (points - start)
    p = 1 / (1 + np.exp(-np.einsum("tri,sti->str", inputs, theta)))
    hessians = np.einsum("str,tri,trj->stij", p * (1 - p), inputs, inputs) / inputs.shape[1]
    sigma = theory.on_logistic(np.ones(SIZE, bool), 0.1).sigma
    largest = np.linalg.norm(hessians, 2, axis=(-2, -1)).max()
    assert largest <= sigma * ROUNDING
    assert sigma < 1.5 * largest


def test_the_papers_formula_is_no_bound():
    # SPEC section 10: a convex quadratic, 20 steps, eta 0.01, descent and ascent
    for rate in (0.01, -0.01):
        found = theory.on_quadratic(np.ones(SIZE, bool), rate).found
        assert found.error > 10 * found.paper
        assert found.error <= found.bound
        # the true distance of ascent and retraining is another number than e
        assert found.gap > found.paper


def test_the_kept_table_is_what_the_command_prints():
    assert "\n".join(theory.bound_tables()) in theory.RESULTS.read_text()  # three digits


def test_the_quantities_are_those_of_a_loop():
    matrix, start, targets = theory.quadratic()
    mask = np.array([1, 0, 1, 1, 1, 0], bool)
    forgotten = theory.FORGOTTEN_STEPS

    def descend(theta, rate, steps):
        points = [theta]
        for i in steps:
            points.append(points[-1] - rate * mask * (matrix @ (points[-1] - targets[i])))
        return np.array(points)

    begun = start * mask
    path = descend(begun, 0.1, range(STEPS))
    unrolled = begun - 0.1 * mask * sum(matrix @ (begun - t) for t in targets)
    retrained = descend(begun, 0.1, np.flatnonzero(~forgotten))[-1]
    ascended = descend(path[-1], -0.1, np.flatnonzero(forgotten))[-1]
    apart = np.linalg.norm(path - begun, axis=1)
    sigma, found = theory.on_quadratic(mask, 0.1)
    expected = {
        "error": np.linalg.norm(path[-1] - unrolled),
        "bound": 0.1 * sigma * apart[:-1].sum(),
        "paper": 0.1**2 / 2 * 19 * apart[-1] * sigma,
        "gap": np.linalg.norm(ascended - retrained),
        "distance": apart[-1],
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-10)  # float64 sums


@functools.cache
def jitted_distances():
    return jax.jit(bounds.distances)


@few
@given(mask=a_mask, more=a_mask)
def test_the_factors_do_not_increase_over_nested_masks(mask, more):
    with jax.enable_x64(True):
        matrix = theory.quadratic()[0]
        path = np.random.default_rng(4).standard_normal((3, SIZE))
        inner = mask & more
        points = {"a": path[:, :4].reshape(3, 2, 2), "b": path[:, 4:]}
        far, near = (np.asarray(jitted_distances()(points, tree(kept))) for kept in (mask, inner))
        assert (near <= far).all()
        np.testing.assert_allclose(far, np.linalg.norm((path - path[0]) * mask, axis=1))
        outer_sigma, inner_sigma = (norm_within(matrix, kept) for kept in (mask, inner))
        assert inner_sigma <= outer_sigma * ROUNDING


@pytest.mark.ci
def test_power_iteration_is_below_the_norm_and_its_margin_above():
    rng = np.random.default_rng(5)
    product = jax.jit(lambda matrix, vector: tree(matrix @ flat(vector)))
    for iterations in (2, 2, 40, 40, 40):
        matrix = rng.standard_normal((SIZE, SIZE))
        matrix += matrix.T  # indefinite
        mask = rng.random(SIZE) < 0.8
        found = bounds.largest_curvature(
            functools.partial(product, matrix), tree(mask), jax.random.key(iterations),
            iterations=iterations,
        )  # fmt: skip
        true = norm_within(matrix, mask)
        assert found.value <= true * ROUNDING
        if iterations == 40:  # enough for the eigenvalue ratios of these matrices
            assert found.with_margin >= true / ROUNDING
            assert found.value > 0.99 * true
        else:
            assert found.with_margin > 1.01 * found.value


def test_power_iteration_of_a_mask_that_keeps_nothing_is_zero():
    product = functools.partial(jnp.multiply, 2.0)
    found = bounds.largest_curvature(
        lambda v: jax.tree.map(product, v), tree(np.zeros(SIZE, bool)), jax.random.key(0)
    )
    assert found == (0, 0, 0)
    with pytest.raises(ValueError, match="iterations = 0"):
        bounds.largest_curvature(
            product, tree(np.ones(SIZE, bool)), jax.random.key(0), iterations=0
        )


@pytest.mark.parametrize("kept", [1, 5, 9])
def test_proposition_ones_weights_and_their_distances(kept):
    rows = 9
    retain = jnp.asarray(np.random.default_rng(kept).permutation(rows) < kept)
    average, summed = bounds.average_weights(retain), bounds.sum_weights(retain)
    np.testing.assert_array_equal(summed, np.asarray(retain, float))
    np.testing.assert_allclose(average, np.where(retain, 1 / kept, 0))
    assert bounds.weight_distance(summed, "boolean") == rows - kept
    expected = (rows - kept) / (rows * kept)
    # nine squares of float64
    np.testing.assert_allclose(bounds.weight_distance(average, "normalised"), expected, atol=1e-15)
    with pytest.raises(ValueError, match="kind = 'sum'"):
        bounds.weight_distance(average, "sum")
