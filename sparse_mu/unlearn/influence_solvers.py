"""The passes of influence unlearning: the gradients of both sets, and three inverses.

Each solver is a step body and a finish. ``woodbury`` sums the gradients and keeps rows of them in
one pass; ``cg`` and ``official`` find the vector in a survey of both sets, then read the retain
set.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sparse_mu import curvature, trees
from sparse_mu import masks as mask_trees
from sparse_mu.types import (
    ApplyFn,
    Array,
    Batch,
    Key,
    LossFn,
    Model,
    Params,
    PyTree,
    Stats,
    StepFn,
    UnlearnBatch,
    UnlearnState,
)
from sparse_mu.unlearn.contract import device_own
from sparse_mu.unlearn.descent import both_sets

OnBatch = Callable[[UnlearnState, Batch], tuple[UnlearnState, Stats]]


class InfluenceHyper(NamedTuple):
    """Leaves of influence unlearning.

    Attributes:
        alpha: step length; 1 is the theory's.
        damping: added to the diagonal of the curvature, > 0; the official recursion has none.
        average: 1 for ave-ERM (weights 1/n_r on Dr), 0 for sum-ERM (weights 1/N stay on Dr).
        tolerance: relative residual at which conjugate gradients stop.
        rows: N_w of the official recursion.
    """

    alpha: Array | float
    damping: Array | float
    average: Array | float
    tolerance: Array | float
    rows: Array | float


class GradientSums(NamedTuple):
    """What a pass over both sets sums.

    Attributes:
        forget: sum of gradients over Df.
        retain: sum of gradients over Dr.
        forget_weight: number of rows of Df seen.
        retain_weight: number of rows of Dr seen, each by its weight.
        retain_rows: ``int32[]``, number of rows of Dr with a weight.
    """

    forget: Params
    retain: Params
    forget_weight: Array
    retain_weight: Array
    retain_rows: Array


class GradientRows(NamedTuple):
    """Gradients kept one by one.

    Attributes:
        rows: of the first M rows of Dr, tree of ``float32[M, *leaf.shape]``.
        filled: ``int32[]``, how many of them are filled.
    """

    rows: Params
    filled: Array


class RetainSolve(NamedTuple):
    """Conjugate gradients in the midst of a pass over Dr.

    Attributes:
        solve: the solve, waiting for the product with its direction.
        product: the sum over the rows of this pass that were seen.
        seen: ``int32[]``, how many they are.
        rows: ``int32[]``, rows of Dr; when ``seen`` reaches it the product is complete.
        weight: the sum of their weights.
    """

    solve: curvature.ConjugateGradient
    product: Params
    seen: Array
    rows: Array
    weight: Array


def no_sums(params: Params) -> GradientSums:
    """The sums before the pass."""
    zeros = functools.partial(jax.tree.map, jnp.zeros_like)
    nothing = (jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))
    return GradientSums(zeros(params), zeros(params), *nothing)


def _set_gradient(loss_fn: LossFn, model: Model, batch: Batch, key: Key) -> tuple[Params, Array]:
    gradients, aux = jax.grad(loss_fn, has_aux=True)(model.params, model.net_state, batch, key)
    return gradients, aux.weight


def _add(first: PyTree, second: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, first, second)


def _stats(weight: Array, *found: PyTree) -> Stats:
    zero = jnp.zeros((), jnp.float32)
    return Stats(zero, weight, zero, trees.all_finite(found))


def _counted(batch: Batch) -> Array:
    return jnp.sum(batch.weights > 0, dtype=jnp.int32)


def _sum_both(
    loss_fn: LossFn, model: Model, batch: UnlearnBatch, key: Key, axis_name: str | None
) -> GradientSums:
    """The gradient sums of one batch of each set, over all devices."""
    sets = both_sets(batch)
    found = *(_set_gradient(loss_fn, model, one, key) for one in sets), _counted(sets[1])
    if axis_name is not None:
        found = jax.lax.psum(found, axis_name)
    (forget, forget_weight), (retain, retain_weight), rows = found
    return GradientSums(forget, retain, forget_weight, retain_weight, rows)


def _vector(state: UnlearnState, sums: GradientSums) -> Params:
    """``grad L(1/N - w)``, pruned entries 0: ``(n_f / N) (G_f - G_r)`` for ave-ERM."""
    total = sums.forget_weight + sums.retain_weight
    ratio = sums.forget_weight / jnp.maximum(sums.retain_weight, 1.0) * state.hyper.average
    total = jnp.maximum(total, 1.0)
    vector = jax.tree.map(lambda f, r: (f - ratio * r) / total, sums.forget, sums.retain)
    return mask_trees.apply(state.masks, vector)


def _surveyed(state: UnlearnState) -> PyTree:
    if isinstance(state.aux, GradientSums):
        raise ValueError("this solver surveys both sets first: run unlearner.survey before step")
    return state.aux


def _moved(state: UnlearnState, direction: Params) -> Model:
    """``w + alpha * direction``, pruned weights exactly 0."""
    params = jax.tree.map(lambda w, d: w + state.hyper.alpha * d, state.model.params, direction)
    return state.model._replace(params=mask_trees.apply(state.masks, params))


def _row_gradients(
    loss_fn: LossFn, model: Model, batch: Batch, key: Key, axis_name: str | None
) -> tuple[Params, Array]:
    """Each row's own gradient, in the order of the whole batch, and which rows count."""
    found = curvature.example_gradients(loss_fn, model, batch, key), batch.weights > 0
    return found if axis_name is None else jax.lax.all_gather(found, axis_name, tiled=True)


# ---- woodbury: one pass over both sets -------------------------------------------------------


@functools.lru_cache(maxsize=64)
def sum_and_keep(loss_fn: LossFn, axis_name: str | None) -> StepFn:
    """Sums the gradients of both sets and keeps those of the first M rows of Dr."""

    def step(state: UnlearnState, batch: UnlearnBatch) -> tuple[UnlearnState, Stats]:
        _, retain = both_sets(batch)
        model = device_own(state.model, retain, axis_name)
        key = jax.random.fold_in(state.key, state.step)
        found = _sum_both(loss_fn, model, batch, key, axis_name)
        sums, kept = state.aux
        capacity = jax.tree.leaves(kept.rows)[0].shape[0]

        def store(kept: GradientRows) -> GradientRows:
            gradients, counts = _row_gradients(loss_fn, model, retain, key, axis_name)
            position = jnp.where(counts, kept.filled + jnp.cumsum(counts) - 1, capacity)
            rows = jax.tree.map(
                lambda old, new: old.at[position].set(new, mode="drop"), kept.rows, gradients
            )
            filled = kept.filled + jnp.sum(counts, dtype=jnp.int32)
            return GradientRows(rows, jnp.minimum(filled, capacity))

        kept = jax.lax.cond(kept.filled < capacity, store, lambda kept: kept, kept)
        stats = _stats(found.forget_weight + found.retain_weight, found.forget, found.retain)
        return state._replace(aux=(_add(sums, found), kept), step=state.step + 1), stats

    return step


def woodbury_finish(state: UnlearnState) -> UnlearnState:
    """``w + alpha * (damping * I + G^T G / M)^-1 v``."""
    sums, kept = state.aux
    vector = _vector(state, sums)
    rows = jax.vmap(lambda row: mask_trees.apply(state.masks, row))(kept.rows)
    count = jnp.maximum(kept.filled, 1).astype(jnp.float32)
    direction = curvature.woodbury_solve(rows, count, state.hyper.damping, vector)
    return state._replace(model=_moved(state, direction), aux=())


# ---- the survey of cg and official -----------------------------------------------------------


@functools.lru_cache(maxsize=64)
def survey_step(loss_fn: LossFn, axis_name: str | None) -> StepFn:
    """Sums the gradients of both sets."""

    def step(state: UnlearnState, batch: UnlearnBatch) -> tuple[UnlearnState, Stats]:
        model = device_own(state.model, both_sets(batch)[1], axis_name)
        key = jax.random.fold_in(state.key, state.step)
        found = _sum_both(loss_fn, model, batch, key, axis_name)
        stats = _stats(found.forget_weight + found.retain_weight, found.forget, found.retain)
        return state._replace(aux=_add(state.aux, found), step=state.step + 1), stats

    return step


def cg_survey_finish(state: UnlearnState) -> UnlearnState:
    """From gradient sums to the first direction of conjugate gradients."""
    solve = curvature.begin_conjugate_gradient(_vector(state, state.aux))
    aux = RetainSolve(
        solve=solve,
        product=jax.tree.map(jnp.zeros_like, solve.solution),
        seen=jnp.zeros((), jnp.int32),
        rows=state.aux.retain_rows,
        weight=state.aux.retain_weight,
    )
    return state._replace(aux=aux, step=jnp.zeros_like(state.step))


def official_survey_finish(state: UnlearnState) -> UnlearnState:
    """From gradient sums to the recursion before its first gradient."""
    aux = curvature.begin_official_recursion(_vector(state, state.aux))
    return state._replace(aux=aux, step=jnp.zeros_like(state.step))


# ---- cg: an iteration per pass over the retain set -------------------------------------------


@functools.lru_cache(maxsize=64)
def cg_step(loss_fn: LossFn, apply_fn: ApplyFn | None, axis_name: str | None) -> OnBatch:
    """Adds a batch to the product with the direction; the last row of Dr completes an iteration.

    The curvature is the mean over all of Dr: the Gauss-Newton matrix of ``apply_fn``, or the
    Hessian of ``loss_fn`` when that is None.
    """

    def product_of(model: Model, batch: Batch, vector: Params, key: Key) -> Params:
        if apply_fn is None:
            return curvature.hessian_product(loss_fn, model, batch, vector, key)
        return curvature.gauss_newton_product(apply_fn, model, batch, vector, key)

    def step(state: UnlearnState, batch: Batch) -> tuple[UnlearnState, Stats]:
        hyper, aux = state.hyper, _surveyed(state)
        own = device_own((state.model, aux.solve.direction), batch, axis_name)
        key = jax.random.fold_in(state.key, state.step)
        found = (
            product_of(own[0], batch, own[1], key),
            jnp.sum(batch.weights),
            _counted(batch),
        )
        if axis_name is not None:
            found = jax.lax.psum(found, axis_name)
        part, weight, rows = found
        product = _add(aux.product, mask_trees.apply(state.masks, part))
        going = aux._replace(product=product, seen=aux.seen + rows)

        def iterate(going: RetainSolve) -> RetainSolve:
            weight = jnp.maximum(going.weight, 1e-12)
            mean = jax.tree.map(lambda leaf: leaf / weight, going.product)
            solve = curvature.advance_conjugate_gradient(
                going.solve, mean, hyper.damping, hyper.tolerance
            )
            empty = jax.tree.map(jnp.zeros_like, (going.product, going.seen))
            return going._replace(solve=solve, product=empty[0], seen=empty[1])

        complete = (going.seen >= going.rows) & (rows > 0)
        aux = jax.lax.cond(complete, iterate, lambda going: going, going)
        return state._replace(aux=aux, step=state.step + 1), _stats(weight, part)

    return step


def cg_finish(state: UnlearnState) -> UnlearnState:
    """``w + alpha * x``; leaves the solve's convergence in ``aux``."""
    solve = _surveyed(state).solve
    told = curvature.convergence_of(solve)
    return state._replace(model=_moved(state, solve.solution), aux=told)


# ---- official: the rank-one recursion over the rows of the retain set ------------------------


@functools.lru_cache(maxsize=64)
def official_step(loss_fn: LossFn, axis_name: str | None) -> OnBatch:
    """Takes the rows of a batch one after another, until N_w + 2 of Dr were taken."""

    def step(state: UnlearnState, batch: Batch) -> tuple[UnlearnState, Stats]:
        count, carry = state.hyper.rows, _surveyed(state)
        model = device_own(state.model, batch, axis_name)
        key = jax.random.fold_in(state.key, state.step)

        def take(
            carry: curvature.OfficialRecursion, row: tuple[Params, Array]
        ) -> tuple[curvature.OfficialRecursion, None]:
            gradient = mask_trees.apply(state.masks, row[0])
            taken = curvature.official_recursion(carry, gradient, count)
            return jax.tree.map(lambda new, old: jnp.where(row[1], new, old), taken, carry), None

        def read(carry: curvature.OfficialRecursion) -> curvature.OfficialRecursion:
            rows = _row_gradients(loss_fn, model, batch, key, axis_name)
            return jax.lax.scan(take, carry, rows)[0]

        aux = jax.lax.cond(carry.seen <= count + 1, read, lambda carry: carry, carry)
        weight = jnp.sum(batch.weights)
        if axis_name is not None:
            weight = jax.lax.psum(weight, axis_name)
        return state._replace(aux=aux, step=state.step + 1), _stats(weight, aux.solution)

    return step


def official_finish(state: UnlearnState) -> UnlearnState:
    """``w + alpha * k``."""
    return state._replace(model=_moved(state, _surveyed(state).solution), aux=())
