"""Influence unlearning: one Newton-like step that takes the forget set's weight away."""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from sparse_mu import curvature
from sparse_mu import masks as mask_trees
from sparse_mu.types import (
    Array,
    Batch,
    Key,
    LossFn,
    Masks,
    Model,
    Params,
    Stats,
    StepFn,
    UnlearnBatch,
    Unlearner,
    UnlearnState,
)
from sparse_mu.unlearn.contract import begin, device_own

BYTE_BUDGET = 2**30  # bytes that the block of gradients may take unless told otherwise


class InfluenceHyper(NamedTuple):
    """Leaves of influence unlearning.

    Attributes:
        alpha: step length; 1 is the theory's.
        damping: added to the diagonal of the curvature, > 0.
    """

    alpha: Array | float
    damping: Array | float


class InfluenceSums(NamedTuple):
    """What the pass over both sets accumulates.

    Attributes:
        forget: sum of gradients over Df.
        retain: sum of gradients over Dr.
        forget_weight: number of rows of Df seen.
        retain_weight: number of rows of Dr seen.
        rows: gradients of the first M rows of Dr, tree of ``float32[M, *leaf.shape]``.
        filled: ``int32[]``, how many of them are filled.
    """

    forget: Params
    retain: Params
    forget_weight: Array
    retain_weight: Array
    rows: Params
    filled: Array


def _set_gradient(loss_fn: LossFn, model: Model, batch: Batch, key: Key) -> tuple[Params, Array]:
    gradients, aux = jax.grad(loss_fn, has_aux=True)(model.params, model.net_state, batch, key)
    return gradients, aux.weight


@functools.lru_cache(maxsize=64)
def _accumulate(loss_fn: LossFn, axis_name: str | None) -> StepFn:
    def step(state: UnlearnState, batch: UnlearnBatch) -> tuple[UnlearnState, Stats]:
        if batch.forget is None or batch.retain is None:
            raise ValueError("influence reads both sets: batch.forget or batch.retain is None")
        sums = state.aux
        model = device_own(state.model, batch.retain, axis_name)
        key = jax.random.fold_in(state.key, state.step)
        found = (
            _set_gradient(loss_fn, model, batch.forget, key),
            _set_gradient(loss_fn, model, batch.retain, key),
        )
        if axis_name is not None:
            found = jax.lax.psum(found, axis_name)
        (forget, forget_weight), (retain, retain_weight) = found
        capacity = jax.tree.leaves(sums.rows)[0].shape[0]

        def store(kept: tuple[Params, Array]) -> tuple[Params, Array]:
            rows, filled = kept
            gradients = curvature.example_gradients(loss_fn, model, batch.retain, key)
            counts = batch.retain.weights > 0
            if axis_name is not None:
                gradients, counts = jax.lax.all_gather((gradients, counts), axis_name, tiled=True)
            position = jnp.where(counts, filled + jnp.cumsum(counts) - 1, capacity)
            rows = jax.tree.map(
                lambda kept, new: kept.at[position].set(new, mode="drop"), rows, gradients
            )
            return rows, jnp.minimum(filled + jnp.sum(counts, dtype=jnp.int32), capacity)

        rows, filled = jax.lax.cond(
            sums.filled < capacity, store, lambda kept: kept, (sums.rows, sums.filled)
        )
        add = functools.partial(jax.tree.map, jnp.add)
        aux = InfluenceSums(
            forget=add(sums.forget, forget),
            retain=add(sums.retain, retain),
            forget_weight=sums.forget_weight + forget_weight,
            retain_weight=sums.retain_weight + retain_weight,
            rows=rows,
            filled=filled,
        )
        zero = jnp.zeros((), jnp.float32)
        finite = jnp.isfinite(
            sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves((forget, retain)))
        )
        stats = Stats(zero, forget_weight + retain_weight, zero, finite)
        return state._replace(aux=aux, step=state.step + 1), stats

    return step


def _newton_step(state: UnlearnState) -> UnlearnState:
    hyper, sums, model = state.hyper, state.aux, state.model
    total = sums.forget_weight + sums.retain_weight
    ratio = sums.forget_weight / jnp.maximum(sums.retain_weight, 1.0)
    vector = jax.tree.map(lambda f, r: (f - ratio * r) / total, sums.forget, sums.retain)
    vector = mask_trees.apply(state.masks, vector)
    rows = jax.vmap(lambda row: mask_trees.apply(state.masks, row))(sums.rows)
    count = jnp.maximum(sums.filled, 1).astype(jnp.float32)
    direction = curvature.woodbury_solve(rows, count, hyper.damping, vector)
    params = jax.tree.map(lambda w, d: w + hyper.alpha * d, model.params, direction)
    params = mask_trees.apply(state.masks, params)
    return state._replace(model=model._replace(params=params), aux=())


def influence_unlearning(
    loss_fn: LossFn,
    alpha: float = 1.0,
    *,
    damping: float = 1e-2,
    solver: Literal["woodbury"] = "woodbury",
    rows: int = 256,
    byte_budget: int = BYTE_BUDGET,
    axis_name: str | None = None,
) -> Unlearner:
    """Influence unlearning: ``w <- w + alpha * H^-1 grad L(1/N - w_MU)``.

    With N = n_f + n_r and the retain set reweighted to 1/n_r,
    ``grad L(1/N - w_MU) = (n_f / N) (G_f - G_r)`` where G are the mean gradients over Df and Dr.
    H is the empirical Fisher of M rows of Dr plus ``damping * I``; its inverse is applied exactly
    by the Woodbury identity on an M x M system. Pruned entries take no part.

    Args:
        loss_fn: weighted-sum loss in *evaluation* mode.
        alpha: step length.
        damping: added to the diagonal of H, > 0.
        solver: ``"woodbury"``.
        rows: M, the rows of Dr whose gradients build H (the first M of the order).
        byte_budget: most bytes the M x P block of gradients may take.
        axis_name: axis over which batches are split, or None.

    Raises:
        ValueError: if ``damping`` or ``rows`` is not positive, the solver is unknown, or (at
            ``init``) the block of gradients is larger than ``byte_budget``.

    Source: paper, section 3 (IU) and Proposition 1; SPEC section 4.8.
    """
    if not damping > 0:
        raise ValueError(f"damping = {damping!r}: must be positive")
    if rows < 1:
        raise ValueError(f"rows = {rows!r}: must be at least 1")
    if solver != "woodbury":
        raise ValueError(f"solver = {solver!r}: must be 'woodbury'")
    hyper = InfluenceHyper(jnp.float32(alpha), jnp.float32(damping))

    def aux(params: Params) -> InfluenceSums:
        needed = rows * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
        if needed > byte_budget:
            raise ValueError(
                f"influence needs {needed:,} bytes for {rows} gradients, more than "
                f"byte_budget = {byte_budget:,}: lower rows or raise byte_budget"
            )
        zeros = functools.partial(jax.tree.map, jnp.zeros_like)
        return InfluenceSums(
            forget=zeros(params),
            retain=zeros(params),
            forget_weight=jnp.zeros((), jnp.float32),
            retain_weight=jnp.zeros((), jnp.float32),
            rows=jax.tree.map(lambda leaf: jnp.zeros((rows, *leaf.shape), leaf.dtype), params),
            filled=jnp.zeros((), jnp.int32),
        )

    def init(model: Model, masks: Masks, key: Key) -> UnlearnState:
        return begin(model, masks, key, hyper=hyper, opt_state=lambda params: (), aux=aux)

    return Unlearner(init, _accumulate(loss_fn, axis_name), _newton_step, "both", "once")
