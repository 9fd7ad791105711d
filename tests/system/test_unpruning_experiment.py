"""The un-pruning experiment from benches to page, on trainings too short to mean anything."""

import json

import pytest

from experiments.unpruning import benches, report, settings, tables
from experiments.unpruning.arms import GROWN
from experiments.unpruning.benches import MadeOtherwiseError, Planned

SEEDS = (0, 1)


@pytest.mark.ci
def test_benches_tables_and_plots(tmp_path):
    mlp = settings.digits_mlp(epochs=4)
    cnn = settings.digits_cnn(structure="filters", sparsity=0.5, epochs=2)
    plans = [
        Planned(mlp, "class", (1, 2, 3, 4), 1, 1),
        Planned(mlp, "random 10%", (1, 2, 3, 4), 1, 1, False, True, with_unlearners=False),
        Planned(cnn._replace(batch_size=256), "class", (1, 2), 1, 1, True, True),
    ]
    assert [line.split(": ")[1] for line in benches.run(plans, SEEDS, tmp_path)] == ["done"] * 3
    assert [line.split(": ")[1] for line in benches.run(plans, SEEDS, tmp_path)] == ["found"] * 3
    found = json.loads((tmp_path / f"{plans[0].name}.json").read_text())
    masks = found["masks"]
    assert masks["arms"]["retrained"]["iou"] == [1, 1]
    assert masks["sham"]["difference"]["to_original"] == [1, 1]
    assert (
        set(masks["sham"]) == set(masks["placebo"]) == {"rewind", "difference", "projected", *GROWN}
    )
    assert masks["arms"]["retrained"]["cost"] == [1, 1]
    # one round of one epoch of fine-tuning; up to five of them, a gradient before each
    assert masks["arms"]["regrow all, zero"]["cost"][0] == pytest.approx(1 / 8)
    [cost, _] = masks["arms"]["regrow 5 rounds, gradient"]["cost"]
    assert cost in [2 * rounds / 8 for rounds in range(1, 6)]
    assert found["made"]["plan"]["seeds"] == [0, 1] and found["made"]["commit"]
    with pytest.raises(MadeOtherwiseError, match="was measured with other seeds or settings"):
        list(benches.run(plans, (0, 2), tmp_path))
    slim = json.loads((tmp_path / f"{plans[1].name}.json").read_text())
    assert set(slim["masks"]["sham"]) == {"rewind", "difference", "projected"}
    assert not any("stored dense" in name or "regrow" in name for name in slim["masks"]["arms"])
    assert set(slim["path"]) == {"epochs", "rewind", "difference", "projected"}
    assert found["path"]["difference"][-1] == [1, 1]  # as many epochs as the training
    assert masks["arms"]["difference"]["cost"][0] == pytest.approx(1 / 8)  # 1 of 2 x 4 epochs
    assert found["outputs"]["R2: retrained"]["kl_test"] == [0, 0]
    page = report.write(tmp_path, tmp_path / "out").read_text()
    for word in ("T1.", "T2, T4.", "T3.", "Bounds beside the truth", "regrow all, theta_0"):
        assert word in page
    pictures = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert pictures == ["unpruning_bounds.png", "unpruning_epochs.png", "unpruning_leaves.png"]


def test_figures_are_shown_with_their_interval_and_count():
    assert tables.shown([0.1, 0.3]) == "0.200 ± 1.271"
    assert tables.shown([0.5, None, float("nan")]) == "0.500 (1)"
    assert tables.shown([None]) == "—"


def test_the_paired_test_says_which_way_it_went():
    arms = {"no-op": {"iou": [0.5, 0.6, 0.55]}, "difference": {"iou": [0.8, 0.9, 0.86]}}
    arms |= {name: {"iou": [0.9, 0.9, 0.85]} for name in ("projected", "rewind")}
    found = {"arms": arms, "floor": [1, 1, 1], "placebo": {"difference": [0.4, 0.4, 0.4]}}
    text = tables.paired_test(found)[0]
    assert "+0.303" in text and "3 of 3 seeds won" in text and "is rejected" in text
    assert "1 of 3 seeds won and 1 of 3 lost" in tables.paired_test(found)[2]
    arms["difference"]["iou"] = [0.5, 0.61, 0.54]
    assert "is not rejected" in tables.paired_test(found)[0]
