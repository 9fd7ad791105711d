"""What the attacker sees of a row: scores of the probabilities and the true label."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr, logsumexp

from sparse_mu.membership.checks import (
    Floats,
    Labels,
    Rows,
    check_finite,
    class_labels,
    finite,
)

_FLOOR = float(np.log(1e-30))  # what stands for log 0
_AT_ONCE = 2**24  # logits scored at once; in float64 they and what is made of them take 1 GB


class Feature(Protocol):
    """Scores ONE pool: (probabilities float64[N, K], labels int[N]) -> float64[N] or [N, K].

    A feature scores each row by itself, so that all rows may be scored at once, unless its name is
    in `PER_POOL`.
    """

    def __call__(self, probabilities: Floats, labels: Labels) -> Floats:
        """Returns the scores."""
        ...


def softmax(logits: ArrayLike) -> Floats:
    """Returns exp(z) / sum_k exp(z_k), evaluated in float64.

    Confidences of saturated float32 logits stay distinct up to margins of about 36; in float32 all
    above 17 would be exactly 1.

    Args:
        logits: float[N, K].

    Returns:
        float64[N, K].

    Raises:
        ValueError: not two axes, or a logit is not finite.
    """
    logits = finite("logits", logits)
    if logits.ndim != 2:
        raise ValueError(f"logits must be [N, K], got {list(logits.shape)}")
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def margin(logits: ArrayLike, labels: ArrayLike) -> Floats:
    """Returns z_y - log sum_{k != y} exp(z_k) = log(p_y / (1 - p_y)), larger is more member-like.

    The confidence on an unbounded scale that does not saturate (AUDITS.md).

    Args:
        logits: float[N, K], K >= 2.
        labels: int[N], in [0, K).

    Returns:
        float64[N].

    Raises:
        ValueError: a shape does not fit, a label is no class, or a logit is not finite.
    """
    return _in_pieces(_margin, logits, labels)


def _margin(logits: Floats, labels: Labels) -> Floats:
    rows = np.arange(labels.size)
    others = logits.copy()
    others[rows, labels] = -np.inf
    return logits[rows, labels] - logsumexp(others, axis=1)


def _in_pieces(
    score: Callable[[Floats, Labels], Floats], logits: ArrayLike, labels: ArrayLike
) -> Floats:
    """A score of logits, row by row, a piece at a time: in float64 all may not fit in memory."""
    logits = np.asarray(logits)
    check_finite("logits", np.atleast_1d(logits))
    classes = class_labels(logits, labels)
    rows = max(1, _AT_ONCE // logits.shape[1])
    pieces = [slice(start, start + rows) for start in range(0, max(len(logits), 1), rows)]
    return np.concatenate([score(logits[p].astype(np.float64), classes[p]) for p in pieces])


def correctness(probabilities: Floats, labels: Labels) -> Floats:
    """Returns 1 where the largest probability is at the label, else 0; float64[N]."""
    return (probabilities.argmax(axis=1) == labels).astype(np.float64)


def confidence(probabilities: Floats, labels: Labels) -> Floats:
    """Returns p_y, the probability of the label; float64[N]."""
    return probabilities[np.arange(len(labels)), labels]


def entropy(probabilities: Floats, labels: Labels) -> Floats:
    """Returns -sum_k p_k log p_k in nats, 0 log 0 = 0; float64[N]. The labels are not read."""
    return entr(probabilities).sum(axis=1)


def modified_entropy(probabilities: Floats, labels: Labels) -> Floats:
    """Returns -(1 - p_y) log p_y - sum_{k != y} p_k log(1 - p_k) in nats; float64[N].

    Song and Mittal's (USENIX Security 2021, eq. 7), logarithms cut at log(1e-30). The official code
    computes `modified_entropy_official` instead.
    """
    rows = np.arange(len(labels))
    with np.errstate(divide="ignore"):
        terms = probabilities * np.maximum(np.log1p(-probabilities), _FLOOR)
        of_label = probabilities[rows, labels]
        terms[rows, labels] = (1 - of_label) * np.maximum(np.log(of_label), _FLOOR)
    return -terms.sum(axis=1)


def modified_entropy_official(probabilities: Floats, labels: Labels) -> Floats:
    """Returns -sum_{k in C} (1 - p_k) log p_k - sum_{k not in C} p_k log p_k, C = the labels given.

    The official code's form (SPEC.md 5.1), float64[N] in nats. It deviates from `modified_entropy`
    twice: log(1 - p) is computed as log p, and every class that occurs in the pool counts as the
    label of every row. So the score of a row depends on the pool it stands in: where all classes
    occur it is -sum_k (1 - p_k) log p_k, in a forgotten class c the first sum has the column c
    only, and shadow and target rows are scored by different functions.

    log p is log(1e-30) where p is zero in float32, the official precision, and not cut elsewhere.
    """
    occurs = np.isin(np.arange(probabilities.shape[1]), labels)
    nothing = probabilities.astype(np.float32) == 0
    logs = np.where(nothing, _FLOOR, np.log(np.where(nothing, 1.0, probabilities)))
    return -(np.where(occurs, 1 - probabilities, probabilities) * logs).sum(axis=1)


def probability(probabilities: Floats, labels: Labels) -> Floats:
    """Returns the whole vector p; float64[N, K]. The labels are not read."""
    return probabilities


FEATURES: Mapping[str, Feature] = MappingProxyType({
    "correctness": correctness,
    "confidence": confidence,
    "entropy": entropy,
    "modified_entropy": modified_entropy,
    "modified_entropy_official": modified_entropy_official,
    "probability": probability,
})  # fmt: skip
# Features whose score of a row depends on the pool it stands in: one call per pool.
PER_POOL = frozenset({"modified_entropy_official"})


class Evidence(NamedTuple):
    """What the attacker can see."""

    rows: int  # N, all rows there are
    scores: Callable[[Rows], Floats]  # row numbers of one pool -> float64[n] or [n, features]


def by_row(scores: ArrayLike) -> Evidence:
    """Returns the evidence of one score per row, float[N] or [N, features], equal in every pool.

    Raises:
        ValueError: a score is not finite.
    """
    scores = finite("scores", scores)
    return Evidence(len(scores), lambda rows: scores[rows])


def evidence_of(feature: str, logits: ArrayLike, labels: ArrayLike) -> Evidence:
    """Returns the evidence of a feature by name.

    All rows are scored together, but for the features in `PER_POOL`: they score shadow members,
    shadow non-members, target members and target non-members each by themselves.

    Args:
        feature: a name in `FEATURES`.
        logits: float[N, K >= 2] of all rows, un-augmented, evaluation mode.
        labels: int[N], in [0, K).

    Returns:
        Evidence on N rows.

    Raises:
        ValueError: an unknown feature, a shape does not fit, a label is no class, or a logit is not
            finite.
    """
    if feature not in FEATURES:
        raise ValueError(f"unknown feature {feature!r}, want one of {', '.join(FEATURES)}")
    score = FEATURES[feature]
    if feature in PER_POOL:
        probabilities = softmax(logits)
        classes = class_labels(probabilities, labels)
        return Evidence(classes.size, lambda rows: score(probabilities[rows], classes[rows]))
    return by_row(_in_pieces(lambda piece, of: score(softmax(piece), of), logits, labels))
