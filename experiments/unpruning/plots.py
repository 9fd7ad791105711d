"""The plots of a sweep, as PNG files."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

COLOURS = {"difference": "#0072B2", "projected": "#009E73", "rewind": "#D55E00"}
GREY = "#777777"


def _figure(count: int, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.4 * columns, height * rows), layout="constrained")
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(axis="y", color="#e3e3e3", linewidth=0.7)
        one.set_axisbelow(True)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    with matplotlib.rc_context({"font.size": 9}):
        FigureCanvasAgg(figure).print_figure(path, dpi=110, metadata={"Software": None})


def against_epochs(benches: list[dict], path: Path) -> None:
    """IoU with the retrained mask against K, with the no-op line and the seed floor."""
    figure, axes = _figure(len(benches))
    for one, bench in zip(axes, benches, strict=True):
        found, told = bench["masks"], bench["path"]
        for name, colour in COLOURS.items():
            if name not in told:
                continue
            values = np.array(told[name])  # [K, seeds]
            mean, spread = values.mean(axis=1), values.std(axis=1, ddof=1)
            one.plot(told["epochs"], mean, color=colour, marker="o", markersize=3, label=name)
            one.fill_between(
                told["epochs"], mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0
            )
        if "regrow" in told:
            mean = np.array(told["regrow"]).mean(axis=1)
            style = {"color": "#CC79A7", "marker": "x", "markersize": 4, "linewidth": 1}
            one.plot(told["regrow_epochs"], mean, label="regrow (all, clip)", **style)
        kept, floor = (np.mean(v) for v in (found["arms"]["no-op"]["iou"], found["floor"]))
        one.axhline(kept, color=GREY, linestyle="--", linewidth=1.2, label="mask kept (no-op)")
        one.axhline(floor, color="black", linestyle=":", linewidth=1.2, label="seed floor")
        one.set_title(f"{found['setting']}, {found['deletion']}", fontsize=9)
        one.set_xlabel("K, epochs of dense training on Dr")
        one.set_ylabel("IoU with the retrained mask")
    axes[0].legend(frameon=False, fontsize=8)
    _save(figure, path)


def of_bounds(benches: list[dict], path: Path) -> None:
    """Flipped bits beside what the theorems allow, for every arm with an estimate."""
    figure, axes = _figure(len(benches))
    marks = {"band": "o", "absolute": "^", "square": "v", "widest_band": "s"}
    labels = {
        "band": "(i) entry by entry",
        "absolute": "(ii) L1",
        "square": "(ii) L2",
        "widest_band": "(i) by max |e|",
    }
    for one, bench in zip(axes, benches, strict=True):
        arms = {n: a["errors"] for n, a in bench["masks"]["arms"].items() if a["errors"]}
        arms = {n: e for n, e in arms.items() if np.mean(e["flips"])}  # the axes are logarithmic
        flips = np.array([np.mean(errors["flips"]) for errors in arms.values()])
        for key, mark in marks.items():
            values = [np.mean(errors[key]) for errors in arms.values()]
            one.scatter(flips, values, marker=mark, s=22, label=labels[key], alpha=0.8)
        line = np.array([flips.min(), flips.max()])
        one.plot(line, line, color="black", linewidth=1, label="h itself")
        one.set_xscale("log")
        one.set_yscale("log")
        one.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        one.xaxis.set_minor_formatter(NullFormatter())
        one.set_title(f"{bench['masks']['setting']}, {bench['masks']['deletion']}", fontsize=9)
        one.set_xlabel("bits that differ, h")
        one.set_ylabel("bound on h")
    axes[0].legend(frameon=False, fontsize=8)
    _save(figure, path)


def by_leaf(benches: list[dict], path: Path) -> None:
    """How alike the original's mask and the retrained one are, leaf by leaf."""
    figure, axes = _figure(len(benches), 3.4)
    for one, bench in zip(axes, benches, strict=True):
        told = bench["masks"]["moved"]
        names = list(told["by_leaf"])
        place = np.arange(len(names))
        for offset, key, colour, label in (
            (-0.2, "by_leaf", "#0072B2", "IoU(M_o, M_r)"),
            (0.2, "floor_by_leaf", "#BBBBBB", "seed floor"),
        ):
            values = np.array([told[key][name] for name in names])
            one.bar(
                place + offset,
                values.mean(axis=1),
                0.38,
                yerr=values.std(axis=1, ddof=1),
                color=colour,
                label=label,
                error_kw={"linewidth": 0.8},
            )
        short = [name.removesuffix("/kernel") for name in names]
        one.set_xticks(place, short, fontsize=8)
        if len(names) > 6:
            one.set_xticks(place, short, rotation=60, ha="right", rotation_mode="anchor")
        one.set_ylim(0, 1)
        one.set_title(f"{bench['masks']['setting']}, {bench['masks']['deletion']}", fontsize=9)
    axes[0].set_ylabel("IoU, ± standard deviation over seeds")
    axes[0].legend(fontsize=8, loc="lower left", framealpha=0.9)
    _save(figure, path)


def of_attack(found: dict, path: Path) -> None:
    """The hard label against the shadow pools, every seed, and the AUC that does not move."""
    figure, axes = _figure(len(found["by_ratio"]))
    for one, (name, seeds) in zip(axes, found["by_ratio"].items(), strict=True):
        place = np.arange(len(found["ratios"]))
        for seed, told in zip(found["seeds"], seeds, strict=True):
            one.plot(place, told["nonmember"], marker="o", markersize=3, label=f"seed {seed}")
        aucs = [told["auc"] for told in seeds]
        one.axhspan(min(aucs), max(aucs), color="#dddddd", zorder=0)
        one.text(0, max(aucs) + 0.02, "AUC, all seeds", fontsize=8, color="#555555")
        one.set_xticks(place, found["ratios"], fontsize=8, rotation=20)
        one.set_ylim(-0.03, 1.03)
        one.set_title(name, fontsize=9)
        one.set_xlabel("shadow members : non-members")
    axes[0].set_ylabel("share of Df called non-member")
    axes[-1].legend(frameon=False, fontsize=8)
    _save(figure, path)
