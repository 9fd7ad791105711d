"""Steps that work on a part of their batch at a time, where memory does not hold all of it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sparse_mu.types import Array, Batch, PyTree, Stats, Unlearner, UnlearnState
from sparse_mu.unlearn.contract import OneSet


def in_parts(unlearner: Unlearner, rows: int) -> Unlearner:
    """The same method, whose steps take ``rows`` rows of their batch at a time.

    For methods that sum over the rows of a batch, or take them one after another, at one point:
    what they find is the same up to rounding, and a step needs less memory. Not for descent, which
    moves once a batch, nor for what squares the mean of a batch (the official Fisher estimate).

    Args:
        unlearner: the method.
        rows: of each set, at a time, in their order; a smaller last part is filled up with rows of
            weight 0.

    Raises:
        ValueError: if ``rows`` is not positive.
    """
    if rows < 1:
        raise ValueError(f"rows = {rows}: must be at least 1")
    step, survey = unlearner.step, unlearner.survey
    if isinstance(step, OneSet):
        step = OneSet(_parted(step.on_batch, rows), step.reads)
    else:
        step = _parted(step, rows)
    if survey is not None:
        survey = survey._replace(step=_parted(survey.step, rows))
    return unlearner._replace(step=step, survey=survey)


@functools.lru_cache(maxsize=64)  # so that the same steps in the same parts are one program
def _parted(body: Callable[..., tuple[UnlearnState, Stats]], rows: int) -> Callable[..., Any]:
    def step(state: UnlearnState, batch: PyTree) -> tuple[UnlearnState, Stats]:
        def take(carry: tuple, part: PyTree) -> tuple[tuple, None]:
            state, sums = carry
            state, stats = body(state, part)
            added = jax.tree.map(jnp.add, sums, stats)
            return (state, added._replace(finite=sums.finite & stats.finite)), None

        zero = jnp.zeros((), jnp.float32)
        nothing = Stats(zero, zero, zero, jnp.ones((), bool))
        parts = jax.tree.map(_split(rows), batch, is_leaf=lambda node: isinstance(node, Batch))
        (after, sums), _ = jax.lax.scan(take, (state, nothing), parts)
        return after._replace(step=state.step + 1), sums

    return step


def _split(rows: int) -> Callable[[Batch], Batch]:
    def of_batch(batch: Batch) -> Batch:
        """``[B, ...]`` to ``[parts, rows, ...]``."""
        count = batch.weights.shape[0]
        parts = -(-count // rows)
        position = jnp.arange(parts * rows)

        def split(leaf: Array) -> Array:
            filled = leaf if parts * rows == count else leaf[position % count]
            return filled.reshape(parts, rows, *leaf.shape[1:])

        cut = jax.tree.map(split, batch)
        return cut._replace(
            weights=jnp.where(position.reshape(parts, rows) < count, cut.weights, 0)
        )

    return of_batch
