import json
import math

import numpy as np
import pytest
from scipy import stats
from synthetic_rows import add_gaps, make_config, make_rows

from sparse_mu.reading import reading
from sparse_mu.summary import summarise
from sparse_mu.summary_words import METHOD_ORDER, sparsity_key


def of(rows, method, sparsity, key):
    found = [row for row in rows if row["method"] == method and row["sparsity"] == sparsity]
    return np.array([row[key] for row in found])


def summary_of(rows, scenario="random"):
    return summarise(rows, config=make_config(scenario), manifest={})


def test_cells_and_gaps_are_student_intervals_over_trials():
    rows = make_rows()
    summary = summary_of(rows)
    quantile = stats.t.ppf(0.975, 9)
    for cell, key in (
        (summary["cells"]["finetune"]["0.95"]["ua"], "ua"),
        (summary["gaps"]["finetune"]["0.95"]["retrain_dense"]["ta"], "gap_retrain_dense_ta"),
    ):
        values = of(rows, "finetune", 0.95, key)
        assert cell["mean"] == pytest.approx(values.mean())
        assert cell["half_width"] == pytest.approx(quantile * values.std(ddof=1) / math.sqrt(10))
        assert cell["n"] == 10
    assert summary["over"] == "trials"
    assert summary["methods"] == list(METHOD_ORDER[:10])
    assert summary["sparsities"] == [0.0, 0.95]


@pytest.mark.parametrize(
    ("target", "rows_of"),
    [("retrain", ("retrain", 0.95)), ("retrain_dense", ("retrain", 0.0))],
)
def test_disparity_is_the_mean_over_metrics_of_the_absolute_mean_gap(target, rows_of):
    rows = make_rows()
    found = summary_of(rows)["disparity"]["fisher"]["0.95"][target]
    expected = np.mean(
        [
            abs(of(rows, "fisher", 0.95, key).mean() - of(rows, *rows_of, key).mean())
            for key in ("ua", "ra", "ta", "mia_efficacy")
        ]
    )
    assert found["value"] == pytest.approx(expected)
    assert found["low"] <= found["value"] <= found["high"]
    assert found["n"] == 10


def test_at_sparsity_zero_all_targets_are_the_retrained_model():
    arms = summary_of(make_rows())["disparity"]["influence"]
    assert arms["0"]["retrain"] == arms["0"]["retrain_dense"] == arms["0"]["retrain_repruned"]


def test_the_noise_floor_decides_what_is_within_it():
    summary = summary_of(make_rows())
    assert (
        summary["noise_floor"]["0.95"]["value"]
        == (summary["disparity"]["retrain_reseeded"]["0.95"]["retrain"]["value"])
    )
    assert summary["disparity"]["l1_sparse"]["0.95"]["retrain"]["within_floor"] is True
    assert summary["disparity"]["fisher"]["0.95"]["retrain"]["within_floor"] is False
    grades = {m: summary["gaps"][m]["0"]["retrain"]["ua"]["grade"] for m in ("finetune", "fisher")}
    assert grades == {"finetune": "far", "fisher": "far"}
    assert summary["gaps"]["influence"]["0.95"]["retrain"]["ua"]["grade"] == "near"
    assert summary["gaps"]["l1_sparse"]["0.95"]["retrain"]["ua"]["grade"] == "within"


def test_without_a_second_retraining_nothing_is_graded():
    rows = [row for row in make_rows() if row["method"] != "retrain_reseeded"]
    summary = summary_of(rows)
    assert summary["noise_floor"] == {}
    assert summary["disparity"]["l1_sparse"]["0.95"]["retrain"]["within_floor"] is None
    assert summary["gaps"]["l1_sparse"]["0.95"]["retrain"]["ua"]["grade"] is None


def test_class_scenario_averages_seeds_within_a_class_first():
    rows = make_rows(
        scenario="class", trials=25, classes=10
    )  # classes 0..4 three times, 5..9 twice
    summary = summary_of(rows, "class")
    values = of(rows, "retrain", 0.0, "ua")
    by_class = np.array([values[np.arange(25) % 10 == label].mean() for label in range(10)])
    cell = summary["cells"]["retrain"]["0"]["ua"]
    assert (summary["over"], summary["units"], cell["n"]) == ("classes", 10, 10)
    assert cell["mean"] == pytest.approx(by_class.mean())
    assert cell["mean"] != pytest.approx(values.mean(), rel=1e-9)
    assert cell["half_width"] == pytest.approx(
        stats.t.ppf(0.975, 9) * by_class.std(ddof=1) / math.sqrt(10)
    )
    assert summary["disparity"]["finetune"]["0"]["retrain"]["n"] == 10


def test_one_class_alone_has_intervals_over_trials():
    summary = summary_of(make_rows(scenario="class", classes=1), "class")
    assert summary["over"] == "trials"
    assert summary["cells"]["retrain"]["0"]["ua"]["n"] == 10


def test_a_diverged_trial_counts_and_a_second_mean_leaves_it_out():
    rows = make_rows()
    hit = next(r for r in rows if (r["method"], r["sparsity"], r["trial"]) == ("finetune", 0.0, 4))
    hit.update(diverged=True, ua=0.9)
    summary = summary_of(rows)
    values = of(rows, "finetune", 0.0, "ua")
    cell = summary["cells"]["finetune"]["0"]["ua"]
    assert (cell["n"], cell["diverged"]) == (10, 1)
    assert cell["mean"] == pytest.approx(values.mean())
    assert cell["mean_without_diverged"] == pytest.approx(np.delete(values, 4).mean())
    assert len(summary["warnings"]) == 1
    assert "finetune at sparsity 0: 1 of 10 trials diverged (trial 4)" in summary["warnings"][0]


def test_a_missing_value_leaves_its_mean_and_is_said():
    rows = make_rows()
    hit = next(r for r in rows if (r["method"], r["sparsity"], r["trial"]) == ("fisher", 0.0, 2))
    hit["mia_efficacy"] = math.nan
    summary = summary_of(rows)
    assert summary["cells"]["fisher"]["0"]["mia_efficacy"]["n"] == 9
    assert summary["disparity"]["fisher"]["0"]["retrain"]["n"] == 9
    assert summary["warnings"] == [
        "fisher at sparsity 0: mia_efficacy has no value in 1 of 10 trials"
    ]
    assert "rte_seconds" not in summary["cells"]["original"]["0"]


def test_one_trial_gives_none_instead_of_an_interval_and_no_grade():
    summary = summary_of(make_rows(trials=1))
    cell = summary["cells"]["finetune"]["0"]["ua"]
    assert (cell["half_width"], cell["n"]) == (None, 1)
    assert summary["disparity"]["finetune"]["0"]["retrain"]["low"] is None
    assert summary["disparity"]["finetune"]["0"]["retrain"]["within_floor"] is None


def test_the_summary_is_json_and_does_not_change_the_rows():
    rows = make_rows()
    before = json.dumps(rows)
    config = {**make_config(), "odd": (np.float32(0.5), math.inf, np.int64(3))}
    summary = summarise(rows, config=config, manifest={"jax": "0.10.2"})
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["config"]["odd"] == [0.5, None, 3]
    assert json.dumps(rows) == before


def test_unknown_methods_come_last_and_duplicates_raise():
    rows = make_rows(trials=2)
    mine = [{**row, "method": "mine"} for row in rows if row["method"] == "finetune"]
    assert summary_of(mine + rows)["methods"][-1] == "mine"
    with pytest.raises(ValueError, match=r"two rows for original at sparsity 0\.0, trial 0"):
        summary_of([*rows, rows[0]])
    with pytest.raises(ValueError, match="no rows"):
        summary_of([])


def test_a_run_without_a_dense_arm_has_no_dense_target():
    rows = [row for row in make_rows() if row["sparsity"] and row["method"] != "retrain_dense"]
    for row in rows:
        for key in [key for key in row if key.startswith("gap_")]:
            del row[key]
    found = {(row["method"], row["sparsity"], row["trial"]): row for row in rows}
    for row in rows:
        add_gaps(row, found)
    targets = summary_of(rows)["disparity"]["finetune"]["0.95"]
    assert set(targets) == {"retrain", "retrain_repruned"}


def test_sparsity_keys_are_short():
    assert [sparsity_key(value) for value in (0.0, 0.95, 0.1 + 0.2)] == ["0", "0.95", "0.3"]


def test_an_original_that_never_learnt_is_told_of():
    rows = make_rows()
    for row in rows:
        if row["method"] == "original":
            row["ra"] = 0.27 if row["sparsity"] else 0.005
    config = make_config()
    assert not any(
        "the original" in line for line in summarise(rows, config=config, manifest={})["warnings"]
    )
    in_place = config | {"prune": config["prune"] | {"rewind_epoch": -1}}
    (line,) = [
        w for w in summarise(rows, config=in_place, manifest={})["warnings"] if "the original" in w
    ]
    assert line.startswith("the original at sparsity 0.95 gets 27.0% of the retain set right, the")
    assert "pruning in place may have ruined it" in line
    imported = {"imported": {"file": "a.pth", "digest": "x", "sparsity": 0.0}}
    (line,) = [
        w
        for w in summarise(rows, config=config, manifest=imported)["warnings"]
        if "the original" in w
    ]
    assert line.startswith("the original at sparsity 0 gets 0.5%") and "order of classes" in line


def test_rows_too_few_to_tell_are_said_to_be():
    rows = make_rows(sparsities=(0.0,))
    retrained = {row["trial"]: row for row in rows if row["method"] == "retrain"}
    for row in rows:
        if row["method"] == "original":
            row |= {key: retrained[row["trial"]][key] for key in ("ua", "ra", "ta", "mia_efficacy")}
    said = reading(summary_of(rows))
    assert "the original, which forgot nothing, is within the noise floor" in said
    assert "cannot tell forgetting from not forgetting" in said


def test_arms_that_are_equal_up_to_rounding_only_are_told_of_in_one_line():
    rows = make_rows(trials=2)
    assert not any("memory" in line for line in summary_of(rows)["warnings"])
    for row in rows:
        row["halved"] = row["method"] == "finetune" or (row["method"], row["sparsity"]) == (
            "fisher",
            0,
        )
    told = [line for line in summary_of(rows)["warnings"] if "memory" in line]
    assert len(told) == 1
    which = "finetune at sparsity 0, fisher at sparsity 0, finetune at sparsity 0.95"
    assert told[0].startswith(f"memory was short in, or before, {which}: ")
    every = [row | {"halved": True} for row in rows]
    assert "before, every arm: " in summary_of(every)["warnings"][-1]
