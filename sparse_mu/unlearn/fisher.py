"""Fisher forgetting: noise where the retain set has no curvature.

One pass over the retain set sums a Fisher diagonal, then the weights are drawn once from a Gaussian
around them. The estimate, the law of the noise and what becomes of the forgotten classes' part of
the head are three choices, each by name.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from sparse_mu import curvature, trees
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

Estimate = Literal["exact", "official"]
Noise = Literal["floored", "official", "quarter"]
HeadTreatment = Literal["intact", "zeroed", "removed"]

NEVER = -1e9  # the logit of a removed class
_NOISE_KEY = 2**31 - 1  # folded into the trial's key: no step has this number
_CLASSES_AT_ONCE = 16  # backward passes that the official estimate holds in memory together


class FisherHyper(NamedTuple):
    """Leaves of Fisher forgetting.

    Attributes:
        alpha: strength of the noise.
        floor: Fisher values below it count as it, which bounds the variance.
        classes: ``bool[K]``, classes whose part of the head is zeroed or removed.
    """

    alpha: Array | float
    floor: Array | float
    classes: Array


class FisherSums(NamedTuple):
    """What the pass accumulates: a sum of Fisher diagonals, and what to divide it by.

    That is the sum of weights for the exact estimate, the number of batches for the official one.
    """

    fisher: Params
    weight: Array


class FisherGaussian(NamedTuple):
    """Trees shaped like the parameters: the law from which the new weights are drawn."""

    mean: Params
    variance: Params


def official_fisher(
    apply_fn: ApplyFn, model: Model, batch: Batch, key: Key, axis_name: str | None = None
) -> Params:
    """The official code's Fisher estimate of one batch.

    ``F_j = sum_c P(c) * (d/dw_j mean_i -log p_i(c))^2`` with ``P(c) = mean_i p_i(c)``, means
    weighted by the rows' weights: the *batch-mean* gradient is squared, so that F is smaller than
    the Fisher diagonal, by up to the batch size, and depends on it. The official batches have 32
    rows.

    Args:
        apply_fn: the network; run in evaluation mode, running statistics frozen.
        model: where it is taken; marked as this device's own when the batch is split.
        batch: rows; ``[B, ...]``.
        key: handed to ``apply_fn``.
        axis_name: axis over which the batch is split, or None.

    Returns:
        A tree of float32 shaped like the parameters, entries >= 0; 0 for a batch without weight.

    Source: SPEC section 4.7, step 1.
    """

    def logits_of(params: Params) -> Array:
        return apply_fn(params, model.net_state, batch.inputs, train=False, key=key)[0]

    def over_devices(tree: PyTree) -> PyTree:
        return tree if axis_name is None else jax.lax.psum(tree, axis_name)

    logits, pullback = jax.vjp(logits_of, model.params)
    total = over_devices(jnp.sum(batch.weights))
    weights = (batch.weights / jnp.maximum(total, 1e-12))[:, None]
    probabilities = jax.nn.softmax(logits)
    mean = over_devices(jnp.sum(jnp.where(weights != 0, weights * probabilities, 0.0), axis=0))

    def of_classes(classes: Array) -> Params:  # int32[C], -1 for none
        wanted = jax.nn.one_hot(classes, logits.shape[-1], dtype=logits.dtype)[:, None, :]
        away = weights[None] * (probabilities[None] - wanted)
        gradients = over_devices(jax.vmap(pullback)(jnp.where(weights[None] != 0, away, 0.0))[0])
        shares = jnp.where(classes >= 0, mean[classes], 0.0)
        return jax.tree.map(lambda g: jnp.tensordot(shares, jnp.square(g), axes=1), gradients)

    count, at_once = logits.shape[-1], min(_CLASSES_AT_ONCE, logits.shape[-1])
    padded = jnp.arange(-(-count // at_once) * at_once, dtype=jnp.int32)
    groups = jnp.where(padded < count, padded, -1).reshape(-1, at_once)
    fisher = of_classes(groups[0])
    for group in groups[1:]:  # not a compiled loop: XLA's convolutions are slow in one on CPU
        fisher = jax.tree.map(jnp.add, fisher, of_classes(group))
    return fisher


@functools.lru_cache(maxsize=64)
def _accumulate(
    apply_fn: ApplyFn, estimate: Estimate, in_turn: bool, axis_name: str | None
) -> Callable[[UnlearnState, Batch], tuple[UnlearnState, Stats]]:
    def step(state: UnlearnState, batch: Batch) -> tuple[UnlearnState, Stats]:
        key = jax.random.fold_in(state.key, state.step)
        model = device_own(state.model, batch, axis_name)
        weight = jnp.sum(batch.weights)
        if estimate == "exact":
            fisher = curvature.fisher_diagonal_sum(apply_fn, model, batch, key, in_turn=in_turn)
            sums = FisherSums(fisher, weight)
            if axis_name is not None:
                sums = jax.lax.psum(sums, axis_name)
            weight = sums.weight
        else:
            weight = weight if axis_name is None else jax.lax.psum(weight, axis_name)
            fisher = official_fisher(apply_fn, model, batch, key, axis_name)
            sums = FisherSums(fisher, (weight > 0).astype(jnp.float32))
        total = jax.tree.map(jnp.add, state.aux, sums)
        zero = jnp.zeros((), jnp.float32)
        finite = trees.all_finite(sums.fisher)
        stats = Stats(loss=zero, weight=weight, correct=zero, finite=finite)
        return state._replace(aux=total, step=state.step + 1), stats

    return step


def _input_mean(variance: Array) -> Array:
    """The mean over the input channels (second-last axis) of a kernel, in every one of them."""
    if variance.ndim < 2:
        return variance
    return jnp.broadcast_to(jnp.mean(variance, axis=-2, keepdims=True), variance.shape)


def fisher_gaussian(
    params: Params,
    fisher: Params,
    alpha: Array | float,
    *,
    noise: Noise = "floored",
    floor: Array | float = 1e-3,
    head: PyTree | None = None,
    head_treatment: HeadTreatment = "intact",
    classes: Array | None = None,
) -> FisherGaussian:
    """The mean and the variance of every weight after Fisher forgetting, before any mask.

    The laws are described at :func:`fisher_forgetting`.

    Args:
        params: the weights w.
        fisher: F, a tree of the same shapes, entries >= 0.
        alpha: strength of the noise.
        noise: its law.
        floor: smallest Fisher value, of the laws ``floored`` and ``quarter``.
        head: tree of Python bools; needed by ``noise="official"`` and by any treatment.
        head_treatment: what becomes of the entries of ``classes`` in the head.
        classes: ``bool[K]``; None is all False.
    """

    def law(value: Array, in_head: bool) -> Array:
        if noise == "floored":
            return alpha / jnp.maximum(value, floor)
        if noise == "quarter":
            return alpha / jnp.sqrt(jnp.maximum(value, floor))
        return _input_mean(alpha * jnp.minimum(1 / (value + 1e-8), 1e2 if in_head else 1e3))

    def treated(weight: Array, variance: Array) -> tuple[Array, Array]:
        """Of a leaf of the head."""
        if head_treatment == "intact" or classes is None:
            return weight, variance
        gone = jnp.broadcast_to(classes, weight.shape)
        if head_treatment == "removed":
            constant = NEVER if weight.ndim == 1 else 0.0
            return jnp.where(gone, constant, weight), jnp.where(gone, 0.0, variance)
        chosen = jnp.where(gone, 1e-4, variance) if noise == "official" else variance
        return jnp.where(gone, 0.0, weight), chosen

    def of_leaf(weight: Array, value: Array, in_head: bool) -> FisherGaussian:
        mean, variance = weight, law(value, in_head)
        if in_head:
            mean, variance = treated(weight, variance)
        if noise == "official" and (in_head or weight.ndim == 1):
            variance = 10 * variance
        return FisherGaussian(mean, variance)

    flags = jax.tree.map(lambda _: False, params) if head is None else head
    found = jax.tree.map(of_leaf, params, fisher, flags)
    return jax.tree.transpose(jax.tree.structure(params), None, found)


class _Head(NamedTuple):
    """Hashable form of a tree of bools, so that ``finish`` is found again in the cache."""

    flags: tuple[bool, ...]

    def tree(self, params: Params) -> PyTree:
        return jax.tree.unflatten(jax.tree.structure(params), self.flags)


@functools.lru_cache(maxsize=64)
def _perturb(
    head: _Head | None, noise: Noise, head_treatment: HeadTreatment
) -> Callable[[UnlearnState], UnlearnState]:
    def finish(state: UnlearnState) -> UnlearnState:
        hyper, sums, params = state.hyper, state.aux, state.model.params
        rows = jnp.maximum(sums.weight, 1e-12)
        mean, variance = fisher_gaussian(
            params,
            jax.tree.map(lambda total: total / rows, sums.fisher),
            hyper.alpha,
            noise=noise,
            floor=hyper.floor,
            head=None if head is None else head.tree(params),
            head_treatment=head_treatment,
            classes=hyper.classes,
        )
        leaves, structure = jax.tree.flatten(mean)
        # of the trial's key alone: how many steps the pass took says how its rows were batched
        keys = jax.random.split(jax.random.fold_in(state.key, _NOISE_KEY), len(leaves))
        # flat draws: XLA on CPU compiles a draw of four axes several times slower
        noisy = [
            leaf
            + jnp.sqrt(spread)
            * jax.random.normal(key, (leaf.size,), leaf.dtype).reshape(leaf.shape)
            for leaf, spread, key in zip(leaves, jax.tree.leaves(variance), keys, strict=True)
        ]
        params = mask_trees.apply(state.masks, jax.tree.unflatten(structure, noisy))
        return state._replace(model=state.model._replace(params=params), aux=())

    return finish


def _check_head(params: Params, head: PyTree, num_classes: int, head_treatment: str) -> None:
    """Raises unless ``head`` names leaves of ``params`` whose last axis has ``num_classes``."""
    if jax.tree.structure(head) != jax.tree.structure(params):
        raise ValueError("head does not fit the parameters: it must be a tree of bools like them")
    flagged = zip(
        trees.leaf_names(params), jax.tree.leaves(params), jax.tree.leaves(head), strict=True
    )
    shapes = {name: leaf.shape for name, leaf, flag in flagged if flag}
    for name, shape in shapes.items():
        if shape[-1:] != (num_classes,):
            raise ValueError(
                f"head: leaf '{name}' has shape {shape}, its last axis must be the {num_classes} "
                "classes"
            )
    if head_treatment == "removed" and not any(len(shape) == 1 for shape in shapes.values()):
        raise ValueError("head_treatment='removed' needs a bias among the leaves of head")


def fisher_forgetting(
    apply_fn: ApplyFn,
    alpha: float,
    *,
    num_classes: int,
    estimate: Estimate = "exact",
    noise: Noise = "floored",
    head: PyTree | None = None,
    head_treatment: HeadTreatment = "intact",
    forgotten_classes: tuple[int, ...] = (),
    floor: float = 1e-3,
    in_turn: bool = False,
    axis_name: str | None = None,
) -> Unlearner:
    """Fisher forgetting: ``w <- mean + sqrt(variance) * N(0, 1)``, from the Fisher F of Dr.

    Pruned weights stay 0, BatchNorm statistics are untouched. The noise depends on the trial's key
    alone, never on how the rows were batched.

    ``estimate``: ``exact``, the mean over Dr of the per-example Fisher diagonal; ``official``, the
    mean over batches of :func:`official_fisher` (a last, partial batch counts as a whole one).

    ``noise``, the variance of a weight:

    - ``floored``: ``alpha / max(F, floor)``.
    - ``quarter``: ``alpha / sqrt(max(F, floor))``, that is a standard deviation proportional to
      F^(-1/4), the "4th root" of the paper and of Golatkar et al., whose ``lambda * sigma^2`` is
      ``alpha^2`` here.
    - ``official``: ``alpha * min(1 / (F + 1e-8), 1e3)``, 1e2 for 1e3 in the head; then its mean
      over the input channels for every kernel (pruned entries have F = 0 and enter this mean); then
      the head's treatment; then times 10 in the head and in every one-dimensional leaf. The code
      finds the head by its first dimension being K; here it is ``head`` that says it.

    ``head_treatment``, what becomes of the forgotten classes' columns of the head:

    - ``intact``: nothing, the choice for random forgetting.
    - ``zeroed``: mean 0; variance by the law, under ``official`` 1e-4 (times 10). What the code
      does: a logit of about 0 can still win.
    - ``removed``: kernel 0 and bias -1e9, without noise: the class never wins. What the paper says.
      A mask that prunes that bias undoes it.

    Args:
        apply_fn: the network, used in evaluation mode.
        alpha: noise strength, > 0.
        num_classes: K.
        estimate: how F is estimated.
        noise: the law of the noise.
        head: tree of Python bools, True at the classifier head's leaves, whose *last* axis is the
            class axis. Needed by ``zeroed``, ``removed`` and ``noise="official"``; never guessed
            from a shape.
        head_treatment: see above.
        forgotten_classes: which classes the scenario forgets; empty for random forgetting. A leaf,
            ``hyper.classes``, so that it may differ between trials.
        floor: smallest Fisher value of ``floored`` and ``quarter``.
        in_turn: how the exact estimate goes through the classes, a matter of speed: see
            :func:`sparse_mu.curvature.fisher_diagonal_sum`.
        axis_name: axis over which batches are split, or None.

    Raises:
        ValueError: if ``alpha`` or ``floor`` is not positive, a name is unknown, ``head`` is
            missing where it is needed, or a forgotten class is not in [0, K); at ``init`` if
            ``head`` does not fit the parameters.

    Source: paper, section 3 (FF); SPEC sections 4.7 and 11.11; Golatkar, Achille and Soatto,
    "Eternal sunshine of the spotless net", 2020. The defaults are not the official code's, which is
    ``estimate="official", noise="official"`` in batches of 32: its F is no Fisher diagonal, its
    averages spread the noise of pruned weights over the kept.
    """
    if not alpha > 0 or not floor > 0:
        raise ValueError(f"alpha = {alpha!r}, floor = {floor!r}: both must be positive")
    if estimate not in ("exact", "official"):
        raise ValueError(f"estimate = {estimate!r}: must be 'exact' or 'official'")
    if noise not in ("floored", "official", "quarter"):
        raise ValueError(f"noise = {noise!r}: must be 'floored', 'official' or 'quarter'")
    if head_treatment not in ("intact", "zeroed", "removed"):
        raise ValueError(
            f"head_treatment = {head_treatment!r}: must be 'intact', 'zeroed' or 'removed'"
        )
    reads_head = head_treatment != "intact" or noise == "official"
    if reads_head and head is None:
        raise ValueError(
            f"noise={noise!r} with head_treatment={head_treatment!r} needs head=, a tree of bools "
            "naming its leaves"
        )
    if not all(0 <= forgotten < num_classes for forgotten in forgotten_classes):
        raise ValueError(
            f"forgotten_classes = {forgotten_classes!r}: must be in [0, {num_classes})"
        )
    flags = _Head(tuple(map(bool, jax.tree.leaves(head)))) if reads_head else None
    classes = jnp.zeros(num_classes, bool)
    if forgotten_classes:
        classes = classes.at[jnp.asarray(forgotten_classes)].set(True)
    hyper = FisherHyper(jnp.float32(alpha), jnp.float32(floor), classes)

    def init(model: Model, masks: Masks, key: Key) -> UnlearnState:
        def aux(params: Params) -> FisherSums:
            return FisherSums(jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.float32))

        if reads_head:
            _check_head(model.params, head, num_classes, head_treatment)
        return begin(model, masks, key, hyper=hyper, opt_state=lambda params: (), aux=aux)

    step = OneSet(_accumulate(apply_fn, estimate, in_turn, axis_name), "retain")
    return Unlearner(init, step, _perturb(flags, noise, head_treatment), "retain", "once")
