"""The attack's figures: efficacy, privacy, the class attack, and the columns of a results row."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from sparse_mu.membership.checks import class_labels, finite
from sparse_mu.membership.features import Evidence, by_row, evidence_of, margin
from sparse_mu.membership.pools import (
    PoolRule,
    Pools,
    efficacy_pools,
    generators,
    privacy_pools,
    rows_of,
)
from sparse_mu.membership.ranks import auc, tpr_at_fpr
from sparse_mu.membership.svc import called_members


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


class OfficialAttack(NamedTuple):
    """The official code's two figures of one feature, and the paper's reading of the second."""

    efficacy: float  # fraction of forget rows called non-members
    privacy: float  # (true positive rate + true negative rate) / 2
    privacy_rate: float  # fraction of target retain rows called members


def efficacy(
    scores: ArrayLike | Evidence,
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
        scores: float[N] or float[N, features] of all rows, or the evidence on them.
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
    evidence = _evidence(scores)
    masks = {"retain": retain, "test": test, "forget": forget}
    retained, tested, forgotten = rows_of(evidence.rows, masks)
    chosen = [
        efficacy_pools(retained, tested, forgotten, rng) for rng in generators(seed, draws, pools)
    ]
    return _over_draws([_rates(evidence, of_draw)[1] for of_draw in chosen])


def privacy(
    scores: ArrayLike | Evidence,
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
        scores: float[N] or float[N, features] of all rows, or the evidence on them.
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
    evidence = _evidence(scores)
    retained, tested = rows_of(evidence.rows, {"retain": retain, "test": test})
    chosen = [privacy_pools(retained, tested, rng) for rng in generators(seed, draws, pools)]
    rates = [_rates(evidence, of_draw) for of_draw in chosen]
    return Privacy(
        rate=_over_draws([true_positive for true_positive, _ in rates]),
        balanced=_over_draws([sum(both) / 2 for both in rates]),
    )


def class_attack(
    scores: ArrayLike | Evidence,
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
        scores: float[N] or float[N, features] of all rows, or the evidence, for the attack.
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
    margins = finite("margins", margins)
    return ClassAttack(attack, auc(margins[np.asarray(forget)], margins[np.asarray(held_out)]))


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
    pools: PoolRule = "drawn",
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
        pools: "drawn" or "official", of efficacy and privacy; those of the class attack are drawn.

    Returns:
        mia_efficacy, mia_efficacy_spread, mia_auc, mia_tpr_at_1fpr, mia_privacy_rate,
        mia_privacy_balanced, and class-wise mia_class, mia_class_auc.

    Raises:
        ValueError: a logit is not finite, a shape does not fit, masks overlap, or an unknown
            feature.
    """
    evidence = evidence_of(feature, logits, labels)
    rows_of(evidence.rows, {"retain": retain, "forget": forget, "test": test})
    margins = margin(logits, labels)
    of_forgotten_class = np.isin(labels, forgotten_classes)
    counted = np.asarray(test) & ~of_forgotten_class
    hidden = efficacy(evidence, retain, counted, forget, seed=seed, draws=draws, pools=pools)
    exposed = privacy(evidence, retain, counted, seed=seed, draws=draws, pools=pools)
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
        of_class = class_attack(evidence, margins, retain, held_out, forget, seed=seed, draws=draws)
        row["mia_class"] = of_class.attack.value
        row["mia_class_auc"] = of_class.auc
    return row


def official_attack(
    logits: Mapping[str, ArrayLike], labels: Mapping[str, ArrayLike], feature: str
) -> OfficialAttack:
    """Returns what the official code prints for one feature: its pools, one draw, no randomness.

    Args:
        logits: float[n, K] of "retain", "forget" and "test", each in index order, un-augmented,
            evaluation mode; class-wise "test" without the forgotten classes.
        labels: int[n] of the same three.
        feature: a name in `FEATURES`; the code's own are "correctness", "confidence", "entropy",
            "modified_entropy_official" and "probability".

    Returns:
        MIA-Efficacy and MIA-Privacy.

    Raises:
        ValueError: a set is missing or unknown, an unknown feature, a logit is not finite, or a
            shape does not fit.
    """
    names = ("retain", "forget", "test")
    for given, sets in (("logits", logits), ("labels", labels)):
        if set(sets) != set(names):
            raise ValueError(f"{given}: want the sets {', '.join(names)}, got {', '.join(sets)}")
    parts = [finite(f"{name} logits", logits[name]) for name in names]
    of_rows = [class_labels(part, labels[name]) for part, name in zip(parts, names, strict=True)]
    owner = np.repeat(np.arange(3), [rows.size for rows in of_rows])
    retain, forget, test = owner == 0, owner == 1, owner == 2
    evidence = evidence_of(feature, np.concatenate(parts), np.concatenate(of_rows))
    hidden = efficacy(evidence, retain, test, forget, seed=0, pools="official")
    exposed = privacy(evidence, retain, test, seed=0, pools="official")
    return OfficialAttack(hidden.value, exposed.balanced.value, exposed.rate.value)


def _evidence(scores: ArrayLike | Evidence) -> Evidence:
    """Returns the evidence as it is, or that of one score per row."""
    return scores if isinstance(scores, Evidence) else by_row(scores)


def _rates(evidence: Evidence, pools: Pools) -> tuple[float, float]:
    """Returns the fractions of targets rightly called members and rightly called non-members."""
    members, nonmembers, *targets = (evidence.scores(rows) for rows in pools)
    judged = np.concatenate(targets)
    if not (len(members) and len(nonmembers) and len(judged)):
        return float("nan"), float("nan")
    called = called_members(members, nonmembers, judged)
    called_true, called_others = np.split(called, [pools.target_members.size])
    true_positive = float(called_true.mean()) if called_true.size else float("nan")
    true_negative = 1.0 - float(called_others.mean()) if called_others.size else float("nan")
    return true_positive, true_negative


def _over_draws(values: list[float]) -> Attack:
    """Returns the mean of the draws and their sample standard deviation."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return Attack(float(np.mean(values)), spread, len(values))
