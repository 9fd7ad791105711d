"""Every bad input is one line: the key, the value, what is allowed; and nothing is harmed."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_mu import arguments, builders, results
from sparse_mu import config as rules
from sparse_mu.main import main
from sparse_mu.rules import METHODS as NAMES

ROOT = Path(__file__).parents[2]
DIGITS = str(ROOT / "configs" / "digits.py")
pytestmark = pytest.mark.filterwarnings("ignore:the load_module")  # ml_collections calls it
METHODS = ", ".join(NAMES)


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs the command in this process: one line of error, nothing else, and no workdir."""

    def run(*overrides, code=2, config=DIGITS, workdir=None):
        folder = tmp_path / "never-made"
        given = [f"--config={config}", f"--workdir={workdir or folder}", *overrides]
        assert main(["sparse_mu", *given]) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
        assert "Traceback" not in err
        assert not folder.exists()
        return err.removeprefix("error: ").rstrip("\n")

    return run


OVERRIDES = {  # override: what is said after "error: "
    "--config.trails=2": "config.trails: there is no such key (did you mean 'trials'?)",
    "--config.epochs=2": "config.epochs: there is no such key (did you mean 'train.epochs'?)",
    "--config.train.epoch=2": "config.train.epoch: there is no such key "
    "(did you mean 'train.epochs'?)",
    "--config.unlearn.finetun.epochs=2": "config.unlearn.finetun.epochs: there is no such key "
    "(did you mean 'unlearn.finetune.epochs'?)",
    "--config.dataset.xyz=2": "config.dataset.xyz: there is no such key; config.dataset has "
    "name, data_dir, limit, classes, reading, image_size, cache_dir, workers, split_seed, ",
    "--config.train=5": "config.train: is a group of keys, set one of them: epochs, batch_size, ",
    "--config.train={'epochs': 5}": "config.train: is a group of keys",
    "--config.prune.sparsities[0]=0.5": "config.prune.sparsities[0]: there is no such key "
    "(did you mean 'prune.sparsities'?)",
    "--config.unlearn.methods=fisherr": "config.unlearn.methods = ('fisherr',): must be a tuple "
    f"of distinct names out of {METHODS} (did you mean 'fisher'?)",
    "--config.unlearn.methods=('finetune', 'finetune')": "config.unlearn.methods = ('finetune', "
    "'finetune'): must be a tuple of distinct names",
    "--config.unlearn.methods=(1,)": "config.unlearn.methods = (1,): must be a tuple of distinct",
    "--config.model.name=smal_cnn": "config.model.name = 'smal_cnn': must be one of small_cnn, "
    "resnet20s, resnet18, resnet50, vgg16_bn, vgg16_bn_lth, swin_t (did you mean 'small_cnn'?)",
    "--config.model.stem=imagenet": "config.model.stem = 'imagenet': must be 'cifar' when "
    "model.name is 'small_cnn'",
    "--config.model.dtype=float16": "config.model.dtype = 'float16': must be one of float32, ",
    "--config.forget.scenario=classes": "config.forget.scenario = 'classes': must be one of "
    "class, random, indices, trojan (did you mean 'class'?)",
    "--config.train.schedule=cosin": "config.train.schedule = 'cosin': must be one of ",
    "--config.unlearn.l1_sparse.schedule=up": "config.unlearn.l1_sparse.schedule = 'up': must be",
    "--config.trials=ten": "config.trials = 'ten': must be a whole number from 1 to 10000",
    "--config.trials=2.5": "config.trials = '2.5': must be a whole number from 1",
    "--config.trials=true": "config.trials = 'true': must be a whole number from 1",
    "--config.trials=": "config.trials = '': must be a whole number from 1",
    "--config.trials": "--config.trials: needs a value, as in --config.trials=VALUE",
    "--config.trials=0": "config.trials = 0: must be a whole number from 1",
    "--config.trials=-1": "config.trials = -1: must be a whole number from 1",
    "--config.trials=99999999999": "config.trials = 99999999999: must be a whole number from 1",
    "--config.seed=-1": "config.seed = -1: must be a whole number from 0 to 2147483647",
    "--config.seed=2147483648": "config.seed = 2147483648: must be a whole number from 0 to 2147",
    "--config.train.learning_rate=fast": "config.train.learning_rate = 'fast': must be a finite "
    "number above 0",
    "--config.train.learning_rate=nan": "config.train.learning_rate = nan: must be a finite ",
    "--config.train.learning_rate=inf": "config.train.learning_rate = inf: must be a finite ",
    "--config.train.learning_rate=1e400": "config.train.learning_rate = inf: must be a finite ",
    "--config.train.learning_rate=0": "config.train.learning_rate = 0.0: must be a finite number "
    "above 0",
    "--config.train.momentum=1": "config.train.momentum = 1.0: must be a number of at least 0 ",
    "--config.train.weight_decay=-inf": "config.train.weight_decay = -inf: must be a finite ",
    "--config.unlearn.fisher.alpha=nan": "config.unlearn.fisher.alpha = nan: must be a finite ",
    "--config.prune.sparsities=90": "config.prune.sparsities = (90,): must be a tuple of distinct "
    "fractions in [0, 1), such as (0.9,)",
    "--config.prune.sparsities=1.0": "config.prune.sparsities = (1.0,): must be",
    "--config.prune.sparsities=-0.1": "config.prune.sparsities = (-0.1,): must be",
    "--config.prune.sparsities=nan": "config.prune.sparsities = ('nan',): must be",
    "--config.prune.sparsities=1e999": "config.prune.sparsities = (inf,): must be",
    "--config.prune.sparsities=(0.9, 0.9)": "config.prune.sparsities = (0.9, 0.9): must be",
    "--config.prune.sparsities=(0.9, 0.9000000001)": "config.prune.sparsities = (0.9, 0.9000",
    "--config.prune.sparsities=most": "config.prune.sparsities = ('most',): must be",
    "--config.prune.sparsities=(0.9": "config.prune.sparsities = ('(0.9',): must be",
    "--config.prune.sparsities=(0.9, ": "config.prune.sparsities = '(0.9, ': must be",
    "--config.prune.sparsities=(True,)": "config.prune.sparsities = (True,): must be",
    "--config.prune.rewind_epoch=15": "config.prune.rewind_epoch = 15: must be below "
    "train.epochs = 15, or -1",
    "--config.prune.rewind_epoch=-2": "config.prune.rewind_epoch = -2: must be a whole number ",
    "--config.train.warmup_epochs=16": "config.train.warmup_epochs = 16.0: must be at most "
    "train.epochs = 15",
    "--config.train.batch_size=1": "config.train.batch_size = 1: must be a whole number from 2",
    "--config.evaluate.rte_repeats=2": "config.evaluate.rte_repeats = 2: must be a whole number "
    "from 3",
    "--config.evaluate.interval=1": "config.evaluate.interval = 1.0: must be a fraction above 0 ",
    "--config.dataset.validation=1": "config.dataset.validation = 1.0: must be a fraction in [0,",
    "--config.dataset.name=": "config.dataset.name = '': must be 'digits', 'folder', 'npz' or ",
    "--config.dataset.name=cifar10": "config.dataset.data_dir = '': must be the TFDS directory "
    "that holds it when dataset.name is 'cifar10'",
    "--config.dataset.name=folder": "config.dataset.data_dir = '': must be the folder that holds ",
    "--config.dataset.image_size=8": "config.dataset.image_size = 8: digits are 8x8; must be 0",
    "--config.forget.scenario=indices": "config.forget.file = '': must be a .txt, .csv, .npy or ",
    "--config.forget.file=rows.txt": "config.forget.file = 'rows.txt': must be '' when "
    "forget.scenario is 'class'; it is read for 'indices'",
    "--config.dataset.unlearn_split_seed=-2": "config.dataset.unlearn_split_seed = -2: must be a ",
    "--config.forget.classes=(0, 0)": "config.forget.classes = (0, 0): must be a tuple of distinct",
    "--config.forget.classes=(-1,)": "config.forget.classes = (-1,): must be a tuple of distinct",
    "--config.forget.classes=('cat', '')": "config.forget.classes = ('cat', ''): must be a tuple ",
    "--config.forget.fraction=0": "config.forget.fraction = 0.0: must be a fraction above 0 and ",
    "--config.forget.fraction=1": "config.forget.fraction = 1.0: must be a fraction above 0 and ",
    "--config.forget.fraction=nan": "config.forget.fraction = nan: must be a fraction above 0 ",
    "--config.forget.file=a\nb": "config.forget.file = 'a\\nb': must be a text on one line",
    "--confg=x": "--confg: there is no such flag (did you mean '--config'?)",
    "--noconfig.trials": "--noconfig.trials: there is no such flag",
    "--wrkdir=x": "--wrkdir: there is no such flag (did you mean '--workdir'?)",
    "digits": "argument 'digits' is no flag; flags start with --, as in python -m",
    "--report_only=perhaps": "flag --report_only=perhaps: ",
    "--flagfile=/nowhere": "--flagfile: there is no such flag",
    "--undefok=confg": "--undefok: there is no such flag",
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_an_override_that_cannot_be(refused, override):
    assert refused(override).startswith(OVERRIDES[override])


@pytest.mark.parametrize("override", ["seed=1", "train.epochs=2"])
def test_an_override_of_what_the_config_lacks(tmp_path, override):
    file = tmp_path / "mine.py"
    file.write_text("import ml_collections as m\ndef get_config():\n    return m.ConfigDict()\n")
    with pytest.raises(rules.ConfigError) as raised:
        arguments.parse(["x", f"--config={file}", f"--config.{override}"])
    key = override.partition("=")[0].partition(".")[0]
    assert str(raised.value) == f"--config={file}: its config has no key {key!r} to override"


@pytest.mark.parametrize("order", [1, -1])
def test_two_configs_are_refused(order):
    both = ["--config=configs/digits.py", "--config=configs/digits_trojan.py"][::order]
    with pytest.raises(rules.ConfigError, match=r"^--config is given twice: give one file$"):
        arguments.parse(["x", *both])


def test_the_wrong_one_of_several_overrides_is_named(refused):
    said = refused("--config.trials=2", "--config.train.learning_rate=x", "--config.seed=3")
    assert said.startswith("config.train.learning_rate = 'x'")


def test_overrides_before_the_config_or_without_it(capsys):
    assert main(["sparse_mu", "--config.trials=2", f"--config={DIGITS}"]) == 2
    assert "before a value for --config" in capsys.readouterr().err
    assert main(["sparse_mu", "--config.trials=2"]) == 2
    assert "overrides need --config=FILE before them" in capsys.readouterr().err


def test_no_workdir(capsys):
    for workdir in ([], ["--workdir="]):
        assert main(["sparse_mu", f"--config={DIGITS}", *workdir]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: --workdir is missing: a folder for the run")


@pytest.mark.parametrize("given", [[], ["--help"], ["-h"], ["--workdir=x"]])
def test_without_a_config_the_configs_are_listed(capsys, given):
    assert main(["sparse_mu", *given]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for file in (ROOT / "configs").glob("*.py"):
        assert f"configs/{file.name}" in out
    assert arguments.EXAMPLE in out


# Config files


COMPLETE = f"""
import runpy
def get_config():
    config = runpy.run_path({DIGITS!r})["get_config"]()
    with config.unlocked():
        CHANGE
    return config
"""
FILES = {  # text of a config file: what is said about it
    "def get_config(:\n": "line 1: SyntaxError: ",
    "\n1 / 0\n": "line 2: ZeroDivisionError: division by zero",
    "def get_config():\n    raise ValueError('first\\nsecond')\n": "line 2: ValueError: first",
    "def get_config():\n    raise SystemExit(3)\n": "line 2: SystemExit: 3",
    "def get_config():\n    open('/nowhere')\n": "line 2: FileNotFoundError: ",
    "import nowhere_to_be_found\n": "line 1: ModuleNotFoundError: No module named",
    "\0": "",
    "config = 3\n": "defines no function get_config()",
    "def get_config():\n    pass\n": "get_config() must return a ConfigDict",
    "def get_config():\n    return {'trials': 3}\n": "get_config() must return a ConfigDict",
    "def get_config(name):\n    pass\n": "TypeError: get_config() missing 1 required",
    COMPLETE.replace("CHANGE", "del config.seed"): "config.seed: is missing; must be a whole ",
    COMPLETE.replace("CHANGE", "del config.train"): "config.train.epochs: is missing; must be ",
    COMPLETE.replace("CHANGE", "config.extra = 1"): "config.extra: there is no such key",
    COMPLETE.replace("CHANGE", "config.trials = True"): "config.trials = True: must be a whole",
    COMPLETE.replace("CHANGE", "del config.train; config.train = 1"): "config.train: is a ",
    COMPLETE.replace("CHANGE", "config.seed = 10**400"): "config.seed = 1000",
    COMPLETE.replace(
        "CHANGE", "del config.train.momentum; config.train.momentum = 10**400"
    ): "config.train.momentum = 1000",
    COMPLETE.replace("CHANGE", "config.forget.classes = ([],)"): "config.forget.classes = ([],)",
    COMPLETE.replace("CHANGE", "config.unlearn.methods = ([],)"): "config.unlearn.methods = ([],",
}


@pytest.mark.parametrize("text", FILES)
def test_a_config_file_that_cannot_be(refused, tmp_path, text):
    file = tmp_path / "mine.py"
    file.write_text(text)
    said = refused(config=file)
    assert FILES[text] in said
    assert len(said) < 400


def test_a_placeholder_that_nobody_filled(refused, tmp_path):
    file = tmp_path / "mine.py"
    change = "import ml_collections; config.seed = ml_collections.config_dict.placeholder(int)"
    file.write_text(COMPLETE.replace("CHANGE", change))
    assert refused(config=file).startswith("config.seed = None: must be a whole number from 0")


def test_a_config_file_that_is_not_there(refused, tmp_path):
    for missing in (tmp_path / "none.py", tmp_path, "x" * 5000):
        assert ": there is no such file; configs: " in refused(config=missing)
        assert ": there is no such file; configs: " in refused("--config.seed=1", config=missing)


def test_a_config_file_with_a_parameter(refused, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(COMPLETE.replace("get_config()", "get_config(n)").replace("CHANGE", "pass"))
    said = refused("--config.seed=x", config=f"{file}:3")
    assert said.startswith("config.seed = 'x'")


# Forget sets: only known once the data are read, yet before the workdir is made


ROWS = {  # file: (content, what is said)
    "empty.txt": ("", "holds no row numbers"),
    "comments.txt": ("# nothing\n\n", "holds no row numbers"),
    "twice.txt": ("3\n3\n", "row 3 is given twice"),
    "outside.txt": ("1352\n", "row 1352 is out of range; allowed: 0 to 1351"),
    "negative.txt": ("-1\n", "row -1 is out of range; allowed: 0 to 1351"),
    "words.txt": ("1\ntwo\n", "line 2: 'two' is not a row number"),
    "fractions.txt": ("1.5\n", "line 1: '1.5' is not a row number"),
    "all.txt": ("\n".join(map(str, range(1352))), "covers all 1352 training rows"),
    "bytes.txt": (b"\xff\xfe\x00", "is not a text file"),
    "rows.tsv": ("1\n", "ends in '.tsv'; allowed: .txt, .csv, .npy, .json"),
    "ids.csv": ("id\ntrain_1\n", "lists ids, but digits has none; list row numbers"),
    "names.json": ('["train_1"]', "entry 1: 'train_1' is not a row number, and digits has no ids"),
    "damaged.npy": (b"\x93NUMPY", "is not a .npy file of plain integers or texts"),
    "float.npy": (np.arange(3.0), "float64[3]; a list of integers or texts is needed"),
    "matrix.npy": (np.ones((2, 2), int), "int64[2, 2]; a list of integers or texts is needed"),
    "missing.txt": (None, "cannot be read: No such file or directory"),
}


@pytest.mark.parametrize("name", ROWS)
def test_forget_rows_that_cannot_be(refused, tmp_path, name):
    content, expected = ROWS[name]
    file = tmp_path / name
    if isinstance(content, np.ndarray):
        np.save(file, content)
    elif content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    given = ["--config.forget.scenario=indices", f"--config.forget.file={file}"]
    said = refused(*given, "--config.dataset.validation=0")
    assert said.startswith("config.forget.file") and expected in said


def test_a_forget_row_of_the_tuning_pool(refused, tmp_path):
    file = tmp_path / "rows.txt"
    file.write_text("\n".join(map(str, range(20))))
    said = refused("--config.forget.scenario=indices", f"--config.forget.file={file}")
    assert "they belong to the tuning pool; set config.dataset.validation=0" in said


SETS = {
    "--config.forget.classes=(12,)": "config.forget.classes: forget class 12 does not occur; "
    "allowed: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
    "--config.forget.classes=('1+11',)": "config.forget.classes: forget class 11 does not occur",
    "--config.forget.classes=three": "config.forget.classes: forget class 'three' does not occur; "
    "allowed: 0 to 9 or 0, 1, 2, ",
    "--config.forget.classes=3,4+3,3+4": "forget classes '4+3' and '3+4' are the same",
    "--config.forget.count=100000": "allowed: 1 to ",
    "--config.forget.fraction=1e-9": "allowed: 1 to ",
    "--config.model.name=resnet20s": "config.model.channels = 'auto': knows the constants of "
    "cifar10, cifar100, svhn_cropped, imagenet2012, not of digits; name one of cifar10, cifar100, "
    "svhn, imagenet, or 'none' for a network that does not normalise",
    "--config.model.channels=svhn": "config.model.channels = 'svhn': normalises 3 channels, the "
    "images of digits have 1; set config.model.channels=none",
    "--config.model.name=vgg16_bn": "config.model.name = 'vgg16_bn': needs images of at least 16 ",
    "--config.dataset.limit=1": "config.",
}


@pytest.mark.parametrize("override", SETS)
def test_sets_that_do_not_fit_the_data(refused, override):
    scenario = "random" if "count" in override or "fraction" in override else "class"
    assert SETS[override] in refused(f"--config.forget.scenario={scenario}", override)


# Data and disk


def test_data_that_are_not_there(refused, tmp_path):
    given = ["--config.dataset.name=cifar10", f"--config.dataset.data_dir={tmp_path}"]
    said = refused(*given, code=1)
    assert f"run: python -m sparse_mu.prepare --dataset=cifar10 --data_dir={tmp_path}" in said
    given = ["--config.dataset.name=cifar99", f"--config.dataset.data_dir={tmp_path}"]
    assert refused(*given, code=1).startswith("TFDS knows no data set 'cifar99'")


def test_workdirs_that_cannot_be(refused, tmp_path):
    file = tmp_path / "file"
    file.write_text("text")
    assert "Not a directory" in refused(workdir=file, code=1)
    assert "Not a directory" in refused(workdir=file / "below", code=1)
    assert "cannot be written" in refused(workdir="/proc/nowhere/below", code=1)
    assert "and no config.json" in refused(workdir="/proc", code=1)
    assert "File name too long" in refused(workdir=tmp_path / ("x" * 300), code=1)
    assert file.read_text() == "text"


def test_a_workdir_that_holds_other_things_is_left_alone(refused, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years")
    assert "holds 'thesis.tex' and no config.json" in refused(workdir=folder, code=1)
    assert [file.name for file in folder.iterdir()] == ["thesis.tex"]


@pytest.fixture
def made(tmp_path):
    """A workdir as a killed run of the digits leaves it."""
    values = arguments.parse(["sparse_mu", f"--config={DIGITS}"])
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(arguments.flat_config(values)))
    return folder


def test_a_workdir_of_another_config(refused, made):
    before = {file.name: file.read_bytes() for file in made.iterdir()}
    said = refused("--config.trials=3", "--config.train.epochs=2", workdir=made)
    assert said.startswith("config.trials = 3: workdir ")
    assert said.endswith("was made with 10; give that value, or another --workdir")
    assert {file.name: file.read_bytes() for file in made.iterdir()} == before


@pytest.mark.parametrize("text", ["", "[]", "{", b"\xff", "3"])
def test_a_workdir_whose_config_is_damaged(refused, made, text):
    (made / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert "config.json is damaged (" in refused(workdir=made, code=1)


def test_a_workdir_that_another_process_holds(refused, made, monkeypatch):
    with open(made / "lock", "w") as lock:
        lock.write("process 12 on host since 2026")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        for flags in (["--report_only"], []):  # the second before any data are read
            monkeypatch.setattr(builders, "build", None)
            said = refused(*flags, workdir=made, code=1)
            assert said.endswith("is held by process 12 on host since 2026")


def test_report_only_without_results(refused, made):
    assert "has no results yet; run without --report_only" in refused("--report_only", code=1)
    said = refused("--report_only", workdir=made, code=1)
    assert said.endswith("has no results yet; run without --report_only")


def row(trial):
    return results.line({"method": "retrain", "sparsity": 0.0, "trial": trial})


@pytest.mark.parametrize("line", ["{torn\n", "\n", "3\n", "{}\n", row(7).replace("7", "8")])
def test_results_with_a_broken_line_in_the_middle(refused, made, line):
    (made / "results.jsonl").write_text(row(0) + line + row(1))
    said = refused("--report_only", workdir=made, code=1)
    assert "results.jsonl, line 2: is damaged; run without --report_only, and what " in said


def test_results_of_a_run_that_has_not_finished(refused, made):
    (made / "results.jsonl").write_text("".join(map(row, range(10))) + "{torn")
    said = refused("--report_only", workdir=made, code=1)
    assert said.endswith("the run has not finished; run without --report_only")
    for text in ('{"data": ', "[]", "{}", '{"digests": 3}'):
        (made / "manifest.json").write_text(text)
        said = refused("--report_only", workdir=made, code=1)
        assert "manifest.json: is damaged" in said or "is of no known format" in said


# Real processes


def test_a_real_process_says_one_line(tmp_path):
    command = [sys.executable, "-m", "sparse_mu.main", f"--config={DIGITS}"]
    run = subprocess.run(
        [*command, f"--workdir={tmp_path / 'w'}", "--config.prune.sparsities=90"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == (
        "error: config.prune.sparsities = (90,): must be a tuple of distinct fractions in [0, 1), "
        "such as (0.9,)\n"
    )
    assert not os.listdir(tmp_path)


# Anything at all


KEYS = st.sampled_from([*rules.RULES, "train", "trails", "", "unlearn.", ".", "a b"])
VALUES = st.one_of(
    st.text(max_size=12),
    st.integers().map(str),
    st.floats().map(str),
    st.recursive(
        st.one_of(st.integers(), st.floats(), st.text(max_size=4), st.booleans(), st.none()),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.tuples(inner, inner)),
        max_leaves=4,
    ).map(repr),
    st.sampled_from(["{[]: 1}", "9" * 5000, "(" * 300, "-", "'", "1_0", "0x10", "{}", "None"]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(KEYS, VALUES, st.sampled_from("= ")), min_size=1, max_size=3))
def test_any_override_is_taken_or_refused_in_words(overrides):
    argv = ["sparse_mu", f"--config={DIGITS}"]
    for key, value, joint in overrides:
        given = f"--config.{key}{joint}{value}"
        argv += [given] if joint == "=" else given.split(" ", 1)
    try:
        values = arguments.parse(argv)
        if not values.help:
            flat = arguments.flat_config(values)
            assert list(flat) == list(rules.RULES)
    except rules.ConfigError as error:
        assert str(error).strip()
