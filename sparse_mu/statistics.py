"""Means over trials with their uncertainty, and the distance of a method from a target.

A trial is the unit that is drawn independently; rows of one trial are not. Nothing is dropped in
silence: a value that is not finite raises, and one trial alone has no interval (`nan`).
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit


class Interval(NamedTuple):
    """A mean over trials and the half-width of its interval, in the unit of the values."""

    mean: float
    half_width: float  # nan for one trial
    n: int  # trials


class Disparity(NamedTuple):
    """A disparity and its bootstrap interval [low, high], in the unit of the metrics."""

    value: float
    low: float  # nan for one trial
    high: float  # nan for one trial
    n: int  # trials


def mean_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Returns the mean over trials with Student's interval.

    half_width = t((1 + level) / 2, n - 1) * s / sqrt(n), s the sample standard deviation (divisor
    n - 1). Exact for independent normal values; not meant for absolute values, which are not
    normal.

    Args:
        values: float[n], one per trial, n >= 1.
        level: confidence level in (0, 1).

    Returns:
        The interval; `half_width` is `nan` for n = 1.

    Raises:
        ValueError: no value, a value that is not finite, or a level outside (0, 1).
    """
    values = _trials("values", values)
    _check_level(level)
    n = values.size
    if n == 1:
        return Interval(float(values[0]), float("nan"), 1)
    quantile = stdtrit(n - 1, (1 + level) / 2)
    half_width = quantile * values.std(ddof=1) / np.sqrt(n)
    return Interval(float(values.mean()), float(half_width), n)


def paired_difference(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Interval:
    """Returns `mean_interval` of a - b, trial by trial.

    Trials share seeds and forget sets between methods, so the pairs cancel what the trial
    contributes.

    Args:
        a: float[n], one per trial.
        b: float[n], the same trials in the same order.
        level: confidence level in (0, 1).

    Returns:
        Mean of a - b and its half-width.

    Raises:
        ValueError: as for `mean_interval`, or the lengths differ.
    """
    a, b = _trials("a", a), _trials("b", b)
    if a.size != b.size:
        raise ValueError(f"pairs need equally many trials, got {a.size} and {b.size}")
    return mean_interval(a - b, level)


def disparity(
    method: Mapping[str, ArrayLike],
    target: Mapping[str, ArrayLike],
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Disparity:
    """Returns the paper's average disparity of a method from a target (SPEC.md section 5).

    value = mean over metrics of |mean over trials(method) - mean over trials(target)|

    The absolute value comes after the mean over trials: the mean of |gap| per trial is biased
    upward. The interval is the percentile bootstrap over whole trials: a resample takes the same
    trials of the method and of the target, and all their metrics together. |.| folds the resamples
    at zero, so where the true disparity is near zero the interval lies above it; judge such a value
    with `within_floor`, whose two sides share this bias.

    Args:
        method: float[n] by metric name, one value per trial.
        target: the same names and trials for the target.
        level: confidence level in (0, 1).
        resamples: number of bootstrap resamples, >= 1.
        seed: of the resampling.

    Returns:
        The disparity in the unit of the metrics; `low` and `high` are `nan` for n = 1.

    Raises:
        ValueError: no metric, other names in one of the two, unequal numbers of trials, a value
            that is not finite, or an impossible `level` or `resamples`.
    """
    if not method or set(method) != set(target):
        raise ValueError(
            f"method and target need the same metrics, got {sorted(method)} and {sorted(target)}"
        )
    _check_level(level)
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    names = list(method)
    method_values = [_trials(f"method {name}", method[name]) for name in names]
    target_values = [_trials(f"target {name}", target[name]) for name in names]
    sizes = {values.size for values in method_values + target_values}
    if len(sizes) > 1:
        raise ValueError(f"all metrics need equally many trials, got {sorted(sizes)}")
    gaps = np.stack(method_values) - np.stack(target_values)  # [metrics, n]
    n = gaps.shape[1]
    value = float(np.abs(gaps.mean(axis=1)).mean())
    if n == 1:
        return Disparity(value, float("nan"), float("nan"), 1)
    # How often a resample holds each trial; the same for every metric.
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    resampled = np.abs(gaps @ counts.T / n).mean(axis=0)  # [resamples]
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Disparity(value, float(low), float(high), n)


def within_floor(disparity: Disparity, floor: Disparity) -> bool:
    """Returns whether a method cannot be told from retraining: `disparity.low <= floor.high`.

    The floor is the disparity of a second retraining with another seed (`retrain_reseeded`) from
    the same target. A method whose smallest plausible disparity does not exceed the largest
    plausible one of the floor is "indistinguishable from retraining". This is absence of evidence
    at this number of trials, not proof of equality.

    Args:
        disparity: of the method.
        floor: of the second retraining.

    Returns:
        `False` also where an interval is undefined (one trial), as then nothing can be claimed.
    """
    return bool(disparity.low <= floor.high)


def _trials(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Returns values as float64[n], n >= 1, all finite."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"{name} must be one value per trial, got shape {list(values.shape)}")
    bad = ~np.isfinite(values)
    if bad.any():
        raise ValueError(f"{name}: {bad.sum()} values are not finite, first trial {bad.argmax()}")
    return values


def _check_level(level: float) -> None:
    """Raises unless level is in (0, 1)."""
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
