"""``--verify``: every change of a finished workdir fails by its name, and nothing else does."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
from finished_workdir import ARMS, FLAT, KEY, make, make_models, save

from sparse_mu import checkpoint, digests, manifest, results, sealing, verify, workdir
from sparse_mu.data import sources
from sparse_mu.data.types import DataError
from sparse_mu.main import main
from sparse_mu.workdir import WorkdirError

NAMES = [
    *("manifest", "signature", "code", "config", "data", "forget sets"),
    *("weights: original, dense", "masks: original, dense"),
    *("weights: finetune at 90%", "masks: finetune at 90%"),
    *("metrics", "results.jsonl", "summary.json", "report.html"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return make(tmp_path_factory.mktemp("finished"), KEY)


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def failing(folder, key=KEY):
    return {line.what for line in verify.check(folder, key) if line.status == verify.FAILS}


def not_checked(folder, key=KEY):
    lines = verify.check(folder, key)
    return {line.what: line.why for line in lines if line.status == verify.NOT_CHECKED}


def files_of(folder):
    return {
        file: (file.read_bytes(), file.stat().st_mtime_ns)
        for file in folder.rglob("*")
        if file.is_file()
    }


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_a_finished_workdir_holds_and_is_left_as_it_is(folder):
    before = files_of(folder)
    lines = verify.check(folder, KEY)
    assert [(line.status, line.what) for line in lines] == [(verify.OK, name) for name in NAMES]
    assert verify.conclusion(lines) == (
        "every line that could be checked holds; "
        "this is a record of a process, not a proof of forgetting"
    )
    assert files_of(folder) == before


def test_a_conclusion_names_the_first_that_fail():
    lines = [verify.Line(verify.FAILS, f"masks: arm {i}") for i in range(7)]
    said = verify.conclusion([verify.Line(verify.OK, "code"), *lines])
    assert said.startswith("7 lines fail: masks: arm 0; masks: arm 1; ")
    assert "arm 4 and 2 more; this is a record" in said and "arm 5" not in said


# A change of the folder, and the lines that fail


def other_config(folder):
    edit(folder / "config.json", lambda config: config.update(seed=1))


def other_metric(folder):
    file = folder / "results.jsonl"
    rows = results.read_whole(file, FLAT["trials"])
    rows[3]["ua"] = 0.5
    file.write_text("".join(map(results.line, rows)))


def other_seconds(folder):
    file = folder / "results.jsonl"
    rows = results.read_whole(file, FLAT["trials"])
    file.write_text("".join(results.line(row | {"compile_seconds": 0.1}) for row in rows))


def torn_results(folder):
    file = folder / "results.jsonl"
    file.write_bytes(file.read_bytes()[:-20])


def broken_results(folder):
    file = folder / "results.jsonl"
    file.write_text("[" * 100_000 + "\n" + file.read_text())


def other_summary(folder):
    edit(folder / "summary.json", lambda summary: summary["warnings"].append("none"))


def resaved(change):
    """A stage that is whole, and another one than was recorded."""

    def harm(folder):
        models = make_models(1)
        save(folder, ARMS[1], change(models))

    return harm


def one_ulp(models):
    params = jax.tree.map(np.copy, models.model.params)
    params["Dense_0"]["bias"][1, 2] = np.float32(1e-45)
    return models._replace(model=models.model._replace(params=params))


def one_bit_of_a_mask(models):
    masks = jax.tree.map(np.copy, models.masks)
    masks["Conv_0"]["kernel"][0, 0, 0, 0, 0] ^= True
    return models._replace(masks=masks)


def stage_of(folder, arm=ARMS[1]):
    (stage,) = (folder / "stages").glob(f"{arm[0]}-{arm[1]:g}-*")
    return stage


def harmed_stage(folder):
    file = max(files_of(stage_of(folder)), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1] + b"\0")


def pipe(file):
    """What nobody writes into: who reads it waits for ever."""
    file.unlink()
    os.mkfifo(file)


def other_weights_in_the_manifest(folder):
    edit(
        folder / "manifest.json",
        lambda found: found["arms"]["original, dense"].update(weights="0" * 64),
    )


def forged(folder):
    """Other results, and a manifest made to fit them: the signature alone shows it."""
    other_metric(folder)
    rows = results.read_whole(folder / "results.jsonl", FLAT["trials"])

    def reseal(found):
        found["digests"]["metrics"] = manifest.of_rows(rows)
        found["files"]["results.jsonl"] = digests.of_file(folder / "results.jsonl")
        found |= sealing.sealed(found, None)

    edit(folder / "manifest.json", reseal)


HARMS = [
    (other_config, {"config"}),
    (lambda folder: (folder / "config.json").unlink(), {"config"}),
    (lambda folder: (folder / "config.json").write_text("[]"), {"config"}),
    (other_metric, {"metrics", "results.jsonl"}),
    (other_seconds, {"results.jsonl"}),
    (torn_results, {"metrics", "results.jsonl"}),
    (broken_results, {"metrics", "results.jsonl"}),
    (lambda folder: (folder / "results.jsonl").unlink(), {"metrics", "results.jsonl"}),
    (other_summary, {"summary.json"}),
    (lambda folder: (folder / "report.html").unlink(), {"report.html"}),
    (lambda folder: pipe(folder / "results.jsonl"), {"metrics", "results.jsonl"}),
    (lambda folder: pipe(folder / "config.json"), {"config"}),
    (lambda f: pipe(stage_of(f) / "meta.json"), {"weights and masks: finetune at 90%"}),
    (resaved(one_ulp), {"weights: finetune at 90%"}),
    (resaved(one_bit_of_a_mask), {"masks: finetune at 90%"}),
    (harmed_stage, {"weights and masks: finetune at 90%"}),
    (lambda folder: shutil.rmtree(stage_of(folder)), {"weights and masks: finetune at 90%"}),
    (lambda f: (stage_of(f) / "meta.json").unlink(), {"weights and masks: finetune at 90%"}),
    (other_weights_in_the_manifest, {"manifest", "signature", "weights: original, dense"}),
    (forged, {"signature"}),
]


@pytest.mark.parametrize(("harm", "names"), HARMS)
def test_a_change_fails_by_its_name(folder, harm, names):
    harm(folder)
    lines = verify.check(folder, KEY)
    failed = [line for line in lines if line.status == verify.FAILS]
    assert {line.what for line in failed} == names
    assert all(line.why and "\n" not in line.why for line in failed)
    said = verify.conclusion(lines)
    counted = "1 line fails: " if len(names) == 1 else f"{len(names)} lines fail: "
    assert said.startswith(counted) and "not a proof" in said


def test_data_are_read_and_drawn_again(folder, monkeypatch):
    digits = sources.digits()

    def other(**changes):
        monkeypatch.setattr(sources, "digits", lambda: digits._replace(**changes))
        return failing(folder)

    pixels = digits.train_inputs.copy()
    pixels[0, 0, 0] ^= 1
    assert other(train_inputs=pixels) == {"data"}
    labels = digits.train_labels.copy()
    labels[:2] = labels[1::-1]
    assert labels[0] != labels[1] and "data" in other(train_labels=labels)

    def gone():
        raise DataError("digits: are not there any more")

    monkeypatch.setattr(sources, "digits", gone)
    why = "digits: are not there any more"
    assert not_checked(folder) == {"data": why, "forget sets": why} and not failing(folder)
    other_config(folder)  # nothing of such a config is read
    monkeypatch.setattr(sources, "digits", pytest.fail)
    assert set(not_checked(folder)) == {"data", "forget sets", "metrics"}


def test_other_code_is_told_with_its_version(folder, monkeypatch):
    monkeypatch.setattr(manifest, "of_code", lambda: "0" * 64)
    (line,) = (line for line in verify.check(folder, KEY) if line.status == verify.FAILS)
    version = manifest.version("sparse_mu")
    assert line.what == "code" and line.why.startswith(f"recorded with sparse_mu {version}, commit")


def test_a_signature_without_a_key_and_a_key_without_a_signature(folder):
    assert not_checked(folder, None) == {"signature": "give --key_file"} and not failing(folder)
    assert failing(folder, KEY[::-1]) == {"signature"}
    edit(folder / "manifest.json", lambda found: found.pop("signature"))
    assert failing(folder, KEY) == {"signature"}
    assert not_checked(folder, None) == {"signature": "the run was not signed"}


def test_a_run_in_progress_is_told_and_left_alone(folder):
    with workdir.held(folder, FLAT):
        before = files_of(folder)
        (line, *_) = verify.check(folder, KEY)
        assert line.status == verify.NOT_CHECKED and f"process {os.getpid()} on " in line.why
        (folder / "manifest.json").unlink()
        with pytest.raises(WorkdirError, match=r"has not finished.*; process \d+ on .* holds it"):
            verify.check(folder, KEY)
        before.pop(folder / "manifest.json")
        assert files_of(folder) == before
    (folder / "lock").write_text("process 999999999 on here")  # no such process
    with pytest.raises(WorkdirError, match=r"there is no manifest.json$"):
        verify.check(folder, KEY)


# Manifests that are none


def changed(*path, value):
    def change(folder):
        def of(found):
            for key in path[:-1]:
                found = found[key]
            found[path[-1]] = value

        edit(folder / "manifest.json", of)

    return change


def written(content):
    return lambda folder: (folder / "manifest.json").write_bytes(content)


ARM = ("arms", "original, dense")
UNREADABLE = [
    (written(b""), "is damaged"),
    (written(b"{torn"), "is damaged"),
    (written(b"\xff\xfe{}"), "is damaged"),
    (written(b"[1]"), "holds no manifest"),
    (written(b"[" * 200_000), "nested too deep"),
    (written(b'{"format": 1e999}'), "is damaged"),
    (written(b'{"format": NaN}'), "is damaged"),
    (written(b'{"format": ' + b"9" * 5000 + b"}"), "is damaged"),
    (written(b"{}"), "is of no known format, and this version reads 1"),
    (changed("format", value=2), "is of format 2, and this version reads 1"),
    (changed("format", value=True), "is of no known format"),
    (changed("digests", value=[]), "its digests: an entry is missing or of another type"),
    (changed("digests", "code", value=None), "its digests: an entry is missing"),
    (changed("arms", value={}), "its arms are missing"),
    (changed(*ARM, value="x"), "its arm 'original, dense': an entry is missing"),
    (changed(*ARM, "stage", value="../../../etc"), "is no stage"),
    (changed(*ARM, "stage", value=".."), "is no stage"),
    (changed("files", value={}), "its files: an entry is missing"),
    (changed("digest", value=3), "its digest: an entry is missing"),
    (changed("signature", value=None), "its signature: an entry is missing"),
]


@pytest.mark.parametrize(("harm", "said"), UNREADABLE)
def test_a_manifest_that_cannot_be_read_is_one_line(folder, capsys, harm, said):
    harm(folder)
    assert main(["sparse_mu", f"--verify={folder}"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {folder}/manifest.json: is ")
    assert said in err and err.count("\n") == 1


def test_a_huge_manifest_is_not_read(folder, monkeypatch):
    monkeypatch.setattr(sealing, "LARGEST", 100)
    with pytest.raises(WorkdirError, match=r"manifest.json: is damaged .it holds [\d,]+ bytes"):
        verify.check(folder, KEY)


# The command


@pytest.fixture
def command(folder, tmp_path, capsys):
    def run(*flags):
        code = main(["sparse_mu", *flags])
        out, err = capsys.readouterr()
        return code, out, err

    (tmp_path / "key").write_bytes(KEY)
    return run


def test_the_command_prints_a_line_for_each_item(command, folder, tmp_path):
    code, out, err = command(f"--verify={folder}", f"--key_file={tmp_path / 'key'}")
    assert (code, err) == (0, "")
    *lines, last = out.splitlines()
    assert lines == [f"ok           {name}" for name in NAMES]
    assert last.startswith("every line that could be checked holds; this is a record")
    other_summary(folder)
    code, out, err = command(f"--verify={folder}")
    assert (code, err) == (1, "")
    assert "\nFAILS        summary.json: recorded " in out
    assert "\nnot checked  signature: give --key_file\n" in out
    assert out.splitlines()[-1].startswith("1 line fails: summary.json; this is a")


def test_names_of_a_strange_manifest_cannot_steer_the_terminal(command, folder):
    strange = "\x1b[2J\u202e\nok"
    edit(
        folder / "manifest.json",
        lambda found: found.update(commit=strange, arms={strange: found["arms"].popitem()[1]}),
    )
    code, out, _ = command(f"--verify={folder}")
    assert code == 1 and "weights: ?[2J? ok" in out
    assert all(c.isprintable() or c == "\n" for c in out)


def test_flags_that_do_not_go_together(command, folder, tmp_path):
    key = f"--key_file={tmp_path / 'key'}"
    for flags, said in (
        ([f"--verify={folder}", "--workdir=x"], "--workdir: belongs to a run"),
        ([f"--verify={folder}", "--report_only"], "--report_only: belongs to a run"),
        ([f"--verify={folder}", "--export"], "--export: belongs to a run"),
        (["--verify="], "--verify is empty"),
        (["--verify"], "Missing value for flag --verify"),
        ([f"--verify={folder}", key, "--key_file=none"], "--key_file=none: No such file"),
        ([f"--verify={folder}", f"--key_file={folder}"], f"--key_file={folder}: it is no file"),
        (["--verfy=x"], "--verfy: there is no such flag (did you mean '--verify'?)"),
        (["--keyfile=x"], "--keyfile: there is no such flag (did you mean '--key_file'?)"),
    ):
        code, out, err = command(*flags)
        assert (code, out) == (2, "") and err.startswith(f"error: {said}"), err
        assert err.count("\n") == 1
    for folder, said in (
        (tmp_path / "none", "there is no such folder"),
        (tmp_path, "not finished"),
    ):
        code, out, err = command(f"--verify={folder}")
        assert (code, out) == (1, "") and said in err and err.count("\n") == 1


@pytest.mark.filterwarnings("ignore:the load_module")  # ml_collections calls it
def test_a_config_has_no_place_beside_verify(command, folder):
    code, _, err = command("--config=configs/digits.py", f"--verify={folder}")
    assert code == 2 and err.startswith("error: --config: belongs to a run")


# Any byte


def content_of(file):
    """What a file says: of the JSON that is compared as such, without its white space."""
    if file.name in ("manifest.json", "config.json", "meta.json"):
        return digests.canonical(json.loads(file.read_bytes()))
    return file.read_bytes()


def places(folder):
    """Six places: the files of a workdir, and a stage."""
    names = ("manifest.json", "config.json", *sealing.FILES)
    return [*([folder / name] for name in names), sorted(files_of(stage_of(folder)))]


@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize("flips", [2, pytest.param(20, marks=pytest.mark.ci)])
def test_any_changed_byte_fails_or_changes_nothing(folder, place, flips):
    rng = np.random.default_rng((place, flips))
    assert not failing(folder)
    for _ in range(flips):
        files = places(folder)[place]
        file = files[rng.integers(len(files))]
        whole, said = file.read_bytes(), content_of(file)
        harmed = bytearray(whole)
        at = rng.integers(len(harmed))
        harmed[at] ^= rng.integers(1, 256)
        file.write_bytes(harmed)
        try:
            is_seen = bool(failing(folder))
        except WorkdirError as error:
            is_seen = "\n" not in str(error)
        try:
            is_harmless = content_of(file) == said
        except ValueError:
            is_harmless = False
        assert is_seen or is_harmless, (file, at, harmed[at], whole[at])
        file.write_bytes(whole)


def test_the_test_of_changes_can_fail(folder, monkeypatch):
    """Without the lines of the arms, another weight in a whole stage is seen by none."""
    monkeypatch.setattr(verify, "_arms", lambda *_: [])
    resaved(one_ulp)(folder)
    assert checkpoint.is_finished(stage_of(folder)) and failing(folder) == set()
