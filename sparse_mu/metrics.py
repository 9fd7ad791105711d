"""Accuracies of one model on the forget, retain and test rows (host side, numpy only).

Everything is a count divided by a count: the correct rows of a set over the rows of that set, never
a mean of batch means. Values are fractions in [0, 1], not percent; a set without rows gives `nan`.
Definitions: SPEC.md section 5; the names are those of the table's columns.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray


def accuracy(logits: ArrayLike, labels: ArrayLike, members: ArrayLike | None = None) -> float:
    """Returns the fraction of rows whose largest logit is at the label.

    Args:
        logits: float[N, K], finite. Equal largest logits count for the smallest class.
        labels: int[N], in [0, K).
        members: bool[N], the rows that count; all of them by default.

    Returns:
        sum(correct and member) / sum(member), in [0, 1]; `nan` when no row counts.

    Raises:
        ValueError: a shape does not fit, a label is no class, or a logit is not finite.
    """
    correct, labels, _ = _correct_rows(logits, labels)
    return _share(correct, _row_mask("members", members, labels.size))


def per_class_accuracy(
    logits: ArrayLike, labels: ArrayLike, members: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Returns the accuracy on the rows of each class apart.

    Args:
        logits: float[N, K], finite.
        labels: int[N], in [0, K).
        members: bool[N], the rows that count; all of them by default.

    Returns:
        float64[K], fractions; `nan` for a class without rows.

    Raises:
        ValueError: as for `accuracy`.
    """
    correct, labels, classes = _correct_rows(logits, labels)
    return _class_shares(correct, labels, _row_mask("members", members, labels.size), classes)


def row_metrics(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    retain: ArrayLike,
    forget: ArrayLike,
    test: ArrayLike,
    forgotten_classes: tuple[int, ...],
) -> dict[str, float]:
    """Returns the accuracy columns of one row of results.

    With acc(S) the accuracy on the rows S, F the forget rows, R the retain rows, T the test rows,
    and T' the test rows whose class is not forgotten (T' = T when no class is)::

        ua = 1 - acc(F)    ra = acc(R)    ta = acc(T')    ta_all = acc(T)
        ta_worst_class = min over the classes c in T' of acc(T' of class c)
        ua_test = 1 - acc(T without T')      only when classes are forgotten

    Args:
        logits: float[N, K] of all rows, un-augmented, evaluation mode.
        labels: int[N], in [0, K).
        retain: bool[N].
        forget: bool[N].
        test: bool[N].
        forgotten_classes: the classes forgotten as a whole; empty for other scenarios.

    Returns:
        Fractions by column name; `nan` where a set has no rows.

    Raises:
        ValueError: as for `accuracy`, or a forgotten class is not in [0, K).
    """
    correct, labels, classes = _correct_rows(logits, labels)
    retain = _row_mask("retain", retain, labels.size)
    forget = _row_mask("forget", forget, labels.size)
    test = _row_mask("test", test, labels.size)
    for forgotten in forgotten_classes:
        if not 0 <= forgotten < classes:
            raise ValueError(f"forgotten class {forgotten} is not in [0, {classes})")
    of_forgotten_class = np.isin(labels, forgotten_classes)
    counted = test & ~of_forgotten_class
    class_shares = _class_shares(correct, labels, counted, classes)
    defined = class_shares[~np.isnan(class_shares)]
    row = {
        "ua": 1.0 - _share(correct, forget),
        "ra": _share(correct, retain),
        "ta": _share(correct, counted),
        "ta_all": _share(correct, test),
        "ta_worst_class": float(defined.min()) if defined.size else float("nan"),
    }
    if forgotten_classes:
        row["ua_test"] = 1.0 - _share(correct, test & of_forgotten_class)
    return row


def trojan_metrics(
    triggered: ArrayLike, clean: ArrayLike, *, wanted: ArrayLike, counted: ArrayLike
) -> dict[str, float]:
    """Returns how often a trigger calls up what the attacker wants, and how often nothing does.

    With p the predicted class of an image x, w what the attacker wants it to be called, C the test
    images that are not w anyway, and t the trigger::

        asr = P(p(t(x)) = w | x in C)    asr_all = P(p(t(x)) = w)
        false_target = P(p(x) = w | x in C)

    Args:
        triggered: float[M, K] logits of the test images with the trigger.
        clean: float[M, K] logits of the same images without it.
        wanted: int[M].
        counted: bool[M], the images C.

    Returns:
        Fractions by column name; `nan` where no image counts. The official code reports `asr_all`.

    Raises:
        ValueError: as for `accuracy`.
    """
    called, wanted, _ = _correct_rows(triggered, wanted)
    anyway, _, _ = _correct_rows(clean, wanted)
    counted = _row_mask("counted", counted, wanted.size)
    return {
        "asr": _share(called, counted),
        "asr_all": _share(called, np.ones(wanted.size, bool)),
        "false_target": _share(anyway, counted),
    }


def signed_gaps(
    row: Mapping[str, float], target_row: Mapping[str, float], names: Iterable[str]
) -> dict[str, float]:
    """Returns `row - target_row` for each name.

    Gaps keep their sign: the mean of |gap| over trials is biased upward, so the absolute value is
    taken only after the mean over trials (`statistics.disparity`, SPEC.md section 5).

    Args:
        row: metrics of a method, by column name.
        target_row: metrics of the target it is compared with.
        names: the columns to compare.

    Returns:
        The differences by column name, in the metrics' own unit (fractions).

    Raises:
        KeyError: a name is missing in either row.
    """
    return {name: float(row[name] - target_row[name]) for name in names}


def _correct_rows(
    logits: ArrayLike, labels: ArrayLike
) -> tuple[NDArray[np.bool_], NDArray[np.integer], int]:
    """Checks the inputs; returns correct bool[N], labels int[N] and the number of classes K."""
    logits, labels = np.asarray(logits), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"want logits [N, K] and labels [N], got {logits.shape} and {labels.shape}"
        )
    classes = logits.shape[1]
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    if labels.size and not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(f"labels must be in [0, {classes})")
    bad = ~np.isfinite(logits).all(axis=1)
    if bad.any():
        raise ValueError(f"logits of {bad.sum()} rows are not finite, first row {bad.argmax()}")
    return logits.argmax(axis=1) == labels, labels, classes


def _row_mask(name: str, mask: ArrayLike | None, rows: int) -> NDArray[np.bool_]:
    """Returns the mask as bool[rows]; `None` means all rows."""
    if mask is None:
        return np.ones(rows, bool)
    mask = np.asarray(mask)
    if mask.dtype != np.bool_ or mask.shape != (rows,):
        raise ValueError(f"{name} must be bool[{rows}], got {mask.dtype}{list(mask.shape)}")
    return mask


def _share(correct: NDArray[np.bool_], mask: NDArray[np.bool_]) -> float:
    """Returns sum(correct and mask) / sum(mask), `nan` for an empty mask."""
    count = int(mask.sum())
    return int((correct & mask).sum()) / count if count else float("nan")


def _class_shares(
    correct: NDArray[np.bool_],
    labels: NDArray[np.integer],
    mask: NDArray[np.bool_],
    classes: int,
) -> NDArray[np.float64]:
    """Returns `_share` of each class as float64[classes]."""
    counts = np.bincount(labels[mask], minlength=classes)
    hits = np.bincount(labels[mask & correct], minlength=classes)
    return np.divide(hits, counts, out=np.full(classes, np.nan), where=counts > 0)
