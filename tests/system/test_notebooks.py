"""The notebooks, run from top to bottom with small settings.

Cells run as plain Python, one after another in one namespace; a cell tagged "parameters" may be
followed by settings of the test, and one tagged "colab-only" (what installs, downloads, or needs
IPython) is left out.
"""

import json
import re
from pathlib import Path

import jax
import matplotlib as mpl
import numpy as np
import pytest

import sparse_mu

ROOT = Path(__file__).parents[2]
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "colab").glob("*.ipynb"))}


def code_cells(name):
    """``(tags, source)`` of every code cell."""
    cells = json.loads(NOTEBOOKS[name].read_text("utf-8"))["cells"]
    return [
        (cell["metadata"].get("tags", []), "".join(cell["source"]))
        for cell in cells
        if cell["cell_type"] == "code"
    ]


def run(name, **parameters):
    """What a reader has after running all cells, with other parameters."""
    names = {}
    # a reader's own network may add a bias to a batch, whatever the tests of the package demand
    with jax.numpy_rank_promotion("allow"):
        for number, (tags, source) in enumerate(code_cells(name)):
            if "colab-only" in tags:
                continue
            exec(compile(source, f"{name}.ipynb, code cell {number}", "exec"), names)
            if "parameters" in tags:
                assert parameters.keys() <= names.keys()  # else they would change nothing
                names.update(parameters)
    return names


@pytest.fixture
def figures(monkeypatch):
    """The figures that cells show, drawn without a screen."""
    import matplotlib.pyplot as plt

    mpl.use("agg")
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    yield shown
    plt.close("all")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_stripped(name):
    cells = json.loads(NOTEBOOKS[name].read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_parameters_come_first_and_only_shell_lines_and_displays_are_left_out(name):
    cells = code_cells(name)
    assert [tags for tags, _ in cells].index(["parameters"]) == 0
    for tags, source in cells:
        assert ("colab-only" in tags) == bool(re.search(r"^[%!]|IPython", source, re.MULTILINE))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_holds_no_logic(name):
    source = "\n".join(source for _, source in code_cells(name))
    assert not re.search(r"^\s*(while|if|elif|try|with|lambda)\b", source, re.MULTILINE)
    own = re.findall(r"^(?:def|class) (\w+)", source, re.MULTILINE)
    assert own == {
        "quickstart": [],
        # the reader's networks
        "bring_your_own_model": ["NnxNet", "nnx_apply", "EqxNet", "eqx_apply"],
    }.get(name, [])


@pytest.mark.ci
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_quickstart(figures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT / "colab")
    names = run(
        "quickstart",
        CONFIG="../configs/digits.py",
        WORKDIR=str(tmp_path),
        OVERRIDES=[
            "--config.trials=2",
            "--config.dataset.limit=300",
            "--config.train.epochs=1",
            "--config.unlearn.methods=finetune",
            "--config.evaluate.rte_repeats=0",
            "--config.evaluate.mia_draws=1",
        ],
    )
    assert names["exit_code"] == 0
    out = capsys.readouterr().out
    assert "cpu: cpu" in out.splitlines()[0] and "Disparity to each target" in out
    assert names["methods"] == ["finetune", "retrain_reseeded"]
    assert (tmp_path / "report.html").stat().st_size > 0
    (figure,) = figures
    points = [line.get_xdata() for line in figure.axes[0].lines]
    disparity = names["summary"]["disparity"]
    for arm, drawn in zip(("0", "0.9"), points, strict=True):
        expected = [100 * disparity[name][arm]["retrain"]["value"] for name in names["methods"]]
        np.testing.assert_allclose(drawn, expected)


@pytest.mark.ci
def test_bring_your_own_model(figures, capsys):
    names = run("bring_your_own_model", SPARSITIES=(0.8,), EPOCHS=3, UNLEARN_EPOCHS=1, ROWS=400)
    cases = ["retrained", "original", "finetune", "l1_sparse", "gradient_ascent"]
    expected = [(network, 0.8, case) for network in ("Flax nnx", "Equinox") for case in cases]
    assert list(names["results"]) == expected
    said = capsys.readouterr().out.splitlines()
    for network, (_, model, prunable) in names["networks"].items():
        assert names["results"][network, 0.8, "retrained"]["ua"] == 1.0  # never seen, never said
        for case in cases:
            unlearned = names["unlearned"][network, 0.8, case]
            assert jax.tree.structure(unlearned) == jax.tree.structure(model)
            masks = sparse_mu.masks.from_zeros(unlearned.params, prunable)
            # a bias may be zero by chance, which the prunable leaves leave out
            assert float(sparse_mu.masks.sparsity(masks, prunable)) == pytest.approx(0.8, abs=1e-3)
        (line,) = [row for row in said if row.startswith(f"{network:9}  80%  finetune ")]
        scores = names["results"][network, 0.8, "finetune"]
        assert line.split()[-4:] == [f"{scores[key]:.3f}" for key in names["columns"]]
    (figure,) = figures
    for axes in figure.axes:
        (line,) = axes.lines
        # the original knows the threes: far from retraining in UA and MIA-Efficacy
        assert line.get_ydata()[0] == "original" and line.get_xdata()[0] > 10
