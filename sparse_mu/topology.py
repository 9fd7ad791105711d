"""How alike two masks are, beyond chance, and how alike two models' outputs.

Host side, numpy and scipy. A mask is a tree of bools, True = kept; only prunable leaves count.
Masks of layers with unequal densities agree by chance more than their pooled densities tell, so
every correction for chance is *stratified*: it takes each leaf at its own density, and a mask that
only copies another's densities scores 0. Source: UNPRUNING section 3.2.
"""

from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from sparse_mu import trees
from sparse_mu.trees import Prunable, convolution_kernels
from sparse_mu.types import Masks, Params, PyTree, Scores


class Similarity(NamedTuple):
    """How alike two masks A and B are, over n entries of which they keep k_A and k_B.

    Attributes:
        iou: ``|A & B| / |A | B|`` of the kept entries.
        iou_pruned: the same of the pruned ones: near 1 at low density whatever A and B are.
        hamming: ``|A xor B| / n``.
        chance_iou: the IoU ``c = E / (k_A + k_B - E)`` of independent masks,
            ``E = sum over leaves of k_A k_B / n``.
        corrected_iou: ``(iou - c) / (1 - c)``: 0 by chance, 1 where they are equal.
        kappa: Cohen's ``(p_o - p_e) / (1 - p_e)`` of the kept-or-pruned bits, stratified too.
        overlap: ``|A & B| / min(k_A, k_B)``. At equal k it is ``2 iou / (1 + iou)``: a monotone
            function of the IoU, so it never adds evidence to it.
    """

    iou: float
    iou_pruned: float
    hamming: float
    chance_iou: float
    corrected_iou: float
    kappa: float
    overlap: float


class Flips(NamedTuple):
    """Which bits an un-pruning flipped, of those that it should have.

    Attributes:
        should: bits in which the original's mask differs from the target's.
        flipped: bits in which the un-pruned mask differs from the original's.
        right: bits that are among both, and so have the target's value now.
        precision: ``right / flipped``; NaN where nothing was flipped.
        recall: ``right / should``; NaN where nothing should be.
    """

    should: int
    flipped: int
    right: int
    precision: float
    recall: float


class Divergence(NamedTuple):
    """Mean divergences of predicted distributions over rows, in nats.

    Attributes:
        kl: ``KL(reference || model)``.
        js: Jensen-Shannon, symmetric and at most log 2.
    """

    kl: float
    js: float


class _Counts(NamedTuple):
    """Of every leaf, ``int64[L]``: entries, those that A keeps, that B keeps, that both keep."""

    total: NDArray[np.int64]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    both: NDArray[np.int64]


def similarity(first: Masks, second: Masks, prunable: Prunable = convolution_kernels) -> Similarity:
    """How alike two masks are over all prunable leaves together, in both directions the same.

    Raises:
        ValueError: if the masks do not fit each other (the leaf is named) or nothing is prunable.
    """
    return _similar(_counts(first, second, prunable))


def similarity_by_leaf(
    first: Masks, second: Masks, prunable: Prunable = convolution_kernels
) -> dict[str, Similarity]:
    """:func:`similarity` of each prunable leaf alone; their mean is not the pooled one."""
    counts = _counts(first, second, prunable)
    names = [name for name, _ in _prunable(first, prunable)]
    return {
        name: _similar(_Counts(*(column[index : index + 1] for column in counts)))
        for index, name in enumerate(names)
    }


def iou(first: Masks, second: Masks, prunable: Prunable = convolution_kernels) -> float:
    """``|A & B| / |A | B|`` over the kept entries of all prunable leaves together."""
    return similarity(first, second, prunable).iou


def flips(
    original: Masks, unpruned: Masks, target: Masks, prunable: Prunable = convolution_kernels
) -> Flips:
    """Precision and recall of the bits that un-pruning flipped.

    The IoU alone rewards doing nothing; these do not.

    Args:
        original: the mask that saw the forget set.
        unpruned: what became of it.
        target: the mask of a retraining without the forget set.
        prunable: which leaves count.

    Raises:
        ValueError: as :func:`similarity`.
    """
    _check_fit(original, unpruned, target)
    o, u, t = (flat(tree, prunable) for tree in (original, unpruned, target))
    should, flipped = o != t, o != u
    right = int((should & flipped).sum())
    return Flips(
        int(should.sum()),
        int(flipped.sum()),
        right,
        _ratio(right, int(flipped.sum())),
        _ratio(right, int(should.sum())),
    )


def gain(unpruned: float, original: float, floor: float) -> float:
    """``(unpruned - original) / (floor - original)`` of three IoUs with the target's mask.

    0 for leaving the mask alone, 1 for coming as near as a second retraining does, below 0 for
    moving away. NaN where the original is as near as the floor: the deletion then has no effect on
    the mask that could be resolved, and nothing can be shown to undo it.

    Args:
        unpruned: IoU of the un-pruned mask with the target.
        original: IoU of the original's mask with the target.
        floor: IoU of two targets that differ in the order of their batches; 1 where training is
            deterministic.
    """
    return (unpruned - original) / (floor - original) if floor > original else float("nan")


def rank_correlation(
    first: Scores,
    second: Scores,
    prunable: Prunable = convolution_kernels,
    *,
    kept: Masks | None = None,
    near: float = 0.1,
) -> float:
    """Spearman's rho of two trees of scores, over all prunable entries or near the threshold.

    Over all entries rho is inflated by those that no deletion could move across the threshold.

    Args:
        first: the target's scores.
        second: the estimate's.
        prunable: which leaves count.
        kept: the target's mask; then only the share ``near`` of the entries whose target score is
            nearest to the threshold (the middle between the lowest kept and the highest pruned)
            takes part.
        near: a fraction in (0, 1].

    Returns:
        rho; NaN where one side is constant.

    Raises:
        ValueError: if the trees do not fit each other, or ``near`` is no such fraction.
    """
    from scipy import stats  # slow to import

    _check_fit(first, second)
    a, b = flat(first, prunable), flat(second, prunable)
    if kept is not None:
        chosen = _near_threshold(a, flat(kept, prunable), near)
        a, b = a[chosen], b[chosen]
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(stats.spearmanr(a, b).statistic)


def divergence(logits: ArrayLike, reference: ArrayLike) -> Divergence:
    """Mean ``KL(p_reference || p_model)`` and Jensen-Shannon over rows, of two models' logits.

    Args:
        logits: ``float[N, K]`` of the model.
        reference: ``float[N, K]`` of the retrained model, on the same rows.

    Returns:
        Means in nats; NaN where there is no row.

    Raises:
        ValueError: if the shapes differ.
    """
    model, wanted = np.asarray(logits, np.float64), np.asarray(reference, np.float64)
    if model.shape != wanted.shape or model.ndim != 2:
        raise ValueError(f"want two logits [N, K], got {model.shape} and {wanted.shape}")
    if not len(model):
        return Divergence(float("nan"), float("nan"))
    q, p = special.log_softmax(model, axis=1), special.log_softmax(wanted, axis=1)
    middle = np.logaddexp(p, q) - np.log(2)

    def towards(other: NDArray, of: NDArray) -> NDArray:
        return np.sum(np.exp(of) * (of - other), axis=1)

    js = (towards(middle, p) + towards(middle, q)) / 2
    # a sum of terms of both signs may round to just below 0
    return Divergence(max(float(towards(q, p).mean()), 0.0), max(float(js.mean()), 0.0))


def weight_distance(
    params: Params, target: Params, prunable: Prunable = convolution_kernels
) -> float:
    """``|w - w'| / |w'|`` of two masked trees of weights, over their prunable entries.

    Args:
        params: w, pruned weights 0.
        target: w', of the retrained model.
        prunable: which leaves count.

    Returns:
        At least 0, no unit; NaN where w' is 0.

    Raises:
        ValueError: if the trees do not fit each other (the leaf is named).

    Source: UNPRUNING section 3.
    """
    _check_fit(params, target)
    ours, theirs = (flat(tree, prunable).astype(np.float64) for tree in (params, target))
    return _ratio(float(np.linalg.norm(ours - theirs)), float(np.linalg.norm(theirs)))


def flat(tree: PyTree, prunable: Prunable = convolution_kernels) -> NDArray:
    """All entries of the prunable leaves as one vector, in leaf order."""
    return np.concatenate([np.ravel(np.asarray(leaf)) for _, leaf in _prunable(tree, prunable)])


def _prunable(tree: PyTree, prunable: Prunable) -> list[tuple[str, NDArray]]:
    flags = jax.tree.leaves(trees.prunable_leaves(tree, prunable))
    named = zip(trees.leaf_names(tree), jax.tree.leaves(tree), flags, strict=True)
    return [(name, leaf) for name, leaf, flag in named if flag]


def _counts(first: Masks, second: Masks, prunable: Prunable) -> _Counts:
    expected = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), bool), first)
    if difference := trees.describe_mismatch(second, expected):
        raise ValueError(f"the masks do not fit each other: {difference}")
    rows = []
    pairs = zip(_prunable(first, prunable), _prunable(second, prunable), strict=True)
    for (_, a), (_, b) in pairs:
        a, b = np.asarray(a), np.asarray(b)
        rows.append((a.size, a.sum(), b.sum(), (a & b).sum()))
    return _Counts(*np.array(rows, np.int64).T)


def _similar(counts: _Counts) -> Similarity:
    n, a, b, both = (int(column.sum()) for column in counts)
    expected = float(np.sum(counts.first * counts.second / counts.total))
    found, chance = _ratio(both, a + b - both), _ratio(expected, a + b - expected)
    observed = (n - a - b + 2 * both) / n
    by_chance = (n - a - b + 2 * expected) / n
    return Similarity(
        iou=found,
        iou_pruned=_ratio(n - (a + b - both), n - both),
        hamming=(a + b - 2 * both) / n,
        chance_iou=chance,
        corrected_iou=_ratio(found - chance, 1 - chance),
        kappa=_ratio(observed - by_chance, 1 - by_chance),
        overlap=_ratio(both, min(a, b)),
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _check_fit(first: PyTree, *others: PyTree) -> None:
    expected = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), bool), first)
    for other in others:
        if difference := trees.describe_mismatch(other, expected, dtypes=False):
            raise ValueError(f"the trees do not fit each other: {difference}")


def _near_threshold(scores: NDArray, kept: NDArray, near: float) -> NDArray:
    """Which entries are nearest to the middle between the lowest kept and the highest pruned."""
    if not 0 < near <= 1:
        raise ValueError(f"near = {near!r}: must be a fraction in (0, 1]")
    if kept.all() or not kept.any():
        raise ValueError("the mask prunes nothing or everything: there is no threshold")
    middle = (scores[kept].min() + scores[~kept].max()) / 2
    count = max(2, round(near * scores.size))
    return np.argsort(np.abs(scores - middle), kind="stable")[:count]
