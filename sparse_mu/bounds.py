"""What the theory promises: Proposition 1's data weights, and how far unrolled SGD may err.

The paper's Proposition 2 is not a bound as it is printed (SPEC section 10); the theorem that its
proof can be mended to stands beside it, and only that one is asserted.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparse_mu import masks as mask_trees
from sparse_mu.types import Array, Key, Masks, Params, PyTree


def average_weights(retain: Array) -> Array:
    """ave-ERM's w of Proposition 1: ``1 / n_r`` on Dr, 0 on Df; ``bool[N] -> float[N]``."""
    return retain / jnp.maximum(jnp.sum(retain), 1)


def sum_weights(retain: Array) -> Array:
    """sum-ERM's Boolean w: 1 on Dr, 0 on Df; ``bool[N] -> float[N]``."""
    return jnp.where(retain, 1.0, 0.0)


def weight_distance(weights: Array, kind: Literal["normalised", "boolean"]) -> Array:
    """``|1/N - w|^2`` of normalised weights, ``|1 - w|^2`` of Boolean ones.

    With k rows forgotten ``k / (N (N - k))`` for :func:`average_weights` and k for
    :func:`sum_weights` (paper, appendix A). That the first is smaller is no proof of accuracy: the
    curvature of a sum of losses is N times that of their mean (SPEC section 11.10).

    Raises:
        ValueError: if ``kind`` is unknown.
    """
    if kind not in ("normalised", "boolean"):
        raise ValueError(f"kind = {kind!r}: must be one of normalised, boolean")
    original = 1 / weights.size if kind == "normalised" else 1.0
    return jnp.sum(jnp.square(original - weights))


class LargestCurvature(NamedTuple):
    """sigma(m), the operator norm of ``diag(m) H diag(m)``.

    Attributes:
        value: the power iteration's estimate, never too large.
        residual: ``|B^2 u - value^2 u|`` of the last unit vector u, ``B = diag(m) H diag(m)``: an
            eigenvalue of B^2 is at most so far from ``value^2``.
        with_margin: ``sqrt(value^2 + residual)``: at least sigma(m) once the iteration has come
            near the leading eigenvector, which no residual can prove; use it where a bound needs
            sigma(m).
    """

    value: Array
    residual: Array
    with_margin: Array


def largest_curvature(
    product: Callable[[Params], Params], masks: Masks, key: Key, *, iterations: int = 50
) -> LargestCurvature:
    """Power iteration on ``(diag(m) H diag(m))^2``, two products an iteration.

    The square, so that a pair of eigenvalues of opposite signs does no harm. A loop in Python, for
    the reason given at :func:`sparse_mu.curvature.conjugate_gradient`: jit the product.

    Args:
        product: ``p -> H p``, for example :func:`sparse_mu.curvature.hessian_product`.
        masks: True = kept.
        key: draws the first vector.
        iterations: at least 1. From a random start the estimate is within a few percent after
            some ten; a start without a part along the leading eigenvector has probability 0.

    Raises:
        ValueError: if ``iterations`` is less than 1.

    Source: SPEC section 10.
    """
    if iterations < 1:
        raise ValueError(f"iterations = {iterations!r}: must be at least 1")
    leaves, structure = jax.tree.flatten(masks)
    keys = jax.random.split(key, len(leaves))
    drawn = [jax.random.normal(k, m.shape) for k, m in zip(keys, leaves, strict=True)]
    vector = mask_trees.apply(masks, jax.tree.unflatten(structure, drawn))

    def scaled(tree: Params) -> Params:
        norm = jnp.maximum(optax.tree.norm(tree), jnp.finfo(jnp.float32).tiny)
        return jax.tree.map(lambda leaf: leaf / norm, tree)

    def masked_product(tree: Params) -> Params:
        return mask_trees.apply(masks, product(tree))

    value, residual = jnp.zeros(()), jnp.zeros(())
    for _ in range(iterations):
        unit = scaled(vector)
        once = masked_product(unit)
        vector = masked_product(once)
        value = optax.tree.norm(once)
        square = jnp.square(value)
        apart = jax.tree.map(lambda w, u, square=square: w - square * u, vector, unit)
        residual = optax.tree.norm(apart)
    return LargestCurvature(value, residual, jnp.sqrt(jnp.square(value) + residual))


def distances(path: Params, masks: Masks) -> Array:
    """``|m . (theta_i - theta_0)|`` of every point of a path, ``[t + 1, ...] -> float[t + 1]``."""

    def of_leaf(points: Array, mask: Array) -> Array:
        apart = jnp.where(mask[None], points - points[:1], 0)
        return jnp.sum(jnp.square(apart).reshape(apart.shape[0], -1), axis=1)

    squares = jax.tree.leaves(jax.tree.map(of_leaf, path, masks))
    return jnp.sqrt(sum(squares[1:], start=squares[0]))


def unrolling_bound(learning_rate: Array | float, sigma: Array, apart: Array) -> Array:
    """``e <= eta * sigma(m) * sum_{i<t} |m . (theta_i - theta_0)|``, a theorem.

    It follows from ``grad(theta_i) - grad(theta_0) = H (theta_i - theta_0)`` with H the mean
    Hessian of the segment between them, one term a step, and the triangle inequality.

    Args:
        learning_rate: eta; its sign does not matter.
        sigma: the operator norm of ``diag(m) H diag(m)``: of the quadratic's H, else the largest
            over the steps' losses and over the segments from theta_0 to the points of the path.
        apart: ``float[t + 1]``, :func:`distances` of the path.

    Source: SPEC section 10.
    """
    return jnp.abs(learning_rate) * sigma * jnp.sum(apart[:-1])


def paper_bound(learning_rate: Array | float, sigma: Array, apart: Array) -> Array:
    """``(eta^2 / 2) (t - 1) |m . (theta_t - theta_0)| sigma(m)``, as the paper prints it.

    *Not* a bound: ``theta_t - theta_0`` already holds a factor eta, which one step of the proof
    drops. To be shown beside the truth, never asserted.

    Source: paper, Proposition 2 and its proof; SPEC section 10.
    """
    steps = apart.shape[0] - 1
    return jnp.square(learning_rate) / 2 * (steps - 1) * apart[-1] * sigma


class UnrollingError(NamedTuple):
    """How far SGD's end is from its first-order unrolling, and what was promised.

    Attributes:
        error: ``e(m) = |theta_t - theta_0 + eta sum_{i<t} m . grad_i(theta_0)|``, what the proof
            of Proposition 2 estimates.
        bound: :func:`unrolling_bound`, which it never exceeds.
        paper: :func:`paper_bound`, which it may.
        gap: ``|theta_GA - theta_Retrain|``, the true error of gradient ascent.
        distance: ``|m . (theta_t - theta_0)|``.
    """

    error: Array
    bound: Array
    paper: Array
    gap: Array
    distance: Array


def sgd_path(
    gradient: Callable[[Params, PyTree], Params],
    params: Params,
    batches: PyTree,
    used: Array,
    masks: Masks,
    learning_rate: Array | float,
) -> Params:
    """``theta_{i+1} = theta_i - eta * m . gradient(theta_i, batch_i)`` for the steps in ``used``.

    One ``scan``: for networks with real convolutions slow on CPU.

    Args:
        gradient: ``(params, batch) -> gradient of the batch's loss``.
        params: theta_0; masked here.
        batches: ``[t, ...]`` of whatever ``gradient`` reads.
        used: ``bool[t]``; the other steps leave theta as it is.
        masks: True = kept.
        learning_rate: eta; negative ascends.

    Returns:
        ``[t + 1, ...]``, theta_0 first.
    """
    start = mask_trees.apply(masks, params)

    def step(theta: Params, one: tuple[PyTree, Array]) -> tuple[Params, Params]:
        found = mask_trees.apply(masks, gradient(theta, one[0]))
        rate = jnp.where(one[1], learning_rate, 0)
        theta = jax.tree.map(lambda w, g: w - rate * g, theta, found)
        return theta, theta

    _, rest = jax.lax.scan(step, start, (batches, used))
    return jax.tree.map(lambda first, others: jnp.concatenate([first[None], others]), start, rest)


def unrolling_error(
    gradient: Callable[[Params, PyTree], Params],
    params: Params,
    batches: PyTree,
    forgotten: Array,
    masks: Masks,
    *,
    learning_rate: Array | float,
    sigma: Array,
) -> UnrollingError:
    """The quantities of Proposition 2 on one run of masked SGD.

    Retraining takes the same steps without the ``forgotten`` ones; gradient ascent starts where
    the whole run ended and takes the forgotten steps with the sign turned.

    Args:
        gradient: ``(params, batch) -> gradient of the batch's loss``.
        params: theta_0.
        batches: ``[t, ...]``.
        forgotten: ``bool[t]``, the steps whose batch is to be forgotten.
        masks: True = kept.
        learning_rate: eta; negative for a run that ascends.
        sigma: as in :func:`unrolling_bound`.

    Source: paper, Proposition 2; SPEC section 10.
    """

    def end_of(path: Params) -> Params:
        return jax.tree.map(lambda points: points[-1], path)

    def run(start: Params, used: Array, rate: Array | float) -> Params:
        return sgd_path(gradient, start, batches, used, masks, rate)

    whole = run(params, jnp.ones_like(forgotten), learning_rate)
    start = jax.tree.map(lambda points: points[0], whole)
    at_start = jax.vmap(lambda batch: mask_trees.apply(masks, gradient(start, batch)))(batches)
    unrolled = jax.tree.map(
        lambda first, g: first - learning_rate * jnp.sum(g, axis=0), start, at_start
    )
    retrained = end_of(run(params, ~forgotten, learning_rate))
    ascended = end_of(run(end_of(whole), forgotten, -learning_rate))
    apart = distances(whole, masks)

    def between(first: Params, second: Params) -> Array:
        return optax.tree.norm(jax.tree.map(jnp.subtract, first, second))

    return UnrollingError(
        error=between(end_of(whole), unrolled),
        bound=unrolling_bound(learning_rate, sigma, apart),
        paper=paper_bound(learning_rate, sigma, apart),
        gap=between(ascended, retrained),
        distance=apart[-1],
    )
