"""Transfer through the whole pipeline: choosing classes, judging models as backbones."""

import json

import numpy as np
import pytest
from test_every_choice import ONE_EPOCH, SHRUNK

from configs import digits_transfer
from sparse_mu import acts, builders, config, session
from sparse_mu.acts import Run, train
from sparse_mu.harmful import class_scores
from sparse_mu.retry import within_memory
from sparse_mu.signals import Signals
from sparse_mu.table import to_text
from sparse_mu.transfer import linear_probe
from sparse_mu.transferred import with_new_head
from sparse_mu.verify import OK, check
from sparse_mu.workdir import held

SMALL = SHRUNK | ONE_EPOCH | {
    "unlearn.methods": ("finetune",),
    "prune.sparsities": (0.5,),
    "dataset.limit": 400,
    "transfer.limit": 300,
    "train.epochs": 2,
    "transfer.finetune_epochs": 2,
}  # fmt: skip


INFLUENCE = {
    "transfer__choose": "influence",
    "transfer__count": 2,
    "transfer__subsets": 12,
    "forget__classes": (),
    "prune__sparsities": (),
    "unlearn__methods": (),
    "transfer__finetune_epochs": 0,
}


def quiet(*progress):
    del progress


def flat_of(**changed):
    changed = {key.replace("__", "."): value for key, value in changed.items()}
    return config.check(config.flatten(digits_transfer.get_config().to_dict()) | SMALL | changed)


def finish(folder, **changed):
    return session.perform(folder, flat_of(**changed), Signals(), None, export=False)


@pytest.mark.ci
def test_every_model_is_judged_as_a_backbone(tmp_path):
    summary = finish(tmp_path)
    for method in ("original", "retrain", "retrain_reseeded", "finetune"):
        for key in ("0", "0.5"):
            cell = summary["cells"][method][key]
            assert 0.25 < cell["probe_accuracy"]["mean"] <= 1  # of four classes
            assert 0.25 < cell["tuned_accuracy"]["mean"] <= 1
            assert cell["probe_accuracy"]["n"] == summary["units"] == 2
    text = to_text(summary, 120, False)
    assert "Transfer to digits, percent" in text and "time / retrain's" in text
    assert "linear probe" in (tmp_path / "report.html").read_text()
    stages = {p.name.rpartition("-")[0] for p in (tmp_path / "stages").iterdir()}
    assert {"transfer-original-0", "transfer-finetune-0.5"} <= stages
    again = finish(tmp_path)
    assert again["cells"] == summary["cells"]


@pytest.mark.ci
def test_rows_are_marked_where_memory_was_short_for_the_target(tmp_path, monkeypatch):
    def short(attempt, asked, *, what, lower):
        found, portion = within_memory(attempt, asked, what=what, lower=lower)
        return found, portion._replace(rows=7) if what == "finetune, dense" else portion

    monkeypatch.setattr(acts, "within_memory", short)
    finish(tmp_path, prune__sparsities=(), transfer__finetune_epochs=0)
    rows = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    halved = {(row["method"], row["halved"]) for row in rows}
    assert halved == {(name, name == "finetune") for name, _ in halved} and len(halved) == 4


@pytest.mark.ci
def test_what_is_told_is_the_probe_of_the_models(tmp_path):
    flat = flat_of(transfer__finetune_epochs=0, unlearn__methods=(), prune__sparsities=())
    summary = finish(tmp_path, transfer__finetune_epochs=0, unlearn__methods=(),
                     prune__sparsities=())  # fmt: skip
    assert "fine-tuned (" not in to_text(summary, 120, False)
    x = builders.build(flat)
    how = x.transfer
    with held(tmp_path, flat) as workdir:
        run = Run(x, workdir, lambda *_: None)
        original = train(run, "original", 0.0, masks=run.dense, retain=run.trained)
        found, _ = run.forward(x.network.features_fn, original.model, how.inputs, "original")
    train_labels, test_labels = np.split(how.labels, [how.train_rows])
    rows = [
        np.mean([
            linear_probe(one[: how.train_rows], train_labels, one[how.train_rows :], test_labels,
                         validation=0.2, seed=draw).accuracy
            for draw in range(3)
        ])
        for one in found
    ]  # fmt: skip
    assert summary["cells"]["original"]["0"]["probe_accuracy"]["mean"] == pytest.approx(
        np.mean(rows), rel=1e-12
    )


def test_a_new_head_is_drawn_for_the_target_and_the_rest_is_kept(tmp_path):
    flat = flat_of()
    x = builders.build(flat)
    with held(tmp_path, flat) as workdir:
        run = Run(x, workdir, lambda *_: None)
        model = run.theta_0
        first = next(name for name in run.dense if "kernel" in run.dense[name])
        masks = {**run.dense, first: {**run.dense[first], "kernel": run.dense[first]["kernel"] < 1}}
        new, kept = with_new_head(run, x.transfer, model, masks)
    assert (
        new.params["head"]["kernel"].shape[-1] == 4
        and model.params["head"]["kernel"].shape[-1] == 6
    )
    assert kept["head"]["kernel"].shape == new.params["head"]["kernel"].shape
    assert first != "head"
    assert kept["head"]["kernel"].all() and not kept[first]["kernel"].any()
    for name in set(model.params) - {"head"}:
        for a, b in zip(model.params[name].values(), new.params[name].values(), strict=True):
            np.testing.assert_array_equal(a, b)
    one, other = new.params["head"]["kernel"]
    assert (one != other).any()


@pytest.mark.ci
def test_harmful_classes_are_chosen_by_their_influence(tmp_path):
    summary = finish(tmp_path, **INFLUENCE)
    told = summary["manifest"]["class_influence"]
    assert [of_class["class"] for of_class in told] == ["0", "1", "2", "3", "4", "5"]
    worst = sorted(sorted(range(6), key=lambda k: -told[k]["value"])[:2])
    [stage] = [p for p in (tmp_path / "stages").iterdir() if p.name.startswith("harmful-")]
    made = stage.stat().st_mtime_ns
    rows = (tmp_path / "results.jsonl").read_text()
    assert rows.count(f'"forgotten_classes": {worst}') == rows.count("\n")
    text = " ".join(to_text(summary, 120, False).split())
    assert f"Forgotten: {worst[0]} and {worst[1]}" in text
    lines = {line.what: line for line in check(tmp_path, None)}
    assert lines["forget sets"].status == OK  # the chosen classes, not each in turn
    assert summary["over"] == "trials"  # they all forget the same
    finish(tmp_path, **INFLUENCE)
    assert stage.stat().st_mtime_ns == made


@pytest.mark.ci
def test_the_targets_test_rows_have_no_part_in_the_choice(tmp_path):
    """With other test images under other labels the scores are the same to the bit."""
    rng = np.random.default_rng(0)
    target = {
        "train_images": rng.integers(0, 256, (60, 8, 8, 1), np.uint8),
        "train_labels": np.arange(60) % 3,
    }
    found = []
    for name in ("one", "other"):
        np.savez(
            tmp_path / f"{name}.npz",
            **target,
            test_images=rng.integers(0, 256, (30, 8, 8, 1), np.uint8),
            test_labels=rng.permutation(np.arange(30) % 3),
        )
        choice = builders.build_choice(flat_of(
            transfer__dataset="npz", transfer__data_dir=str(tmp_path / f"{name}.npz"),
            transfer__classes=(), transfer__limit=0, **INFLUENCE,
        ))  # fmt: skip
        with held(tmp_path / name, choice.config) as workdir:
            found.append(class_scores(Run(builders.build(choice.backbones), workdir, quiet)))
    np.testing.assert_array_equal(found[0].value, found[1].value)
    assert np.ptp(found[0].value) > 0


def test_a_backbone_that_diverged_is_no_score(tmp_path):
    with pytest.raises(
        config.ConfigError,
        match=r"train\.learning_rate = 1000000000000000.0: backbone 0 .* diverged",
    ):
        finish(tmp_path, train__learning_rate=1e15, **INFLUENCE)


def test_random_classes_are_the_control():
    flat = flat_of(transfer__choose="random", transfer__count=2, forget__classes=(), trials=5)
    first, again = builders.build_data(flat), builders.build_data(flat)
    assert first.forgotten_classes == again.forgotten_classes
    assert all(len(set(classes)) == 2 for classes in first.forgotten_classes)
    assert len(set(first.forgotten_classes)) > 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"transfer__dataset": ""}, "transfer.classes = (6, 7, 8, 9): must be () unless"),
        (
            {"transfer__dataset": "", "transfer__classes": ()},
            "transfer.limit = 300: must be 0 unless transfer.dataset",
        ),
        ({"forget__classes": ()}, "forget.classes = (): must be the classes to forget, such as"),
        ({"dataset__pool": "tuning"}, "transfer.dataset = 'digits': must be '' when dataset.pool"),
        ({"transfer__classes": (6,)}, "transfer.classes = (6,): must be a tuple of at least two"),
        ({"transfer__classes": (6, 12)}, "transfer.classes = (6, 12): 12 is no class of 0..9"),
        ({"dataset__classes": ("0", "zero")}, "dataset.classes = ('0', 'zero')"),
        ({"transfer__probe_seeds": 2}, "transfer.probe_seeds = 2"),
        ({"transfer__validation": 0.001}, "transfer.validation = 0.001: leaves class 0"),
        ({"transfer__count": 1}, "transfer.count = 1: must be 0 when transfer.choose is 'given'"),
        ({"transfer__choose": "random"}, "transfer.count = 0: must be at least 1"),
        (
            {"transfer__choose": "random", "transfer__count": 2},
            "forget.classes = ('0+1', '2+3', '4+5'): must be ()",
        ),
        (
            {"transfer__choose": "random", "transfer__count": 5, "forget__classes": ()},
            "transfer.count = 5: must be at most 4",
        ),
        (
            {
                "transfer__choose": "influence",
                "transfer__count": 1,
                "forget__classes": (),
                "transfer__subsets": 8,
            },
            "transfer.subsets = 8: 6 classes, 8 subsets: must be at least 5 classes",
        ),
        (
            {
                "transfer__choose": "influence",
                "transfer__count": 1,
                "forget__classes": (),
                "dataset__classes": (0, 1, 2, 3),
            },
            "transfer.choose = 'influence': needs 5 source classes or more, there are 4; must be",
        ),
        ({"transfer__dataset": "cifar10"}, "transfer.data_dir = '': must be the TFDS directory"),
    ],
)
def test_what_makes_no_sense_is_one_line(tmp_path, changed, said):
    with pytest.raises(config.ConfigError) as raised:
        finish(tmp_path / "run", **changed)
    assert said in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_images_of_another_shape_are_no_target(tmp_path):
    images = np.zeros((40, 16, 16, 3), np.uint8)
    labels = np.arange(40) % 4
    np.savez(tmp_path / "other.npz", images=images, labels=labels)
    with pytest.raises(config.ConfigError) as raised:
        finish(
            tmp_path / "run",
            transfer__dataset="npz",
            transfer__data_dir=str(tmp_path / "other.npz"),
            transfer__classes=(),
            transfer__limit=0,
        )
    said = "images of other are 16x16x3, those of digits 8x8x1, and a backbone takes one shape"
    assert said in str(raised.value)
    assert not (tmp_path / "run").exists()
