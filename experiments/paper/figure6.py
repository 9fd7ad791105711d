"""Figure 6: how often a Trojan still works, and accuracy on clean images, against sparsity.

Controls, which must hold: the original's ASR is at least 95% at every sparsity, and the ASR of the
retrained model exceeds the rate at which it calls the same images, clean, the target by at most 3
points. Tests, stated before they were run and told whichever way they go, on seeds that nothing
else uses (two-sided, paired over trials, level 0.05, n = 10; of OMP at the highest sparsity):

1. ASR after fine-tuning: sparse minus dense. The paper: it falls with sparsity.
2. ASR of the dense model: l1-sparse minus fine-tuning. The paper: l1-sparse removes the Trojan.
3. SA: fine-tuned sparse minus original sparse. The paper: it is kept.
"""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from configs import cifar10_resnet18_trojan, cifar10_resnet20s, digits_trojan
from experiments.paper.runs import Done, Planned, planned
from experiments.paper.tables import grid, half_width, paired, pairs, shown
from sparse_mu.statistics import paired_difference

SEED = 1000  # of the trials that are reported
LEAST_ASR, MOST_EXCESS = 0.95, 0.03
PAPER = (
    "The figure's axes are not in the paper's text. It says: with 10% of the training rows "
    "poisoned the original's ASR is 100% at every sparsity; after fine-tuning it falls, most of "
    "all from 90% sparsity on; l1-sparse removes the Trojan of the dense model; SA is kept."
)
COLOURS = {"original": "#888888", "finetune": "#0072B2", "l1_sparse": "#D55E00", "retrain": "#000"}


def plans(preset: str, data_dir: str) -> list[Planned]:
    """One run for each way of pruning."""
    if preset == "smoke":
        given = {"seed": SEED, "evaluate.rte_repeats": 0}
        return [
            planned(method, digits_trojan.get_config(), given | {"prune.method": method})
            for method in ("omp", "synflow")
        ]
    if preset == "laptop":
        given = {
            "seed": SEED,
            "trials": 2,
            "dataset.data_dir": data_dir,
            "dataset.limit": 2000,
            "forget.scenario": "trojan",
            "trojan.trigger": "black_square",
            "train.epochs": 5,
            "train.batch_size": 64,
            "prune.rewind_epoch": 0,
            "unlearn.methods": ("finetune", "l1_sparse"),
            "unlearn.finetune.epochs": 2,
            "unlearn.l1_sparse.epochs": 2,
            "evaluate.rte_repeats": 0,
        }
        return [planned("omp", cifar10_resnet20s.get_config(), given)]
    return [
        planned(
            method,
            cifar10_resnet18_trojan.get_config(),
            {"seed": SEED, "dataset.data_dir": data_dir, "prune.method": method},
        )
        for method in ("omp", "synflow")
    ]


def sparsities(run: Done) -> list[float]:
    """Of the run's arms, dense first."""
    return [0.0, *(s for s in sorted(run.flat["prune.sparsities"]) if s)]


def controls(runs: dict[str, Done]) -> list[tuple[str, bool]]:
    """Each control in words, and whether it holds."""
    found = []
    for name, run in runs.items():
        for sparsity in sparsities(run):
            where = f"{name}, {f'{100 * sparsity:g}% sparse' if sparsity else 'dense'}"
            asr = run.values("original", sparsity, "asr")
            found.append((f"{where}: ASR of the original {shown(asr)}%", np.mean(asr) >= LEAST_ASR))
            both = (run.by_trial("retrain", sparsity, key) for key in ("asr", "false_target"))
            excess = paired_difference(*pairs(*both))
            found.append(
                (
                    f"{where}: retrained, ASR over the same images' rate without the trigger "
                    f"{100 * excess.mean:+.2f} ± {100 * excess.half_width:.2f} points",
                    excess.mean <= MOST_EXCESS,
                )
            )
    return found


def tests(run: Done) -> list[str]:
    """The pre-stated tests of one run."""
    most = sparsities(run)[-1]
    return [
        paired(
            f"ASR after fine-tuning, {100 * most:g}% sparse minus dense",
            run.by_trial("finetune", most, "asr"),
            run.by_trial("finetune", 0.0, "asr"),
        ),
        paired(
            "ASR of the dense model, l1-sparse minus fine-tuning",
            run.by_trial("l1_sparse", 0.0, "asr"),
            run.by_trial("finetune", 0.0, "asr"),
        ),
        paired(
            f"SA, {100 * most:g}% sparse, fine-tuned minus original",
            run.by_trial("finetune", most, "ta"),
            run.by_trial("original", most, "ta"),
        ),
    ]


def beside(run: Done) -> str:
    """What was not stated before: whether the mask remembers the Trojan when the weights cannot."""
    most = sparsities(run)[-1]
    found = paired(
        f"ASR at {100 * most:g}%, retrained under the mask found with the poison minus retrained "
        "with a mask found without it",
        run.by_trial("retrain", most, "asr"),
        run.by_trial("retrain_repruned", most, "asr"),
    )
    return f"{found} Not stated before it was seen."


def page(runs: dict[str, Done], title: str, picture: str) -> list[str]:
    """The figure as Markdown."""
    lines = [f"# Figure 6: cleansing a Trojan, {title}", "", PAPER, "", f"![]({picture})", ""]
    lines += ["## Controls", ""]
    lines += [f"- {'holds' if holds else 'FAILS'}: {what}" for what, holds in controls(runs)]
    first = next(iter(runs.values()))
    lines += ["", "## Pre-stated tests (OMP)", "", *tests(first), beside(first), ""]
    for name, run in runs.items():
        told = run.summary["manifest"]["trojan"]
        lines += [
            f"## {name}: {told['trigger']}, {run.flat['trials']} trials",
            "",
            "Percent, mean ± half-width of the 95% interval over trials. ASR: of test images of "
            "other classes; without: the same images without the trigger; SA: clean test images.",
            "",
        ]
        head = ("method", "sparsity", "ASR", "ASR, all images", "without", "SA", "UA", "RA")
        keys = ("asr", "asr_all", "false_target", "ta", "ua", "ra")
        rows = []
        for method in run.summary["methods"]:
            for s in sparsities(run):
                if run.values(method, s, "asr"):
                    arm = f"{100 * s:g}%" if s else "dense"
                    rows.append((method, arm, *(shown(run.values(method, s, k)) for k in keys)))
        lines += grid(head, rows)
    return lines


def draw(runs: dict[str, Done], path: Path) -> None:
    """ASR on the left, SA on the right, against sparsity; a row for each way of pruning."""
    figure = Figure(figsize=(8.4, 3.2 * len(runs)), layout="constrained")
    for row, (name, run) in enumerate(runs.items()):
        for column, (key, label) in enumerate((("asr", "ASR, %"), ("ta", "SA, %"))):
            axes = figure.add_subplot(len(runs), 2, 2 * row + column + 1)
            for method, colour in COLOURS.items():
                at = [0.0] if method == "l1_sparse" else sparsities(run)
                values = [run.values(method, s, key) for s in at]
                if not all(values):
                    continue
                mean = [100 * np.mean(v) for v in values]
                half = [100 * half_width(v) for v in values]
                mark = "*" if method == "l1_sparse" else "o"
                axes.errorbar(
                    [100 * s for s in at], mean, half, color=colour, marker=mark, label=method,
                    markersize=9 if mark == "*" else 4, capsize=2, linewidth=1.3,
                )  # fmt: skip
            if key == "asr":
                clean = [100 * np.mean(run.values("retrain", s, "false_target"))
                         for s in sparsities(run)]  # fmt: skip
                axes.plot([100 * s for s in sparsities(run)], clean, color="#000", linestyle=":",
                          linewidth=1, label="retrain, without trigger")  # fmt: skip
                axes.set_ylim(-3, 103)
            axes.set_xlabel("sparsity, %")
            axes.set_ylabel(label)
            axes.set_title(name, fontsize=9)
            axes.grid(axis="y", color="#e3e3e3", linewidth=0.7)
            axes.spines[["top", "right"]].set_visible(False)
            if row == column == 0:
                axes.legend(frameon=False, fontsize=8)
    FigureCanvasAgg(figure).print_figure(path, dpi=110, metadata={"Software": None})
