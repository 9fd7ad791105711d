"""No file that the package is handed can run code, leave its folder or hide in the report."""

import ast
import json
from html.parser import HTMLParser
from pathlib import Path

from sparse_mu import config, summary
from sparse_mu.report import write_report
from sparse_mu.rules import RULES

PACKAGE = Path(__file__).parents[2] / "sparse_mu"
TREES = {
    path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
}


def calls(*names):
    """``file: name`` of every call of a function or method of one of these names."""
    found = []
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if name in names:
                    found.append((file, name, node))
    return found


def modules():
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from ((file, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield file, node.module


def test_the_scan_sees_calls():
    found = {(file, name) for file, name, _ in calls("build_data", "errstate")}
    assert {("builders/__init__.py", "build_data"), ("checkpoint.py", "errstate")} <= found


def test_code_is_run_from_a_config_file_and_from_nothing_else():
    found = calls("exec", "eval", "compile", "__import__", "import_module", "run_path", "execfile")
    compiled = {"builtins": [], "re": []}
    for file, name, node in found:
        is_re = name == "compile" and isinstance(node.func, ast.Attribute)
        compiled["re" if is_re else "builtins"].append((file, name))
    assert set(compiled["builtins"]) == {("arguments.py", "exec"), ("arguments.py", "compile")}


def test_nothing_is_unpickled():
    forbidden = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "yaml"}
    assert not [found for found in modules() if found[1].split(".")[0] in forbidden]
    # torch.load is never called; torch.save writes what the user exports
    assert not [file for file, _, node in calls("load") if "torch" in ast.unparse(node.func)]


def test_arrays_are_read_without_pickles():
    found = [
        (file, node)
        for file, name, node in calls("load", "read_array", "fromfile", "memmap", "open_memmap")
        if ast.unparse(node.func).startswith(("np.", "numpy."))
    ]
    assert len(found) >= 3
    for file, node in found:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert given.get("allow_pickle") == "False", f"{file}, line {node.lineno}"


def test_archives_are_never_unpacked_onto_the_disk():
    assert not calls("extractall", "extract", "unpack_archive", "_extract_member")
    assert calls("extractfile")  # a member's content, in memory


def test_no_program_is_started_but_git():
    """Which is asked for the commit of the package."""
    assert {file for file, name in modules() if name == "subprocess"} == {"manifest.py"}
    assert not [node for _, _, node in calls("system", "popen") if "os." in ast.unparse(node.func)]
    assert not [node for *_, node in calls("run") if "shell" in ast.unparse(node)]


# What is shown


HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    "</pre><script>alert(1)</script>",
    '" onmouseover="alert(1)',
    "' autofocus onfocus='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "<!--",
    "]]>&lt;b&gt;",
    "javascript:alert(1)",
)


class Tags(HTMLParser):
    """The names of all tags and attributes, and all that is text."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


def report_of(tmp_path, text):
    """A report where every string that a user or a file gives is ``text``."""
    from synthetic_rows import make_config, make_rows  # tests/unit

    rows = make_rows(scenario="class", trials=3, classes=3)
    rows = [
        {**row, "method": text if row["method"] == "finetune" else row["method"]}
        | {"forgotten_classes": [text], "models": text}
        for row in rows
    ]
    made = make_config("class")
    made["dataset"] = {"name": text, "data_dir": text}
    made["forget"]["file"] = made["model"]["checkpoint"] = text
    made[text] = text
    pair = {"forget": text, "copy": text, "where": "retain", "kind": "exact"}
    trial = {"exact": 1, "near": 0, "exact_test": 0, "near_test": 0, "first": [pair]}
    manifest = {
        "jax": text,
        text: {text: [text]},
        "imported": {"file": text, "sparsity": 0.0},
        "duplicates": {"trials": [trial], "near_bits": 3, "flat": 0, "reason": text},
        "class_names": [text],
    }
    found = summary.summarise(rows, config=made, manifest=manifest)
    found["warnings"] = [*found["warnings"], text]
    write_report(found, rows, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    return tags


def test_the_report_escapes_whatever_it_shows(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "unit")
    text = " ".join(HOSTILE)
    tags = report_of(tmp_path, text)
    assert {"details", "svg", "table"} <= tags.tags
    assert not tags.tags & {"script", "img", "iframe", "object", "embed", "form", "a", "link"}
    assert not [name for name in tags.attributes if name.startswith(("on", "auto", "src", "href"))]
    assert text in tags.text and json.dumps(text, ensure_ascii=False)[1:-1] in tags.text


# What is printed


def test_a_line_of_error_cannot_steer_a_terminal():
    said = config.one_line(ValueError("a\x1b[31m\x07b\nc\u202e\u2028d\udcff\x9b"))
    assert said == "a\\x1b[31m\\x07b c\\u202e d\\udcff\\x9b"
    assert len(config.one_line(ValueError("x" * 10**6))) < 2100


def test_help_lists_every_key(capsys):
    from sparse_mu.main import main

    assert main(["sparse_mu", "--help"]) == 0
    shown = capsys.readouterr().out
    for key, rule in RULES.items():
        assert f"  {key} = {rule.allowed}\n" in shown
