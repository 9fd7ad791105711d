"""The papers' membership attack on the outputs of one model (host side; SPEC.md section 5.1).

An attacker sees one score per row, fits a support vector classifier on rows whose membership it
knows (the shadow pools) and guesses for others (the targets). Rules that hold for every function
here:

- Pools are disjoint from what they judge. Forget rows are never in a shadow pool, and a privacy
  attack judges only the retain and test rows left over from its own pools. Overlapping masks raise.
- `pools="drawn"` (ours): shadow pools of equal size, drawn without replacement by a numpy
  generator; the value is the mean of several draws, and its spread (standard deviation over draws)
  stands beside it. The same seed and masks give the same pools, whatever the model: methods are
  compared on equal pools.
- `pools="official"`: the code's, the first rows in order, possibly of unequal size, one draw,
  spread `nan`.
- A pool without rows makes the figure `nan`, as in `metrics.accuracy`; scores that are not finite
  raise.
- Functions keep no state; libsvm frees the GIL, so callers may run models in threads.

Figures are fractions in [0, 1].
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol

import numpy as np
import sklearn
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist
from scipy.special import entr, logsumexp
from sklearn.svm import SVC

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]
PoolRule = Literal["drawn", "official"]

# Up to this many shadow rows numpy evaluates the kernel matrix (8 bytes a pair, 72 MB here) for
# libsvm: the same optimum and labels, twice as fast as libsvm's own evaluation, pair by pair.
_MATRIX_ROWS = 3000
_CHUNK_PAIRS = 4_000_000
_TIE = 1e-9


class Attack(NamedTuple):
    """A rate averaged over draws of the shadow pools."""

    value: float
    spread: float  # sample standard deviation over draws; nan for one
    draws: int


class Privacy(NamedTuple):
    """The two readings of MIA-Privacy."""

    rate: Attack  # the paper's: fraction of target retain rows called members
    balanced: Attack  # the code's: (true positive rate + true negative rate) / 2


class ClassAttack(NamedTuple):
    """The attack on a forgotten class with held-out images of that class as non-members."""

    attack: Attack
    auc: float


class Pools(NamedTuple):
    """Row numbers of one attack: whom it learns from and whom it judges."""

    members: Rows
    nonmembers: Rows
    target_members: Rows
    target_nonmembers: Rows


class Feature(Protocol):
    """A score of each row: (probabilities float64[N, K], labels int[N]) -> float64[N] or [N, K]."""

    def __call__(self, probabilities: Floats, labels: NDArray[np.integer]) -> Floats:
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
    logits = _finite("logits", logits)
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
    logits = _finite("logits", logits)
    labels = _labels(logits, labels)
    rows = np.arange(labels.size)
    others = logits.copy()
    others[rows, labels] = -np.inf
    return logits[rows, labels] - logsumexp(others, axis=1)


def correctness(probabilities: Floats, labels: NDArray[np.integer]) -> Floats:
    """Returns 1 where the largest probability is at the label, else 0; float64[N]."""
    return (probabilities.argmax(axis=1) == labels).astype(np.float64)


def confidence(probabilities: Floats, labels: NDArray[np.integer]) -> Floats:
    """Returns p_y, the probability of the label; float64[N]."""
    return probabilities[np.arange(len(labels)), labels]


def entropy(probabilities: Floats, labels: NDArray[np.integer]) -> Floats:
    """Returns -sum_k p_k log p_k in nats, 0 log 0 = 0; float64[N]. The labels are not read."""
    return entr(probabilities).sum(axis=1)


def modified_entropy(probabilities: Floats, labels: NDArray[np.integer]) -> Floats:
    """Returns -(1 - p_y) log p_y - sum_{k != y} p_k log(1 - p_k) in nats; float64[N].

    The intended form, logarithms cut at log(1e-30); the official code computes another (SPEC.md
    5.1).
    """
    rows = np.arange(len(labels))
    floor = np.log(1e-30)
    with np.errstate(divide="ignore"):
        terms = probabilities * np.maximum(np.log1p(-probabilities), floor)
        of_label = probabilities[rows, labels]
        terms[rows, labels] = (1 - of_label) * np.maximum(np.log(of_label), floor)
    return -terms.sum(axis=1)


def probability(probabilities: Floats, labels: NDArray[np.integer]) -> Floats:
    """Returns the whole vector p; float64[N, K]. The labels are not read."""
    return probabilities


FEATURES: Mapping[str, Feature] = MappingProxyType({
    "correctness": correctness,
    "confidence": confidence,
    "entropy": entropy,
    "modified_entropy": modified_entropy,
    "probability": probability,
})  # fmt: skip


def svc_attack(
    member_scores: ArrayLike, nonmember_scores: ArrayLike, target_scores: ArrayLike
) -> float:
    """Returns the fraction of targets that the attack calls NON-members.

    The attack is SVC(C=3, RBF kernel exp(-gamma |a - b|^2), gamma = 1 / number of features), fitted
    on label 1 = member, 0 = non-member; no scaling, no class weights.

    Args:
        member_scores: float[n] or float[n, features] of shadow members.
        nonmember_scores: float[m] or float[m, features] of shadow non-members.
        target_scores: float[t] or float[t, features] of the rows to judge.

    Returns:
        A fraction; `nan` when one of the three is empty.

    Raises:
        ValueError: a score is not finite.
    """
    members = _finite("member_scores", member_scores)
    nonmembers = _finite("nonmember_scores", nonmember_scores)
    targets = _finite("target_scores", target_scores)
    if not (len(members) and len(nonmembers) and len(targets)):
        return float("nan")
    return 1.0 - float(_called_members(members, nonmembers, targets).mean())


def efficacy(
    scores: ArrayLike,
    retain: ArrayLike,
    test: ArrayLike,
    forget: ArrayLike,
    *,
    seed: int,
    draws: int = 5,
    pools: PoolRule = "drawn",
) -> Attack:
    """Returns MIA-Efficacy: the fraction of forget rows called non-members (paper, eq. A18).

    Shadow members are min(|retain|, |test|) retain rows, non-members as many test rows; official:
    the first |test| retain rows and all test rows.

    Args:
        scores: float[N] or float[N, features] of all rows.
        retain: bool[N].
        test: bool[N]; class-wise without the forgotten classes.
        forget: bool[N].
        seed: of the draws.
        draws: number of pools drawn, >= 1.
        pools: "drawn" or "official".

    Returns:
        Value and spread over draws.

    Raises:
        ValueError: masks overlap or do not fit, a score is not finite, or an option is impossible.
    """
    masks = {"retain": retain, "test": test, "forget": forget}
    scores, (retain, test, forget) = _checked(scores, masks)
    nobody = np.empty(0, np.intp)
    rates = []
    for rng in _generators(seed, draws, pools):
        balanced = min(retain.size, test.size)
        chosen = Pools(
            members=_take(retain, balanced, rng),
            nonmembers=_take(test, test.size if rng is None else balanced, rng),
            target_members=nobody,
            target_nonmembers=forget,
        )
        rates.append(_rates(scores, chosen)[1])
    return _over_draws(rates)


def privacy(
    scores: ArrayLike,
    retain: ArrayLike,
    test: ArrayLike,
    *,
    seed: int,
    draws: int = 5,
    pools: PoolRule = "drawn",
) -> Privacy:
    """Returns MIA-Privacy on the retain set in both readings.

    Shadow pools are h retain rows and h test rows, h = floor(min(|retain|, |test|) / 2), the
    targets all other retain and test rows; official: h = floor(|test| / 2), the first rows of each.

    Args:
        scores: float[N] or float[N, features] of all rows.
        retain: bool[N].
        test: bool[N]; class-wise without the forgotten classes.
        seed: of the draws.
        draws: number of pools drawn, >= 1.
        pools: "drawn" or "official".

    Returns:
        The paper's rate and the code's balanced accuracy, each with its spread.

    Raises:
        ValueError: as for `efficacy`.
    """
    scores, (retain, test) = _checked(scores, {"retain": retain, "test": test})
    rates, balanced = [], []
    for rng in _generators(seed, draws, pools):
        half = (test.size if rng is None else min(retain.size, test.size)) // 2
        members, nonmembers = _take(retain, half, rng), _take(test, half, rng)
        chosen = Pools(
            members=members,
            nonmembers=nonmembers,
            target_members=np.setdiff1d(retain, members),
            target_nonmembers=np.setdiff1d(test, nonmembers),
        )
        true_positive, true_negative = _rates(scores, chosen)
        rates.append(true_positive)
        balanced.append((true_positive + true_negative) / 2)
    return Privacy(_over_draws(rates), _over_draws(balanced))


def class_attack(
    scores: ArrayLike,
    margins: ArrayLike,
    retain: ArrayLike,
    held_out: ArrayLike,
    forget: ArrayLike,
    *,
    seed: int,
    draws: int = 5,
) -> ClassAttack:
    """Returns the attack on a forgotten class against held-out images of the same class.

    Plain class-wise efficacy takes other classes as non-members, so it measures class rejection.
    Here the shadow non-members are held-out rows of the forgotten class, the members as many retain
    rows, and the AUC compares the forget rows with the held-out rows directly (no shadow pools).

    Args:
        scores: float[N] or float[N, features] of all rows, for the attack.
        margins: float[N], higher = more member-like, for the AUC.
        retain: bool[N].
        held_out: bool[N], test rows of the forgotten classes.
        forget: bool[N].
        seed: of the draws.
        draws: number of pools drawn, >= 1.

    Returns:
        The fraction of forget rows called non-members, and the AUC.

    Raises:
        ValueError: as for `efficacy`.
    """
    attack = efficacy(scores, retain, held_out, forget, seed=seed, draws=draws)
    margins = _finite("margins", margins)
    return ClassAttack(attack, auc(margins[np.asarray(forget)], margins[np.asarray(held_out)]))


def auc(member_scores: ArrayLike, nonmember_scores: ArrayLike) -> float:
    """Returns P(member > non-member) + P(equal) / 2 over all pairs, the area under the ROC curve.

    Args:
        member_scores: float[n], higher = more member-like.
        nonmember_scores: float[m].

    Returns:
        In [0, 1], 0.5 = cannot be told apart; `nan` when a side is empty.

    Raises:
        ValueError: a score is not finite.
    """
    members = _finite("member_scores", member_scores)
    nonmembers = np.sort(_finite("nonmember_scores", nonmember_scores))
    if not (members.size and nonmembers.size):
        return float("nan")
    below = np.searchsorted(nonmembers, members, side="left").sum()
    not_above = np.searchsorted(nonmembers, members, side="right").sum()
    return float((below + not_above) / (2 * members.size * nonmembers.size))


def tpr_at_fpr(member_scores: ArrayLike, nonmember_scores: ArrayLike, fpr: float = 0.01) -> float:
    """Returns the largest true positive rate of a threshold whose empirical FPR is at most `fpr`.

    With fewer than 1 / fpr non-members not one false positive is allowed.

    Args:
        member_scores: float[n], higher = more member-like.
        nonmember_scores: float[m].
        fpr: in [0, 1].

    Returns:
        In [0, 1]; `nan` when a side is empty.

    Raises:
        ValueError: a score is not finite, or `fpr` is outside [0, 1].
    """
    if not 0 <= fpr <= 1:
        raise ValueError(f"fpr must be in [0, 1], got {fpr}")
    members = _finite("member_scores", member_scores)
    nonmembers = np.sort(_finite("nonmember_scores", nonmember_scores))
    if not (members.size and nonmembers.size):
        return float("nan")
    allowed = int(fpr * nonmembers.size + 1e-9)  # 0.29 * 100 is 28.999999999999996
    if allowed == nonmembers.size:
        return 1.0
    return float((members > nonmembers[nonmembers.size - 1 - allowed]).mean())


def membership_metrics(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    retain: ArrayLike,
    forget: ArrayLike,
    test: ArrayLike,
    forgotten_classes: tuple[int, ...],
    seed: int,
    draws: int = 5,
    feature: str = "confidence",
) -> dict[str, float]:
    """Returns the membership columns of one row of results.

    Non-members are the test rows without the forgotten classes. `mia_auc` and `mia_tpr_at_1fpr`
    compare the margins of the forget rows (members) with theirs. `mia_class` and `mia_class_auc`
    are added when classes are forgotten.

    Args:
        logits: float[N, K] of all rows, un-augmented, evaluation mode.
        labels: int[N], in [0, K).
        retain: bool[N].
        forget: bool[N].
        test: bool[N].
        forgotten_classes: the classes forgotten as a whole; empty for other scenarios.
        seed: of the draws of shadow pools.
        draws: number of draws, >= 1.
        feature: a name in `FEATURES`, the score of the classifier.

    Returns:
        mia_efficacy, mia_efficacy_spread, mia_auc, mia_tpr_at_1fpr, mia_privacy_rate,
        mia_privacy_balanced, and class-wise mia_class, mia_class_auc.

    Raises:
        ValueError: a logit is not finite, a shape does not fit, masks overlap, or an unknown
            feature.
    """
    if feature not in FEATURES:
        raise ValueError(f"unknown feature {feature!r}, want one of {', '.join(FEATURES)}")
    margins = margin(logits, labels)
    labels = np.asarray(labels)
    scores = FEATURES[feature](softmax(logits), labels)
    _checked(scores, {"retain": retain, "forget": forget, "test": test})
    of_forgotten_class = np.isin(labels, forgotten_classes)
    counted = np.asarray(test) & ~of_forgotten_class
    hidden = efficacy(scores, retain, counted, forget, seed=seed, draws=draws)
    exposed = privacy(scores, retain, counted, seed=seed, draws=draws)
    forget_margins, test_margins = margins[np.asarray(forget)], margins[counted]
    row = {
        "mia_efficacy": hidden.value,
        "mia_efficacy_spread": hidden.spread,
        "mia_auc": auc(forget_margins, test_margins),
        "mia_tpr_at_1fpr": tpr_at_fpr(forget_margins, test_margins, fpr=0.01),
        "mia_privacy_rate": exposed.rate.value,
        "mia_privacy_balanced": exposed.balanced.value,
    }
    if forgotten_classes:
        held_out = np.asarray(test) & of_forgotten_class
        of_class = class_attack(scores, margins, retain, held_out, forget, seed=seed, draws=draws)
        row["mia_class"] = of_class.attack.value
        row["mia_class_auc"] = of_class.auc
    return row


def _called_members(members: Floats, nonmembers: Floats, targets: Floats) -> NDArray[np.bool_]:
    """Fits the SVC on the first two (not empty); returns bool[targets], True = called member."""
    shadows = np.concatenate([members, nonmembers])
    shadows = shadows.reshape(len(shadows), -1)
    targets = targets.reshape(len(targets), -1)
    gamma = 1.0 / shadows.shape[1]
    known = np.repeat([1, 0], [len(members), len(nonmembers)])
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        if len(shadows) <= _MATRIX_ROWS:
            matrix = _rbf(shadows, shadows, gamma)
            svc = SVC(C=3.0, kernel="precomputed").fit(matrix, known)
        else:
            svc = SVC(C=3.0, kernel="rbf", gamma=gamma).fit(shadows, known)
    support, weights = shadows[svc.support_], svc.dual_coef_[0]
    chunk = max(1, _CHUNK_PAIRS // len(support))
    decisions = []
    for start in range(0, len(targets), chunk):
        matrix = _rbf(targets[start : start + chunk], support, gamma)
        decision = matrix @ weights + svc.intercept_[0]
        # Scores with few values can end in a tie, which rounding decides: sum in libsvm's order.
        tied = np.abs(decision) < _TIE
        decision[tied] = np.cumsum(matrix[tied] * weights, axis=1)[:, -1] + svc.intercept_[0]
        decisions.append(decision)
    return np.concatenate(decisions) >= 0  # libsvm gives an exact zero to label 1


def _rbf(a: Floats, b: Floats, gamma: float) -> Floats:
    """Returns exp(-gamma |a_i - b_j|^2) as float64[len(a), len(b)]."""
    matrix = cdist(a, b, "sqeuclidean")
    matrix *= -gamma
    return np.exp(matrix, out=matrix)


def _rates(scores: Floats, pools: Pools) -> tuple[float, float]:
    """Returns the fractions of targets rightly called members and rightly called non-members."""
    targets = np.concatenate([pools.target_members, pools.target_nonmembers])
    if not (pools.members.size and pools.nonmembers.size and targets.size):
        return float("nan"), float("nan")
    called = _called_members(scores[pools.members], scores[pools.nonmembers], scores[targets])
    called_members, called_others = np.split(called, [pools.target_members.size])
    true_positive = float(called_members.mean()) if called_members.size else float("nan")
    true_negative = 1.0 - float(called_others.mean()) if called_others.size else float("nan")
    return true_positive, true_negative


def _take(rows: Rows, count: int, rng: np.random.Generator | None) -> Rows:
    """Returns `count` of the rows in ascending order: drawn, or the first where rng is None."""
    return rows[:count] if rng is None else np.sort(rng.choice(rows, count, replace=False))


def _generators(seed: int, draws: int, pools: PoolRule) -> Sequence[np.random.Generator | None]:
    """Returns one generator per draw, or [None] for the official pools."""
    if pools not in ("drawn", "official"):
        raise ValueError(f"pools must be 'drawn' or 'official', got {pools!r}")
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    return [None] if pools == "official" else np.random.default_rng(seed).spawn(draws)


def _over_draws(values: list[float]) -> Attack:
    """Returns the mean of the draws and their sample standard deviation."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return Attack(float(np.mean(values)), spread, len(values))


def _checked(scores: ArrayLike, masks: Mapping[str, ArrayLike]) -> tuple[Floats, list[Rows]]:
    """Returns the scores and the rows of each mask; raises if masks overlap or do not fit."""
    scores = _finite("scores", scores)
    taken = np.zeros(len(scores), bool)
    rows = []
    for name, mask in masks.items():
        mask = np.asarray(mask)
        if mask.dtype != np.bool_ or mask.shape != taken.shape:
            raise ValueError(f"{name}: want bool[{taken.size}], got {mask.dtype}{list(mask.shape)}")
        if (mask & taken).any():
            raise ValueError(f"{name} shares {(mask & taken).sum()} rows with another set")
        taken |= mask
        rows.append(np.flatnonzero(mask))
    return scores, rows


def _finite(name: str, values: ArrayLike) -> Floats:
    """Returns values as float64 with at least one axis; raises if one is not finite."""
    values = np.atleast_1d(np.asarray(values, np.float64))
    bad = ~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    if bad.any():
        raise ValueError(f"{name} of {bad.sum()} rows are not finite, first row {bad.argmax()}")
    return values


def _labels(logits: Floats, labels: ArrayLike) -> NDArray[np.integer]:
    """Returns the labels; raises unless logits are [N, K >= 2] and labels int[N] in [0, K)."""
    labels = np.asarray(labels)
    if logits.ndim != 2 or logits.shape[1] < 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"want logits [N, K >= 2] and labels [N], got {logits.shape} and {labels.shape}"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    if labels.size and not (labels.min() >= 0 and labels.max() < logits.shape[1]):
        raise ValueError(f"labels must be in [0, {logits.shape[1]})")
    return labels
