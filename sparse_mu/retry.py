"""How much is worked on at a time, where memory is short.

While the programs of an attempt are known to need more memory than is free, half as much is worked
on at a time. Where memory runs out all the same, half as much is tried once more.
"""

import gc
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from absl import logging

from sparse_mu.memory import MemoryShort, is_exhausted, reason
from sparse_mu.types import Execution

T = TypeVar("T")


class Portion(NamedTuple):
    """What is worked on at a time.

    Attributes:
        execution: decides how many trials are in one dispatch.
        rows: how many of a batch; None where a method needs its batch whole.
    """

    execution: Execution
    rows: int | None


def half(portion: Portion) -> Portion | None:
    """Half as many trials; where they cannot be fewer, half as many rows; or None."""
    if portion.execution.fewer is not None:
        return portion._replace(execution=portion.execution.fewer())
    if portion.rows is not None and portion.rows > 1:
        return portion._replace(rows=-(-portion.rows // 2))
    return None


def within_memory(
    attempt: Callable[[Portion], T], asked: Portion, *, what: str, lower: str
) -> tuple[T, Portion]:
    """The result of an attempt with the largest portion that memory holds, and that portion.

    What an attempt gives may depend on its portion by rounding only.

    Args:
        attempt: starts anew each time. Raises :class:`sparse_mu.memory.MemoryShort` before it
            computes if that can be known; then half the portion is tried, however often. If memory
            runs out without that, half is tried once.
        asked: the portion to begin with.
        what: what is attempted, for the warning and the error.
        lower: which config key makes it need less.

    Raises:
        MemoryShort: if there is no smaller portion, or memory ran out twice.
    """
    portion, exhausted = asked, False
    while True:
        try:
            return attempt(portion), portion
        except Exception as error:
            again = is_exhausted(error)
            if not again and not isinstance(error, MemoryShort):
                raise
            why = f"memory ran out ({reason(error)})" if again else str(error)
            smaller = half(portion)
            if smaller is None or (again and exhausted):
                advice = f"lower config.{lower}, or take a smaller network"
                raise MemoryShort(f"{what}: {why}, with {_said(portion)}; {advice}") from error
        logging.warning(
            "%s: %s, with %s; goes on with %s, equal up to rounding",
            *(what, why, _said(portion), _said(smaller)),
        )
        portion, exhausted = smaller, exhausted or again
        gc.collect()  # the error is gone, and with it the frames that held the attempt's arrays


def _said(portion: Portion) -> str:
    trials = portion.execution.group
    words = f"{trials} trial{'s' if trials > 1 else ''}"
    if portion.rows is not None:
        words += f" and {portion.rows} row{'s' if portion.rows > 1 else ''}"
    return f"{words} at a time"
