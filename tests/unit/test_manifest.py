"""What a run records of itself: digests that tell things apart, and a seal that shows a change."""

import json
import os
import shutil

import ml_dtypes
import numpy as np
import pytest
from finished_workdir import ARMS, FLAT, KEY, make, make_models, save, without_plots

from sparse_mu import checkpoint, digests, manifest, results, sealing
from sparse_mu.builders import build_data
from sparse_mu.config import ConfigError
from sparse_mu.types import Streamed
from sparse_mu.workdir import WorkdirError, held


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return make(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="module")
def signed(tmp_path_factory):
    return make(tmp_path_factory.mktemp("signed"), key=KEY, seconds=7.0)


def read(folder):
    return json.loads((folder / "manifest.json").read_text())


def report_only(folder, key=None):
    with held(folder, FLAT) as workdir, without_plots():
        rows = results.read_whole(workdir.results, workdir.trials)
        manifest.write_derived(workdir, rows, FLAT, None, key)


def test_digests_of_arrays_tell_names_types_shapes_and_bytes_apart():
    one = np.arange(6, dtype=np.float32)
    different = [
        {"a": one},
        {"b": one},
        {"a": one.view(np.int32)},
        {"a": one.reshape(2, 3)},
        {"a": np.where(one == 0, np.float32(-0.0), one)},
        {"a": one, "b": one[:0]},
        {"a": one[:0]},
        {"a": one[0]},  # no dimension
        {"a": one[:1]},
        {"a": one.astype(ml_dtypes.bfloat16)},
        {"a": one > 2},
        {},
    ]
    found = [digests.of_arrays(arrays) for arrays in different]
    assert len(set(found)) == len(found) and {len(digest) for digest in found} == {64}
    matrix = one.reshape(2, 3)
    assert digests.of_arrays({"a": matrix.T}) == digests.of_arrays({"a": matrix.T.copy()})
    two = {"a": one, "b": matrix}
    assert digests.of_arrays(two) == digests.of_arrays(dict(reversed(two.items())))


def test_the_digest_of_a_tree_is_that_of_its_checkpoint(tmp_path):
    recorded = save(tmp_path, ARMS[0], make_models(3))
    arrays, _ = checkpoint.read_arrays(tmp_path / "stages" / recorded["stage"])
    for what, start in (("weights", "model."), ("masks", "masks.")):
        part = {name: array for name, array in arrays.items() if name.startswith(start)}
        assert part and digests.of_arrays(part) == recorded[what]


def test_digests_of_json_are_of_what_it_says():
    text = '{"b": [1, 2.50], "a": "\\u00e9"}'
    assert digests.of_json(json.loads(text)) == digests.of_json({"a": "é", "b": (1, 2.5)})
    values = [{"a": 1}, {"a": 1.0}, {"a": "1"}, {"a": True}, {"a": None}, {}, [], "a"]
    assert len({digests.of_json(value) for value in values}) == len(values)
    with pytest.raises(ValueError):
        digests.of_json(float("nan"))


def test_the_digest_of_rows_is_of_what_was_measured_but_seconds():
    rows = [{"method": "retrain", "trial": t, "ua": t / 3, "rte_seconds": 1.5} for t in range(3)]
    timed = [row | {"rte_seconds": None} for row in rows[::-1]]
    assert manifest.of_rows(rows) == manifest.of_rows(timed)
    others = [rows[:2], [*rows, rows[0]], [*rows[:2], rows[2] | {"ua": 0.6}], []]
    assert len({manifest.of_rows(other) for other in [rows, *others]}) == 5


def test_what_a_manifest_records(finished):
    found = read(finished)
    assert found["format"] == 1 and "not a proof" in found["what"]
    assert set(found["digests"]) == {"config", "code", "data", "forget_sets", "metrics"}
    assert list(found["arms"]) == ["original, dense", "finetune at 90%"]
    config = json.loads((finished / "config.json").read_text())
    assert found["digests"]["config"] == digests.of_json(config)
    assert set(found["files"]) == {"results.jsonl", "summary.json", "report.html"}
    for name, digest in found["files"].items():
        assert digest == digests.of_file(finished / name)
    assert list(found)[-1] == "digest" and "signature" not in found
    assert digests.of_json({k: v for k, v in found.items() if k != "digest"}) == found["digest"]


def test_summary_and_report_show_the_manifest_without_its_seal(finished):
    shown = json.loads((finished / "summary.json").read_text())["manifest"]
    found = read(finished)
    assert shown == {k: v for k, v in found.items() if k not in ("files", "digest")}
    assert found["digests"]["data"] in (finished / "report.html").read_text()


def test_two_runs_record_the_same_but_for_their_files(finished, signed):
    first, second = read(finished), read(signed)
    assert first["files"] != second["files"] and first["digest"] != second["digest"]
    for found in (first, second):
        for entry in ("files", "digest", "signature"):
            found.pop(entry, None)
    assert first == second


def test_streamed_rows_stand_for_their_files_and_labels(finished):
    data = build_data(FLAT)
    assert manifest.of_data(data)["data"] == read(finished)["digests"]["data"]

    def of(digest, labels):
        streamed = Streamed(data.inputs.shape, labels, pytest.fail, digest)
        return manifest.of_data(data._replace(inputs=streamed, labels=labels))["data"]

    others = [of("a", data.labels), of("b", data.labels), of("a", data.labels[::-1])]
    assert len(set(others)) == 3 and of("a", data.labels.copy()) == others[0]


def test_forget_sets_are_recorded_with_what_is_kept_and_trained_on():
    data = build_data(FLAT)
    changed = [data]
    for name in ("forget", "retain", "trained"):
        rows = getattr(data, name).copy()
        rows[..., 5] ^= True
        changed.append(data._replace(**{name: rows}))
    found = [manifest.of_data(one) for one in changed]
    assert len({of["forget_sets"] for of in found}) == 4 and len({of["data"] for of in found}) == 1


def test_the_code_is_every_python_file_but_the_configs(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "__file__", str(tmp_path / "manifest.py"))
    for name in ("manifest.py", "data/x.py", "configs/y.py", "data/z.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("pass")
    before = manifest.of_code()
    for name, counts in (("configs/y.py", False), ("data/z.txt", False), ("data/x.py", True)):
        (tmp_path / name).write_text("x = 1")
        assert (manifest.of_code() != before) == counts
    before = manifest.of_code()
    (tmp_path / "data/x.py").rename(tmp_path / "data/w.py")
    assert manifest.of_code() != before


# The seal


def test_a_signature_is_of_everything_and_of_its_key():
    content = {"b": (1, 2), "a": {3: "x", 20: "y"}}  # written as lists and texts
    signed = json.loads(json.dumps(sealing.sealed(content, KEY)))
    assert signed["digest"] == sealing.own_digest(signed) and sealing.is_signed(signed, KEY)
    assert not sealing.is_signed(signed, KEY + b"\n")
    assert not sealing.is_signed(sealing.sealed(content, None), KEY)
    for changed in (
        signed | {"b": [1, 3]},
        signed | {"c": None},
        {k: v for k, v in signed.items() if k != "b"},
        signed | {"signature": signed["signature"] | {"algorithm": "none"}},
        signed | {"signature": signed["signature"] | {"value": "é"}},
    ):
        assert not sealing.is_signed(changed, KEY)
    assert sealing.sealed(signed, KEY) == signed  # sealed again, it is the same


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"", "it holds 0 bytes"),
        (b"x" * 15, "it holds 15 bytes"),
        (b"x" * (2**20 + 1), "it holds 1048577 bytes"),
        ("folder", "it is no file"),
        ("pipe", "it is no file"),  # and is not waited for
    ],
)
def test_a_key_file_that_is_none(tmp_path, content, reason):
    path = tmp_path / "key"
    if content == "folder":
        path.mkdir()
    elif content == "pipe":
        os.mkfifo(path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=reason) as info:
        sealing.read_key(str(path))
    assert str(info.value).startswith(f"--key_file={path}: ") and "\n" not in str(info.value)


def test_a_key_is_every_byte_of_its_file(tmp_path):
    (tmp_path / "key").write_bytes(KEY + b"\n")
    assert sealing.read_key(str(tmp_path / "key")) == KEY + b"\n"
    assert sealing.read_key(None) is None
    for name in ("", "a\0b"):
        with pytest.raises(ConfigError, match="--key_file="):
            sealing.read_key(name)


# Written again


def test_the_report_alone_is_the_same_report_and_the_same_manifest(finished):
    names = ("manifest.json", "summary.json", "report.html")
    before = [(finished / name).read_bytes() for name in names]
    (finished / "summary.json").unlink()
    report_only(finished)
    assert [(finished / name).read_bytes() for name in names] == before


def test_a_changed_manifest_is_not_sealed_again(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "manifest.json"
    changed = read(tmp_path)
    changed["digests"]["data"] = "0" * 64
    file.write_text(json.dumps(changed))
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(WorkdirError, match=r"is damaged .its digest does not hold"):
        report_only(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_report_is_not_made_of_other_rows(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "results.jsonl"
    rows = results.read_whole(file, FLAT["trials"])
    file.write_text("".join(results.line(row | {"ua": 0.125}) for row in rows))
    with pytest.raises(WorkdirError, match=r"results.jsonl: holds other rows than manifest.json"):
        report_only(tmp_path)


def test_what_nobody_signed_is_not_signed_by_making_the_report_again(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    with pytest.raises(WorkdirError, match="is not signed with the key"):
        report_only(tmp_path, KEY)
    assert read(tmp_path) == read(finished)


def test_a_signed_manifest_is_not_left_unsigned(signed, tmp_path):
    shutil.copytree(signed, tmp_path, dirs_exist_ok=True)
    before = read(tmp_path)
    with pytest.raises(ConfigError, match=r"--key_file is missing: .*manifest.json is signed"):
        sealing.key_for(tmp_path, None)
    for key in (None, b"another key of the user's"):
        with pytest.raises(WorkdirError, match="is not signed with the key"):
            report_only(tmp_path, key)
    report_only(tmp_path, KEY)
    assert read(tmp_path) == before
    (tmp_path / "manifest.json").write_text("{torn")  # then the run writes it, signed or not
    assert sealing.key_for(tmp_path, None) is None
