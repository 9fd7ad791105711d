"""The config files: each passes the checks, names commands that parse, and quotes the paper."""

import ast
import csv
import re
import shlex
import sys
from pathlib import Path

import pytest

from sparse_mu import arguments

ROOT = Path(__file__).parents[2]
FILES = {file.stem: file for file in sorted((ROOT / "configs").glob("*.py"))}
DOCS = {name: ast.get_docstring(ast.parse(file.read_text("utf-8"))) for name, file in FILES.items()}
DIGITS = [name for name in FILES if name.startswith("digits")]
APPLICATIONS = [name for name in FILES if name.endswith(("_trojan", "_transfer"))]
PAPER = [name for name in FILES if name not in (*DIGITS, *APPLICATIONS)]  # one table each
NETWORKS = {
    "resnet18": "ResNet-18",
    "resnet20s": "ResNet-20s",
    "resnet50": "ResNet-50",
    "vgg16_bn": "VGG-16",
    "swin_t": "Swin-T",
}
DATASETS = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "svhn_cropped": "SVHN",
    "imagenet2012": "ImageNet",
}
SCENARIOS = {"class": "class-wise", "random": "random 10%"}
METHODS = {
    "finetune": "FT",
    "gradient_ascent": "GA",
    "fisher": "FF",
    "influence": "IU",
    "l1_sparse": "l1-sparse",
}
WIDEST = 140  # columns of a line of the overview
# ml_collections loads a config file by a method that Python will drop
loads_config = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def commands(name):
    """Every command of a docstring, continued lines joined, as argument vectors."""
    lines = DOCS[name].replace("\\\n", " ").splitlines()
    return [shlex.split(line)[2:] for line in lines if line.startswith("    python -m ")]


def resolved(argv, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", argv)
    return arguments.flat_config(arguments.parse(argv))


def tables(name):
    """The paper's tables in a docstring.

    Gives for each: its title, the setting, the table that some columns come from, and cells by
    (method, arm, metric).
    """
    found = []
    for block in DOCS[name].split("\n\n"):
        head = re.fullmatch(r"    (Table \w+), (.+?)(?:; (.+): (Table \w+))?", block.split("\n")[0])
        if head:
            title, setting, columns, other = head.groups()
            sources = dict.fromkeys(columns.split(" and "), other) if columns else {}
            names, *rows = (line.split() for line in block.splitlines()[1:])
            cells = {
                (method, arm, metric): value
                for arm, metric, *values in rows
                for method, value in zip(names, values, strict=True)
            }
            found.append((title, setting, sources, cells))
    return found


@loads_config
@pytest.mark.parametrize("name", FILES)
def test_every_command_of_a_docstring_is_a_checked_run_of_that_file(name, monkeypatch):
    found = commands(name)
    assert found and len({argv[2] for argv in found}) == len(found)  # a workdir of its own each
    for argv in found:
        assert argv[:2] == ["sparse_mu.main", f"--config=configs/{name}.py"]
        flat = resolved(argv, monkeypatch)
        assert (flat["dataset.data_dir"] == "DIR") == (name not in DIGITS)


@loads_config
@pytest.mark.parametrize("name", PAPER)
def test_the_tables_of_a_docstring_are_those_of_its_runs(name, monkeypatch):
    """Each table is one command's: its data, network, scenario, sparsity and methods."""
    runs = [resolved(argv, monkeypatch) for argv in commands(name)]
    runs = [flat for flat in runs if not flat["dataset.limit"]]
    for flat, (_, setting, _, cells) in zip(runs, tables(name), strict=True):
        dataset, network = DATASETS[flat["dataset.name"]], NETWORKS[flat["model.name"]]
        assert setting == f"{dataset}/{network}/{SCENARIOS[flat['forget.scenario']]}"
        arms = {"dense", *(f"{100 * s:.0f}%" for s in flat["prune.sparsities"])}
        assert {arm for _, arm, _ in cells} - {"both"} == arms
        printed = {method for method, _, _ in cells} - {"Retrain"}
        run = {METHODS[method] for method in flat["unlearn.methods"]}
        assert printed <= run if name == "cifar10_resnet20s" else printed == run


@pytest.mark.parametrize("name", PAPER)
def test_every_number_of_a_docstring_is_the_papers(name, shared_folder):
    """And none that the paper's tables hold is left out."""
    with (shared_folder / "paper_tables.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    for title, setting, sources, cells in tables(name):
        for method in {method for method, _, _ in cells}:
            table = sources.get(method, title)
            printed = {
                (row["variant"], row["metric"]): row["value"]
                for row in rows
                if (row["table"], row["setting"]) == (table, setting)
                and row["method"].removesuffix(" MU") == method
            }
            quoted = {
                (arm, metric): value
                for (of, arm, metric), value in cells.items()
                if of == method and value != "-"
            }
            # a time is printed once for all arms, or beside the dense one where there is no other
            times = {key for key in quoted if key[1].startswith("RTE")}
            assert len(times) == 1
            assert [quoted.pop(key) for key in times] == [
                printed.pop(key) for key in list(printed) if key[1].startswith("RTE")
            ]
            assert quoted == printed


@pytest.mark.parametrize("name", FILES)
def test_a_docstring_says_what_the_run_costs(name):
    assert re.search(r"^(What .*)?Cost: ", DOCS[name], re.MULTILINE)
    assert name in DIGITS or "not run by us" in DOCS[name]


def test_the_transfer_config_quotes_table_4():
    found = re.findall(r"\d+\.\d\d", DOCS["imagenet_resnet18_transfer"])
    quoted = sorted(map(float, found))
    lines = (ROOT / "experiments" / "paper" / "paper_tables.csv").read_text("utf-8").splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    assert quoted == sorted(float(row["value"]) for row in rows if row["table"] == "Table 4")


def test_the_papers_tables_are_those_of_the_source(shared_folder):
    own = (ROOT / "experiments" / "paper" / "paper_tables.csv").read_text("utf-8")
    theirs = (shared_folder / "paper_tables.csv").read_text("utf-8")
    assert own.partition("\n")[2] == theirs and own.startswith("# Source: ")


def test_the_overview_lists_every_config_in_a_line(monkeypatch):
    monkeypatch.chdir(ROOT)
    lines = arguments.overview().splitlines()
    listed = [line for line in lines if line.startswith("  configs/")]
    assert [line.split()[0] for line in listed] == [f"configs/{name}.py" for name in FILES]
    starts = {
        line.index(DOCS[name].split("\n")[0]) for line, name in zip(listed, FILES, strict=True)
    }
    assert len(starts) == 1  # one column
    assert max(map(len, listed)) <= WIDEST
