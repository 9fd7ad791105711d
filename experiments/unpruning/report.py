"""One page of everything that a workdir holds."""

import json
from pathlib import Path

from experiments.unpruning import plots, tables

ORDER = ("digits-MLP", "digits-CNN", "CIFAR-10")
DRAWN = (  # setting and deletion of the benches that are plotted, where they are there
    ("digits MLP", "class"),
    ("digits MLP", "random 30%"),
    ("digits CNN", "class"),
    ("digits CNN, filters", "class"),
    ("CIFAR-10 resnet20s", "class"),
    ("CIFAR-10 resnet18", "class"),
)


def write(folder: Path, into: Path) -> Path:
    """Writes ``unpruning.md`` and its plots; returns the page."""
    into.mkdir(parents=True, exist_ok=True)
    benches = _benches(folder)
    lines = [
        "# Un-pruning, measured",
        "",
        "Made by `python -m experiments.unpruning` with `digits`, `more`, `cifar` and `report`; "
        f"measured at commit {_commits(folder)}. Means ± half-widths of 95% intervals over seeds. "
        "M_o: the mask found on all data; M_r: found without the forget set; both from the same "
        "first weights, steps and order of rows. The seed floor is the IoU of two M_r whose rows "
        "came in other orders; G is the part of the way from M_o to the floor (to 1) that an arm "
        "goes.",
        "",
        *_ran(folder),
    ]
    if benches:
        lines += ["## T1. Does the deletion move the mask?", "", *tables.moved(benches)]
        for bench in (b for b in benches if "path" in b):
            lines += [f"{tables.title(bench)}:", "", *tables.by_leaf(bench)]
        lines += ["## T2, T4. What each arm does about the mask, and what it costs", ""]
        lines += [
            "Cost: gradient evaluations over those of R2 (dense and sparse retraining), what an "
            "unlearner inside the arm takes included, the training after the mask not. Stored: "
            "theta_0 and what was kept of the original's dense training. The sham and the placebo "
            "are un-prunings of nothing and of as many other rows.",
            "",
        ]
        for bench in benches:
            lines += [f"### {tables.title(bench)}", "", *tables.arms(bench)]
    told = [bench for bench in benches if "outputs" in bench]
    if told:
        lines += ["## T3. Outputs, against R2", ""]
        for bench in told:
            lines += [f"### {tables.title(bench)}", "", *tables.outputs(bench)]
    shown = [b for b in benches if "path" in b]
    if shown:
        lines += ["## Bounds beside the truth", ""]
        for bench in shown:
            if len(table := tables.bounds(bench)) > 3:
                lines += [f"### {tables.title(bench)}", "", *table]
        drawn = [b for b in shown if (b["masks"]["setting"], b["masks"]["deletion"]) in DRAWN]
        drawn = drawn or shown[:1]
        plots.against_epochs(drawn, into / "unpruning_epochs.png")
        plots.by_leaf(drawn, into / "unpruning_leaves.png")
        told = [b for b in drawn if any(a["errors"] for a in b["masks"]["arms"].values())]
        plots.of_bounds(told, into / "unpruning_bounds.png")
        lines += [
            "![IoU against K](unpruning_epochs.png)",
            "",
            "![IoU by leaf](unpruning_leaves.png)",
            "",
            "![bounds](unpruning_bounds.png)",
            "",
        ]
    lines += _single(folder, into)
    page = into / "unpruning.md"
    page.write_text("\n".join(lines).rstrip() + "\n")
    return page


def _commits(folder: Path) -> str:
    found = {json.loads(file.read_text()).get("made", {}).get("commit") for file in _files(folder)}
    return ", ".join(sorted(map(str, found)))


def _files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.glob("*.json")) if file.name != "ran.json"]


def _benches(folder: Path) -> list[dict]:
    found = []
    for file in _files(folder):
        content = json.loads(file.read_text())
        if "masks" in content:
            found.append((file.stem, content))
    rank = {name: place for place, name in enumerate(ORDER)}
    found.sort(
        key=lambda one: (min((p for n, p in rank.items() if n in one[0]), default=9), one[0])
    )
    return [content for _, content in found]


def _ran(folder: Path) -> list[str]:
    file = folder / "ran.json"
    if not file.exists():
        return []
    return [*(f"- {line}" for line in json.loads(file.read_text()).values()), ""]


def _single(folder: Path, into: Path) -> list[str]:
    lines = []
    for name, what in (
        ("paired-test", "ranked all together"),
        ("paired-test-leaf", "of each leaf as many"),
    ):
        if (file := folder / f"{name}.json").exists():
            lines += [
                f"## A pre-stated test: filters, {what}, of a BatchNorm CNN in minibatches, K a "
                "quarter",
                "",
                *tables.paired_test(json.loads(file.read_text())),
            ]
    if (file := folder / "free-masks.json").exists():
        found = json.loads(file.read_text())
        lines += [
            "## Control: masks that saw no data",
            "",
            "M_o against M_r and R1 against R2, the class deleted, after `unprune`; asserted for "
            f"SynFlow and random masks on all {len(found['seeds'])} seeds, with SNIP, which saw "
            "the rows, beside them.",
            "",
            *tables.controls(found),
        ]
    if (file := folder / "attack.json").exists():
        found = json.loads(file.read_text())
        plots.of_attack(found, into / "unpruning_attack.png")
        lines += [
            "## T5. The membership attack's hard label follows its pools",
            "",
            "Share of Df called non-member, median and range over seeds. The originals forgot "
            "nothing.",
            "",
            *tables.attack(found),
            "![attack](unpruning_attack.png)",
            "",
        ]
    return lines
