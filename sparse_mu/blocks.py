"""The results as blocks of cells: what the terminal table and the HTML report have in common.

A block knows nothing of rich or HTML; its cells are finished text with a mark, a grade and a note.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

from sparse_mu.summary_words import FLOOR, NEAR, REFERENCES, TARGETS, UNPRUNED, sparsity_key

METRIC_NAMES = {"ua": "UA", "ra": "RA", "ta": "TA", "mia_efficacy": "MIA-Efficacy"}
MASK_NAMES = {  # of the mask that un-pruning found, and its model's outputs, to retrain_repruned
    "mask_iou": "IoU",
    "mask_iou_corrected": "beyond chance",
    "mask_flip_precision": "flips right",
    "mask_flip_recall": "flips found",
    "mask_gain": "gain",
    "kl_test": "KL, nats",
}
TROJAN_NAMES = {
    "asr": "ASR",
    "asr_all": "ASR, all images",
    "false_target": "without trigger",
    "ta": "SA",
}
TRANSFER_NAMES = {
    "probe_accuracy": "linear probe",
    "tuned_accuracy": "fine-tuned",
    "ta": "source TA",
}
MARKS = {"within": "≈≈", "near": "▽△", "far": "▼▲"}  # below, above the target
NOTHING = "—"


class Column(NamedTuple):
    """One column of figures: what it shows of which arm."""

    heading: str  # columns with the same heading stand under it together
    kind: str  # "metric", "nats", "disparity", "seconds", "with pruning" or "seconds ratio"
    key: str  # the metric or the target
    sparsity: float


class Cell(NamedTuple):
    """One figure as text, its mark and grade against the noise floor, and a note on it."""

    text: str = NOTHING
    mark: str = ""
    grade: str | None = None
    note: str = ""


class Line(NamedTuple):
    """One row of a block; a reference is something to compare with, not a method under test."""

    label: str
    reference: bool
    cells: list[Cell]


class Block(NamedTuple):
    """A table: a title, its columns, its rows."""

    title: str
    columns: list[Column]
    lines: list[Line]


def arm_name(sparsity: float) -> str:
    """How an arm is called: 0 -> "dense", 0.95 -> "95%"."""
    return f"{100 * sparsity:.6g}%" if sparsity else "dense"


def label(method: str) -> str:
    """How a method is called in a table."""
    return "noise floor" if method == FLOOR else method


def shared_count(summary: dict) -> int | None:
    """The n of all figures of UA, RA, TA and MIA-Efficacy where they agree, else None."""
    counts = {
        cells[metric]["n"]
        for arms in summary["cells"].values()
        for cells in arms.values()
        for metric in METRIC_NAMES
        if metric in cells
    }
    return counts.pop() if len(counts) == 1 else None


def metric_columns(sparsities: list[float]) -> list[Column]:
    """UA, RA, TA and MIA-Efficacy, each with one column per sparsity."""
    return [
        Column(name, "metric", metric, sparsity)
        for metric, name in METRIC_NAMES.items()
        for sparsity in sparsities
    ]


def disparity_columns(sparsities: list[float]) -> list[Column]:
    """Disparity to each target; at sparsity 0 the targets are one run and have one column."""
    return [
        Column(target, "disparity", target, sparsity)
        for target in TARGETS
        for sparsity in sparsities
        if sparsity or target == "retrain"
    ]


def seconds_columns(sparsities: list[float]) -> list[Column]:
    """RTE in seconds, one column per sparsity, and the same with pruning added."""
    pruned = [sparsity for sparsity in sparsities if sparsity]
    return [Column("RTE", "seconds", "rte_seconds", sparsity) for sparsity in sparsities] + [
        Column("RTE + pruning", "with pruning", "rte_seconds", sparsity) for sparsity in pruned
    ]


def mask_columns(sparsities: list[float]) -> list[Column]:
    """How near masks are to the re-pruned retraining's, one column per sparsity above 0."""
    return [
        Column(name, "nats" if metric.startswith("kl") else "metric", metric, sparsity)
        for metric, name in MASK_NAMES.items()
        for sparsity in sparsities
        if sparsity
    ]


def trojan_columns(sparsities: list[float]) -> list[Column]:
    """How often the trigger calls up what the attacker wants, and accuracy on clean images."""
    return [
        Column(name, "metric", metric, sparsity)
        for metric, name in TROJAN_NAMES.items()
        for sparsity in sparsities
    ]


def transfer_columns(sparsities: list[float], *, tuned: bool = True) -> list[Column]:
    """Accuracy on another data set, on the source, and seconds over those of retraining.

    Args:
        sparsities: the arms.
        tuned: whether models were fine-tuned there.
    """
    shown = [
        Column(name, "metric", metric, sparsity)
        for metric, name in TRANSFER_NAMES.items()
        for sparsity in sparsities
        if tuned or metric != "tuned_accuracy"
    ]
    return shown + [
        Column("time / retrain's", "seconds ratio", "rte_seconds", s) for s in sparsities
    ]


class Extra(NamedTuple):
    """A block that only some runs have."""

    title: str
    columns: Callable[[list[float]], list[Column]]
    methods: list[str] | None  # its rows; None: all


def extras(summary: dict) -> list[Extra]:
    """The blocks of a Trojan, of transfer and of un-pruned masks, where the run has them."""
    found = []
    if is_trojan(summary):
        found.append(Extra("The Trojan, percent", trojan_columns, None))
    if is_transfer(summary):
        target = summary["config"].get("transfer", {}).get("dataset", "another data set")
        columns = functools.partial(transfer_columns, tuned=_has(summary, "tuned_accuracy"))
        found.append(Extra(f"Transfer to {target}, percent", columns, None))
    if rows := unpruned(summary):
        found.append(Extra("The mask, against retrain_repruned's, percent", mask_columns, rows))
    return found


def is_transfer(summary: dict) -> bool:
    """Whether models were judged on another data set."""
    return _has(summary, "probe_accuracy")


def is_trojan(summary: dict) -> bool:
    """Whether a trigger was judged."""
    return _has(summary, "asr")


def _has(summary: dict, metric: str) -> bool:
    return any(metric in cells for arms in summary["cells"].values() for cells in arms.values())


def unpruned(summary: dict) -> list[str]:
    """The original and the methods that run under un-pruned masks; none if none does."""
    found = [method for method in summary["methods"] if method.startswith(UNPRUNED)]
    return ["original", *found] if found else []


def block(
    summary: dict,
    title: str,
    columns: list[Column],
    decimals: int,
    methods: list[str] | None = None,
) -> Block:
    """Fills a block; a method with nothing to show in any of the columns has no row.

    Args:
        summary: of the run.
        title: of the block.
        columns: what it shows.
        decimals: of a percentage.
        methods: its rows; default: all.
    """
    lines = []
    for method in summary["methods"] if methods is None else methods:
        cells = [_cell(summary, method, column, decimals) for column in columns]
        if any(cell.text != NOTHING for cell in cells):
            lines.append(Line(label(method), method in REFERENCES, cells))
    shown = [
        index
        for index, column in enumerate(columns)
        if column.kind != "disparity" or any(line.cells[index].text != NOTHING for line in lines)
    ]
    lines = [line._replace(cells=[line.cells[index] for index in shown]) for line in lines]
    return Block(title, [columns[index] for index in shown], lines)


def _cell(summary: dict, method: str, column: Column, decimals: int) -> Cell:
    key = sparsity_key(column.sparsity)
    if column.kind == "disparity":
        found = summary["disparity"].get(method, {}).get(key, {}).get(column.key)
        return _disparity_cell(summary, found, decimals) if found else Cell()
    figure = summary["cells"].get(method, {}).get(key, {}).get(column.key)
    if figure is None:
        return Cell()
    note = f"n = {figure['n']}"
    if column.kind == "seconds":
        return Cell(_seconds(figure["mean"])(figure["mean"]))  # one trial, timed several times
    if column.kind == "with pruning":
        pruning = summary["cells"][method][key].get("prune_seconds")
        total = figure["mean"] + pruning["mean"] if pruning else None
        return Cell() if total is None else Cell(_seconds(total)(total))
    if column.kind == "seconds ratio":
        retrained = summary["cells"].get("retrain", {}).get(key, {}).get(column.key)
        known = retrained and method != "original"
        return Cell(f"{figure['mean'] / retrained['mean']:.2f}") if known else Cell()
    if column.kind == "nats":
        return Cell(spread(figure, lambda nats: f"{nats:.3f}") + _count(summary, figure), note=note)
    shown = percent(decimals)
    if figure["diverged"]:
        note += f"; {figure['diverged']} trials diverged"
        if figure["mean_without_diverged"] is not None:
            note += f", mean without them {shown(figure['mean_without_diverged'])}"
    text = spread(figure, shown) + _count(summary, figure)
    gap = summary["gaps"].get(method, {}).get(key, {}).get("retrain", {}).get(column.key)
    if gap is None or method in (FLOOR, "retrain"):
        return Cell(text, note=note)
    mark = MARKS[gap["grade"]][gap["mean"] > 0] if gap["grade"] else ""
    note = f"gap to retrain {spread(gap, percent(decimals, '+'))}; {note}"
    return Cell(text, mark, gap["grade"], note)


def _disparity_cell(summary: dict, found: dict, decimals: int) -> Cell:
    shown = percent(decimals)
    text = shown(found["value"])
    if found["low"] is not None:
        text += f" [{shown(found['low'])}, {shown(found['high'])}]"
    text += _count(summary, found)
    note = f"n = {found['n']}"
    if found["within_floor"] is None:
        return Cell(text, note=note)
    if found["within_floor"]:
        return Cell(text, "≈", "within", f"within the noise floor; {note}")
    grade = "near" if found["value"] <= NEAR else "far"
    return Cell(text, "", grade, f"beyond the noise floor; {note}")


def percent(decimals: int, sign: str = "") -> Callable[[float], str]:
    """How a fraction is shown in percent."""
    return lambda fraction: f"{100 * fraction:{sign}.{decimals}f}"


def _seconds(scale: float) -> Callable[[float], str]:
    """Seconds to about three digits of the scale: 0.012, 3.14, 31.4, 1234."""
    decimals = 0 if scale >= 100 else 1 if scale >= 10 else 2 if scale >= 1 else 3
    return lambda value: f"{value:.{decimals}f}"


def spread(figure: dict, form: Callable[[float], str]) -> str:
    """`mean ± half-width`, or the mean alone where one trial gives no interval."""
    half = figure["half_width"]
    return form(figure["mean"]) + ("" if half is None else f" ± {form(half).lstrip('+')}")


def _count(summary: dict, figure: dict) -> str:
    """` (n)` where n is not the one that the header states for all."""
    return "" if figure["n"] == shared_count(summary) else f" ({figure['n']})"
