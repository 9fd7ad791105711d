"""Table 4: what forgetting n source classes does to transfer.

A control must hold: a harmful class that is planted in the source is the one of most influence, in
at least 9 of 10 trials (``planted.py``). Tests, stated before they were run and told whichever way
they go, on seeds that nothing else uses (two-sided, paired over trials, level 0.05, n = 10; of the
largest n, linear probe): retrained without the harmful classes minus the model that knows all;
l1-sparse minus that model; retrained without harmful minus retrained without random classes.
"""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from configs import cifar10_resnet20s_transfer, digits_transfer, imagenet_resnet18_transfer
from experiments.paper import printed
from experiments.paper.runs import Done, Planned, planned
from experiments.paper.tables import grid, half_width, paired, shown

SEED = 2000  # of the trials that are reported
TARGETS = {"oxford_iiit_pet": "OxfordPets", "sun397/tfds": "SUN397"}
PRINTED = {"retrain": "Method [51] (retrain)", "l1_sparse": "l1-sparse MU"}
STAND_IN = (
    "A stand-in: other data, another network and other classes than the paper's. What is printed "
    "there stands beside it for its shape, not its size."
)


def plans(preset: str, data_dir: str) -> list[Planned]:
    """One run for each target, way of choosing and number of classes."""
    if preset == "paper":
        start = imagenet_resnet18_transfer.get_config()
        where = {"dataset.data_dir": data_dir, "transfer.data_dir": data_dir, "seed": SEED}
        return [
            planned(
                f"{name}-random-{n}",
                start,
                where | {"transfer.dataset": target, "transfer.count": n},
            )
            for target, name in TARGETS.items()
            for n in (100, 200, 300)
        ]
    if preset == "smoke":
        start, given, target = digits_transfer.get_config(), {}, "digits"
        given = {"forget.classes": (), "prune.sparsities": (), "transfer.subsets": 32}
    else:
        start, target = cifar10_resnet20s_transfer.get_config(), "cifar10"
        given = {
            "trials": 3,
            "dataset.data_dir": data_dir,
            "transfer.data_dir": data_dir,
            "dataset.limit": 2000,
            "transfer.limit": 2000,
            "transfer.subsets": 12,
            "train.epochs": 6,
            "prune.rewind_epoch": 0,
            "unlearn.methods": ("finetune", "l1_sparse"),
            "unlearn.finetune.epochs": 2,
            "unlearn.l1_sparse.epochs": 2,
            "transfer.finetune_epochs": 2,
        }
    return [
        planned(
            f"{target}-{choose}-{n}",
            start,
            given | {"seed": SEED, "transfer.choose": choose, "transfer.count": n},
        )
        for choose in ("influence", "random")
        for n in (1, 2)
    ]


def tests(runs: dict[str, Done]) -> list[str]:
    """The pre-stated tests, of the largest n."""
    by_choice = {choose: run for choose, run in ((_choice(run), run) for run in runs.values())}
    harmful, other = by_choice.get("influence"), by_choice.get("random")
    if harmful is None or other is None:
        return ["- No harmful classes were chosen, so nothing was tested."]
    n = harmful.flat["transfer.count"]
    known = harmful.by_trial("original", 0.0, "probe_accuracy")
    without, sparse = (
        harmful.by_trial(method, 0.0, "probe_accuracy") for method in ("retrain", "l1_sparse")
    )
    by_chance = other.by_trial("retrain", 0.0, "probe_accuracy")
    return [
        paired(f"Retrained without the {n} harmful classes minus n = 0", without, known),
        paired(f"l1-sparse of the {n} harmful classes minus n = 0", sparse, known),
        paired(f"Retrained without {n} harmful minus without {n} random", without, by_chance),
    ]


def _target(name: str) -> str:
    """Of a run."""
    return name.split("-")[0]


def _choice(run: Done) -> str:
    return run.flat["transfer.choose"]


def page(runs: dict[str, Done], title: str, picture: str, planted: list[str]) -> list[str]:
    """The table as Markdown; ``planted`` says what came of a planted class, if there is one."""
    lines = [f"# Table 4: transfer after forgetting, {title}", ""]
    if not {_target(name) for name in runs} <= set(TARGETS.values()):
        lines += [STAND_IN, ""]
    lines += [f"![]({picture})", ""]
    lines += ["## Control: a planted harmful class", "", *planted, ""] if planted else []
    lines += ["## Pre-stated tests (linear probe)", "", *tests(runs), ""]
    lines += [
        "## All rows",
        "",
        "Accuracy on the target's test rows in percent, mean ± half-width of the 95% interval over "
        "trials; source TA: on the source's test rows of classes that are left, at n = 0 of all; "
        "seconds of one unlearning over those of retraining; what the paper prints for its own "
        "setting: accuracy, and minutes over retraining's.",
        "",
    ]
    head = ("target", "classes", "n", "method", "linear probe", "fine-tuned", "source TA")
    head = (*head, "time / retrain's", "paper: accuracy", "paper: time / retrain's")
    rows, with_all = [], set()  # targets whose row of n = 0 is there
    for name, run in runs.items():
        target, n = _target(name), run.flat["transfer.count"]
        seconds = np.mean(run.values("retrain", 0.0, "rte_seconds") or [np.nan])
        for method in run.summary["methods"]:
            is_all = method == "original"
            if method == "retrain_reseeded" or (is_all and target in with_all):
                continue
            if is_all:
                with_all.add(target)
            count = 0 if is_all else n
            own = np.mean(run.values(method, 0.0, "rte_seconds") or [np.nan])
            paper = _printed(target, method, count)
            rows.append(
                (
                    target,
                    "—" if is_all else _choice(run),
                    str(count),
                    method,
                    shown(run.values(method, 0.0, "probe_accuracy")),
                    shown(run.values(method, 0.0, "tuned_accuracy"))
                    if run.flat["transfer.finetune_epochs"]
                    else "—",
                    shown(run.values(method, 0.0, "ta_all" if is_all else "ta")),
                    f"{own / seconds:.2f}" if np.isfinite(own / seconds) else "—",
                    *paper,
                )
            )
    lines += grid(head, rows)
    lines += ["## What the paper prints (ImageNet, ResNet-18, linear probe)", ""]
    return lines + _paper_table()


def _printed(target: str, method: str, n: int) -> tuple[str, str]:
    """Accuracy and time over retraining's that the paper prints for that n; dashes elsewhere."""
    if target not in TARGETS.values():
        return "—", "—"
    cells = printed.cells("Table 4", f"ImageNet->{target}/ResNet-18/linear probing")
    known = cells.get((PRINTED.get(method, ""), f"n={n}", "Acc"))
    if method == "original":
        known = cells.get(("pretrained on full ImageNet", "n=0", "Acc"))
    own = cells.get((PRINTED.get(method, ""), f"n={n}", "Time_min"))
    whole = cells.get((PRINTED["retrain"], f"n={n}", "Time_min"))
    ratio = f"{own / whole:.2f}" if own and whole else "—"
    return (f"{known:.2f}" if known else "—"), ratio


def _paper_table() -> list[str]:
    rows = []
    for target in TARGETS.values():
        cells = printed.cells("Table 4", f"ImageNet->{target}/ResNet-18/linear probing")
        for (method, variant, metric), value in cells.items():
            if metric == "Acc":
                minutes = cells.get((method, variant, "Time_min"))
                shown_minutes = "—" if minutes is None else f"{minutes:.2f}"
                rows.append((target, variant, method, f"{value:.2f}", shown_minutes))
    return grid(("target", "n", "method", "accuracy, %", "minutes"), rows)


def draw(runs: dict[str, Done], path: Path) -> None:
    """Probe accuracy and its interval against n: retrained, l1-sparse; harmful, random classes."""
    targets = sorted({_target(name) for name in runs})
    figure = Figure(figsize=(4.6 * len(targets), 3.4), layout="constrained")
    for column, target in enumerate(targets):
        axes = figure.add_subplot(1, len(targets), column + 1)
        own = {name: run for name, run in runs.items() if _target(name) == target}
        first = next(iter(own.values()))
        known = (0, first.values("original", 0.0, "probe_accuracy"))
        shift = -3.0  # of the widest n in percent, so that no bar hides another
        for method, colour in (("retrain", "#000000"), ("l1_sparse", "#D55E00")):
            for choose, style in (("influence", "-"), ("random", ":")):
                found = sorted(
                    (run.flat["transfer.count"], run)
                    for run in own.values()
                    if _choice(run) == choose
                )
                if not found:
                    continue
                points = [(n, run.values(method, 0.0, "probe_accuracy")) for n, run in found]
                at = np.array([n for n, _ in (known, *points)], float)
                values = [of_trials for _, of_trials in (known, *points)]
                label = f"{method}, {'harmful' if choose == 'influence' else 'random'}"
                axes.errorbar(
                    at + shift / 100 * at.max(), [100 * np.mean(of) for of in values],
                    [100 * half_width(of) for of in values], color=colour, linestyle=style,
                    marker="o", markersize=4, capsize=2, linewidth=1.3, label=label,
                )  # fmt: skip
                shift += 2.0
        axes.set_xticks([0, *sorted({run.flat["transfer.count"] for run in own.values()})])
        axes.set_xlabel("n, source classes forgotten")
        axes.set_ylabel("linear probe, %")
        axes.set_title(target, fontsize=9)
        axes.grid(axis="y", color="#e3e3e3", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    FigureCanvasAgg(figure).print_figure(path, dpi=110, metadata={"Software": None})
