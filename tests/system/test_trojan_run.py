"""A Trojan through the whole pipeline: what rows, table and report say of it."""

import json

import numpy as np
import pytest
from test_every_choice import ONE_EPOCH, SHRUNK

from configs import digits_trojan
from sparse_mu import builders, config, manifest
from sparse_mu import run as pipeline
from sparse_mu import workdir as workdirs
from sparse_mu.acts import Run
from sparse_mu.judge import outputs
from sparse_mu.table import to_text

SMALL = SHRUNK | ONE_EPOCH | {
    "unlearn.methods": ("finetune", "fisher"),
    "prune.sparsities": (0.5,),
    "dataset.limit": 400,
    "train.epochs": 4,
}  # fmt: skip


def finish(folder, **changed):
    changed = {key.replace("__", "."): value for key, value in changed.items()}
    flat = config.check(config.flatten(digits_trojan.get_config().to_dict()) | SMALL | changed)
    experiment = builders.build(flat)
    with workdirs.held(folder, flat) as workdir:
        rows, arms = pipeline.run_all(experiment, workdir, lambda *_: None)
        described = manifest.describe(experiment.data, arms)
        return experiment, rows, manifest.write_derived(workdir, rows, flat, described)


def test_rows_table_and_report_of_a_trojan(tmp_path):
    experiment, rows, summary = finish(tmp_path)
    data = experiment.data
    n = len(data.labels) - len(data.triggered.wanted)
    with workdirs.held(tmp_path, experiment.config) as workdir:
        run = Run(experiment, workdir, lambda *_: None)
        original = next(pipeline.arms(run))
        logits = outputs(run, original).logits
    for row in (row for row in rows if (row["method"], row["sparsity"]) == ("original", 0)):
        called = logits[row["trial"]].argmax(axis=1)
        other = data.labels[data.is_test] != 0
        assert row["asr"] == np.mean(called[n:][other] == 0)
        assert row["asr_all"] == np.mean(called[n:] == 0)
        assert row["false_target"] == np.mean(called[data.is_test][other] == 0)
        assert row["ta"] == np.mean(called[data.is_test] == data.labels[data.is_test])
        assert row["n_forget"] == data.forget[row["trial"]].sum() and not row["forgotten_classes"]
    assert all(0 <= row[key] <= 1 for row in rows for key in ("asr", "asr_all", "false_target"))
    text = to_text(summary, 120, False)
    assert "The Trojan, percent" in text and "ASR, all images" in text
    said = " ".join(text.split())
    assert "a white square of 2 pixels, 0 off the bottom-right corner is to have images" in said
    assert "classified as 0" in said
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 * len(data.triggered.pictures) > 0
    assert "ASR, %" in page
    told = json.loads((tmp_path / "manifest.json").read_text())
    assert told["trojan"]["wanted"] == ["0"]


@pytest.mark.ci
@pytest.mark.parametrize("variant", ["all_to_all", "clean_label"])
def test_other_variants_run(tmp_path, variant):
    _, rows, summary = finish(tmp_path, trojan__variant=variant, trojan__ratio=0.05)
    assert all(0 <= row["asr"] <= 1 for row in rows)
    text = " ".join(to_text(summary, 120, False).split())
    assert ("as the next class" in text) == (variant == "all_to_all")
