"""Which rows are to be forgotten: plain numpy on the host.

Every forget set is a membership ``bool[N]`` over the rows that may be unlearned. Anything that is
not a proper, non-empty subset of them raises :class:`ForgetSetError` with one line.
"""

import difflib
from collections.abc import Sequence

import numpy as np

MAX_SEED = 2**32 - 1
INT64_MAX = np.iinfo(np.int64).max
MOST_LISTED = 20  # classes that an error lists


class ForgetSetError(ValueError):
    """A forget set that makes no sense; the message is one line that names the culprit."""


def class_entries(
    entries: Sequence[int | str], class_names: Sequence[str]
) -> tuple[tuple[int, ...], ...]:
    """The class numbers that each entry means.

    An entry is a number (``3``), a name (``"cat"``), a number as text (``"3"``), or several of them
    joined by ``+`` (``"cat+dog"``, ``"3+5"``). A text that could mean two things is refused: a name
    that is the number of another class, or that reads as other classes joined. The class's number
    says it without doubt.

    Args:
        entries: what is to be forgotten together, one entry after another.
        class_names: K names.

    Returns:
        For each entry its distinct classes, in the order written.

    Raises:
        ForgetSetError: a name that is none (with the nearest), a text of two meanings, a class
            twice in an entry, or two entries of the same classes. Whether a number occurs is for
            :func:`forget_class` to say.
    """
    found, entry_of = [], {}
    for entry in entries:
        classes = _classes_of(entry, class_names)
        same = entry_of.setdefault(frozenset(classes), entry)
        if len(entry_of) == len(found):
            raise ForgetSetError(
                f"forget classes {same!r} and {entry!r} are the same; once is allowed"
            )
        found.append(classes)
    return tuple(found)


def _classes_of(entry: int | str, names: Sequence[str]) -> tuple[int, ...]:
    if not isinstance(entry, str):
        return (int(entry),)
    whole, parts = _meanings(entry, names), [part.strip() for part in entry.split("+")]
    if len(parts) == 1 or (whole and not all(_meanings(part, names) for part in parts)):
        return (_one_meaning(entry, whole, names),)
    if whole:
        raise ForgetSetError(
            f"forget class {entry!r} is the name of class {min(whole)} and joins "
            f"{' and '.join(map(repr, parts))}, too; give numbers, {min(whole)} for the name"
        )
    if not all(parts):
        raise ForgetSetError(
            f"forget class {entry!r} joins nothing on one side of a +; classes are joined as in "
            "'3+5'"
        )
    classes = tuple(_one_meaning(part, _meanings(part, names), names) for part in parts)
    for index, number in enumerate(classes):
        if number in classes[:index]:
            raise ForgetSetError(f"forget class {number} is given twice in {entry!r}")
    return classes


def _meanings(text: str, names: Sequence[str]) -> set[int]:
    """The classes of that name, and the class of that number where there is one."""
    found = {number for number, name in enumerate(names) if name == text}
    if text.isascii() and text.isdigit() and len(text) < 10:
        if int(text) < len(names) or not found:
            found.add(int(text))
    return found


def _one_meaning(text: str, meanings: set[int], names: Sequence[str]) -> int:
    if not meanings:
        near = difflib.get_close_matches(text, names, n=1, cutoff=0.6)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        allowed = f"0 to {len(names) - 1}"
        if len(names) <= MOST_LISTED:
            allowed += f" or {', '.join(names)}"
        raise ForgetSetError(f"forget class {text!r} does not occur{hint}; allowed: {allowed}")
    if len(meanings) > 1:
        listed = " or ".join(f"class {number}" for number in sorted(meanings))
        raise ForgetSetError(
            f"forget class {text!r} may be {listed}; give the number of the class, without quotes"
        )
    return min(meanings)


def forget_class(labels: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Forgets every row of the given classes.

    Args:
        labels: int[N], of the rows.
        classes: class numbers, each occurring in ``labels``.

    Returns:
        bool[N], True = forget.

    Raises:
        ForgetSetError: no class, a class twice, a class that does not occur, a class that is no
            integer, or all classes.
    """
    return _proper(np.isin(labels, _occurring(labels, classes)))


def forget_within_classes(
    labels: np.ndarray, classes: Sequence[int], *, count: int, seed: int
) -> np.ndarray:
    """Forgets some rows of the given classes, drawn uniformly without replacement.

    The rows are ``RandomState(seed).choice(rows, count, replace=False)`` of the classes' rows in
    ascending order, the official draw for ``--seed`` equal to ``seed + 1`` (SPEC section 1.3).

    Args:
        labels: int[N], of the rows.
        classes: class numbers, each occurring in ``labels``; drawn from together.
        count: number of rows to forget, 1 to as many as the classes have.
        seed: 0 to 2**32 - 1.

    Returns:
        bool[N], True = forget.

    Raises:
        ForgetSetError: as :func:`forget_class`, or ``count`` or ``seed`` is out of range.
    """
    rows = np.flatnonzero(np.isin(labels, _occurring(labels, classes)))
    named = ", ".join(str(number) for number in classes)
    if not 0 < count <= len(rows):
        raise ForgetSetError(
            f"forget count is {count}; allowed: 1 to {len(rows)} rows, those of class {named}"
        )
    drawn = np.random.RandomState(_seed(seed)).choice(rows, count, replace=False)
    return _proper(_membership(drawn, len(labels)))


def _occurring(labels: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    known = np.unique(labels)
    wanted = _integers(classes, "forget class")
    unknown = wanted[~np.isin(wanted, known)]
    if unknown.size:
        few = known.size <= MOST_LISTED
        allowed = ", ".join(map(str, known)) if few else f"{known[0]} to {known[-1]}"
        raise ForgetSetError(f"forget class {unknown[0]} does not occur; allowed: {allowed}")
    return wanted


def forget_random(
    n_rows: int, *, count: int | None, fraction: float | None, seed: int
) -> np.ndarray:
    """Forgets rows drawn uniformly without replacement.

    The rows are ``RandomState(seed).choice(n_rows, count, replace=False)``, the official draw for
    ``--seed`` equal to ``seed + 1`` (SPEC section 1.3).

    Args:
        n_rows: N, the number of rows.
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
    _seed(seed)
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


def _seed(seed: int) -> int:
    if not 0 <= seed <= MAX_SEED:
        raise ForgetSetError(f"forget seed is {seed}; allowed: 0 to {MAX_SEED}")
    return seed


def forget_indices(rows: Sequence[int] | np.ndarray, n_rows: int) -> np.ndarray:
    """Forgets the given rows.

    Args:
        rows: int[F], row numbers, 0 to N - 1, in any order.
        n_rows: N, the number of rows.

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


def int64_rows(array: np.ndarray, noun: str) -> np.ndarray:
    """Casts int[F] without wrapping large unsigned numbers around.

    Raises:
        ForgetSetError: a number does not fit.
    """
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
    array = int64_rows(array, noun)
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
