"""What every function of the attack asks of its arrays."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.integer]
Rows = NDArray[np.intp]


def finite(name: str, values: ArrayLike) -> Floats:
    """Returns values as float64 with at least one axis; raises if one is not finite."""
    values = np.atleast_1d(np.asarray(values, np.float64))
    check_finite(name, values)
    return values


def check_finite(name: str, values: NDArray) -> None:
    """Raises if one of values [N, ...] is not finite."""
    bad = ~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    if bad.any():
        raise ValueError(f"{name} of {bad.sum()} rows are not finite, first row {bad.argmax()}")


def class_labels(logits: NDArray, labels: ArrayLike) -> Labels:
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
