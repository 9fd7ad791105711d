"""Which rows are held out, trained on and unlearned: plain numpy on the host."""

from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """The training rows of an experiment.

    With one split all N rows are trained on and unlearned. The official code uses two: the
    original model trains on the rows that a first hold-out leaves, and the forget and retain sets
    are drawn from those that a second leaves (SPEC section 1.2). N then counts the rows of either.

    Attributes:
        rows: ``int64[N]``, numbers of the stored rows, ascending.
        trained: ``bool[N]``, rows that the original model trains on.
        unlearned: ``bool[N]``, rows that forget and retain sets are drawn from.
    """

    rows: np.ndarray
    trained: np.ndarray
    unlearned: np.ndarray


def hold_out(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Holds out ``int(fraction * n_c)`` rows of each class c, as the official code does.

    Classes in ascending order, each ``RandomState(seed).choice`` without replacement from the
    class's ascending rows (SPEC section 1.1).

    Args:
        labels: int[N].
        fraction: of each class, 0 <= fraction < 1.
        seed: 0 to 2**32 - 1. The official hold-out of pre-training has seed 1.

    Returns:
        (train_rows, held_rows), both int64, ascending, together 0..N-1.

    Raises:
        ValueError: ``fraction`` is outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"the held-out fraction is {fraction}; allowed: 0 <= fraction < 1")
    rng = np.random.RandomState(seed)
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        held[rng.choice(rows, int(fraction * len(rows)), replace=False)] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def one_split(rows: np.ndarray) -> Split:
    """The split that trains on, and unlearns, the same rows."""
    every = np.ones(len(rows), bool)
    return Split(rows, every, every)


def two_splits(labels: np.ndarray, fraction: float, seed: int, unlearn_seed: int) -> Split:
    """The official mismatch: the unlearning sets come from a hold-out of their own.

    Of CIFAR-10 with seeds 1 and 2, 442 to 459 of the 4,500 rows of a class in the second split
    were held out in the first, so the original model never saw them.

    Args:
        labels: int[S], of all stored training rows.
        fraction: held out of each class by either, as in :func:`hold_out`.
        seed: of the hold-out that the original model trains without.
        unlearn_seed: of the hold-out that the forget and retain sets are drawn without.

    Raises:
        ValueError: as :func:`hold_out`.
    """
    trained, unlearned = np.zeros((2, len(labels)), bool)
    trained[hold_out(labels, fraction, seed)[0]] = True
    unlearned[hold_out(labels, fraction, unlearn_seed)[0]] = True
    rows = np.flatnonzero(trained | unlearned)
    return Split(rows, trained[rows], unlearned[rows])
