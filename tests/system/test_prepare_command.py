"""The command that prepares data sets, as a user starts it, kills it and starts it again."""

import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import archives
import pytest
import tensorflow_datasets as tfds

from sparse_mu.data.prepare import prepare
from sparse_mu.prepare import main

ROOT = Path(__file__).parents[2]
# The command itself; only the official sums are those of our fabricated archive, and on request
# the archive is on another server, or writing the first split never ends.
DRIVER = """
import os, pathlib, runpy, sys, time
import archives, tensorflow_datasets as tfds
from sparse_mu.data import catalogue
recipe = catalogue.RECIPES["cifar10"]
sums = archives.checksums("cifar10", pathlib.Path(sys.argv[1]))
if url := os.environ.get("ARCHIVE"):
    sums = {url: info for info in sums.values()}
    archive = recipe.archives[0]._replace(url=url)
    catalogue.RECIPES["cifar10"] = recipe._replace(archives=(archive,))
if os.environ.get("STUCK"):
    from tensorflow_datasets.core import writer
    writer.Writer.finalize = lambda self: time.sleep(600)
tfds.builder_cls("cifar10").url_infos = sums
sys.argv = ["sparse_mu.prepare", *sys.argv[2:]]
runpy.run_module("sparse_mu.prepare", run_name="__main__")
"""


@pytest.fixture
def start(tmp_path):
    """Starts the command on a fabricated CIFAR-10; importing TensorFlow fails in it."""
    archives.write_cifar10(tmp_path / "manual")
    decoy = tmp_path / "decoy" / "tensorflow" / "__init__.py"
    decoy.parent.mkdir(parents=True)
    decoy.write_text("raise AssertionError('TensorFlow was imported')")
    started = []

    def run(*flags, **environment):
        path = os.pathsep.join([str(decoy.parents[1]), str(ROOT), str(ROOT / "tests")])
        command = [sys.executable, "-c", DRIVER, tmp_path / "manual", "--dataset=cifar10"]
        process = subprocess.Popen(
            [*command, f"--data_dir={tmp_path / 'data'}", *flags],
            env=os.environ | {"PYTHONPATH": path, "NO_PROXY": "127.0.0.1"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def wait_for(is_so):
    for _ in range(1200):
        if is_so():
            return
        time.sleep(0.1)
    raise AssertionError("it never came to that")


def rows_in(folder):
    source = tfds.data_source("cifar10", split="train", data_dir=folder, download=False)
    return len(source)


@pytest.mark.ci
def test_the_command_prepares_once(start, tmp_path, capsys):
    process = start(f"--manual_dir={tmp_path / 'manual'}")
    out, err = process.communicate()
    folder = tmp_path / "data" / "cifar10" / "3.0.2"
    assert (process.returncode, err) == (0, "")
    assert out == f"cifar10 3.0.2: prepared; train 20, test 4 rows in {folder}\n"
    assert rows_in(tmp_path / "data") == 20

    (folder.parent / "3.0.1").mkdir()
    assert main(["prepare", "--dataset=cifar10", f"--data_dir={tmp_path / 'data'}"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [
        f"cifar10 3.0.2: was prepared before, nothing to do; train 20, test 4 rows in {folder}",
        f"{folder.parent}/3.0.1: another version, left alone; delete it if nothing else reads it",
    ]


@pytest.mark.ci
def test_a_killed_preparation_leaves_no_data_set(start, tmp_path):
    data, manual = tmp_path / "data", tmp_path / "manual"
    process = start(f"--manual_dir={manual}", STUCK="1")
    wait_for(lambda: list(data.glob("incomplete.cifar10/cifar10/*/")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (data / "incomplete.cifar10").exists()
    assert not (data / "cifar10").exists()
    assert not tfds.builder("cifar10", data_dir=data).is_prepared()
    made = prepare("cifar10", data, manual, checksums=archives.checksums("cifar10", manual))
    assert made.is_new and rows_in(data) == 20
    assert sorted(path.name for path in data.iterdir()) == ["cifar10", "downloads"]


@pytest.mark.slow
def test_a_terminated_preparation_clears_up(start, tmp_path):
    process = start(f"--manual_dir={tmp_path / 'manual'}", STUCK="1")
    wait_for(lambda: list((tmp_path / "data").glob("incomplete.cifar10/cifar10/*/")))
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (143, "")
    assert err == "interrupted; nothing half-made is left\n"
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["downloads"]


@pytest.mark.slow
def test_an_interrupted_download_ends_at_once(start, tmp_path):
    asked, enough = threading.Event(), threading.Event()

    class Stalling(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(b"x" * 10_000)
            asked.set()
            enough.wait(120)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stalling)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        process = start(ARCHIVE=f"http://127.0.0.1:{server.server_port}/cifar-10-binary.tar.gz")
        assert asked.wait(120)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        enough.set()
        server.shutdown()
        server.server_close()
    assert (process.returncode, out) == (130, "")
    assert err == "interrupted; nothing half-made is left\n"
    left = sorted(path.name for path in (tmp_path / "data").rglob("*"))
    assert left == ["cifar10", "cifar10.lock", "downloads"]


WRONG = {  # flags: (exit code, what is said)
    "--dataset=cifar1O": (
        2,
        "--dataset=cifar1O: there is no such data set (did you mean 'cifar10'?)",
    ),
    "--dataset=mnist": (
        2,
        "--dataset=mnist: there is no such data set; there are cifar10, cifar100,",
    ),
    "": (2, "the following arguments are required: --dataset"),
    "--dataset=cifar10 --extra": (2, "unrecognized arguments: --extra"),
    "--dataset=imagenet2012": (1, "ILSVRC2012_img_train.tar: is missing; register at https://"),
    "--dataset=cifar10 --manual_dir=/none": (1, "--manual_dir=/none: there is no such folder"),
}


@pytest.mark.parametrize("flags", WRONG)
def test_wrong_flags_are_one_line(flags, tmp_path, capsys):
    code, said = WRONG[flags]
    assert main(["prepare", f"--data_dir={tmp_path / 'data'}", *flags.split()]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert said in err
    assert not (tmp_path / "data").exists()


def test_help_names_every_data_set_and_archive(capsys):
    from sparse_mu.data.catalogue import RECIPES

    assert main(["prepare", "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for name, recipe in RECIPES.items():
        assert f"  {name}\n" in out
        for archive in recipe.archives:
            assert archive.file in out and (archive.page or archive.url) in out
