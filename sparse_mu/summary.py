"""A finished run in numbers: the rows of results.jsonl reduced to means, gaps and disparities.

The summary is a plain JSON-able dict; `table.py` prints it and `report.py` draws it, so neither
computes anything. Fractions stay fractions, seconds stay seconds, and what is not a number is None.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparse_mu.caveats import caveats
from sparse_mu.statistics import Disparity, disparity, mean_interval, within_floor
from sparse_mu.summary_words import (
    DISPARITY_METRICS,
    FLOOR,
    METRICS,
    NEAR,
    TARGETS,
    WHOLE_METRICS,
    in_order,
    sparsity_key,
)

Row = dict  # one line of results.jsonl
Arms = dict[tuple[str, float], list[Row]]  # (method, sparsity) -> its rows


def summarise(rows: list[dict], *, config: dict, manifest: dict, level: float = 0.95) -> dict:
    """Reduces the rows of a run to what the table and the report show.

    Intervals are over trials. When the scenario is `class` and more than one class was forgotten
    they are over classes: seeds are averaged within a class first, and n counts classes.

    A missing (None) or non-finite value is left out of its mean and out of n. A diverged trial
    counts in the mean and in n; `mean_without_diverged` is the same mean without it.

    Args:
        rows: one dict per method x sparsity x trial.
        config: the resolved config; `config["forget"]["scenario"]` is read, the rest is carried.
        manifest: versions, device and digests, carried along for the report; what it says of
            splits and duplicates becomes warnings.
        level: confidence level of every interval.

    Returns:
        A JSON-able dict. `cells[method][sparsity][metric]`,
        `gaps[method][sparsity][target][metric]` and `disparity[method][sparsity][target]` are keyed
        by `sparsity_key(sparsity)`; a combination that was not run has no key. A gap's `grade` is
        "within" (its interval reaches the noise floor's), else "near" or "far", and None where
        that cannot be said: no `retrain_reseeded` rows, or one trial. So is `within_floor`.

    Raises:
        ValueError: if there are no rows, or two rows for one method, sparsity and trial.
    """
    arms = _group(rows)
    sparsities = sorted({sparsity for _, sparsity in arms})
    methods = in_order(dict.fromkeys(row["method"] for row in rows))
    classes = sorted({_classes(row) for row in rows})
    by_class = config["forget"]["scenario"] == "class" and len(classes) > 1
    over = "classes" if by_class else "trials"
    cells = _nest({key: _cells(arm, over, level) for key, arm in arms.items()})
    gaps = {key: _gaps(arm, over, level) for key, arm in arms.items()}
    floors = {
        sparsity: _disparity(arms, FLOOR, "retrain", sparsity, over, level)
        for sparsity in sparsities
    }
    return _plain(
        {
            "scenario": config["forget"]["scenario"],
            "over": over,
            "level": level,
            "trials": len({row["trial"] for row in rows}),
            "units": len(classes) if by_class else len({row["trial"] for row in rows}),
            "sparsities": sparsities,
            "methods": methods,
            "cells": cells,
            "gaps": _nest({key: _graded(gaps, *key) for key in arms}),
            "disparity": _nest(
                {key: _disparities(arms, *key, floors, over, level) for key in arms}
            ),
            "noise_floor": {
                sparsity_key(sparsity): floor._asdict()
                for sparsity, floor in floors.items()
                if floor is not None
            },
            "warnings": caveats(arms, methods, cells, config, manifest),
            "config": config,
            "manifest": manifest,
        }
    )


def _group(rows: list[Row]) -> Arms:
    if not rows:
        raise ValueError("there are no rows to summarise")
    arms: Arms = {}
    for row in rows:
        arm = arms.setdefault((row["method"], float(row["sparsity"])), [])
        if any(other["trial"] == row["trial"] for other in arm):
            raise ValueError(
                f"two rows for {row['method']} at sparsity {row['sparsity']}, trial {row['trial']}"
            )
        arm.append(row)
    return arms


def _classes(row: Row) -> tuple[int, ...]:
    return tuple(sorted(row.get("forgotten_classes") or ()))


def _per_unit(arm: Sequence[Row], metric: str, over: str) -> dict:
    """Mean of a metric within each trial or class; a unit without a finite value has no entry."""
    found: dict = {}
    for row in arm:
        value = row.get(metric)
        if value is not None and math.isfinite(value):
            unit = _classes(row) if over == "classes" else row["trial"]
            found.setdefault(unit, []).append(float(value))
    return {unit: sum(values) / len(values) for unit, values in found.items()}


def _interval(values: dict, level: float) -> dict:
    return mean_interval(np.array(list(values.values())), level=level)._asdict()


def _cells(arm: list[Row], over: str, level: float) -> dict:
    steady = [row for row in arm if not row.get("diverged")]
    cells = {}
    for metric in METRICS:
        values = _per_unit(arm, metric, over)
        part = metric in WHOLE_METRICS and any(row.get(metric) is None for row in arm)
        if values and not part:
            without = list(_per_unit(steady, metric, over).values())
            cells[metric] = {
                **_interval(values, level),
                "diverged": len(arm) - len(steady),
                "mean_without_diverged": float(np.mean(without)) if without else None,
            }
    return cells


def _gaps(arm: list[Row], over: str, level: float) -> dict:
    gaps: dict = {}
    for target in TARGETS:
        for metric in DISPARITY_METRICS:
            values = _per_unit(arm, f"gap_{target}_{metric}", over)
            if values:
                gaps.setdefault(target, {})[metric] = _interval(values, level)
    return gaps


def _graded(gaps: dict, method: str, sparsity: float) -> dict:
    """The gaps of one arm, each with its grade against the same gap of the noise floor."""
    graded: dict = {}
    for target, metrics in gaps[method, sparsity].items():
        floors = gaps.get((FLOOR, _floor_sparsity(target, sparsity)), {}).get("retrain", {})
        graded[target] = {
            metric: {**gap, "grade": _grade(gap, floors.get(metric))}
            for metric, gap in metrics.items()
        }
    return graded


def _grade(gap: dict, floor: dict | None) -> str | None:
    """The rule of `within_floor` for one metric: does the gap's interval reach the floor's?"""
    if floor is None or gap["n"] < 2 or floor["n"] < 2:
        return None
    if abs(gap["mean"]) - gap["half_width"] <= abs(floor["mean"]) + floor["half_width"]:
        return "within"
    return "near" if abs(gap["mean"]) <= NEAR else "far"


def _floor_sparsity(target: str, sparsity: float) -> float:
    """The arm whose noise floor belongs to a target: dense retraining varies as the dense arm."""
    return 0.0 if target == "retrain_dense" else sparsity


def _target_arm(arms: Arms, target: str, sparsity: float) -> tuple[str, float]:
    """Which rows a target means: at sparsity 0, and for `retrain_dense`, the dense retraining."""
    dense = ("retrain", 0.0)
    if sparsity == 0 or (target == "retrain_dense" and dense in arms):
        return dense
    return (target, sparsity)


def _disparity(
    arms: Arms, method: str, target: str, sparsity: float, over: str, level: float
) -> Disparity | None:
    """Disparity over the units where method and target both have all four metrics."""
    found = [
        {metric: _per_unit(arms.get(key, []), metric, over) for metric in DISPARITY_METRICS}
        for key in ((method, sparsity), _target_arm(arms, target, sparsity))
    ]
    shared = set.intersection(*(set(values) for side in found for values in side.values()))
    if not shared:
        return None
    ours, theirs = (
        {name: np.array([values[unit] for unit in sorted(shared)]) for name, values in side.items()}
        for side in found
    )
    return disparity(ours, theirs, level=level)


def _disparities(
    arms: Arms, method: str, sparsity: float, floors: dict, over: str, level: float
) -> dict:
    found = {}
    for target in TARGETS:
        if target == method or _target_arm(arms, target, sparsity) == (method, sparsity):
            continue
        value = _disparity(arms, method, target, sparsity, over, level)
        if value is not None:
            floor = floors.get(_floor_sparsity(target, sparsity))
            known = floor is not None and method != FLOOR and min(value.n, floor.n) > 1
            within = within_floor(value, floor) if known else None
            found[target] = {**value._asdict(), "within_floor": within}
    return found


def _nest(by_arm: dict[tuple[str, float], dict]) -> dict:
    nested: dict = {}
    for (method, sparsity), value in by_arm.items():
        nested.setdefault(method, {})[sparsity_key(sparsity)] = value
    return nested


def _plain(value: Any) -> Any:  # noqa: ANN401 (any JSON-able value)
    """The same value in JSON's types; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, bool | int | str | None) else str(value)
