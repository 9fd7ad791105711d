"""What every source of images gives, and the one error of data that cannot be had."""

from typing import NamedTuple

import numpy as np


class DataError(Exception):
    """Data that are missing or cannot be read; the message is one line that says what to do."""


class Source(NamedTuple):
    """A data set in memory, or mapped into it from a file.

    Attributes:
        name: of the data set.
        train_inputs: uint8[N, H, W, C]; like all arrays here it may be a read-only
            ``np.memmap``, so nobody writes into it.
        train_labels: int32[N].
        train_ids: N names of the training rows; None where the data set has none.
        test_inputs: uint8[M, H, W, C].
        test_labels: int32[M].
        class_names: K names; label k is called ``class_names[k]``.
        train_rows: int64[N] ascending, what number the user knows each training row by; None where
            that is 0..N-1. Other numbers belong to rows that are not trained on: held out as test
            rows, or left out by ``dataset.limit``.
    """

    name: str
    train_inputs: np.ndarray
    train_labels: np.ndarray
    train_ids: list[str] | None
    test_inputs: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    train_rows: np.ndarray | None = None
