"""Whole runs over a prepared TFDS directory that is streamed, against the same images resident."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import prepared_images
import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]
SMALL = {
    "dataset.name": prepared_images.NAME,
    "dataset.validation": 0,
    "dataset.image_size": 16,
    "trials": 2,
    "train.epochs": 2,
    "train.batch_size": 16,
    "prune.sparsities": "(0.5,)",
    "unlearn.methods": "finetune,gradient_ascent",
    "unlearn.finetune.epochs": 1,
    "unlearn.finetune.learning_rate": 0.05,
    "unlearn.finetune.batch_size": 16,
    "unlearn.gradient_ascent.epochs": 1,
    "evaluate.mia_draws": 1,
    "evaluate.batch_size": 16,
    "evaluate.rte_repeats": 0,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs the command on the prepared images, and reads its rows and exported models."""
    folder = tmp_path_factory.mktemp("stream")
    prepared_images.write(folder / "tfds")

    def go(name, damaged=None, **overrides):
        config = SMALL | {"dataset.data_dir": damaged or folder / "tfds"}
        config |= {key.replace("__", "."): value for key, value in overrides.items()}
        command = [
            *(sys.executable, "-m", "sparse_mu.main", "--config=configs/digits.py", "--export"),
            *(f"--config.{key}={value}" for key, value in config.items()),
            f"--workdir={folder / name}",
        ]
        ended = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True,
            env=os.environ | {"XDG_CACHE_HOME": str(folder / "cache")},
        )  # fmt: skip
        if damaged:
            return ended
        assert ended.returncode == 0, ended.stderr
        rows = (folder / name / "results.jsonl").read_text().splitlines()
        models = {p.name: load_file(p) for p in (folder / name / "models").rglob("*.safetensors")}
        return [json.loads(row) for row in rows], models

    return go


NOT_COMPARED = ("_seconds", "models", "check")
ATTACKS = ("mia", "gap")  # of few rows: a score that moves by rounding may move a whole row


def accuracies(rows):
    return [
        {
            key: value
            for key, value in row.items()
            if not key.endswith(NOT_COMPARED) and not any(word in key for word in ATTACKS)
        }
        for row in rows
    ]


@pytest.mark.slow  # two or three whole runs
def test_a_streamed_run_equals_a_resident_run(run):
    resident, resident_models = run("resident", dataset__reading="resident")
    streamed, streamed_models = run("streamed", dataset__reading="stream")
    assert accuracies(streamed) == accuracies(resident)
    assert len(resident) == 2 * (5 + 6)  # trials x (dense arms + sparse arms)
    assert resident_models.keys() == streamed_models.keys() and resident_models
    for name, tensors in resident_models.items():
        assert any(leaf.any() for leaf in tensors.values())
        for key, expected in tensors.items():
            # one program per epoch against one per step: rounding, amplified by nine steps (none
            # of it on the machine this was written on)
            np.testing.assert_allclose(streamed_models[name][key], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_streamed_run_crops_anew_prunes_by_its_data_and_splits_batches(run):
    rows, models = run(
        "augmented",
        dataset__reading="stream",
        train__augment="resized_crop_flip",
        prune__method="snip",
        prune__per_class=4,
        execution__mode="sharded",
        unlearn__methods="finetune",
    )
    assert rows and not any(row["diverged"] for row in rows)
    assert all(np.isfinite(leaf).all() for model in models.values() for leaf in model.values())


@pytest.mark.slow
def test_a_damaged_image_ends_a_streamed_run_with_one_line(run, tmp_path):
    prepared_images.write(tmp_path / "tfds", damaged=5)
    ended = run("damaged", damaged=tmp_path / "tfds", dataset__reading="stream")
    assert ended.returncode == 1
    lines = ended.stderr.splitlines()
    assert lines[-1].startswith("error: tiny_pictures cannot be read: the image of row ")
    assert "Traceback" not in ended.stderr
