"""How well one score tells members from others, without a classifier: AUC and TPR at an FPR."""

import numpy as np
from numpy.typing import ArrayLike

from sparse_mu.membership.checks import finite


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
    members = finite("member_scores", member_scores)
    nonmembers = np.sort(finite("nonmember_scores", nonmember_scores))
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
    members = finite("member_scores", member_scores)
    nonmembers = np.sort(finite("nonmember_scores", nonmember_scores))
    if not (members.size and nonmembers.size):
        return float("nan")
    allowed = int(fpr * nonmembers.size + 1e-9)  # 0.29 * 100 is 28.999999999999996
    if allowed == nonmembers.size:
        return 1.0
    return float((members > nonmembers[nonmembers.size - 1 - allowed]).mean())
