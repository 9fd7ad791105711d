"""The workdir: one config, one process at a time, and nothing saved where it is no more."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sparse_mu import workdir as workdirs
from sparse_mu.checkpoint import write_atomically
from sparse_mu.config import ConfigError
from sparse_mu.stopping import StopRequest
from sparse_mu.workdir import WorkdirError, examine, held

ROOT = Path(__file__).parents[2]
CONFIG = {
    "trials": 2,
    "checkpoint.every_epochs": 10,
    "checkpoint.keep": 2,
    "train.epochs": 3,
    "prune.sparsities": (0.9,),
    "train.momentum": 0.9,
}


def test_a_new_workdir_remembers_its_config(tmp_path):
    folder = tmp_path / "a" / "b"
    assert examine(folder, CONFIG)
    assert not (tmp_path / "a").exists()
    stop = StopRequest()
    with held(folder, CONFIG, stop=stop) as workdir:
        assert (workdir.path, workdir.trials, workdir.stop) == (folder, 2, stop)
    assert not examine(folder, CONFIG)
    with held(folder, CONFIG, may_be_new=False) as workdir:
        assert workdir.stop is not stop and not workdir.stop.asked()


def test_another_config_is_refused_by_its_first_key(tmp_path):
    with held(tmp_path, CONFIG):
        pass
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    others = {
        "train.epochs = 4": CONFIG | {"train.epochs": 4, "prune.sparsities": (0.5,)},
        "prune.sparsities = .0.5": CONFIG | {"prune.sparsities": (0.5,)},
        "seed = 1: .* was made with None": CONFIG | {"seed": 1},
        "train.momentum = None": {k: v for k, v in CONFIG.items() if k != "train.momentum"},
    }
    for named, config in others.items():
        with pytest.raises(ConfigError, match=f"^config.{named}"), held(tmp_path, config):
            pass
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_config_that_is_damaged_is_said_to_be(tmp_path):
    for text in ("", "[]", "{", "[" * 100_000):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(WorkdirError, match=r"config.json is damaged \("):
            examine(tmp_path, CONFIG)


def test_one_process_at_a_time(tmp_path):
    with held(tmp_path, CONFIG):
        words = (tmp_path / "lock").read_text().split()
        assert words[:2] == ["process", str(os.getpid())] and words[2::2] == ["on", "since"]
        with pytest.raises(WorkdirError, match=f"is held by process {os.getpid()} on .* since 2"):
            with held(tmp_path, CONFIG):
                pass
    assert (tmp_path / "lock").read_text() == ""
    with held(tmp_path, CONFIG):  # free again
        pass


def test_an_owner_that_does_not_say_who_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(workdirs, "PATIENCE", 0.05)
    with open(tmp_path / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(WorkdirError, match=r"is held by another process$"):
            with held(tmp_path, CONFIG):
                pass
        lock.write(b"\xff\x1b[31m" + b"x\n" * 1000)
        lock.flush()
        with pytest.raises(WorkdirError, match="is held by ") as refusal:
            with held(tmp_path, CONFIG):
                pass
    said = str(refusal.value)
    assert said.isprintable() and len(said) < len(str(tmp_path)) + 250


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit, WorkdirError])
def test_a_run_that_fails_ends_cleanly(tmp_path, ending, caplog):
    with pytest.raises(ending), held(tmp_path, CONFIG):
        raise ending
    with held(tmp_path, CONFIG):
        assert not caplog.records


def test_what_a_killed_process_left_is_no_obstacle(tmp_path, caplog):
    (tmp_path / "lock").write_text("process 12 on host since then\n")
    (tmp_path / "config.json.tmp").write_text('{"tri')
    with held(tmp_path, CONFIG):
        assert json.loads((tmp_path / "config.json").read_text())["trials"] == 2
        assert "process 12 " not in (tmp_path / "lock").read_text()
    assert [record.getMessage() for record in caplog.records] == [
        f"workdir {tmp_path}: taking over from process 12 on host since then, which did not end "
        "cleanly"
    ]


STARTS = """
import os, sys
from pathlib import Path
from sparse_mu.workdir import WorkdirError, held

folder, count = Path(sys.argv[1]), int(sys.argv[2])
begin, go = os.pipe()
refused, refuse = os.pipe()
for _ in range(count):
    if os.fork():
        continue
    os.close(go)
    os.read(begin, 1)  # until the parent closes it: all at once
    try:
        with held(folder, {"trials": 2, "checkpoint.every_epochs": 10, "checkpoint.keep": 2}):
            os.write(1, f"runs {os.getpid()}\\n".encode())
            others = count - 1
            while others:
                others -= len(os.read(refused, others))
    except WorkdirError as error:
        os.write(1, f"{error}\\n".encode())
        os.write(refuse, b"x")
    os._exit(0)
os.close(go)
for _ in range(count):
    os.wait()
"""


@pytest.mark.ci
def test_of_twenty_processes_one_has_it(tmp_path):
    """Forked by a process that only imported: twenty imports of jax would take half a minute."""
    folder = tmp_path / "new"
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STARTS, folder, "20"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    said = process.stdout.splitlines()
    (running,) = [line for line in said if line.startswith("runs ")]
    owner = f"workdir {folder}: is held by process {running.split()[1]} on "
    assert len(said) == 20 and process.stderr == "", process
    assert sum(line.startswith(owner) for line in said) == 19
    assert (folder / "lock").read_text() == ""


def test_a_folder_that_is_not_a_workdir_stays_as_it_is(tmp_path):
    with pytest.raises(WorkdirError, match="no results yet"):
        with held(tmp_path, CONFIG, may_be_new=False):
            pass
    assert not list(tmp_path.iterdir())
    (tmp_path / "photo.png").touch()
    with pytest.raises(WorkdirError, match=r"holds 'photo.png' and no config.json"):
        with held(tmp_path, CONFIG):
            pass
    assert [file.name for file in tmp_path.iterdir()] == ["photo.png"]


def test_a_file_system_without_locks_is_not_another_process(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(WorkdirError, match=r"cannot be locked .No locks available"):
        with held(tmp_path, CONFIG):
            pass


# Disk trouble


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["os.write", "os.fsync", "os.replace", "os.truncate"])
def test_a_full_disk_is_one_line_that_names_the_folder(tmp_path, monkeypatch, call):
    folder = tmp_path / "new"
    with monkeypatch.context() as patched, pytest.raises(WorkdirError) as refusal:
        patched.setattr(call, full)
        with held(folder, CONFIG):
            pass
    assert str(refusal.value) == (f"workdir {folder}: cannot be written (No space left on device)")
    with held(folder, CONFIG):  # nothing half-written is in the way
        assert sorted(file.name for file in folder.iterdir()) == ["config.json", "lock"]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    def read_only(*_, **__):  # root, who often runs tests, may write in any
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(WorkdirError, match=r"cannot be written .Read-only file system.$"):
        with held(tmp_path / "new", CONFIG):
            pass


def test_a_file_that_cannot_be_written_is_named_and_stays(tmp_path, monkeypatch):
    file = tmp_path / "summary.json"
    write_atomically(file, "before")
    for call in ("os.fsync", "os.replace"):
        with monkeypatch.context() as patched, pytest.raises(OSError) as failure:
            patched.setattr(call, full)
            write_atomically(file, "after")
        assert failure.value.errno == errno.ENOSPC
        assert str(failure.value) == f"[Errno 28] No space left on device: '{file}'"
        assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
        assert file.read_text() == "before"
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: '.*/gone/summary"):
        write_atomically(tmp_path / "gone" / "summary.json", "after")
    with pytest.raises(OSError, match=r"No space left on device: '/dev/full'"):
        with monkeypatch.context() as patched:
            patched.setattr(Path, "with_name", lambda self, name: self)
            patched.setattr(Path, "unlink", lambda self: None)
            write_atomically(Path("/dev/full"), "after")  # really full


@pytest.mark.parametrize("trouble", ["deleted", "replaced", "unlocked"])
def test_a_folder_that_is_lost_under_the_run_does_not_come_back(tmp_path, trouble):
    folder = tmp_path / "run"
    like = {"w": np.zeros(3, np.float32)}

    def make(keeper):
        del keeper
        if trouble == "unlocked":
            (folder / "lock").unlink()
        else:
            shutil.rmtree(folder)
        if trouble == "replaced":
            with held(folder, CONFIG):
                pass
        return {"w": np.zeros(3, np.float32)}, {}

    with pytest.raises(WorkdirError, match=r"was deleted or replaced under the run"):
        with held(folder, CONFIG) as workdir:
            workdir.check_is_there()
            workdir.stage("train", (), make, like)
    assert folder.exists() == (trouble != "deleted")
    assert not (folder / "stages").exists()
