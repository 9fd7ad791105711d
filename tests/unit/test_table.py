import pytest
from synthetic_rows import make_config, make_rows

from sparse_mu.blocks import arm_name, block, disparity_columns, metric_columns
from sparse_mu.summary import summarise
from sparse_mu.table import to_text


def summary_of(scenario="random", **options):
    rows = make_rows(scenario=scenario, **options)
    return summarise(rows, config=make_config(scenario), manifest={})


@pytest.mark.parametrize("sparsities", [(0.0,), (0.0, 0.95), (0.0, 0.5, 0.9, 0.95)])
@pytest.mark.parametrize("noise", [0.004, 0.2])
def test_no_line_is_longer_than_the_width_and_no_figure_is_cut(sparsities, noise):
    summary = summary_of(sparsities=sparsities, noise=noise)
    for width in (80, 120, 160):
        text = to_text(summary, width, False)
        assert max(len(line) for line in text.splitlines()) <= width
        assert "±" in text
        assert "(n); n = 10 trials" in text
        assert "…" not in text


def test_dense_and_sparse_stand_side_by_side_at_120_columns_and_are_stacked_at_80():
    summary = summary_of()
    wide, narrow = to_text(summary, 120, False), to_text(summary, 80, False)
    finetune = [line for line in wide.splitlines() if line.startswith("finetune")]
    assert finetune[0].count("±") == 8
    finetune = [line for line in narrow.splitlines() if line.startswith("finetune")]
    assert [line.count("±") for line in finetune[:2]] == [4, 4]


def test_figures_are_percent_with_their_half_width():
    summary = summary_of()
    cell = summary["cells"]["finetune"]["0.95"]["ra"]
    figure = f"{100 * cell['mean']:.1f} ± {100 * cell['half_width']:.1f}"
    assert figure in to_text(summary, 120, False)


def test_the_header_says_what_the_intervals_are_over():
    assert "intervals are over trials" in to_text(summary_of(), 160, False)
    text = to_text(summary_of("class", trials=20), 160, False)
    assert "n = 10 classes" in text
    assert "intervals are over classes" in text


def test_marks_targets_and_floor_are_explained_and_colour_is_only_extra():
    summary = summary_of()
    plain, coloured = to_text(summary, 120, False), to_text(summary, 120, True)
    for word in ("≈ within the noise floor", "noise floor ", "retrain_dense", "retrain_repruned"):
        assert word in plain
    assert "\x1b[" not in plain
    for code in ("\x1b[32m", "\x1b[33m", "\x1b[31m"):
        assert code in coloured


def test_marks_give_the_direction_of_the_gap():
    summary = summary_of()
    filled = block(summary, "", metric_columns([0.0]), 2)
    marks = {line.label: [cell.mark for cell in line.cells] for line in filled.lines}
    assert marks["fisher"] == ["▲", "▼", "▼", "▲"]
    assert marks["influence"][:2] == ["▽", "▽"]
    assert marks["retrain"] == marks["noise floor"] == [""] * 4


def test_disparity_has_one_dense_column_and_one_for_each_target_of_the_sparse_arm():
    columns = disparity_columns([0.0, 0.95])
    assert [(column.key, column.sparsity) for column in columns] == [
        ("retrain", 0.0),
        ("retrain", 0.95),
        ("retrain_dense", 0.95),
        ("retrain_repruned", 0.95),
    ]
    filled = block(summary_of(), "", columns, 2)
    line = next(line for line in filled.lines if line.label == "l1_sparse")
    assert line.cells[1].mark == "≈"
    assert "[" in line.cells[1].text


def test_n_stands_in_the_cell_where_it_is_not_the_same_for_all():
    rows = make_rows()
    rows[0]["ua"] = None
    text = to_text(summarise(rows, config=make_config(), manifest={}), 160, False)
    assert "(n) beside each figure" in text
    assert "(9)" in text
    assert "(10)" in text
    assert "Warning: original at sparsity 0: ua has no value in 1 of 10 trials" in text


def test_one_trial_is_shown_without_interval_or_marks():
    text = to_text(summary_of(trials=1), 80, False)
    assert "n = 1 trial: no interval" in text
    assert "≈" not in text


def test_cost_is_shown_with_and_without_pruning():
    text = to_text(summary_of(), 120, False)
    line = [line for line in text.splitlines() if line.startswith("finetune")][-1]
    assert line.split() == ["finetune", "9.14", "9.14", "199"]  # timed on one trial: no ±


def test_a_run_without_retraining_or_times_still_prints():
    rows = [row for row in make_rows(trials=3) if row["method"] == "finetune"]
    for row in rows:
        row["rte_seconds"] = None
        for key in [key for key in row if key.startswith("gap_")]:
            del row[key]
    text = to_text(summarise(rows, config=make_config(), manifest={}), 80, False)
    assert "finetune" in text
    assert "RTE  " not in text


def test_arm_names():
    assert [arm_name(value) for value in (0.0, 0.95, 0.999)] == ["dense", "95%", "99.9%"]
