"""A finished run in numbers: the rows of results.jsonl reduced to means, gaps and disparities.

The summary is a plain JSON-able dict; `table.py` prints it and `report.py` draws it, so neither
computes anything. Fractions stay fractions, seconds stay seconds, and what is not a number is None.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparse_mu.config import printable
from sparse_mu.statistics import Disparity, disparity, mean_interval, within_floor

METHOD_ORDER = (
    "original",
    "retrain",
    "retrain_dense",
    "retrain_repruned",
    "retrain_reseeded",
    "finetune",
    "gradient_ascent",
    "fisher",
    "influence",
    "l1_sparse",
    "negative_gradient",
    "random_label",
    "salun",
    "scrub",
    "finetune_and_prune",
)
TARGETS = ("retrain", "retrain_dense", "retrain_repruned")
FLOOR = "retrain_reseeded"
REFERENCES = ("original", *TARGETS, FLOOR)  # what a method is compared with; not methods under test
NEAR = 0.05  # fraction; a gap beyond the noise floor is "near" up to here, then "far"
DISPARITY_METRICS = ("ua", "mia_efficacy", "ra", "ta")
METRICS = (
    *("ua", "ra", "ta", "ta_all", "ta_worst_class", "ua_test"),
    *("mia_efficacy", "mia_efficacy_spread", "mia_auc", "mia_tpr_at_1fpr"),
    *("mia_class", "mia_class_auc", "mia_privacy_rate", "mia_privacy_balanced"),
    *("mask_sparsity", "rte_seconds", "rte_batched_seconds", "compile_seconds", "prune_seconds"),
)

Row = dict  # one line of results.jsonl
Arms = dict[tuple[str, float], list[Row]]  # (method, sparsity) -> its rows

RUINED = 0.1  # of the retain set; an original so far below its retrained model is told of


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
    methods = _ordered({row["method"]: None for row in rows})
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
            "warnings": [
                *_split_warnings(config, manifest),
                *_copies_warnings(manifest),
                *_original_warnings(config, manifest, cells, sparsities),
                *_warnings(arms, cells, methods, sparsities),
                *_memory_warnings(arms),
            ],
            "config": config,
            "manifest": manifest,
        }
    )


def sparsity_key(sparsity: float) -> str:
    """The key of a sparsity in the summary's dicts: 0 -> "0", 0.95 -> "0.95"."""
    return f"{sparsity:.10g}"


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


def _ordered(methods: Mapping[str, None]) -> list[str]:
    """The known methods in their fixed order, then the others in order of appearance."""
    known = [method for method in METHOD_ORDER if method in methods]
    return known + [method for method in methods if method not in METHOD_ORDER]


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
        if values:
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


def _split_warnings(config: dict, manifest: dict) -> list[str]:
    """Says that the original model did not train on all that is unlearned, where that was asked."""
    split = manifest.get("unlearning_split")
    if not split:
        return []
    unseen, sizes = split["forget_never_trained_on"], split["forget"]
    seed = config.get("dataset", {}).get("unlearn_split_seed")
    return [
        f"dataset.unlearn_split_seed = {seed}: the original model never trained on "
        f"{_range(unseen)} of the {_range(sizes)} forget rows of a trial "
        f"({100 * sum(unseen) / sum(sizes):.1f}% in all); on those it is as good as unlearned"
    ]


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _copies_warnings(manifest: dict) -> list[str]:
    """One line for exact, one for near copies of forget images that a method still trains on."""
    found = manifest.get("duplicates")
    if not found:
        return []
    lines = []
    for kind in ("exact", "near"):
        hit = [of_trial for of_trial in found["trials"] if of_trial[kind]]
        if not hit:
            continue
        total = sum(of_trial[kind] for of_trial in hit)
        first = next(pair for pair in hit[0]["first"] if pair["kind"] == kind)
        what = {
            "exact": "what they show is not forgotten, and no claim about it holds",
            "near": f"hashes at most {found['near_bits']} of 64 bits apart; look at them",
        }
        lines.append(
            f"{total} {kind} {'copies' if total > 1 else 'copy'} of forget images left in the "
            f"retain set, in {len(hit)} of {len(found['trials'])} trials; the first is row "
            f"{printable(str(first['copy']))}, of forget row {printable(str(first['forget']))}: "
            f"{what[kind]}"
        )
    return lines


def _original_warnings(
    config: dict, manifest: dict, cells: dict, sparsities: list[float]
) -> list[str]:
    """An original that was not trained here, with its mask, and does badly on what it should know.

    Compared with the retrained model of its arm on the retain set: what is unlearned from a model
    that never learnt says nothing.
    """
    imported = manifest.get("imported")
    lines = []
    for sparsity in sparsities:
        key = sparsity_key(sparsity)
        in_place = bool(sparsity) and (config["prune"]["rewind_epoch"] < 0)
        given = imported is not None and imported["sparsity"] == sparsity
        found = [cells.get(name, {}).get(key) for name in ("original", "retrain")]
        if not (in_place or given) or None in found:
            continue
        own, retrained = (cell["ra"]["mean"] for cell in found)
        if own is None or retrained is None or own > retrained - RUINED:
            continue
        why = "pruning in place may have ruined it: prune less, or rewind and train again"
        if given:
            why = (
                "its order of classes, its normalisation (model.channels) or its recipe (train.*) "
                "may be others"
            )
        lines.append(
            f"the original at sparsity {key} gets {100 * own:.1f}% of the retain set right, the "
            f"retrained model {100 * retrained:.1f}%: {why}"
        )
    return lines


def _warnings(arms: Arms, cells: dict, methods: list[str], sparsities: list[float]) -> list[str]:
    lines = []
    for method in methods:
        for sparsity in sparsities:
            arm = arms.get((method, sparsity), [])
            key = sparsity_key(sparsity)
            where = f"{method} at sparsity {key}"
            diverged = [row["trial"] for row in arm if row.get("diverged")]
            if diverged:
                listed = ", ".join(str(trial) for trial in diverged)
                lines.append(
                    f"{where}: {len(diverged)} of {len(arm)} trials diverged (trial {listed}); "
                    f"counted at the last finite state; without them {_means(cells[method], key)}"
                )
            short = [row for row in arm if row.get("solver_converged") is False]
            if short:
                worst = max(row["solver_relative_residual"] for row in short)
                lines.append(
                    f"{where}: the solver did not converge in {len(short)} of {len(arm)} trials "
                    f"(relative residual up to {worst:.1g}); raise its iterations or damping"
                )
            for metric in DISPARITY_METRICS:
                count = len(arm) - len(_per_unit(arm, metric, "trials"))
                if count:
                    lines.append(f"{where}: {metric} has no value in {count} of {len(arm)} trials")
    return lines


def _memory_warnings(arms: Arms) -> list[str]:
    """One line for all arms that are equal up to rounding only."""
    marked = [key for key, arm in arms.items() if any(row.get("halved") for row in arm)]
    which = ", ".join(f"{method} at sparsity {sparsity_key(s)}" for method, s in marked)
    which = "every arm" if len(marked) == len(arms) else which
    line = "memory was short in, or before, {}: halved trials or rows at a time, equal by rounding"
    return [line.format(which)] if marked else []


def _means(cells: dict, key: str) -> str:
    """The means without diverged trials, in words: `ua 5.1%, ra 99.0%`."""
    means = {
        metric: cells[key][metric]["mean_without_diverged"]
        for metric in DISPARITY_METRICS
        if metric in cells[key]
    }
    known = [f"{metric} {100 * mean:.1f}%" for metric, mean in means.items() if mean is not None]
    return ", ".join(known) or "none is left"


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
