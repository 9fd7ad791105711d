"""Un-pruning through the whole pipeline, very small: what is exact there, what is refused."""

import numpy as np
import pytest
from test_every_choice import SHRUNK, run

from configs import digits
from sparse_mu import acts, builders, checkpoint, config
from sparse_mu import run as pipeline
from sparse_mu import workdir as workdirs
from sparse_mu.summary import summarise
from sparse_mu.table import to_text

UNPRUNE = {
    "train__budget": "steps",
    "prune__sparsities": (0.9,),
    "unlearn__methods": ("finetune",),
    "unprune__methods": ("finetune", "retrain"),
    "unprune__epochs": 2,
    "unprune__block": 1,
    "unprune__tolerance": 0.0,
    "unprune__settle_epochs": 1,
    "train__epochs": 2,
}


def by_method(rows):
    found = {}
    for row in rows:
        if row["sparsity"]:
            found.setdefault(row["method"], []).append(row)
    return found


def masks_of(folder, name):
    [stage] = [p for p in (folder / "stages").iterdir() if p.name.rpartition("-")[0] == name]
    arrays, _ = checkpoint.read_arrays(stage)
    return {leaf: value for leaf, value in arrays.items() if leaf.startswith("masks.")}


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    return all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_as_many_epochs_as_the_training_give_the_repruned_mask(tmp_path):
    rows = run(tmp_path, **UNPRUNE)
    found = by_method(rows)
    assert set(found) == {
        *("original", "retrain", "retrain_repruned", "retrain_reseeded"),
        *("finetune", "unprune_finetune", "unprune_retrain"),
    }
    target = masks_of(tmp_path, "retrain_repruned-0.9")
    assert same(masks_of(tmp_path, "unprune_finetune-0.9"), target)
    assert not same(masks_of(tmp_path, "original-0.9"), target)
    for row in found["unprune_finetune"]:
        assert row["mask_iou"] == row["mask_flip_precision"] == row["mask_flip_recall"] == 1
        assert row["mask_gain"] > 1 > row["mask_floor"]  # it shares the order of rows
        assert row["unprune_epochs"] == 2 and row["budget"] == "steps"
        assert row["unprune_stored_bytes"] > 0
    for row in found["original"]:
        assert row["mask_iou"] < 1 and row["mask_gain"] == row["mask_flip_recall"] == 0
        assert row["mask_flip_precision"] is None
    for row in found["retrain_repruned"]:
        assert row["mask_iou"] == 1 and row["kl_test"] == 0
        assert row["js_forget"] == pytest.approx(0, abs=1e-12)
    # the same mask, first weights, rows and steps: the same model
    for ours, theirs in zip(found["unprune_retrain"], found["retrain_repruned"], strict=True):
        assert ours["kl_test"] == 0 and ours["ta"] == theirs["ta"]
    assert all(row["kl_test"] > 0 for row in found["retrain"])
    dense = [row for row in rows if not row["sparsity"]]
    assert not any("mask_iou" in row for row in dense)
    summary = summarise(
        rows,
        config={"forget": {"scenario": "class"}, "prune": {"method": "omp", "rewind_epoch": 0}},
        manifest={},
    )
    assert summary["methods"][-3:] == ["finetune", "unprune_finetune", "unprune_retrain"]
    table = to_text(summary, 120, False)
    assert "The mask, against retrain_repruned's" in table and "seed floor" in table
    assert run(tmp_path, **UNPRUNE) == rows


@pytest.mark.parametrize("method", ["synflow", pytest.param("snip", marks=pytest.mark.ci)])
def test_masks_found_before_training_are_exact(tmp_path, method):
    rows = run(
        tmp_path,
        **UNPRUNE | {"prune__method": method, "prune__sparsities": (0.75,)},
    )
    found = by_method(rows)
    for row in (*found["unprune_finetune"], *found["unprune_retrain"]):
        assert row["mask_iou"] == 1 and row["unprune_epochs"] == 0
        # SNIP scores 3 rows of each of ten classes once more
        assert row["unprune_gradients"] == (30 if method == "snip" else 0)
        assert "mask_floor" not in row
    pairs = list(zip(found["unprune_retrain"], found["retrain_repruned"], strict=True))
    assert all(ours["kl_forget"] == 0 for ours, _ in pairs)
    if method == "synflow":  # a control: a mask that saw no data has nothing to forget
        assert all(row["mask_iou"] == 1 for row in found["original"])
        for ours, theirs in zip(found["retrain"], found["retrain_repruned"], strict=True):
            assert ours["kl_test"] == theirs["kl_test"] == 0
    else:
        assert all(row["mask_iou"] < 1 for row in found["original"])


@pytest.mark.ci
@pytest.mark.parametrize(
    ("mode", "structure"),
    [("projected", "entries"), ("rewind", "filters"), ("regrow", "entries"), ("regrow", "filters")],
)
def test_every_mode_runs(tmp_path, mode, structure):
    changed = UNPRUNE | {"prune__structure": structure, "prune__sparsities": (0.5,)}
    if mode == "regrow":
        changed |= {"unprune__methods": ("finetune",), "unprune__grow": "gradient"}
    rows = run(tmp_path, **changed, unprune__mode=mode, unprune__rounds=2)
    found = by_method(rows)
    assert len(found["unprune_finetune"]) == 2
    for row, other in zip(found["unprune_finetune"], found["original"], strict=True):
        assert row["mask_sparsity"] == other["mask_sparsity"]
        assert row["mask_iou"] == 1 or mode != "rewind"
        assert row["unprune_epochs"] <= 2
        assert row["unprune_gradients"] > 0
        assert (row.get("unprune_rounds", 0) > 0) == (mode == "regrow")
    stages = {p.name.rpartition("-")[0] for p in (tmp_path / "stages").iterdir()}
    assert ("unprune-0.5" in stages) == (mode != "regrow")


def test_seconds_hold_those_of_the_search_and_exports_the_models_of_it(tmp_path, monkeypatch):
    """The search is told apart from the method by the stage that it has to itself."""
    monkeypatch.setattr(pipeline, "write_models", written := Written())
    flat = config.check(
        config.flatten(digits.get_config().to_dict())
        | SHRUNK
        | {key.replace("__", "."): value for key, value in UNPRUNE.items()}
        | {"unlearn.finetune.epochs": 1, "evaluate.rte_repeats": 3, "trials": 2}
    )
    experiment = builders.build(flat)
    with workdirs.held(tmp_path, flat) as workdir:
        rows, _ = pipeline.run_all(experiment, workdir, lambda *_: None, export=True)
    found = by_method(rows)
    search = meta_of(tmp_path, "unprune-0.9")
    assert search["rte_seconds"] > 0 and len(search["rte_repeats"]) == 3
    for name in ("unprune_finetune", "unprune_retrain"):
        own = meta_of(tmp_path, f"{name}-0.9")
        for key in ("rte_seconds", "rte_batched_seconds", "compile_seconds"):
            assert found[name][0][key] == pytest.approx(own[key] + search[key], rel=1e-12)
    assert {"unprune_finetune", "unprune_retrain", "finetune", "original"} <= set(written.methods)


class Written:
    """Stands for the writer of models and notes whose they are."""

    def __call__(self, arms, folder, channels):
        self.methods = [arm.method for arm in arms]


def meta_of(folder, name):
    [stage] = [p for p in (folder / "stages").iterdir() if p.name.rpartition("-")[0] == name]
    return checkpoint.read_meta(stage)


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"prune__sparsities": ()}, "unprune.methods"),
        ({"train__budget": "epochs"}, "train.budget"),
        ({"prune__method": "imp"}, "prune.method"),
        ({"unprune__epochs": 3}, "unprune.epochs"),
        ({"unprune__methods": ("salun",)}, "unprune.methods"),
        (
            {
                "unlearn__methods": ("finetune_and_prune",),
                "unprune__methods": ("finetune_and_prune",),
            },
            "unprune.methods",
        ),
        ({"model__checkpoint": "mine.safetensors", "prune__rewind_epoch": -1}, "unprune.methods"),
        ({"unprune__mode": "regrow"}, "unprune.methods"),
        (
            {"unprune__mode": "regrow", "unprune__methods": ("finetune",), "prune__scope": "leaf"},
            "prune.scope",
        ),
        ({"unprune__tolerance": 1.0}, "unprune.tolerance"),
        ({"prune__method": "snip", "unprune__weights": "continue"}, "unprune.weights"),
        ({"unprune__mode": "differnce"}, "unprune.mode"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, changed, key):
    with pytest.raises(config.ConfigError) as raised:
        run(tmp_path, **UNPRUNE | changed)
    assert str(raised.value).startswith(f"config.{key} = ") and "\n" not in str(raised.value)
    assert not any(tmp_path.iterdir())


def test_retrained_models_take_as_many_steps_as_the_original(tmp_path):
    """Under the budget of steps an epoch starts its order again, under that of epochs not."""
    shrunk = {"trials": 2, "dataset.limit": 300, "evaluate.rte_repeats": 0}
    for budget in ("steps", "epochs"):
        given = config.flatten(digits.get_config().to_dict())
        flat = config.check(given | shrunk | {"train.budget": budget})
        experiment = builders.build(flat)
        with workdirs.held(tmp_path / budget, flat) as workdir:
            made = acts.Run(experiment, workdir, lambda *_: None)
            at_least = made.stretched(experiment.data.retain)
            assert made.stretched(made.trained).tolist() == [0, 0]
        steps = [-(-int(rows.sum()) // 64) for rows in experiment.data.retain]
        whole = -(-made.trained.shape[1] // 64)
        expected = [made.trained.shape[1] if own < whole else 0 for own in steps]
        assert at_least.tolist() == (expected if budget == "steps" else [0, 0])
