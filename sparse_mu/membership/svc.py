"""The attacker's classifier and its two solvers.

SVC(C = 3, RBF kernel exp(-gamma |a - b|^2), gamma = 1 / number of features: 1 for a scalar score,
1 / K for the probabilities), fitted on label 1 = member, 0 = non-member; no scaling, no class
weights, no thresholds per class (SPEC.md 5.1).
"""

import numpy as np
import sklearn
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist
from sklearn.svm import SVC

from sparse_mu.membership.checks import Floats, finite

# Up to this many shadow rows numpy evaluates the kernel matrix (8 bytes a pair, 72 MB here) for
# libsvm: the same optimum and labels, twice as fast as libsvm's own evaluation, pair by pair.
_MATRIX_ROWS = 3000
_CHUNK_PAIRS = 4_000_000
_BLOCK_ROWS = 64  # of a symmetric matrix, whose upper triangle alone is evaluated
_TIE = 1e-9


def svc_attack(
    member_scores: ArrayLike, nonmember_scores: ArrayLike, target_scores: ArrayLike
) -> float:
    """Returns the fraction of targets that the attack calls NON-members.

    Args:
        member_scores: float[n] or float[n, features] of shadow members.
        nonmember_scores: float[m] or float[m, features] of shadow non-members.
        target_scores: float[t] or float[t, features] of the rows to judge.

    Returns:
        A fraction; `nan` when one of the three is empty.

    Raises:
        ValueError: a score is not finite.
    """
    members = finite("member_scores", member_scores)
    nonmembers = finite("nonmember_scores", nonmember_scores)
    targets = finite("target_scores", target_scores)
    if not (len(members) and len(nonmembers) and len(targets)):
        return float("nan")
    return 1.0 - float(called_members(members, nonmembers, targets).mean())


def called_members(members: Floats, nonmembers: Floats, targets: Floats) -> NDArray[np.bool_]:
    """Fits the SVC on the first two and judges the third, whose scores are finite and not empty.

    Args:
        members: float64[n] or float64[n, features] of shadow members.
        nonmembers: float64[m] or float64[m, features] of shadow non-members.
        targets: float64[t] or float64[t, features] of the rows to judge.

    Returns:
        bool[t], True = called member.
    """
    shadows = np.concatenate([members, nonmembers])
    shadows = shadows.reshape(len(shadows), -1)
    targets = targets.reshape(len(targets), -1)
    known = np.repeat([1, 0], [len(members), len(nonmembers)])
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        # libsvm asks a function for its matrix of all pairs, once
        kernel = _rbf if len(shadows) <= _MATRIX_ROWS else "rbf"
        svc = SVC(C=3.0, kernel=kernel, gamma=1.0 / shadows.shape[1]).fit(shadows, known)
    support, weights = shadows[svc.support_], svc.dual_coef_[0]
    chunk = max(1, _CHUNK_PAIRS // len(support))
    decisions = []
    for start in range(0, len(targets), chunk):
        matrix = _rbf(targets[start : start + chunk], support)
        decision = matrix @ weights + svc.intercept_[0]
        # Scores with few values can end in a tie, which rounding decides: sum in libsvm's order.
        tied = np.abs(decision) < _TIE
        decision[tied] = np.cumsum(matrix[tied] * weights, axis=1)[:, -1] + svc.intercept_[0]
        decisions.append(decision)
    return np.concatenate(decisions) >= 0  # libsvm gives an exact zero to label 1


def _rbf(a: Floats, b: Floats) -> Floats:
    """Returns exp(-|a_i - b_j|^2 / features) as float64[len(a), len(b)]."""
    if a is b:
        return _symmetric(a)
    matrix = cdist(a, b, "sqeuclidean")
    matrix *= -1.0 / a.shape[1]
    return np.exp(matrix, out=matrix)


def _symmetric(a: Floats) -> Floats:
    """Returns the kernel of all pairs of one set, the same bits for half the exponentials."""
    matrix = np.empty((len(a), len(a)))
    for start in range(0, len(a), _BLOCK_ROWS):
        end = min(start + _BLOCK_ROWS, len(a))
        block = _rbf(a[start:end], a[start:])
        matrix[start:end, start:] = block
        matrix[end:, start:end] = block[:, end - start :].T
    return matrix
