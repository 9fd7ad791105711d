"""Second-order information without a P x P matrix: the Fisher diagonal and Woodbury solves.

All functions are pure and work on trees shaped like the parameters; sums over rows are returned as
sums, so that they add over batches and devices.
"""

import functools
import math

import jax
import jax.numpy as jnp

from sparse_mu.types import ApplyFn, Array, Batch, Key, LossFn, Model, Params


def fisher_diagonal_sum(apply_fn: ApplyFn, model: Model, batch: Batch, key: Key) -> Params:
    """Exact Fisher diagonal of a classifier, summed over the rows of a batch.

    ``F_j = sum_i weight_i * sum_c p_i(c) * (d log p_i(c) / d w_j)^2``, the expectation over the
    model's own labels taken exactly. With logits z and ``Lambda = diag(p) - p p^T``, the row's
    Fisher is ``J^T Lambda J`` (J = dz/dw); it needs one backward pass per class with cotangent
    ``sqrt(p_c) (e_c - p)``.

    Args:
        apply_fn: the network; run in evaluation mode, running statistics frozen.
        model: where the Fisher is taken.
        batch: rows; ``[B, ...]``.
        key: handed to ``apply_fn``.

    Returns:
        A tree of float32 shaped like the parameters, entries >= 0.

    Source: SPEC section 4.7 ("true Fisher"); Martens, "New insights and perspectives on the
    natural gradient method", 2020, section 5.
    """

    def of_row(inputs: Array, weight: Array) -> Params:
        def logits_of(params: Params) -> Array:
            return apply_fn(params, model.net_state, inputs[None], train=False, key=key)[0][0]

        logits, pullback = jax.vjp(logits_of, model.params)
        probabilities = jax.nn.softmax(logits)
        directions = jnp.eye(logits.size, dtype=logits.dtype) - probabilities[None, :]
        cotangents = jnp.sqrt(weight * probabilities)[:, None] * directions
        return jax.vmap(pullback)(cotangents)[0]

    def sum_of_squares(gradients: Array) -> Array:
        # a product with ones: XLA on CPU sums over leading axes one entry at a time, and the digits
        # network's Fisher took twice as long
        shape = gradients.shape
        squares = jnp.square(gradients).reshape(math.prod(shape[:2]), math.prod(shape[2:]))
        ones = jnp.ones(squares.shape[0], squares.dtype)
        total = jnp.matmul(ones, squares, precision=jax.lax.Precision.HIGHEST)
        return total.reshape(shape[2:])

    return jax.tree.map(sum_of_squares, jax.vmap(of_row)(batch.inputs, batch.weights))


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

    def gram_of(g: Array) -> Array:
        flat = g.reshape(g.shape[0], -1)
        return flat @ flat.T

    gram = functools.reduce(jnp.add, [gram_of(g) for g in jax.tree.leaves(rows)])
    system = gram + count * damping * jnp.eye(gram.shape[0], dtype=gram.dtype)
    factor = jax.scipy.linalg.cho_factor(system, lower=True)
    coefficients = jax.scipy.linalg.cho_solve(factor, dot_rows(vector))
    return jax.tree.map(
        lambda g, v: (v - jnp.tensordot(coefficients, g, axes=1)) / damping, rows, vector
    )
