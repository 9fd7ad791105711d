"""Whom an attack learns from and whom it judges: ours and the official code's (SPEC.md 5.1)."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from sparse_mu.membership.checks import Rows

PoolRule = Literal["drawn", "official"]


class Pools(NamedTuple):
    """Row numbers of one attack: whom it learns from and whom it judges."""

    members: Rows
    nonmembers: Rows
    target_members: Rows
    target_nonmembers: Rows


def efficacy_pools(
    retain: Rows, test: Rows, forget: Rows, rng: np.random.Generator | None
) -> Pools:
    """Returns the pools of MIA-Efficacy: the targets are the forget rows, no others.

    Args:
        retain: row numbers, ascending.
        test: likewise.
        forget: likewise.
        rng: draws min(|retain|, |test|) shadow rows of each; None: the official ones, the first
            |test| retain rows (all where there are fewer) and all test rows.

    Returns:
        Disjoint pools.
    """
    balanced = min(retain.size, test.size)
    return Pools(
        members=_take(retain, balanced, rng),
        nonmembers=_take(test, test.size if rng is None else balanced, rng),
        target_members=np.empty(0, np.intp),
        target_nonmembers=forget,
    )


def privacy_pools(retain: Rows, test: Rows, rng: np.random.Generator | None) -> Pools:
    """Returns the pools of MIA-Privacy: h shadow rows of each set, all others of it are targets.

    Args:
        retain: row numbers, ascending.
        test: likewise.
        rng: draws h = floor(min(|retain|, |test|) / 2) of each; None: the official ones, the first
            h = floor(|test| / 2) of each.

    Returns:
        Disjoint pools.
    """
    half = (test.size if rng is None else min(retain.size, test.size)) // 2
    members, nonmembers = _take(retain, half, rng), _take(test, half, rng)
    return Pools(
        members=members,
        nonmembers=nonmembers,
        target_members=np.setdiff1d(retain, members),
        target_nonmembers=np.setdiff1d(test, nonmembers),
    )


def generators(seed: int, draws: int, pools: PoolRule) -> Sequence[np.random.Generator | None]:
    """Returns one generator per draw, or [None] for the official pools."""
    if pools not in ("drawn", "official"):
        raise ValueError(f"pools must be 'drawn' or 'official', got {pools!r}")
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    return [None] if pools == "official" else np.random.default_rng(seed).spawn(draws)


def rows_of(count: int, masks: Mapping[str, ArrayLike]) -> list[Rows]:
    """Returns the row numbers of each bool[count]; raises if masks overlap or do not fit."""
    taken = np.zeros(count, bool)
    rows = []
    for name, mask in masks.items():
        mask = np.asarray(mask)
        if mask.dtype != np.bool_ or mask.shape != taken.shape:
            raise ValueError(f"{name}: want bool[{taken.size}], got {mask.dtype}{list(mask.shape)}")
        if (mask & taken).any():
            raise ValueError(f"{name} shares {(mask & taken).sum()} rows with another set")
        taken |= mask
        rows.append(np.flatnonzero(mask))
    return rows


def _take(rows: Rows, count: int, rng: np.random.Generator | None) -> Rows:
    """Returns `count` of the rows in ascending order: drawn, or the first where rng is None."""
    return rows[:count] if rng is None else np.sort(rng.choice(rows, count, replace=False))
