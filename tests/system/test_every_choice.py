"""Every unlearning method and every way of pruning, through the whole pipeline, very small."""

import functools

import numpy as np
import pytest

from configs import digits
from sparse_mu import builders, config, models, rules
from sparse_mu import run as pipeline
from sparse_mu import workdir as workdirs

SHRUNK = {
    "trials": 2,
    "dataset.limit": 200,
    "dataset.validation": 0.2,
    "train.epochs": 1,
    "prune.per_class": 3,
    "prune.rounds": 3,
    "unlearn.methods": (),
    "unlearn.influence.rows": 16,
    "unlearn.influence.iterations": 2,
    "evaluate.mia_draws": 1,
    "evaluate.rte_repeats": 0,
}
ONE_EPOCH = {key: 1 for key in rules.RULES if key.startswith("unlearn.") and key.endswith("epochs")}


def run(folder, **changed):
    changed = {key.replace("__", "."): value for key, value in changed.items()}
    flat = config.check(
        config.flatten(digits.get_config().to_dict()) | SHRUNK | ONE_EPOCH | changed
    )
    experiment = builders.build(flat)
    with workdirs.held(folder, flat) as workdir:
        rows, _ = pipeline.run_all(experiment, workdir, lambda *_: None)
    return rows


def assert_complete(rows, methods, sparsities):
    targets = {"original", "retrain", "retrain_reseeded"}
    expected = {(name, 0.0) for name in targets | set(methods)}
    targets.add("retrain_repruned")
    expected |= {(name, s) for name in targets | set(methods) for s in sparsities}
    assert {(row["method"], row["sparsity"]) for row in rows} == expected
    assert len(rows) == 2 * len(expected)
    for row in rows:
        if row["method"] != "finetune_and_prune":
            assert row["mask_sparsity"] == round(row["sparsity"] * 23_184) / 23_184
        for metric in ("ua", "ra", "ta", "mia_efficacy"):
            assert 0 <= row[metric] <= 1


@pytest.mark.ci
@pytest.mark.timeout(900)  # ten methods to compile
def test_every_method_runs_and_is_found_again(tmp_path):
    rows = run(tmp_path, unlearn__methods=rules.METHODS, prune__sparsities=(0.5,))
    assert_complete(rows, rules.METHODS, (0.5,))
    pruned = [row["mask_sparsity"] for row in rows if row["method"] == "finetune_and_prune"]
    assert min(pruned) == round(0.9 * 23_184) / 23_184  # of a dense model
    assert run(tmp_path, unlearn__methods=rules.METHODS, prune__sparsities=(0.5,)) == rows


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=pytest.mark.ci if name == "snip" else pytest.mark.slow)
        for name in rules.PRUNING
        if name not in ("omp", "imp")
    ],
)
def test_every_mask_found_before_training(tmp_path, method):
    rows = run(tmp_path, prune__method=method, prune__sparsities=(0.75,))
    assert_complete(rows, (), (0.75,))
    figures = {
        row["method"]: [row["ra"], row["ta"]]
        for row in rows
        if (row["sparsity"], row["trial"]) == (0.75, 0)
    }
    if method in ("synflow", "random"):  # a mask that saw no data: the same run
        assert figures["retrain_repruned"] == figures["retrain"]


@pytest.mark.ci
def test_iterative_pruning_shares_its_rounds_between_sparsities(tmp_path):
    rows = run(tmp_path, prune__method="imp", prune__sparsities=(0.5, 0.75), prune__rate=0.5)
    assert_complete(rows, (), (0.5, 0.75))
    # two rounds: 0.5 is asked for and on the way to 0.75
    kept = sorted(path.name.rpartition("-")[0] for path in (tmp_path / "stages").iterdir())
    assert [name for name in kept if name.startswith("original")] == [
        "original-0",
        "original-0.5",
        "original-0.75",
    ]


@pytest.mark.parametrize("structure", ["filters", pytest.param("channels", marks=pytest.mark.slow)])
def test_whole_groups_are_pruned(tmp_path, structure):
    changed = {"prune__structure": structure, "prune__scope": "leaf", "prune__rewind_epoch": -1}
    rows = run(tmp_path, prune__sparsities=(0.5,), **changed)
    sparse = {row["mask_sparsity"] for row in rows if row["sparsity"]}
    # half of 16, 32 and 64 filters is half of all entries; of 1 input channel none is pruned
    expected = 0.5 if structure == "filters" else 0.5 * (23_184 - 144) / 23_184
    np.testing.assert_allclose(list(sparse), expected, rtol=1e-6)


@pytest.mark.slow
def test_a_network_without_convolutions_runs(tmp_path, monkeypatch):
    """A stage of Swin on digits of 32x32 pixels: nothing to prune, nothing else missing."""
    build_data = builders.build_data

    def enlarged(flat):
        data = build_data(flat)
        return data._replace(inputs=data.inputs.repeat(4, 1).repeat(4, 2))

    narrow = functools.partial(models.SwinT, width=8, layers=(2,), heads=(1,), merges=(8,))
    monkeypatch.setattr(builders, "build_data", enlarged)
    monkeypatch.setattr(models, "SwinT", narrow)
    methods = ("finetune", "l1_sparse", "fisher", "influence")
    changed = {"model__name": "swin_t", "model__channels": "none", "prune__sparsities": ()}
    rows = run(tmp_path, unlearn__methods=methods, **changed)
    assert {row["method"] for row in rows} == {"original", "retrain", "retrain_reseeded", *methods}
    assert {row["mask_sparsity"] for row in rows} == {0.0}


@pytest.mark.parametrize(
    "changed",
    [
        {"prune__per_class": 1000, "prune__method": "snip"},
        {"execution__batchnorm": "per_device"},
        {"execution__mode": "sharded", "train__batch_size": 63},
        {"execution__mode": "mapped", "execution__trial_mode": "vmap"},
    ],
)
def test_choices_that_do_not_fit_are_one_line(tmp_path, changed):
    with pytest.raises(config.ConfigError) as raised:
        run(tmp_path, **changed)
    [key] = [key for key in changed if key in ("prune__per_class", "train__batch_size")] or [
        list(changed)[-1]
    ]
    assert key.replace("__", ".") in str(raised.value)
    assert "\n" not in str(raised.value)
