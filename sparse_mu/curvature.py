"""Second-order information without a P x P matrix: Fisher diagonal, products and solves.

All functions are pure and work on trees shaped like the parameters; sums over rows are returned as
sums, so that they add over batches and devices.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparse_mu.types import ApplyFn, Array, Batch, Key, LossFn, Model, Params


def fisher_diagonal_sum(
    apply_fn: ApplyFn,
    model: Model,
    batch: Batch,
    key: Key,
    *,
    likelihood: Literal["softmax", "gaussian"] = "softmax",
    in_turn: bool = False,
) -> Params:
    """Exact Fisher diagonal of a network, summed over the rows of a batch.

    ``F_j = sum_i weight_i * sum_c p_i(c) * (d log p_i(c) / d w_j)^2``, the expectation over the
    model's own labels taken exactly. With logits z and ``Lambda = diag(p) - p p^T``, the row's
    Fisher is ``J^T Lambda J`` (J = dz/dw); it needs one backward pass per class with cotangent
    ``sqrt(p_c) (e_c - p)``. For regression with Gaussian errors of variance 1 Lambda is I: divide
    by the variance if it is another.

    Args:
        apply_fn: the network; run in evaluation mode, running statistics frozen.
        model: where the Fisher is taken.
        batch: rows; ``[B, ...]``.
        key: handed to ``apply_fn``.
        likelihood: what the outputs are: logits of classes, or means of Gaussians.
        in_turn: whether the classes take turns in a compiled loop, which holds one gradient a row
            instead of K, and on CPU takes half the time where convolutions are products of patches
            (:mod:`sparse_mu.models.convolution`). XLA's own convolutions are far slower in a loop
            there, so the default computes all classes at once.

    Returns:
        A tree of float32 shaped like the parameters, entries >= 0.

    Source: SPEC section 4.7 ("true Fisher"); Martens, "New insights and perspectives on the
    natural gradient method", 2020, section 5.
    """

    def of_row(inputs: Array, weight: Array) -> Params:
        def logits_of(params: Params) -> Array:
            return apply_fn(params, model.net_state, inputs[None], train=False, key=key)[0][0]

        logits, pullback = jax.vjp(logits_of, model.params)
        directions = jnp.eye(logits.size, dtype=logits.dtype)
        scales = jnp.full_like(logits, weight)
        if likelihood == "softmax":
            probabilities = jax.nn.softmax(logits)
            directions = directions - probabilities[None, :]
            scales = weight * probabilities
        cotangents = jnp.sqrt(scales)[:, None] * directions
        if not in_turn:
            return jax.tree.map(jnp.square, jax.vmap(pullback)(cotangents)[0])

        def add_class(sums: Params, cotangent: Array) -> tuple[Params, None]:
            gradient = pullback(cotangent)[0]
            return jax.tree.map(lambda total, g: total + jnp.square(g), sums, gradient), None

        nothing = jax.tree.map(jnp.zeros_like, model.params)
        sums, _ = jax.lax.scan(add_class, nothing, cotangents)
        return jax.tree.map(lambda leaf: leaf[None], sums)

    def sum_of_rows(squares: Array) -> Array:
        # a product with ones: XLA on CPU sums over leading axes one entry at a time, and the digits
        # network's Fisher took twice as long
        shape = squares.shape
        flat = squares.reshape(math.prod(shape[:2]), math.prod(shape[2:]))
        ones = jnp.ones(flat.shape[0], flat.dtype)
        total = jnp.matmul(ones, flat, precision=jax.lax.Precision.HIGHEST)
        return total.reshape(shape[2:])

    return jax.tree.map(sum_of_rows, jax.vmap(of_row)(batch.inputs, batch.weights))


def example_gradients(loss_fn: LossFn, model: Model, batch: Batch, key: Key) -> Params:
    """Gradients of each row's own weighted loss: a tree of ``float32[B, *leaf.shape]``.

    The loss must be in evaluation mode: a row alone has no batch statistics.
    """

    def of_row(row: Batch) -> Params:
        alone = jax.tree.map(lambda leaf: leaf[None], row)

        def loss(params: Params) -> Array:
            return loss_fn(params, model.net_state, alone, key)[0]

        return jax.grad(loss)(model.params)

    return jax.vmap(of_row)(batch)


def hessian_product(
    loss_fn: LossFn, model: Model, batch: Batch, vector: Params, key: Key
) -> Params:
    """``(sum_i weight_i * Hessian of loss_i) vector``, by forward over reverse differentiation.

    The Hessian of a network is indefinite away from a minimum: solves need damping, and
    :func:`conjugate_gradient` says when it met a direction of negative curvature.

    Args:
        loss_fn: a weighted sum, twice differentiable, in evaluation mode.
        model: where the Hessian is taken.
        batch: rows.
        vector: tree shaped like the parameters.
        key: handed to ``loss_fn``.

    Source: Pearlmutter, "Fast exact multiplication by the Hessian", 1994 (the official code has no
    such product).
    """

    def gradient(params: Params) -> Params:
        return jax.grad(lambda p: loss_fn(p, model.net_state, batch, key)[0])(params)

    return jax.jvp(gradient, (model.params,), (vector,))[1]


def gauss_newton_product(
    apply_fn: ApplyFn, model: Model, batch: Batch, vector: Params, key: Key
) -> Params:
    """``(sum_i weight_i * J_i^T Lambda_i J_i) vector`` of softmax cross entropy.

    With logits z, ``J = dz/dw`` and ``Lambda = diag(p) - p p^T``: the Hessian with the second
    derivatives of the network left out, which is also the exact Fisher. Positive semi-definite; the
    Hessian itself where the network is linear.

    Args:
        apply_fn: the network; run in evaluation mode, running statistics frozen.
        model: where the product is taken.
        batch: rows; labels are not read.
        vector: tree shaped like the parameters.
        key: handed to ``apply_fn``.

    Source: Martens, "New insights and perspectives on the natural gradient method", 2020, section
    8; Schraudolph, "Fast curvature matrix-vector products", 2002.
    """

    def logits_of(params: Params) -> Array:
        return apply_fn(params, model.net_state, batch.inputs, train=False, key=key)[0]

    logits, pullback = jax.vjp(logits_of, model.params)
    _, tangent = jax.jvp(logits_of, (model.params,), (vector,))
    p = jax.nn.softmax(logits)
    turned = p * (tangent - jnp.sum(p * tangent, axis=-1, keepdims=True))
    weights = batch.weights[:, None]
    # where, not *: a row of weight 0 adds exactly nothing, whatever its content
    return pullback(jnp.where(weights != 0, weights * turned, 0.0).astype(logits.dtype))[0]


def _dot(first: Params, second: Params) -> Array:
    return jnp.asarray(optax.tree.vdot(first, second))


class ConjugateGradient(NamedTuple):
    """A solve of ``(A + damping * I) x = v`` between two products.

    Attributes:
        solution: x so far.
        residual: ``v - (A + damping * I) x``, by recursion.
        direction: the p of which the next product ``A p`` is asked.
        squares: ``|residual|^2``.
        scale: ``|v|^2``.
        iterations: ``int32[]``, products taken.
        converged: ``bool[]``, whether ``|residual| <= tolerance * |v|`` was reached.
        negative_curvature: ``bool[]``, whether a p with ``p^T (A + damping * I) p <= 0`` was met;
            x then stays as it was before.
    """

    solution: Params
    residual: Params
    direction: Params
    squares: Array
    scale: Array
    iterations: Array
    converged: Array
    negative_curvature: Array


class Convergence(NamedTuple):
    """How a solve ended.

    Attributes:
        relative_residual: ``|v - (A + damping * I) x| / |v|`` by the solver's own recursion, from
            which the true one differs by rounding.
        iterations: ``int32[]``, products taken.
        converged: ``bool[]``.
        negative_curvature: ``bool[]``, the reason where the matrix was not positive.
    """

    relative_residual: Array
    iterations: Array
    converged: Array
    negative_curvature: Array


def begin_conjugate_gradient(vector: Params) -> ConjugateGradient:
    """The solve for ``vector`` from x = 0; a vector of zeros has converged already."""
    scale = _dot(vector, vector)
    return ConjugateGradient(
        solution=jax.tree.map(jnp.zeros_like, vector),
        residual=jax.tree.map(jnp.copy, vector),  # copies: a donated state holds no array twice
        direction=jax.tree.map(jnp.copy, vector),
        squares=jnp.copy(scale),
        scale=scale,
        iterations=jnp.zeros((), jnp.int32),
        converged=scale == 0,
        negative_curvature=jnp.zeros((), bool),
    )


@jax.jit
def advance_conjugate_gradient(
    solve: ConjugateGradient, product: Params, damping: Array | float, tolerance: Array | float
) -> ConjugateGradient:
    """One iteration, given ``product = A p`` of ``solve.direction``; a finished solve is held.

    ``a = r^T r / p^T B p; x += a p; r -= a B p; p = r + (r^T r / old r^T r) p``, with
    ``B = A + damping * I``.

    Source: Hestenes and Stiefel, 1952.
    """
    applied = jax.tree.map(lambda a, p: a + damping * p, product, solve.direction)
    bend = _dot(solve.direction, applied)
    done = solve.converged | solve.negative_curvature
    negative = ~done & (bend <= 0)
    active = ~(done | negative)
    length = jnp.where(active, solve.squares / jnp.where(active, bend, 1), 0)
    solution = jax.tree.map(lambda x, p: x + length * p, solve.solution, solve.direction)
    residual = jax.tree.map(lambda r, b: r - length * b, solve.residual, applied)
    squares = jnp.where(active, _dot(residual, residual), solve.squares)
    turn = jnp.where(active, squares / jnp.where(active, solve.squares, 1), 0)
    return ConjugateGradient(
        solution=solution,
        residual=residual,
        direction=jax.tree.map(
            lambda r, p: jnp.where(active, r + turn * p, p), residual, solve.direction
        ),
        squares=squares,
        scale=solve.scale,
        iterations=solve.iterations + active.astype(jnp.int32),
        converged=solve.converged | (active & (squares <= tolerance**2 * solve.scale)),
        negative_curvature=solve.negative_curvature | negative,
    )


def convergence_of(solve: ConjugateGradient) -> Convergence:
    """How the solve stands: relative residual, iterations, and whether it converged."""
    scale = jnp.where(solve.scale > 0, solve.scale, 1)
    return Convergence(
        relative_residual=jnp.sqrt(solve.squares / scale),
        iterations=solve.iterations,
        converged=solve.converged,
        negative_curvature=solve.negative_curvature,
    )


def conjugate_gradient(
    product: Callable[[Params], Params],
    vector: Params,
    *,
    damping: float = 0.0,
    iterations: int = 100,
    tolerance: float = 1e-6,
) -> tuple[Params, Convergence]:
    """``(A + damping * I)^-1 vector`` from products with A alone, A symmetric.

    A loop in Python over one product an iteration: XLA on CPU runs backward convolutions inside a
    compiled loop many times slower. Jit the product; not for use inside ``jit``.

    Args:
        product: ``p -> A p``, for example :func:`hessian_product` summed over batches and divided
            by the number of rows.
        vector: tree shaped like the parameters.
        damping: added to the diagonal.
        iterations: most products taken.
        tolerance: stop once the relative residual is at most this.

    Returns:
        x, and its :class:`Convergence`: x is an approximate solution only if ``converged``.

    Raises:
        ValueError: if ``iterations`` is less than 1, or ``tolerance`` or ``damping`` is negative.
    """
    if iterations < 1:
        raise ValueError(f"iterations = {iterations!r}: must be at least 1")
    if not tolerance >= 0 or not damping >= 0:
        raise ValueError(
            f"tolerance = {tolerance!r}, damping = {damping!r}: neither may be negative"
        )
    solve = begin_conjugate_gradient(vector)
    for _ in range(iterations):
        if solve.converged or solve.negative_curvature:
            break
        solve = advance_conjugate_gradient(solve, product(solve.direction), damping, tolerance)
    return solve.solution, convergence_of(solve)


class OfficialRecursion(NamedTuple):
    """The official code's "inverse Hessian" between two gradients.

    Attributes:
        solution: k, starts as the vector v.
        along: o, starts as zeros; parallel to the first gradient ever after.
        seen: ``int32[]``, gradients taken.
    """

    solution: Params
    along: Params
    seen: Array


def begin_official_recursion(vector: Params) -> OfficialRecursion:
    """The recursion for ``vector`` before its first gradient: k = v."""
    zeros = jax.tree.map(jnp.zeros_like, vector)
    return OfficialRecursion(jax.tree.map(jnp.copy, vector), zeros, jnp.zeros((), jnp.int32))


def official_recursion(
    state: OfficialRecursion, gradient: Params, count: Array | float
) -> OfficialRecursion:
    """One gradient of the official recursion; only a row's own gradient at a time.

    The first: ``o = g``. Each next: ``s = o.g; k -= (k.g) / (N_w + s) o; o -= s / (N_w + s) o``.
    It stops after index > N_w, so N_w + 2 gradients count (1002 for the official 1000). No damping.

    Deviates from a Woodbury solve (and from WoodFisher, after which the official code names it): o
    should be the current inverse times g. As it is only rescaled it stays parallel to the first
    gradient, so ``k - v`` is too: one explicit gradient step, corrected along one direction.

    Args:
        state: so far.
        gradient: tree shaped like the parameters, of one row.
        count: N_w.

    Source: SPEC section 4.8 (official code's ``woodfisher``).
    """
    first = state.seen == 0
    active = state.seen <= count + 1
    overlap = _dot(state.along, gradient)
    divisor = count + overlap
    step = jnp.where(active, _dot(state.solution, gradient) / divisor, 0)
    shrink = jnp.where(active, overlap / divisor, 0)
    return OfficialRecursion(
        solution=jax.tree.map(lambda k, o: k - step * o, state.solution, state.along),
        along=jax.tree.map(lambda o, g: jnp.where(first, g, o - shrink * o), state.along, gradient),
        seen=state.seen + active.astype(jnp.int32),
    )


def gram_matrix(rows: Params) -> Array:
    """``G G^T``, ``float32[M, M]``, of a tree of ``float32[M, *leaf.shape]``."""

    def gram_of(g: Array) -> Array:
        flat = g.reshape(g.shape[0], -1)
        return flat @ flat.T

    return functools.reduce(jnp.add, [gram_of(g) for g in jax.tree.leaves(rows)])


def woodbury_solve(rows: Params, count: Array, damping: Array | float, vector: Params) -> Params:
    """``(damping * I + (1/M) * sum_i g_i g_i^T)^-1 vector`` by the Woodbury identity.

    With G the M x P matrix of the g_i: ``(v - G^T (M damping I + G G^T)^-1 G v) / damping``.
    Costs M P memory and an M x M Cholesky factor; nothing is ever P x P.

    Args:
        rows: tree of ``float32[M, *leaf.shape]``; rows of zeros are inert.
        count: how many rows are filled (the M of the mean).
        damping: > 0.
        vector: tree shaped like the parameters.

    Source: SPEC section 4.8 (WoodFisher with the inverse applied to every gradient).
    """

    def dot_rows(tree: Params) -> Array:  # G v, [M]
        products = jax.tree.map(lambda g, v: jnp.tensordot(g, v, axes=v.ndim), rows, tree)
        return functools.reduce(jnp.add, jax.tree.leaves(products))

    gram = gram_matrix(rows)
    system = gram + count * damping * jnp.eye(gram.shape[0], dtype=gram.dtype)
    factor = jax.scipy.linalg.cho_factor(system, lower=True)
    coefficients = jax.scipy.linalg.cho_solve(factor, dot_rows(vector))
    return jax.tree.map(
        lambda g, v: (v - jnp.tensordot(coefficients, g, axes=1)) / damping, rows, vector
    )
