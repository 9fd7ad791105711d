"""The papers' tables run here: printed values, pages, controls that can fail."""

import subprocess
import sys

import numpy as np
import pytest
from test_every_choice import ONE_EPOCH, SHRUNK

from configs import digits_transfer, digits_trojan
from experiments.paper import figure6, planted, printed, table4, tables
from experiments.paper.runs import Done, perform, planned
from sparse_mu.builders import build_choice, build_data
from sparse_mu.signals import Signals

ONCE = ONE_EPOCH | {"unlearn.methods": ("finetune", "l1_sparse"), "dataset.limit": 300}


def test_printed_cells():
    cells = printed.cells("Table 4", "ImageNet->OxfordPets/ResNet-18/linear probing")
    assert cells["pretrained on full ImageNet", "n=0", "Acc"] == 85.7
    assert cells["l1-sparse MU", "n=300", "Time_min"] == 26.49
    assert cells["Method [51] (retrain)", "n=100", "Time_min"] == 71.84
    table3 = printed.cells("Table 3", "CIFAR-10/ResNet-18/class-wise")
    assert table3["FT", "95%", "UA"] == 73.64


def done(cells, sparsities=(0.9,), **flat):
    """Rows of three trials, by (method, sparsity): a metric's values."""
    rows = [
        {"method": method, "sparsity": s, "trial": t}
        | {key: values[t] for key, values in keys.items()}
        for (method, s), keys in cells.items()
        for t in range(3)
    ]
    return Done({"prune.sparsities": sparsities, **flat}, rows, {})


def test_controls_can_fail():
    cells = {
        ("original", 0.0): {"asr": [1, 1, 1]},
        ("original", 0.9): {"asr": [0.9, 0.9, 0.9]},
        ("retrain", 0.0): {"asr": [0.02, 0.02, 0.05], "false_target": [0.01, 0.02, 0.02]},
        ("retrain", 0.9): {"asr": [0.3, 0.2, 0.25], "false_target": [0.01, 0.02, 0.0]},
    }
    found = figure6.controls({"omp": done(cells)})
    assert [holds for _, holds in found] == [True, True, False, False]
    assert "+24.00" in found[3][0] and "90% sparse" in found[2][0]
    forgetting = done({
        ("original", 0.0): {"probe_accuracy": [0.5, 0.6, 0.5]},
        ("retrain", 0.0): {"probe_accuracy": [0.7, 0.7, 0.8]},
        ("l1_sparse", 0.0): {"probe_accuracy": [0.5, 0.6, None]},
    })  # fmt: skip
    for found, verdict in ((8, "FAILS"), (9, "holds")):
        influence = [[0, 0, 0, 0, 0, 1]] * found + [[1, 0, 0, 0, 0, 0.5]] * (10 - found)
        told = planted.Planted(planted.Scores(tuple(range(10)), influence), forgetting)
        assert told.scores.found == found and told.holds == (verdict == "holds")
        control, retrained, sparse = planted.words(told)
        assert control.startswith(f"- {verdict}")
        assert "minus n = 0: +20.00" in retrained and "not tested, 2 pairs" in sparse


def test_a_paired_test_is_stated_whichever_way_it_goes():
    def paired(ours, theirs):
        return tables.paired("a", dict(enumerate(ours)), dict(enumerate(theirs)))

    up = paired([0.5, 0.6, 0.7], [0.1, 0.2, 0.29])
    assert up.startswith("- a: +40.33") and up.endswith("told apart.") and "not told" not in up
    assert "not told apart" in paired([0.1, 0.5, 0.3], [0.2, 0.2, 0.4])
    assert paired([1, 1, 1], [1, 1, 1]).endswith("the same in every trial: not told apart.")
    assert paired([1, 1, 1], [0, 0, 0]).endswith("the same in every trial: told apart.")
    assert "not tested, 2 pairs" in paired([1, 0], [0, 1])


def test_trials_are_paired_by_their_number():
    told = tables.paired("a", {0: 1, 1: 2, 2: 3, 3: 4}, {3: 3, 2: 1, 1: 0, 7: 9})
    assert told.startswith("- a: +166.67") and "n = 3" in told


def test_every_preset_is_a_config():
    for module in (figure6, table4):
        for preset in ("smoke", "laptop", "paper"):
            made = module.plans(preset, "DIR")
            assert len({run.name for run in made}) == len(made) > 0
            for run in made:
                if run.flat["transfer.choose"] == "influence":
                    build_choice(run.flat).check(len(run.flat["dataset.classes"]))


def test_the_planted_class_is_the_one_that_is_forgotten(tmp_path):
    planted.write_sets(tmp_path)
    data = build_data(planted.forgetting(tmp_path).flat)
    forget, rows = data.forget[0], data.inputs[: data.train_rows]
    assert (data.forget == forget).all()
    assert np.median(rows[forget]) > 200 > 100 > np.median(rows[~forget])  # inverted, and not


@pytest.mark.ci
def test_figure_6_from_runs_to_page(tmp_path):
    given = SHRUNK | ONCE | {"prune.sparsities": (0.5,)}
    runs = {
        method: perform(
            planned(method, digits_trojan.get_config(), given | {"prune.method": method}),
            tmp_path,
            Signals(),
        )
        for method in ("omp", "synflow")
    }
    page = "\n".join(figure6.page(runs, "small", "figure6.png"))
    for word in (
        "## Controls",
        "## Pre-stated tests",
        "ASR, all images",
        "l1_sparse",
        "## synflow",
    ):
        assert word in page
    figure6.draw(runs, tmp_path / "figure6.png")
    assert (tmp_path / "figure6.png").stat().st_size > 10_000


@pytest.mark.ci
def test_table_4_from_runs_to_page(tmp_path):
    given = SHRUNK | ONCE | {"prune.sparsities": (), "train.epochs": 2, "forget.classes": ()}
    given |= {"transfer.subsets": 12, "transfer.finetune_epochs": 0, "evaluate.rte_repeats": 3}
    runs = {}
    for choose in ("influence", "random"):
        changed = given | {"transfer.choose": choose, "transfer.count": 1}
        run = planned(f"digits-{choose}-1", digits_transfer.get_config(), changed)
        runs[run.name] = perform(run, tmp_path, Signals())
    page = "\n".join(table4.page(runs, "small", "table4.png", ["- holds: planted"]))
    assert page.count("| 0 | original |") == 1  # n = 0 is one row
    for word in ("stand-in", "| OxfordPets | n=100 | l1-sparse MU | 85.83 | 35.47 |", "planted"):
        assert word in page
    table4.draw(runs, tmp_path / "table4.png")
    assert (tmp_path / "table4.png").stat().st_size > 5_000


@pytest.mark.slow  # four minutes
@pytest.mark.timeout(900)
def test_a_planted_harmful_class_is_found(tmp_path):
    told = planted.scores(tmp_path)
    assert told.found >= planted.LEAST, np.round(told.influence, 3)


@pytest.mark.ci
@pytest.mark.timeout(900)
def test_the_controls_of_the_trojan_hold_on_digits(tmp_path):
    """Ten trials, OMP; the methods, which no control is about, are left out."""
    run = figure6.plans("smoke", "")[0]
    run = run._replace(flat={**run.flat, "unlearn.methods": ()})
    failed = [what for what, holds in figure6.controls({"omp": perform(run, tmp_path, Signals())})
              if not holds]  # fmt: skip
    assert not failed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["figure6", "--preset=laptop"], "--preset=laptop needs --data_dir"),
        (["figure7", "--preset=smoke"], "invalid choice: 'figure7'"),
        (["table4", "--preset=tiny"], "invalid choice: 'tiny'"),
    ],
)
def test_wrong_flags_are_one_line(arguments, said, tmp_path):
    command = [sys.executable, "-m", "experiments.paper", *arguments, f"--workdir={tmp_path}"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2 and said in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
