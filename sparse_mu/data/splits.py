"""Which rows are held out, and which are to be forgotten: plain numpy on the host.

Every forget set is a membership ``bool[N]`` over the training rows. Anything that is not a
proper, non-empty subset of them raises :class:`ForgetSetError` with one line.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

MAX_SEED = 2**32 - 1
INT64_MAX = np.iinfo(np.int64).max


class ForgetSetError(ValueError):
    """A forget set that makes no sense; the message is one line that names the culprit."""


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


def forget_class(labels: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Forgets every row of the given classes.

    Args:
        labels: int[N], of the training rows.
        classes: class numbers, each occurring in ``labels``.

    Returns:
        bool[N], True = forget.

    Raises:
        ForgetSetError: no class, a class twice, a class that does not occur, a class that is no
            integer, or all classes.
    """
    known = np.unique(labels)
    wanted = _integers(classes, "forget class")
    unknown = wanted[~np.isin(wanted, known)]
    if unknown.size:
        allowed = ", ".join(map(str, known)) if known.size <= 20 else f"{known[0]} to {known[-1]}"
        raise ForgetSetError(f"forget class {unknown[0]} does not occur; allowed: {allowed}")
    return _proper(np.isin(labels, wanted))


def forget_random(
    n_rows: int, *, count: int | None, fraction: float | None, seed: int
) -> np.ndarray:
    """Forgets rows drawn uniformly without replacement.

    The rows are ``RandomState(seed).choice(n_rows, count, replace=False)``, the official draw for
    ``--seed`` equal to ``seed + 1`` (SPEC section 1.3).

    Args:
        n_rows: N, the number of training rows.
        count: number of rows to forget, 1 to N - 1; None when ``fraction`` is given.
        fraction: of the rows, between 0 and 1, rounded to the nearest count; None when ``count``
            is given.
        seed: 0 to 2**32 - 1.

    Returns:
        bool[N], True = forget.

    Raises:
        ForgetSetError: both or neither of ``count`` and ``fraction``, or one out of its range.
    """
    if (count is None) == (fraction is None):
        raise ForgetSetError(
            f"forget count is {count} and fraction is {fraction}; exactly one must be given"
        )
    if not 0 <= seed <= MAX_SEED:
        raise ForgetSetError(f"forget seed is {seed}; allowed: 0 to {MAX_SEED}")
    if fraction is not None:
        if not 0 < fraction < 1:
            raise ForgetSetError(f"forget fraction is {fraction}; allowed: 0 < fraction < 1")
        count = round(fraction * n_rows)
        given = f"forget fraction {fraction} is {count} of {n_rows} rows"
    else:
        given = f"forget count is {count}"
    if isinstance(count, bool) or not isinstance(count, int | np.integer):
        raise ForgetSetError(f"{given}; an integer is needed")
    if not 0 < count < n_rows:
        raise ForgetSetError(f"{given}; allowed: 1 to {n_rows - 1} rows")
    rows = np.random.RandomState(seed).choice(n_rows, count, replace=False)
    return _membership(rows, n_rows)


def forget_indices(rows: Sequence[int] | np.ndarray, n_rows: int) -> np.ndarray:
    """Forgets the given rows.

    Args:
        rows: int[F], row numbers of the training set, 0 to N - 1, in any order.
        n_rows: N, the number of training rows.

    Returns:
        bool[N], True = forget.

    Raises:
        ForgetSetError: no row, a row twice, a row out of range or no integer, or all rows.
    """
    wanted = _integers(rows, "forget row")
    outside = wanted[(wanted < 0) | (wanted >= n_rows)]
    if outside.size:
        raise ForgetSetError(f"forget row {outside[0]} is out of range; allowed: 0 to {n_rows - 1}")
    return _proper(_membership(wanted, n_rows))


def read_rows(path: str | Path) -> np.ndarray:
    """Reads row numbers from a file.

    Args:
        path: ``.txt`` with one row number per line (blank lines and ``#`` comments are skipped)
            or ``.npy`` with a one-dimensional integer array (pickled objects are refused).

    Returns:
        int64[F], in the order of the file.

    Raises:
        ForgetSetError: the file is missing, unreadable or empty, has another suffix, or holds
            something that is no integer (text files: with the line number).
    """
    path = Path(path)
    readers = {".txt": _read_text, ".npy": _read_npy}
    if path.suffix not in readers:
        raise ForgetSetError(f"forget file {path} ends in {path.suffix!r}; allowed: .txt, .npy")
    try:
        rows = readers[path.suffix](path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ForgetSetError(f"forget file {path} cannot be read: {reason}") from error
    if not rows.size:
        raise ForgetSetError(f"forget file {path} holds no row numbers")
    return rows


def _read_text(path: Path) -> np.ndarray:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ForgetSetError(f"forget file {path} is not a text file") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        digits = text.removeprefix("-")
        # int() would also take "1_000" and the digits of other scripts.
        if not (digits.isascii() and digits.isdigit() and len(digits) < 19):
            raise ForgetSetError(
                f"forget file {path}, line {number}: {text[:40]!r} is not a row number"
            )
        rows.append(int(text))
    return np.array(rows, np.int64)


def _read_npy(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            rows = np.lib.format.read_array(file, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # from a damaged header numpy, ast and tokenize raise many kinds
        raise ForgetSetError(f"forget file {path} is not a .npy file of plain integers") from error
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise ForgetSetError(
            f"forget file {path} holds {rows.dtype}{list(rows.shape)}; a list of integers is needed"
        )
    return _int64(rows, "forget row")


def _int64(array: np.ndarray, noun: str) -> np.ndarray:
    """Casts int[F] without wrapping large unsigned numbers around."""
    outside = array[array > INT64_MAX]
    if outside.size:
        raise ForgetSetError(f"{noun} {outside[0]} is out of range")
    return array.astype(np.int64)


def _integers(values: Sequence[int] | np.ndarray, noun: str) -> np.ndarray:
    """Returns distinct int64[F], F > 0, or raises naming the first culprit."""
    array = np.asarray(values)
    if array.ndim != 1 or not array.size:
        raise ForgetSetError(f"no {noun} is given; at least one is needed")
    if array.dtype.kind not in "iu":
        raise ForgetSetError(f"{noun} {array.tolist()[0]!r} is {array.dtype}; integers are needed")
    array = _int64(array, noun)
    order = np.argsort(array, kind="stable")
    repeated = order[1:][array[order][1:] == array[order][:-1]]
    if repeated.size:
        raise ForgetSetError(f"{noun} {array[repeated.min()]} is given twice; once is allowed")
    return array


def _membership(rows: np.ndarray, n_rows: int) -> np.ndarray:
    members = np.zeros(n_rows, bool)
    members[rows] = True
    return members


def _proper(members: np.ndarray) -> np.ndarray:
    """Returns ``members`` unless it covers every row."""
    if members.all():
        raise ForgetSetError(
            f"the forget set covers all {members.size} training rows; at least one must be retained"
        )
    return members
