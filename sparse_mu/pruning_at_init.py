"""Masks that need no training: random, SNIP, GraSP and SynFlow.

They are meant for a network at initialisation. Trials are scored one after another by one compiled
program: the memory is that of one trial, and no backward convolution stands inside a compiled loop
(28 times slower on CPU). Scores are ranked inside compiled functions, where a NaN cannot
raise: one trial that is not finite does not stop the others.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from sparse_mu import masks as mask_trees
from sparse_mu import scores
from sparse_mu.masks import Prunable, Scope, Structure, convolution_kernels
from sparse_mu.types import ApplyFn, Array, Batch, Key, LossFn, Masks, Model, PyTree

Form = Literal["published", "official"]
Counts = Literal["exact", "official"]

_STATIC = ("prunable", "scope", "structure")
_from_scores = jax.jit(mask_trees.from_scores, static_argnames=("sparsity", *_STATIC))
_random = jax.jit(scores.random)
_SNIP = {
    "published": jax.jit(scores.snip, static_argnames="loss_fn"),
    "official": jax.jit(scores.snip_official, static_argnames="loss_fn"),
}
_GRASP = {
    "published": jax.jit(scores.grasp, static_argnames="apply_fn"),
    "official": jax.jit(scores.grasp_official, static_argnames="apply_fn"),
}


def random_masks(
    key: Key,
    model: Model,
    sparsity: float,
    *,
    prunable: Prunable = convolution_kernels,
    scope: Scope = "global",
    structure: Structure = "entries",
    batched: bool = False,
) -> Masks:
    """Masks that prune at random: every mask of the count is as likely as any other.

    Raises:
        ValueError: as :func:`sparse_mu.masks.from_scores`.

    Source: SPEC section 3 (Random).
    """

    def find(key: Key, model: Model) -> Masks:
        found = _random(key, model.params)
        return _from_scores(found, sparsity, prunable, scope=scope, structure=structure)

    return each_trial(find, batched, key, model)


def snip_masks(
    loss_fn: LossFn,
    model: Model,
    batch: Batch,
    key: Key,
    sparsity: float,
    *,
    form: Form = "published",
    prunable: Prunable = convolution_kernels,
    scope: Scope = "global",
    structure: Structure = "entries",
    batched: bool = False,
) -> Masks:
    """Masks by SNIP: the lowest :func:`sparse_mu.scores.snip` go, in one shot.

    Args:
        loss_fn: fixes the mode of BatchNorm: ``classification(apply_fn, train=True)`` as official.
        model: usually at initialisation.
        batch: rows to score on; see :func:`score_rows`.
        key: handed to ``loss_fn``.
        sparsity: fraction of the prunable weights to remove, in [0, 1).
        form: ``"published"``, or ``"official"`` for :func:`sparse_mu.scores.snip_official`.
        prunable: which leaves are prunable.
        scope: ``"global"`` or ``"leaf"``.
        structure: ``"entries"``, ``"filters"`` or ``"channels"``.
        batched: whether model, batch and key carry a leading trial axis.

    Raises:
        ValueError: on an unknown ``form``, or as :func:`sparse_mu.masks.from_scores`.
    """
    score = _by_form(_SNIP, form)

    def find(model: Model, batch: Batch, key: Key) -> Masks:
        found = score(loss_fn, model, batch, key)
        return _from_scores(found, sparsity, prunable, scope=scope, structure=structure)

    return each_trial(find, batched, model, batch, key)


def grasp_masks(
    apply_fn: ApplyFn,
    model: Model,
    batch: Batch,
    key: Key,
    sparsity: float,
    *,
    form: Form = "published",
    temperature: float = 200.0,
    prunable: Prunable = convolution_kernels,
    scope: Scope = "global",
    structure: Structure = "entries",
    batched: bool = False,
) -> Masks:
    """Masks by GraSP: the lowest :func:`sparse_mu.scores.grasp` go, in one shot.

    Arguments and errors as in :func:`snip_masks`; ``form="official"`` is
    :func:`sparse_mu.scores.grasp_official`, ``temperature`` divides the logits.
    """
    score = _by_form(_GRASP, form)
    if not temperature > 0:
        raise ValueError(f"temperature = {temperature!r}: must be positive")

    def find(model: Model, batch: Batch, key: Key) -> Masks:
        found = score(apply_fn, model, batch, key, temperature=temperature)
        return _from_scores(found, sparsity, prunable, scope=scope, structure=structure)

    return each_trial(find, batched, model, batch, key)


def synflow_masks(
    apply_fn: ApplyFn,
    model: Model,
    inputs: Array,
    sparsity: float,
    *,
    rounds: int = 100,
    counts: Counts = "exact",
    prunable: Prunable = convolution_kernels,
    scope: Scope = "global",
    structure: Structure = "entries",
    batched: bool = False,
) -> Masks:
    """Masks by SynFlow: ``rounds`` times score the sparse network and prune the lowest.

    With density ``d = 1 - sparsity``, round k leaves ``round(n * d^(k / rounds))`` of n prunable
    weights, so that the last leaves ``n - round(sparsity * n)`` (``counts="exact"``, as published).
    The official code prunes ``round(q * unpruned)`` each round, ``q = 1 - d^(1 / rounds)``, whose
    roundings add up (``counts="official"``): of ResNet-20s at 90% it keeps 26,769, not 26,770, and
    of fewer than ``0.5 / q`` units it never prunes any. The rounds amplify such differences: those
    two masks of ResNet-20s differ in 0.6% of all entries, so compare with the official code's masks
    under its own counts.

    Args:
        apply_fn: the network, its own normalisation of the inputs included.
        model: usually at initialisation.
        inputs: ones of one example, such as ``jnp.ones((1, 32, 32, 3))``; shared by all trials.
        sparsity: fraction of the prunable weights to remove, in [0, 1).
        rounds: how often to score, at least 1.
        counts: ``"exact"`` or ``"official"``.
        prunable: which leaves are prunable.
        scope: ``"global"`` or ``"leaf"``.
        structure: ``"entries"``, ``"filters"`` or ``"channels"``.
        batched: whether the model carries a leading trial axis.

    Raises:
        ValueError: on an unknown ``counts``, a bad ``rounds`` or ``sparsity``, as
            :func:`sparse_mu.masks.from_scores`, and if the scores of a round are not finite (deep
            networks overflow float32, see :func:`sparse_mu.scores.synflow`) or all 0.

    Source: SPEC section 3 (SynFlow).
    """
    one = jax.tree.map(lambda leaf: leaf[0], model.params) if batched else model.params
    sizes = mask_trees.unit_counts(one, prunable, structure)
    sizes = sizes if scope == "leaf" else [sum(sizes)]
    schedule = _synflow_schedule(sizes, sparsity, rounds, counts)

    def find(model: Model) -> Masks:
        found, peaks = mask_trees.ones_like(model.params), []
        for gone in schedule:
            number = gone if scope == "leaf" else gone[0]
            found, peak = _synflow_round(
                apply_fn, model, found, inputs, number, prunable, scope, structure
            )
            peaks.append(peak)
        _check_flow(np.array(jax.device_get(peaks)))
        return found

    return each_trial(find, batched, model)


def score_rows(
    key: Key, labels: Array, per_class: int = 25, members: Array | None = None
) -> np.ndarray:
    """Rows to score on: ``per_class`` of every class, drawn without replacement; class by class.

    Args:
        key: the draw; deleting other rows of the data does not change the order of the rest.
        labels: ``int32[N]``.
        per_class: rows of each class (25 in SPEC section 3).
        members: ``bool[N]``, rows that may be drawn. Default: all.

    Raises:
        ValueError: if a class that occurs has fewer rows, naming it.
    """
    labels = np.asarray(labels)
    members = np.ones(labels.shape, bool) if members is None else np.asarray(members)
    order = np.argsort(np.asarray(jax.random.uniform(key, labels.shape)), kind="stable")
    chosen = []
    for label in np.unique(labels[members]):
        rows = order[(labels[order] == label) & members[order]]
        if len(rows) < per_class:
            raise ValueError(
                f"per_class = {per_class}: class {label} has only {len(rows)} rows to score on"
            )
        chosen.append(rows[:per_class])
    return np.concatenate(chosen)


def each_trial(find: Callable[..., Masks], batched: bool, *trees: PyTree) -> Masks:
    """``find(*trees)``; of ``[T]`` trees, one trial after another, the results stacked."""
    if not batched:
        return find(*trees)
    count = jax.tree.leaves(trees)[0].shape[0]
    return _stack([find(*_trial_of(trees, trial)) for trial in range(count)])


@jax.jit
def _trial_of(trees: PyTree, trial: Array) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[trial], trees)


@jax.jit
def _stack(found: list[Masks]) -> Masks:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)


@functools.partial(jax.jit, static_argnames=("apply_fn", "prunable", "scope", "structure"))
def _synflow_round(
    apply_fn: ApplyFn,
    model: Model,
    masks: Masks,
    inputs: Array,
    gone: Array,
    prunable: Prunable,
    scope: Scope,
    structure: Structure,
) -> tuple[Masks, Array]:
    """The next masks, and the highest score (NaN if any is) for :func:`_check_flow`."""
    found = scores.synflow(apply_fn, model, inputs, masks=masks)
    flags = mask_trees.prunable_leaves(found, prunable)
    peaks = jax.tree.map(lambda flag, leaf: jnp.max(leaf) if flag else 0.0, flags, found)
    peak = jnp.max(jnp.stack([jnp.asarray(leaf) for leaf in jax.tree.leaves(peaks)]))
    pruned = mask_trees.prune_lowest(masks, found, gone, prunable, scope=scope, structure=structure)
    return pruned, peak


def _synflow_schedule(
    sizes: list[int], sparsity: float, rounds: int, counts: Counts
) -> list[np.ndarray]:
    """How many units each round prunes, ``int32[len(sizes)]`` each."""
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity = {sparsity!r}: must be a fraction in [0, 1)")
    if rounds < 1:
        raise ValueError(f"rounds = {rounds!r}: must be at least 1")
    if counts not in ("exact", "official"):
        raise ValueError(f"counts = {counts!r}: must be 'exact' or 'official'")
    left, schedule = np.array(sizes), []
    for k in range(1, rounds + 1):
        if counts == "official":
            gone = np.round((1 - (1 - sparsity) ** (1 / rounds)) * left)
        elif k < rounds:
            gone = left - np.round(np.array(sizes) * (1 - sparsity) ** (k / rounds))
        else:
            gone = left - (np.array(sizes) - np.round(sparsity * np.array(sizes)))
        gone = np.maximum(gone, 0).astype(np.int32)
        left = left - gone
        schedule.append(gone)
    return schedule


def _check_flow(peaks: np.ndarray) -> None:
    if not np.isfinite(peaks).all():
        raise ValueError(
            "SynFlow's scores are not finite: the flow through this network exceeds its float type "
            "(a deep network needs float64: jax_enable_x64, a float64 model and network)"
        )
    if not (peaks > 0).all():
        raise ValueError("SynFlow's scores are all 0: no path of kept weights reaches the logits")


def _by_form(functions: Mapping[str, Callable[..., PyTree]], form: Form) -> Callable[..., PyTree]:
    if form not in functions:
        raise ValueError(f"form = {form!r}: must be 'published' or 'official'")
    return functions[form]
