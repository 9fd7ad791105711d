"""The results as blocks of cells: what the terminal table and the HTML report have in common.

A block knows nothing of rich or HTML; its cells are finished text with a mark, a grade and a note.
"""

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
MARKS = {"within": "≈≈", "near": "▽△", "far": "▼▲"}  # below, above the target
NOTHING = "—"


class Column(NamedTuple):
    """One column of figures: what it shows of which arm."""

    heading: str  # columns with the same heading stand under it together
    kind: str  # "metric", "nats", "disparity", "seconds" or "with pruning"
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


def header(summary: dict) -> list[str]:
    """Two lines: what was run, and what a printed figure is; a third on an imported original."""
    config, over, n = summary["config"], summary["over"], shared_count(summary)
    network = config.get("model", {}).get("name", "")
    data = config.get("dataset", {}).get("name", "")
    imported = summary["manifest"].get("imported")
    pruning = f"by {config['prune']['method']}" if config.get("prune", {}).get("method") else ""
    if imported and imported["sparsity"]:
        pruning = "before it was imported"
    arms = ", ".join(arm_name(sparsity) for sparsity in summary["sparsities"])
    pruned = " sparse" if max(summary["sparsities"]) else ""
    pruned += f" (pruned {pruning})" if pruning and pruned else ""
    what = f"{summary['scenario']} forgetting"
    where = " on ".join(part for part in (network, data) if part)
    count = f"n = {n} {over} throughout" if n else "(n) beside each figure"
    if n == 1:
        count = f"n = 1 {over[:-2] if over == 'classes' else over[:-1]}: no interval"
    averaged = (
        "classes, seeds averaged within a class first"
        if over == "classes"
        else "trials, the data fixed"
    )
    return [
        ": ".join(part for part in (where, what) if part) + f"; {arms}{pruned}",
        f"Percent, mean ± half-width of the {100 * summary['level']:g}% interval (n); {count}; "
        f"intervals are over {averaged}.",
        *([_origin(imported)] if imported else []),
    ]


def _origin(imported: dict) -> str:
    """Where an imported original comes from, and what cannot be there for that."""
    line = f"The original was imported from {imported['file']}, the same for every trial"
    if not imported["sparsity"]:
        return line + "."
    return (
        f"{line}, pruned already: there is no dense original, and no retrain_repruned, for how its "
        "mask was found is not known."
    )


def legend(summary: dict) -> list[str]:
    """What the marks, the targets and the noise floor mean."""
    lines = [
        "Closer to retrain is better; a larger UA or MIA-Efficacy alone is not. Disparity: mean "
        "over UA, MIA-Efficacy, RA, TA of |difference of the means|."
    ]
    if any(floor["n"] > 1 for floor in summary["noise_floor"].values()):
        near = f"{100 * NEAR:g} points"
        lines.append(
            f"≈ within the noise floor: not told apart from retraining by {summary['units']} "
            f"{summary['over']}, so not ranked. △ ▽ above or below retrain by up to {near}, "
            "▲ ▼ by more."
        )
        lines.append(
            f"Noise floor: {FLOOR}, retraining once more with another seed; what chance alone "
            "does. Of the dense arm where the target is retrain_dense."
        )
    repeats = summary["config"].get("evaluate", {}).get("rte_repeats", "several")
    timing = f"RTE: median seconds of {repeats} runs of one trial alone, compiling left out."
    if max(summary["sparsities"]):
        timing += " RTE + pruning adds the seconds that made the sparse model from the dense one."
    if repeats == 0:
        timing = "RTE was not measured (evaluate.rte_repeats = 0)."
    if not max(summary["sparsities"]):
        return [*lines, "Target: retrain = retrained without the forget set.", timing]
    if unpruned(summary):
        lines += mask_legend(summary)
    return [
        *lines,
        "Targets: retrain = retrained without the forget set, the arm's own mask; retrain_dense = "
        "not pruned; retrain_repruned = mask found without the forget set.",
        timing,
    ]


def mask_legend(summary: dict) -> list[str]:
    """What the figures of masks are, and what chance alone does to them."""
    floors = [
        f"{arm_name(sparsity)}: {_spread(cell['mask_floor'], _percent(1))}"
        for sparsity in summary["sparsities"]
        if (cell := summary["cells"]["original"].get(sparsity_key(sparsity), {})).get("mask_floor")
    ]
    line = (
        "Masks are held against that of retrain_repruned; original is the mask that saw the forget "
        "set. Flips right: of the bits that un-pruning changed, those that the target has too; "
        "found: of the bits that should change, those it changed. KL(retrain_repruned || model), "
        "test rows."
    )
    if not floors:
        return [line]
    return [
        line,
        "Gain: 0 leaves the mask alone, 100 comes as near as the seed floor, the IoU of two such "
        f"retrainings whose rows came in other orders ({'; '.join(floors)}); above 100 it is "
        "nearer than that, for un-pruning shares the order of rows.",
    ]


def copies(summary: dict) -> str:
    """What was found of copies of forget images, in a sentence; "" where nobody looked."""
    found = summary["manifest"].get("duplicates")
    if not found:
        return ""
    most = {
        key: max(of_trial[key] for of_trial in found["trials"])
        for key in ("exact", "near", "exact_test", "near_test")
    }

    def said(exact: int, near: int) -> str:
        return f"{exact} exact" + (f", {near} near" if found["near_bits"] is not None else "")

    text = (
        "Copies of forget images, the most of any trial: in the retain set "
        f"{said(most['exact'], most['near'])}; in the test set "
        f"{said(most['exact_test'], most['near_test'])}."
    )
    if found["near_bits"] is None:
        return f"{text} Near copies were not looked for: {found['reason']}."
    text += f" Near: perceptual hashes at most {found['near_bits']} of 64 bits apart"
    flat = f"; {found['flat']} flat images not compared" if found["flat"] else ""
    return f"{text}{flat}."


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
    if column.kind == "nats":
        return Cell(
            _spread(figure, lambda nats: f"{nats:.3f}") + _count(summary, figure), note=note
        )
    percent = _percent(decimals)
    if figure["diverged"]:
        note += f"; {figure['diverged']} trials diverged"
        if figure["mean_without_diverged"] is not None:
            note += f", mean without them {percent(figure['mean_without_diverged'])}"
    text = _spread(figure, percent) + _count(summary, figure)
    gap = summary["gaps"].get(method, {}).get(key, {}).get("retrain", {}).get(column.key)
    if gap is None or method in (FLOOR, "retrain"):
        return Cell(text, note=note)
    mark = MARKS[gap["grade"]][gap["mean"] > 0] if gap["grade"] else ""
    note = f"gap to retrain {_spread(gap, _percent(decimals, '+'))}; {note}"
    return Cell(text, mark, gap["grade"], note)


def _disparity_cell(summary: dict, found: dict, decimals: int) -> Cell:
    percent = _percent(decimals)
    text = percent(found["value"])
    if found["low"] is not None:
        text += f" [{percent(found['low'])}, {percent(found['high'])}]"
    text += _count(summary, found)
    note = f"n = {found['n']}"
    if found["within_floor"] is None:
        return Cell(text, note=note)
    if found["within_floor"]:
        return Cell(text, "≈", "within", f"within the noise floor; {note}")
    grade = "near" if found["value"] <= NEAR else "far"
    return Cell(text, "", grade, f"beyond the noise floor; {note}")


def _percent(decimals: int, sign: str = "") -> Callable[[float], str]:
    return lambda fraction: f"{100 * fraction:{sign}.{decimals}f}"


def _seconds(scale: float) -> Callable[[float], str]:
    """Seconds to about three digits of the scale: 0.012, 3.14, 31.4, 1234."""
    decimals = 0 if scale >= 100 else 1 if scale >= 10 else 2 if scale >= 1 else 3
    return lambda value: f"{value:.{decimals}f}"


def _spread(figure: dict, form: Callable[[float], str]) -> str:
    """`mean ± half-width`, or the mean alone where one trial gives no interval."""
    half = figure["half_width"]
    return form(figure["mean"]) + ("" if half is None else f" ± {form(half).lstrip('+')}")


def _count(summary: dict, figure: dict) -> str:
    """` (n)` where n is not the one that the header states for all."""
    return "" if figure["n"] == shared_count(summary) else f" ({figure['n']})"
