"""Fisher forgetting: noise where the retain set has no curvature."""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from sparse_mu import curvature
from sparse_mu import masks as mask_trees
from sparse_mu.types import (
    ApplyFn,
    Array,
    Batch,
    Key,
    Masks,
    Model,
    Params,
    PyTree,
    Stats,
    Unlearner,
    UnlearnState,
)
from sparse_mu.unlearn.contract import OneSet, begin, device_own


class FisherHyper(NamedTuple):
    """Leaves of Fisher forgetting.

    Attributes:
        alpha: noise variance times Fisher.
        floor: Fisher values below it count as it, which bounds the variance by ``alpha / floor``.
        classes: ``bool[K]``, classes whose row of the head is zeroed; all False zeroes none.
    """

    alpha: Array | float
    floor: Array | float
    classes: Array


class FisherSums(NamedTuple):
    """What the pass over the retain set accumulates: the Fisher sum and the sum of weights."""

    fisher: Params
    weight: Array


@functools.lru_cache(maxsize=64)
def _accumulate(
    apply_fn: ApplyFn, axis_name: str | None
) -> Callable[[UnlearnState, Batch], tuple[UnlearnState, Stats]]:
    def step(state: UnlearnState, batch: Batch) -> tuple[UnlearnState, Stats]:
        key = jax.random.fold_in(state.key, state.step)
        model = device_own(state.model, batch, axis_name)
        sums = FisherSums(
            curvature.fisher_diagonal_sum(apply_fn, model, batch, key),
            jnp.sum(batch.weights),
        )
        if axis_name is not None:
            sums = jax.lax.psum(sums, axis_name)
        total = jax.tree.map(jnp.add, state.aux, sums)
        finite = jnp.isfinite(sum(jnp.sum(leaf) for leaf in jax.tree.leaves(sums.fisher)))
        zero = jnp.zeros((), jnp.float32)
        stats = Stats(loss=zero, weight=sums.weight, correct=zero, finite=finite)
        return state._replace(aux=total, step=state.step + 1), stats

    return step


def _zero_head_rows(params: Params, head: PyTree, classes: Array) -> Params:
    def zero(leaf: Array) -> Array:
        return jnp.where(jnp.broadcast_to(classes, leaf.shape), 0.0, leaf)

    return jax.tree.map(lambda leaf, flag: zero(leaf) if flag else leaf, params, head)


class _Head(NamedTuple):
    """Hashable form of a tree of bools, so that ``finish`` is found again in the cache."""

    flags: tuple[bool, ...]

    def tree(self, params: Params) -> PyTree:
        return jax.tree.unflatten(jax.tree.structure(params), self.flags)


@functools.lru_cache(maxsize=64)
def _perturb(head: _Head | None) -> Callable[[UnlearnState], UnlearnState]:
    def finish(state: UnlearnState) -> UnlearnState:
        hyper, sums, params = state.hyper, state.aux, state.model.params
        if head is not None:
            params = _zero_head_rows(params, head.tree(params), hyper.classes)
        leaves, structure = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), len(leaves))
        rows = jnp.maximum(sums.weight, 1e-12)
        # flat draws: XLA on CPU compiles a draw of four axes several times slower
        noisy = [
            leaf
            + jnp.sqrt(hyper.alpha / jnp.maximum(total / rows, hyper.floor))
            * jax.random.normal(key, (leaf.size,), leaf.dtype).reshape(leaf.shape)
            for leaf, total, key in zip(leaves, jax.tree.leaves(sums.fisher), keys, strict=True)
        ]
        params = mask_trees.apply(state.masks, jax.tree.unflatten(structure, noisy))
        return state._replace(model=state.model._replace(params=params), aux=())

    return finish


def fisher_forgetting(
    apply_fn: ApplyFn,
    alpha: float,
    *,
    num_classes: int,
    head: PyTree | None = None,
    head_treatment: Literal["intact", "zeroed"] = "intact",
    forgotten_classes: tuple[int, ...] = (),
    floor: float = 1e-3,
    axis_name: str | None = None,
) -> Unlearner:
    """Fisher forgetting with the exact diagonal of the retain set.

    ``w <- w + sqrt(alpha / max(F, floor)) * N(0, 1)`` with F the mean over Dr of the exact
    per-example Fisher diagonal, pruned weights kept at 0, BatchNorm statistics untouched. With
    ``head_treatment="zeroed"`` the forgotten classes' rows of the head are set to 0 first.

    Args:
        apply_fn: the network, used in evaluation mode.
        alpha: noise strength, > 0.
        num_classes: K.
        head: tree of Python bools, True at the classifier head's leaves, whose *last* axis is the
            class axis. Needed for ``"zeroed"``; never guessed from a shape.
        head_treatment: whether the forgotten classes keep their rows of the head.
        forgotten_classes: which classes the scenario forgets; empty for random forgetting.
        floor: smallest Fisher value; the official code clips 1/F at 1e3, that is floor 1e-3.
        axis_name: axis over which batches are split, or None.

    Raises:
        ValueError: if ``alpha`` or ``floor`` is not positive, ``head_treatment`` is unknown,
            ``"zeroed"`` has no head, or a forgotten class is not in [0, K).

    Source: paper, section 3 (FF); SPEC section 4.7. Its deviations from the official code: per-row
    gradients instead of batch means, no averaging of variances over input channels and no extra
    factor 10 on the head.
    """
    if not alpha > 0 or not floor > 0:
        raise ValueError(f"alpha = {alpha!r}, floor = {floor!r}: both must be positive")
    if head_treatment == "zeroed" and head is None:
        raise ValueError("head_treatment='zeroed' needs head=, a tree of bools naming its leaves")
    if head_treatment not in ("intact", "zeroed"):
        raise ValueError(f"head_treatment = {head_treatment!r}: must be 'intact' or 'zeroed'")
    if not all(0 <= forgotten < num_classes for forgotten in forgotten_classes):
        raise ValueError(
            f"forgotten_classes = {forgotten_classes!r}: must be in [0, {num_classes})"
        )
    zeroed = head_treatment == "zeroed"
    flags = _Head(tuple(map(bool, jax.tree.leaves(head)))) if zeroed else None
    classes = jnp.zeros(num_classes, bool)
    if forgotten_classes:
        classes = classes.at[jnp.asarray(forgotten_classes)].set(True)
    hyper = FisherHyper(jnp.float32(alpha), jnp.float32(floor), classes)

    def init(model: Model, masks: Masks, key: Key) -> UnlearnState:
        def aux(params: Params) -> FisherSums:
            return FisherSums(jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.float32))

        return begin(model, masks, key, hyper=hyper, opt_state=lambda params: (), aux=aux)

    step = OneSet(_accumulate(apply_fn, axis_name), "retain")
    return Unlearner(init, step, _perturb(flags), "retain", "once")
