"""The HTML report of a run: one self-contained file, the same bytes for the same summary."""

import io
import json
import os
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from sparse_mu.blocks import (
    Block,
    Column,
    arm_name,
    block,
    disparity_columns,
    extras,
    label,
    metric_columns,
    seconds_columns,
    unpruned,
)
from sparse_mu.captions import copies, header, legend
from sparse_mu.checkpoint import write_atomically
from sparse_mu.reading import reading
from sparse_mu.summary_words import FLOOR, METHOD_ORDER, NEAR, REFERENCES, sparsity_key

PANELS = {  # title: key in a cell, or "disparity"
    "UA, %": "ua",
    "RA, %": "ra",
    "TA, %": "ta",
    "MIA-Efficacy, %": "mia_efficacy",
    "MIA-AUC, %": "mia_auc",
    "TA of the worst class, %": "ta_worst_class",
    "MIA-Privacy rate, %": "mia_privacy_rate",
    "Disparity to retrain, points": "disparity",
    "ASR, %": "asr",
    "Linear probe on the target, %": "probe_accuracy",
    "Mask: IoU with retrain_repruned, %": "mask_iou",
    "RTE, s (log scale)": "rte_seconds",
}
GLOSSARY = {
    "original": "The model trained on all data, before anything is forgotten.",
    "retrain": "Trained again without the forget set, with the mask of its own arm: exact "
    "unlearning, and the target that the tables and the plots compare with.",
    "retrain_dense": "The same, not pruned.",
    "retrain_repruned": "The same, with a mask found without ever seeing the forget set.",
    "noise floor": "retrain_reseeded: a second retraining with another seed. Its distance to "
    "retrain is what chance alone does; a method within it is not ranked.",
    "UA": "Unlearning accuracy: 1 - accuracy on the forget set.",
    "RA, TA": "Accuracy on the retain set; on the test set (class-wise: the retained classes).",
    "MIA-Efficacy": "Share of the forget set that a membership attack takes for unseen data.",
    "MIA-AUC": "Forget against test rows by margin, area under the curve; 50% is guessing, "
    "class-wise 0% says that the class is rejected.",
    "MIA-Privacy rate": "Share of the retain set that the attack takes for seen; lower leaks less.",
    "Disparity": "Mean over UA, MIA-Efficacy, RA and TA of |difference of the means|; its interval "
    "resamples whole trials or classes.",
    "IoU": "Kept entries that two masks share, over those that either keeps; beyond chance: 0 for "
    "independent masks of the same density in every layer, 100 for equal ones.",
    "Flips": "Bits that un-pruning changed: how many of them the target has too (right), and how "
    "many of those that should change it changed (found).",
    "KL": "KL(retrain_repruned || model), the mean over test rows.",
    "ASR": "Attack success rate: share of triggered test images, not of the wanted class, that are "
    "classified as the attacker wants; without trigger: the same share of those images clean.",
    "Linear probe, fine-tuned": "Accuracy on the test rows of the target data set: of a linear "
    "classifier on frozen features, and of the model after all its weights were trained there.",
    "SA": "Standard accuracy: on clean test images.",
    "RTE": "Run time of one unlearning alone, without compilation and without pruning.",
    "Diverged": "A trial that lost finite numbers; it counts at its last finite state.",
    "Halved": "Memory was short: fewer trials or rows were worked on at a time than asked for, "
    "here or where it comes from. Equal to a run with enough up to rounding.",
}
# Okabe and Ito's palette; a marker of its own for every method, so colour never stands alone.
STYLES = (
    ("#0072B2", "o"),
    ("#E69F00", "^"),
    ("#CC79A7", "v"),
    ("#009E73", "D"),
    ("#D55E00", "P"),
    ("#56B4E9", "X"),
    ("#B8A800", "*"),
)
REFERENCE_STYLES = {
    "original": {"color": "#888888", "marker": "x", "linestyle": ":"},
    "retrain": {"color": "#000000", "marker": "s", "linestyle": "-", "linewidth": 2.2},
    "retrain_repruned": {
        "color": "#000000",
        "marker": "s",
        "markerfacecolor": "#ffffff",
        "linestyle": "-.",
    },
    FLOOR: {"color": "#555555", "marker": "_", "linestyle": "--", "linewidth": 1.6},
}


class Panel(NamedTuple):
    """One plot: its title and its drawing."""

    title: str
    svg: Markup


def write_report(summary: dict, rows: list[dict], path: str | os.PathLike) -> None:
    """Writes the report atomically: a reader sees the old file or the new one, never half of it.

    Args:
        summary: what `summarise` returned.
        rows: the rows it was made from; shown one by one.
        path: the HTML file.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = [method for method in summary["methods"] if method != "retrain_dense"]
    page = environment.get_template("report.html.jinja").render(
        arm_name=arm_name,
        header=header(summary),
        reading=reading(summary),
        warnings=summary["warnings"],
        tables=[(filled, _groups(filled)) for filled in _tables(summary)],
        legend=legend(summary),
        copies=copies(summary),
        pictures=_pictures(summary["manifest"]),
        near=f"{100 * NEAR:g}",
        panels=_panels(summary, drawn),
        keys=[(label(method), _key(method, summary["methods"])) for method in drawn],
        over=summary["over"],
        rows=rows,
        halved=any(row.get("halved") for row in rows),
        glossary=GLOSSARY,
        config=_json(summary["config"]),
        manifest=_json(_without_pictures(summary["manifest"])),
    )
    write_atomically(Path(path), page)


def _json(shown: dict) -> str:
    return json.dumps(shown, indent=2, sort_keys=True, ensure_ascii=False)


def _without_pictures(manifest: dict) -> dict:
    """The manifest without its pictures, which are shown as such."""
    told = manifest.get("trojan")
    if not told:
        return manifest
    return manifest | {"trojan": {k: v for k, v in told.items() if k != "pictures"}}


def _pictures(manifest: dict) -> list[tuple[str, str]]:
    """Test images before and after the trigger, as base64 of PNG files; none where none are."""
    told = manifest.get("trojan") or {}
    return [(before, after) for before, after in told.get("pictures", [])]


def _tables(summary: dict) -> list[Block]:
    """Tables with dense and sparse side by side, or one for each arm if there are more."""
    sparsities = summary["sparsities"]
    together = [sparsities] if len(sparsities) <= 2 else [[sparsity] for sparsity in sparsities]
    more = [
        filled
        for extra in extras(summary)
        for arms in together
        if (filled := block(summary, extra.title, extra.columns(arms), 2, extra.methods)).lines
    ]
    if len(sparsities) <= 2:
        return [
            block(summary, "Percent", metric_columns(sparsities), 2),
            block(summary, "Disparity, points [interval]; cost", _others(sparsities), 2),
            *more,
        ]
    return more + [
        block(
            summary,
            f"{arm_name(sparsity)}: percent; disparity, points [interval]; cost",
            [*metric_columns([sparsity]), *_others([sparsity])],
            2,
        )
        for sparsity in sparsities
    ]


def _others(sparsities: list[float]) -> list[Column]:
    """The columns after the metrics, with headings that say what they are without a title."""
    to = [
        column._replace(heading=f"to {column.heading}") for column in disparity_columns(sparsities)
    ]
    rte = [
        column._replace(heading=f"{column.heading}, s") for column in seconds_columns(sparsities)
    ]
    return [*to, *rte]


def _groups(filled: Block) -> list[tuple[str, int]]:
    """The headings of a block and how many columns stand under each."""
    return [
        (heading, len(list(columns)))
        for heading, columns in groupby(filled.columns, lambda column: column.heading)
    ]


def _style(method: str, methods: Sequence[str]) -> dict:
    if method in REFERENCE_STYLES:
        return {"markersize": 5, "linewidth": 1.2, **REFERENCE_STYLES[method]}
    known = [name for name in METHOD_ORDER if name not in REFERENCES]
    others = [name for name in methods if name not in METHOD_ORDER]
    colour, marker = STYLES[(known + others).index(method) % len(STYLES)]
    return {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.4}


def _panels(summary: dict, drawn: Sequence[str]) -> list[Panel]:
    panels = []
    for title, metric in PANELS.items():
        if metric.startswith("mask_") and not unpruned(summary):
            continue  # all methods have one mask
        figure = Figure(figsize=(3.9, 2.7), layout="constrained")
        axes = figure.add_subplot()
        sparsities = summary["sparsities"]
        for index, method in enumerate(drawn):
            if metric == "disparity" and method == "original":
                continue  # about 50 points: it would flatten every method
            offset = 0.5 * (index - (len(drawn) - 1) / 2) / len(drawn)
            _line(axes, summary, method, metric, offset)
        if not axes.lines:
            continue
        axes.set_xticks(range(len(sparsities)), [arm_name(sparsity) for sparsity in sparsities])
        axes.set_xlim(-0.5, len(sparsities) - 0.5)
        axes.set_xlabel("sparsity")
        if metric == "rte_seconds":
            axes.set_yscale("log")
        axes.grid(axis="y", color="#e3e3e3", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        panels.append(Panel(title, _svg(figure, metric, f"{title} against sparsity")))
    return panels


def _line(axes: Axes, summary: dict, method: str, metric: str, offset: float) -> None:
    """One method's figures against sparsity, each with its interval."""
    scale = 1 if metric == "rte_seconds" else 100
    positions, middles = [], []
    style = _style(method, summary["methods"])
    for position, sparsity in enumerate(summary["sparsities"]):
        key = sparsity_key(sparsity)
        if metric == "disparity":
            found = summary["disparity"][method].get(key, {}).get("retrain")
            ends = (found["low"], found["high"]) if found else (None, None)
            middle = found["value"] if found else None
        else:
            found = summary["cells"][method].get(key, {}).get(metric)
            middle = found["mean"] if found else None
            half = found["half_width"] if found else None
            ends = (None, None) if half is None else (middle - half, middle + half)
        if middle is None:
            continue
        if method == FLOOR and metric == "disparity" and ends[1] is not None:
            axes.bar(position, scale * ends[1], width=0.8, color="#e6e6e6", zorder=0)
        elif ends[0] is not None:
            low, high = scale * ends[0], scale * ends[1]
            axes.vlines(position + offset, low, high, color=style["color"], linewidth=1.2)
        positions.append(position + offset)
        middles.append(scale * middle)
    if positions:
        axes.plot(positions, middles, **style)


def _key(method: str, methods: Sequence[str]) -> Markup:
    """A sample of a method's line for the shared legend."""
    figure = Figure(figsize=(0.5, 0.2))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.plot([0, 1, 2], [0, 0, 0], markevery=[1], **_style(method, methods))
    axes.set_axis_off()
    return _svg(figure, f"key {method}", "")


def _svg(figure: Figure, name: str, description: str) -> Markup:
    """A figure as inline SVG, without what only a file needs; its ids are hashed with the name."""
    stream = io.StringIO()
    settings = {"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 9}
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context(settings):
        FigureCanvasSVG(figure).print_svg(stream, metadata=nothing)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    hidden = 'role="img" aria-label="' + description + '"' if description else 'aria-hidden="true"'
    return Markup(text.replace("<svg ", f"<svg {hidden} ", 1).strip())
