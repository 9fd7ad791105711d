"""The workdir: one config, one process at a time, and rows that are there or are not."""

import fcntl
import json

import numpy as np
import pytest

from sparse_mu import stages
from sparse_mu.config import ConfigError
from sparse_mu.stages import Workdir, WorkdirError, fingerprint

CONFIG = {"trials": 2, "train.epochs": 3, "prune.sparsities": (0.9,), "train.momentum": 0.9}


def row(method, trial, **more):
    return {"method": method, "sparsity": 0.0, "trial": trial, **more}


RETRAIN = [row("retrain", trial, ua=trial / 3) for trial in range(2)]
FISHER = [row("fisher", trial, ua=None) for trial in range(2)]


@pytest.fixture
def workdir(tmp_path):
    return Workdir(tmp_path, trials=2)


def test_fingerprints_tell_everything_apart():
    parts = [
        (1,),
        ("1",),
        (1.0,),
        (1, 1),
        ({"a": 1},),
        ({"a": 2},),
        (np.zeros(2, np.int32),),
        (np.zeros(2, np.float32),),
        (np.zeros((2, 1), np.int32),),
        (np.ones(2, np.int32),),
    ]
    prints = [fingerprint(*part) for part in parts]
    assert len(set(prints)) == len(parts)
    assert prints == [fingerprint(*part) for part in parts]
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    matrix = np.arange(6).reshape(2, 3)
    assert fingerprint(matrix.T) == fingerprint(matrix.T.copy())


def test_a_new_workdir_remembers_its_config(tmp_path):
    folder = tmp_path / "a" / "b"
    assert stages.examine(folder, CONFIG)
    assert not (tmp_path / "a").exists()
    with stages.held(folder, CONFIG) as workdir:
        assert workdir == Workdir(folder, 2)
    assert not stages.examine(folder, CONFIG)
    with stages.held(folder, CONFIG, may_be_new=False):
        pass


def test_another_config_is_refused_by_its_first_key(tmp_path):
    with stages.held(tmp_path, CONFIG):
        pass
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    others = {
        "train.epochs = 4": CONFIG | {"train.epochs": 4, "prune.sparsities": (0.5,)},
        "prune.sparsities = .0.5": CONFIG | {"prune.sparsities": (0.5,)},
        "seed = 1: .* was made with None": CONFIG | {"seed": 1},
        "train.momentum = None": {k: v for k, v in CONFIG.items() if k != "train.momentum"},
    }
    for named, config in others.items():
        with pytest.raises(ConfigError, match=f"^config.{named}"), stages.held(tmp_path, config):
            pass
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_one_process_at_a_time(tmp_path):
    with stages.held(tmp_path, CONFIG):
        with pytest.raises(WorkdirError, match="is held by process "):
            with stages.held(tmp_path, CONFIG):
                pass
    with stages.held(tmp_path, CONFIG):  # free again
        assert (tmp_path / "lock").read_text().startswith("process ")


def test_what_a_killed_process_left_is_no_obstacle(tmp_path):
    (tmp_path / "lock").write_text("process 12 on host")
    (tmp_path / "config.json.tmp").write_text('{"tri')
    with stages.held(tmp_path, CONFIG):
        assert json.loads((tmp_path / "config.json").read_text())["trials"] == 2
        assert "process 12 " not in (tmp_path / "lock").read_text()


def test_a_folder_that_is_not_a_workdir_stays_as_it_is(tmp_path):
    with pytest.raises(WorkdirError, match="no results yet"):
        with stages.held(tmp_path, CONFIG, may_be_new=False):
            pass
    assert not list(tmp_path.iterdir())
    (tmp_path / "photo.png").touch()
    with pytest.raises(WorkdirError, match=r"holds 'photo.png' and no config.json"):
        with stages.held(tmp_path, CONFIG):
            pass
    assert [file.name for file in tmp_path.iterdir()] == ["photo.png"]


def test_a_file_system_without_locks_is_not_another_process(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(WorkdirError, match=r"cannot be locked .No locks available"):
        with stages.held(tmp_path, CONFIG):
            pass


def test_rows_are_appended_whole(workdir):
    assert workdir.read_rows() == []
    workdir.append_rows(RETRAIN, [])
    workdir.append_rows(FISHER, RETRAIN)
    assert workdir.read_rows() == RETRAIN + FISHER
    assert workdir.results.read_text().count("\n") == 4


@pytest.mark.parametrize("lost", [1, 10, 60, 100])
def test_a_torn_end_takes_its_arm_with_it(workdir, lost):
    workdir.append_rows(FISHER, RETRAIN)
    text = workdir.results.read_text()
    workdir.results.write_text(text[:-lost])
    kept = workdir.read_rows()
    assert kept == RETRAIN
    workdir.append_rows(FISHER, kept)
    assert workdir.results.read_text() == text


def test_an_append_that_fails_changes_nothing(workdir, monkeypatch):
    workdir.append_rows(RETRAIN, [])

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        workdir.append_rows(FISHER, RETRAIN)
    assert workdir.read_rows() == RETRAIN


@pytest.mark.parametrize("line", ["{torn", "", "3", "null", "{}", '{"method": [], "sparsity": 1}'])
def test_a_broken_line_in_the_middle_is_named(workdir, line):
    first, second = (json.dumps(row) for row in RETRAIN)
    workdir.results.write_text(f"{first}\n{line}\n{second}\n")
    with pytest.raises(WorkdirError, match=r"results.jsonl, line 2: is not a row"):
        workdir.read_rows()


def test_a_stage_is_made_once(workdir):
    made = []

    def make():
        made.append(1)
        return {"w": np.arange(3.0, dtype=np.float32)}, {"seconds": 2.0}

    like = {"w": np.zeros(3, np.float32)}
    first = workdir.stage("train", ({"epochs": 3},), make, like)
    again = workdir.stage("train", ({"epochs": 3},), make, like)
    assert len(made) == 1
    assert first.fingerprint == again.fingerprint and again.meta == {"seconds": 2.0}
    assert np.array_equal(again.tree["w"], first.tree["w"])
    other = workdir.stage("train", ({"epochs": 4},), make, like)
    assert len(made) == 2 and other.fingerprint != first.fingerprint
