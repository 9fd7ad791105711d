"""How many bits of a mask an error of its scores can flip: theorems, checked on the true error.

Host side, float64. A mask keeps the k highest of n scores. ``s`` are the target's scores, ``s^``
the estimate's, ``e = s^ - s``, tau the middle between the k-th and the (k+1)-th highest of ``s``,
and ``h = |M xor M^|`` the bits in which the two masks differ, an even number. The bounds need the
true error: they check an un-pruning whose target is known, and certify none whose target is not.
With scores of units (norms of filters) they hold as they stand. Source: UNPRUNING section 2.6.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

_ROUNDING = 1e-9  # of the largest score: what float64 sums may be off by


class MaskErrors(NamedTuple):
    """The bits that differ, and what is promised of them.

    Attributes:
        flips: h.
        band: ``#{j : |s_j - tau| <= |e_j| + |tau^ - tau|}``, bound (i) entry by entry.
        widest_band: ``#{j : |s_j - tau| <= 2 max |e|}``, bound (i) by the largest error.
        absolute: the largest even h whose smallest gaps sum to at most the h largest ``|e|``,
            bound (ii).
        square: the same with squared gaps and ``2 |e|^2``, bound (ii).
        threshold: ``|tau^ - tau|``, at most ``largest_error``.
        largest_error: ``max |e|``.
        iou: ``(2k - h) / (2k + h)``, which is the IoU of the two masks, (iii).
        iou_bound: the same with the least of the four bounds in the place of h.
    """

    flips: int
    band: int
    widest_band: int
    absolute: int
    square: int
    threshold: float
    largest_error: float
    iou: float
    iou_bound: float


def mask_errors(target: ArrayLike, estimate: ArrayLike, kept: int) -> MaskErrors:
    """The bits that differ between the masks of two score vectors, and the bounds on them.

    Args:
        target: ``float[n]``, the scores of the retrained model.
        estimate: ``float[n]``, those that the un-pruned mask was found by.
        kept: k, in (0, n); ties go by index, as in :func:`sparse_mu.masks.from_scores`.

    Raises:
        ValueError: if the scores are no equally long vectors of finite numbers, or k is none of
            1 to n - 1.
    """
    s, other = _checked(target, estimate, kept)
    e = np.abs(other - s)
    tau, tau_hat = _threshold(s, kept), _threshold(other, kept)
    inside, inside_hat = _kept(s, kept), _kept(other, kept)
    gaps = np.abs(s - tau)
    slack = _ROUNDING * max(float(np.abs(s).max()), float(np.abs(other).max()), 1e-300)
    flips = int((inside != inside_hat).sum())
    band = int((gaps <= e + abs(tau_hat - tau) + slack).sum())
    widest = int((gaps <= 2 * e.max() + slack).sum())
    largest = np.sort(e)[::-1]
    absolute = _most_flips(gaps, inside, lambda h: np.cumsum(largest)[h - 1] + h * slack)
    total = 2 * float(e @ e)
    square = _most_flips(gaps**2, inside, lambda h: np.full(h.shape, total) + h * slack**2)
    least = min(band, widest, absolute, square)
    return MaskErrors(
        flips=flips,
        band=band,
        widest_band=widest,
        absolute=absolute,
        square=square,
        threshold=abs(tau_hat - tau),
        largest_error=float(e.max()),
        iou=_iou(kept, flips),
        iou_bound=_iou(kept, least),
    )


class WeightError(NamedTuple):
    """How far two masked models' weights are apart, and the most that it can be."""

    error: float
    bound: float


def weight_error(target: ArrayLike, estimate: ArrayLike, kept: int) -> WeightError:
    """``|M w - M^ w^|`` of two dense models pruned by magnitude, and bound (iv) on it.

    ``|w^ - w| + sqrt(h / 2) * sqrt((tau^ + max |e|)^2 + tau^2)``, e being the error of the
    magnitudes: a weight that only M keeps is at most ``tau^ + max |e|`` in size, one that only M^
    keeps at most tau.

    Args:
        target: ``float[n]``, signed dense weights w of the retrained model.
        estimate: ``float[n]``, signed dense weights w^ that the un-pruned mask was found by.
        kept: k.

    Raises:
        ValueError: as :func:`mask_errors`.
    """
    w, other = _checked(target, estimate, kept)
    found = mask_errors(np.abs(w), np.abs(other), kept)
    masked = w * _kept(np.abs(w), kept), other * _kept(np.abs(other), kept)
    tau, tau_hat = _threshold(np.abs(w), kept), _threshold(np.abs(other), kept)
    swapped = np.sqrt(found.flips / 2) * np.hypot(tau_hat + found.largest_error, tau)
    bound = float(np.linalg.norm(other - w) + swapped)
    return WeightError(float(np.linalg.norm(masked[0] - masked[1])), bound)


def _checked(target: ArrayLike, estimate: ArrayLike, kept: int) -> tuple[NDArray, NDArray]:
    s, other = np.asarray(target, np.float64), np.asarray(estimate, np.float64)
    if s.ndim != 1 or s.shape != other.shape:
        raise ValueError(f"want two vectors of equal length, got {s.shape} and {other.shape}")
    if not 0 < kept < s.size:
        raise ValueError(f"kept = {kept!r}: must be from 1 to {s.size - 1}, of {s.size} scores")
    if not (np.isfinite(s).all() and np.isfinite(other).all()):
        raise ValueError("the scores hold numbers that are not finite")
    return s, other


def _kept(scores: NDArray, kept: int) -> NDArray[np.bool_]:
    """The k highest; among equal scores the later ones stay, as in ``masks.from_scores``."""
    inside = np.zeros(scores.size, bool)
    inside[np.argsort(scores, kind="stable")[scores.size - kept :]] = True
    return inside


def _threshold(scores: NDArray, kept: int) -> float:
    ordered = np.sort(scores)
    return float(ordered[-kept] + ordered[-kept - 1]) / 2


def _most_flips(gaps: NDArray, inside: NDArray, allowed: Callable[[NDArray], NDArray]) -> int:
    """The largest even h whose h/2 smallest gaps on either side sum to at most ``allowed(h)``."""
    pairs = min(int(inside.sum()), int((~inside).sum()))
    kept, pruned = (np.cumsum(np.sort(gaps[side])[:pairs]) for side in (inside, ~inside))
    halves = np.arange(1, pairs + 1)
    fits = np.flatnonzero(kept + pruned <= allowed(2 * halves))
    return 2 * int(halves[fits[-1]]) if fits.size else 0


def _iou(kept: int, flips: int) -> float:
    return (2 * kept - flips) / (2 * kept + flips)
