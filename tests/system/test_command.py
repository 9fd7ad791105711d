"""Whole runs of the command on shrunken digits: what it writes, repeats, survives and prints."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparse_mu import results

# the first test waits for four whole runs: on a machine busy with other work longer than the limit
pytestmark = [pytest.mark.timeout(900), pytest.mark.ci]

ROOT = Path(__file__).parents[2]
TRIALS, SPARSITY = 2, 0.9
PRUNABLE = 23_184  # convolution weights of small_cnn
TARGETS = ("retrain", "retrain_dense", "retrain_repruned")
METRICS = {
    *("ua", "ra", "ta", "ta_all", "ta_worst_class", "mia_efficacy", "mia_efficacy_spread"),
    *("mia_auc", "mia_tpr_at_1fpr", "mia_privacy_rate", "mia_privacy_balanced"),
}
CLASS_METRICS = {"ua_test", "mia_class", "mia_class_auc"}
SECONDS = {"rte_seconds", "rte_batched_seconds", "compile_seconds", "prune_seconds"}
FACTS = {"method", "sparsity", "trial", "seed", "forgotten_classes", "n_forget", "n_retain"}
FACTS |= {"mask_sparsity", "diverged", "halved", "models", "budget"}
MASK_METRICS = {
    *("mask_iou", "mask_iou_pruned", "mask_iou_corrected", "mask_kappa"),
    *("mask_flip_precision", "mask_flip_recall"),
}
GAPS = {
    f"gap_{target}_{metric}" for target in TARGETS for metric in ("ua", "ra", "ta", "mia_efficacy")
}
SMALL = {
    "trials": TRIALS,
    "dataset.limit": 300,
    "train.epochs": 1,
    "unlearn.finetune.epochs": 1,
    "unlearn.gradient_ascent.epochs": 1,
    "unlearn.l1_sparse.epochs": 1,
    "unlearn.influence.rows": 32,
    "evaluate.mia_draws": 2,
}
SCENARIOS = {
    "class": {"prune.rewind_epoch": 0},
    "random": {
        "forget.scenario": "random",
        "prune.rewind_epoch": 1,
        "train.epochs": 2,
        "unlearn.methods": "finetune",
    },
    "indices": {
        "forget.scenario": "indices",
        "prune.rewind_epoch": -1,
        "unlearn.methods": "gradient_ascent",
    },
}
METHODS = {
    "class": ("finetune", "gradient_ascent", "fisher", "influence", "l1_sparse"),
    "random": ("finetune",),
    "indices": ("gradient_ascent",),
}


class Command:
    """The command line of each scenario, all with one compilation cache."""

    def __init__(self, folder, cache):
        self.folder = folder
        rows = folder / "rows.txt"
        rows.write_text("# the first twelve rows\n" + "\n".join(map(str, range(12))))
        self.extra = {"indices": {"forget.file": rows, "dataset.validation": 0}}
        self.environment = os.environ | {"XDG_CACHE_HOME": str(cache)}

    def start(self, scenario, workdir, *flags):
        config = SMALL | SCENARIOS[scenario] | self.extra.get(scenario, {})
        given = [f"--config.{key}={value}" for key, value in config.items()]
        command = [sys.executable, "-m", "sparse_mu.main", "--config=configs/digits.py", *given]
        return subprocess.Popen(
            [*command, f"--workdir={self.folder / workdir}", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=self.environment,
        )

    def verify(self, workdir):
        command = [sys.executable, "-m", "sparse_mu.main", f"--verify={self.folder / workdir}"]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env=self.environment
        )
        return done.returncode, done.stdout, done.stderr


class Finished:
    """What a run left behind."""

    def __init__(self, process, folder):
        self.out, self.err = process.communicate(timeout=800)
        assert process.returncode == 0, self.err
        self.folder = folder
        self.text = (folder / "results.jsonl").read_text()
        lines = self.text.splitlines()
        rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
        assert all(len(row.pop("check")) == 16 for row in rows)
        self.manifest = json.loads((folder / "manifest.json").read_text())
        # a row that a kill left alone is written again: the last one counts
        self.by_key = {(r["method"], r["sparsity"], r["trial"]): r for r in rows}
        self.rows = list(self.by_key.values())


@pytest.fixture(scope="module")
def command(tmp_path_factory, pytestconfig):
    folder = tmp_path_factory.mktemp("command")
    kept = getattr(
        pytestconfig, "cache", None
    )  # between test runs; absent with -p no:cacheprovider
    return Command(folder, kept.mkdir("command") if kept else folder / "cache")


@pytest.fixture(scope="module")
def runs(command):
    """Every scenario once, and one of them in a second workdir; two processes at a time."""
    named = {"class": "class", "random": "random", "indices": "indices", "again": "indices"}
    finished = {}
    first = command.start("class", "class")
    for name in ("random", "indices", "again"):
        process = command.start(named[name], name)
        finished[name] = Finished(process, command.folder / name)
    finished["class"] = Finished(first, command.folder / "class")
    return finished


def without_seconds(rows):
    return [{k: v for k, v in row.items() if not k.endswith("_seconds")} for row in rows]


@pytest.fixture(params=SCENARIOS)
def run(request, runs):
    runs[request.param].scenario = request.param
    return runs[request.param]


def test_the_files_of_a_workdir(run):
    assert {file.name for file in run.folder.iterdir()} == {
        *("config.json", "manifest.json", "results.jsonl", "summary.json", "report.html"),
        *("stages", "lock"),
    }
    config = json.loads((run.folder / "config.json").read_text())
    assert config["trials"] == TRIALS and config["forget.scenario"] == run.scenario
    assert set(run.manifest) == {
        *("format", "what", "data", "unlearning_split", "duplicates", "trojan"),
        *("python", "versions", "commit", "device", "digests", "arms", "files", "digest"),
    }
    made_of = {"config", "code", "data", "forget_sets", "metrics"}
    assert set(run.manifest["digests"]) == made_of
    stages = [stage.name.rpartition("-")[0] for stage in (run.folder / "stages").iterdir()]
    assert sorted(stages) == sorted(f"{method}-{s:g}" for method, s in arms(run.scenario))
    assert all((stage / "meta.json").is_file() for stage in (run.folder / "stages").iterdir())
    summary = json.loads((run.folder / "summary.json").read_text(), parse_constant=pytest.fail)
    assert set(summary["cells"]) == {method for method, _ in arms(run.scenario)}


def arms(scenario):
    dense = ("original", "retrain", "retrain_reseeded", *METHODS[scenario])
    sparse = (*dense, "retrain_repruned")
    return {(m, 0.0) for m in dense} | {(m, SPARSITY) for m in sparse}


def test_one_row_for_each_method_sparsity_and_trial(run):
    expected = {(m, s, t) for m, s in arms(run.scenario) for t in range(TRIALS)}
    assert set(run.by_key) == expected and run.text.count("\n") == len(expected)


def test_keys_and_values_of_the_rows(run):
    metrics = METRICS | (CLASS_METRICS if run.scenario == "class" else set())
    for row in run.rows:
        gaps = {key for key in row if key.startswith("gap_")}
        of_masks = MASK_METRICS if row["sparsity"] else set()
        assert set(row) - gaps - CLASS_METRICS == FACTS | METRICS | SECONDS | of_masks
        assert all(row[key] is None or 0 <= row[key] <= 1 for key in of_masks - {"mask_kappa"})
        assert gaps == GAPS or row["method"] == "retrain"
        assert all(0 <= row[metric] <= 1 for metric in metrics)
        assert all(row[key] is None or row[key] >= 0 for key in SECONDS)
        assert row["diverged"] is False
        assert row["n_forget"] + row["n_retain"] == (300 if run.scenario == "indices" else 183)
        assert len(row["forgotten_classes"]) == (run.scenario == "class")


def test_gaps_are_signed_differences_of_rows(run):
    for row in run.rows:
        s, t = row["sparsity"], row["trial"]
        targets = {
            "retrain": run.by_key["retrain", s, t],
            "retrain_dense": run.by_key["retrain", 0.0, t],
            "retrain_repruned": run.by_key["retrain_repruned" if s else "retrain", s, t],
        }
        for key in set(row) & GAPS:
            target = next(name for name in sorted(targets, key=len)[::-1] if f"gap_{name}_" in key)
            metric = key.removeprefix(f"gap_{target}_")
            assert row[key] == row[metric] - targets[target][metric], key


def test_masks_are_exactly_as_sparse_as_asked(run):
    for row in run.rows:
        assert row["mask_sparsity"] == round(row["sparsity"] * PRUNABLE) / PRUNABLE


def test_the_same_command_gives_the_same_rows(runs):
    first, second = runs["indices"], runs["again"]
    assert without_seconds(first.rows) == without_seconds(second.rows)
    recorded = [
        {k: v for k, v in run.manifest.items() if k not in ("files", "digest")}  # seconds differ
        for run in (first, second)
    ]
    assert recorded[0] == recorded[1]
    assert set(first.manifest["arms"]) == {
        f"{m} at {100 * s:g}%" if s else f"{m}, dense" for m, s in arms("indices")
    }


def test_nothing_but_the_table_on_standard_output(runs):
    for run in runs.values():
        assert run.err == f"\nreport: {run.folder / 'report.html'}\n"  # no progress bar, no warning
        assert "\x1b" not in run.out
    lines = [line.split() for line in runs["class"].out.splitlines() if line.strip()]
    for label in ("original", "retrain", "retrain_repruned", "noise", *METHODS["class"]):
        assert any(words[0] == label for words in lines), label
    for word in ("UA", "RA", "TA", "MIA-Efficacy", "Disparity", "(n)"):
        assert word in runs["class"].out, word


def test_a_finished_workdir_is_left_as_it_is(command, runs):
    run = runs["indices"]
    began = time.monotonic()
    again = Finished(command.start("indices", "indices"), run.folder)
    assert again.text == run.text and again.out == run.out
    assert again.manifest == run.manifest
    assert time.monotonic() - began < 60  # nothing is trained: it restores and prints


def test_report_only_makes_the_same_report(command, runs):
    run = runs["class"]
    report, summary = run.folder / "report.html", run.folder / "summary.json"
    before = report.read_bytes(), summary.read_bytes()
    report.unlink()
    summary.unlink()
    again = Finished(command.start("class", "class", "--report_only"), run.folder)
    assert (report.read_bytes(), summary.read_bytes()) == before
    assert again.text == run.text and again.out == run.out


def test_a_finished_workdir_verifies_and_a_changed_one_does_not(command, runs):
    folder = runs["indices"].folder
    file = folder / "summary.json"
    kept, before = file.read_bytes(), sorted(folder.rglob("*"))
    code, out, err = command.verify("indices")
    assert (code, err) == (0, "")
    *lines, last = out.splitlines()
    statuses = [line.split("  ")[0] for line in lines]
    arms_of = len(arms("indices"))
    assert statuses == ["ok", "not checked", *["ok"] * (len(lines) - 2)]  # it is not signed
    assert len(lines) == 6 + 2 * arms_of + 4
    assert last.endswith("holds; this is a record of a process, not a proof of forgetting")
    file.write_bytes(kept + b" ")
    code, out, err = command.verify("indices")
    file.write_bytes(kept)
    assert (code, err) == (1, "") and "\nFAILS        summary.json: recorded " in out
    assert sorted(folder.rglob("*")) == before


def test_a_lost_end_of_the_results_is_judged_again(command, runs):
    run = runs["random"]
    file = run.folder / "results.jsonl"
    file.write_text(run.text[: len(run.text) - 300])
    again = Finished(command.start("random", "random"), run.folder)
    assert without_seconds(again.rows) == without_seconds(run.rows)
    assert again.manifest["digests"] == run.manifest["digests"]
    assert again.manifest["arms"] == run.manifest["arms"]


def test_a_damaged_row_of_a_target_is_judged_again_as_it_was(command, runs):
    """Other targets' rows are on disk by then, which were not when it was judged first."""
    run = runs["random"]
    at, row = next(
        (at, row)
        for at, row in enumerate(run.rows)
        if row["method"] == "retrain" and row["sparsity"]
    )
    assert "gap_retrain_repruned_ua" not in row
    lines = run.text.splitlines(keepends=True)
    lines[at] = lines[at].replace('"trial"', '"trail"')
    file = run.folder / "results.jsonl"
    file.write_text("".join(lines))
    process = command.start("random", "random")
    assert process.communicate(timeout=800)[1] and process.returncode == 0
    again = results.read(file, 1 + max(row["trial"] for row in run.rows)).rows
    assert without_seconds(again) == without_seconds(results.in_order(run.rows))
    manifest = json.loads((run.folder / "manifest.json").read_text())
    assert manifest["digests"] == run.manifest["digests"]
    file.write_text(run.text)


def lose(stage):
    shutil.rmtree(stage / "tree")


def change_a_name(stage):
    file = stage / "tree" / "_METADATA"
    file.write_text(file.read_text().replace(".bn1.", ".bn9."))


def tear_the_meta(stage):
    file = stage / "meta.json"
    file.write_text(file.read_text()[:20])


@pytest.mark.parametrize(
    "harm",
    [
        lose,
        *(pytest.param(harm, marks=pytest.mark.slow) for harm in (change_a_name, tear_the_meta)),
    ],
)
def test_a_damaged_stage_is_said_and_made_again(command, runs, harm):
    run = runs["indices"]
    stage = next(run.folder.glob("stages/retrain-0-*"))
    harm(stage)
    process = command.start("indices", "indices")
    out, err = process.communicate()
    assert (process.returncode, out) == (0, run.out)
    said = [line for line in err.splitlines() if "is made again" in line]
    assert len(said) == 1 and stage.name in said[0] and "Traceback" not in err
    assert json.loads((run.folder / "manifest.json").read_text())["arms"] == run.manifest["arms"]
    assert (run.folder / "results.jsonl").read_text() == run.text


@pytest.mark.slow
def test_a_run_that_is_stopped_again_and_again_ends_with_the_same_rows(command, runs):
    run = runs["class"]
    folder = command.folder / "stopped"
    stops = ((signal.SIGKILL, -9, 2), (signal.SIGINT, 130, 4), (signal.SIGTERM, 143, 7))
    for stop, code, stages in stops:
        process = command.start("class", "stopped")
        while process.poll() is None and len(list(folder.glob("stages/*/meta.json"))) < stages:
            time.sleep(0.05)
        process.send_signal(stop)
        out, err = process.communicate()
        assert (process.returncode, out) == (code, ""), err
        lines = err.splitlines()
        if code > 0:
            assert lines.pop().startswith(
                "interrupted; this continues it: python -m sparse_mu.main "
            )
            assert lines.pop() == "stopping after this step; once more to stop at once"
        assert len(lines) == (code == 130), err  # the process before it was killed
        assert len(list(folder.glob("stages/*/meta.json"))) < len(arms("class"))
    while_held = command.start("class", "stopped")
    while not held(folder / "lock"):
        time.sleep(0.05)
    second = command.start("class", "stopped")
    out, err = second.communicate()
    assert (second.returncode, out) == (1, "")
    assert f"is held by process {while_held.pid} on " in err and err.count("\n") == 1
    resumed = Finished(while_held, folder)
    assert without_seconds(resumed.rows) == without_seconds(run.rows)
    assert resumed.manifest["digests"] == run.manifest["digests"]
    assert resumed.manifest["arms"] == run.manifest["arms"]


def held(lock):
    with open(lock) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
