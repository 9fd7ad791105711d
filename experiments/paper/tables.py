"""Markdown of figures: means with intervals, grids, and paired tests."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from sparse_mu.statistics import mean_interval, paired_difference


def shown(values: Sequence[float], scale: float = 100.0, digits: int = 1) -> str:
    """``mean ± half-width of the 95% interval``; the mean alone of one trial; a dash of none."""
    if not values:
        return "—"
    mean = f"{scale * np.mean(values):.{digits}f}"
    return f"{mean} ± {scale * half_width(values):.{digits}f}" if len(values) > 1 else mean


def half_width(values: Sequence[float]) -> float:
    """Of the 95% interval of the mean; 0 of one trial, which has none."""
    return mean_interval(np.array(values)).half_width if len(values) > 1 else 0.0


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def pairs(ours: Mapping[int, float], theirs: Mapping[int, float]) -> np.ndarray:
    """``float[2, n]`` of the trials that both have."""
    both = sorted(ours.keys() & theirs.keys())
    return np.array([[of[trial] for trial in both] for of in (ours, theirs)], float)


def paired(what: str, ours: Mapping[int, float], theirs: Mapping[int, float]) -> str:
    """One test, whichever way it went: two-sided, paired over trials, level 0.05."""
    both = pairs(ours, theirs)
    if both.shape[1] < 3:
        return f"- {what}: not tested, {both.shape[1]} pairs."
    found = paired_difference(*both)
    told = f"{100 * found.mean:+.2f} ± {100 * found.half_width:.2f} points, n = {found.n}"
    if np.ptp(both[0] - both[1]) == 0:  # a variance of zero has no t
        verdict = "told apart" if found.mean else "not told apart"
        return f"- {what}: {told}, the same in every trial: {verdict}."
    p = float(stats.ttest_rel(*both).pvalue)
    return f"- {what}: {told}, p = {p:.2g}: {'told apart' if p < 0.05 else 'not told apart'}."
