"""Stopping: by a signal after a step, at once where there is nothing to save, always resumable."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from sparse_mu import judge, main, results, session, signals
from sparse_mu.acts import Arm
from sparse_mu.stopping import Stopped, StopRequest
from sparse_mu.workdir import held

ROOT = Path(__file__).parents[2]
CONFIG = {"trials": 2, "checkpoint.every_epochs": 10, "checkpoint.keep": 2}
SAID = "stopping after this step; once more to stop at once\n"
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
both = pytest.mark.parametrize("number", CODES)
pytestmark = pytest.mark.filterwarnings("ignore:the load_module")  # ml_collections calls it


def test_the_first_who_asks_is_the_reason():
    stop = StopRequest()
    assert not stop.asked() and stop.signal is None
    stop.ask(15)
    stop.ask(2)
    assert stop.asked() and stop.signal == 15
    assert not StopRequest().asked()


# Signals of this process


@pytest.fixture(autouse=True)
def as_before():
    """Whatever a test does, handlers and threads are afterwards what they were."""
    before = [signal.getsignal(number) for number in CODES]
    threads = threading.active_count()
    yield
    assert [signal.getsignal(number) for number in CODES] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert threading.active_count() == threads


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # Python runs handlers between its own instructions


@both
def test_an_impatient_signal_interrupts(number, capfd):
    with pytest.raises(KeyboardInterrupt), signals.handled() as handled:
        send(number)
    assert handled.stop.signal == number and handled.exit_code() == CODES[number]
    assert capfd.readouterr().err == ""


@both
def test_a_patient_signal_is_told_and_remembered(number, capfd):
    with signals.handled() as handled:
        handled.patient = True
        send(number)
        assert handled.stop.signal == number
    assert handled.exit_code() == CODES[number]
    assert capfd.readouterr().err == SAID


def test_other_signals_are_none_of_its_business(capfd):
    earlier = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with signals.handled() as handled:
            send(signal.SIGUSR1)
            send(signal.SIGUSR1)
            assert not handled.stop.asked()
    finally:
        signal.signal(signal.SIGUSR1, earlier)
    assert capfd.readouterr().err == ""


def test_an_interruption_that_a_callback_swallows_is_remembered():
    """As the callbacks of the garbage collector do: what they raise goes nowhere."""
    with signals.handled() as handled:
        try:
            send(signal.SIGTERM)
        except KeyboardInterrupt:
            pass
        assert handled.stop.signal == signal.SIGTERM


def test_another_thread_handles_nothing(capfd):
    found = []

    def body():
        with signals.handled() as handled:
            found.append((handled.stop.asked(), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=body)
    before = signal.getsignal(signal.SIGINT)
    thread.start()
    thread.join()
    assert found == [(False, before)] and capfd.readouterr().err == ""


TWICE = """
import signal, sys, time
from pathlib import Path
from sparse_mu import signals, workdir

number = int(sys.argv[2])
with signals.handled() as handled, workdir.held(
    Path(sys.argv[1]), {"trials": 2, "checkpoint.every_epochs": 10, "checkpoint.keep": 2}
):
    handled.patient = sys.argv[3] == "patient"
    print("ready", flush=True)
    if handled.patient:
        signal.sigwait([signal.SIGUSR1])  # compiled code that does not come back, as XLA compiling
    try:
        time.sleep(60)
    finally:
        time.sleep(60)
"""


@pytest.mark.ci  # two processes that import jax
@pytest.mark.parametrize("patience", ["patient", "impatient"])
def test_a_second_signal_ends_it_at_once(tmp_path, patience, number=signal.SIGTERM):
    """In the middle of compiled code, too, where no handler of Python's can run."""
    command = [sys.executable, "-c", TWICE, tmp_path / "run", str(int(number)), patience]
    process = subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    process.send_signal(number)
    time.sleep(0.5)
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - began < 5  # it sleeps for a minute
    assert (process.returncode, out, err) == (143, "", SAID if patience == "patient" else "")
    assert (tmp_path / "run" / "lock").read_text().startswith(f"process {process.pid} on ")
    with held(tmp_path / "run", CONFIG):  # as after a kill
        pass


# The command


DIGITS = str(ROOT / "configs" / "digits.py")


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The command without data and without a pipeline: what it calls instead is an argument."""

    def run(*flags, build=lambda flat: types.SimpleNamespace(data=None, imported=None), run_all):
        monkeypatch.setattr(session.builders, "start_backend", lambda flat: None)
        monkeypatch.setattr(session.builders, "build", build)
        monkeypatch.setattr(session.pipeline, "run_all", run_all)
        monkeypatch.setattr(session.manifest, "describe", lambda *_: {})
        monkeypatch.setattr(session.manifest, "write_derived", lambda *_: {})
        monkeypatch.setattr(main.terminal, "show", lambda *_: print("table"))
        given = [f"--config={DIGITS}", f"--workdir={tmp_path / 'a run'}", *flags]
        return main.main(["sparse_mu", *given]), shlex.join(
            ["python", "-m", "sparse_mu.main", *given]
        )

    return run


@both
def test_a_run_that_is_asked_stops_and_says_how_it_goes_on(command, tmp_path, capfd, number):
    def run_all(experiment, workdir, on_progress, export):
        assert (workdir.path / "lock").read_text().startswith("process ")
        send(number)
        assert workdir.stop.signal == number
        raise Stopped

    code, resuming = command("--config.prune.sparsities=(0.5,)", run_all=run_all)
    assert code == CODES[number]
    assert capfd.readouterr() == ("", f"{SAID}interrupted; this continues it: {resuming}\n")
    assert "'--config.prune.sparsities=(0.5,)'" in resuming  # as a shell takes it
    assert (tmp_path / "a run" / "lock").read_text() == ""  # it ended cleanly


@both
def test_a_run_that_has_no_pipeline_yet_stops_at_once(command, tmp_path, capfd, number):
    def build(flat):
        send(number)
        raise AssertionError("not stopped")

    code, resuming = command(build=build, run_all=None)
    assert code == CODES[number]
    assert capfd.readouterr() == ("", f"interrupted; this continues it: {resuming}\n")
    assert not (tmp_path / "a run").exists()


def test_a_signal_that_comes_too_late_is_answered_all_the_same(command, capfd):
    def run_all(experiment, workdir, on_progress, export):
        send(signal.SIGTERM)
        return [], {}

    assert command(run_all=run_all)[0] == 143
    assert capfd.readouterr().out == "table\n"


def test_the_command_runs_in_any_thread(command, capfd):
    codes = []
    thread = threading.Thread(
        target=lambda: codes.append(command(run_all=lambda *_, **__: ([], {}))[0])
    )
    thread.start()
    thread.join()
    assert codes == [0] and capfd.readouterr() == ("table\n", "")


def test_a_full_disk_while_running_is_one_line(command, tmp_path, capfd):
    def run_all(experiment, workdir, on_progress, export):
        raise OSError(28, "No space left on device", str(workdir.path / "summary.json"))

    assert command(run_all=run_all)[0] == 1
    assert capfd.readouterr() == (
        "",
        f"error: [Errno 28] No space left on device: '{tmp_path / 'a run' / 'summary.json'}'\n",
    )
    assert (tmp_path / "a run" / "lock").read_text() == ""


def test_an_owner_is_found_before_the_data_are_read(command, tmp_path, capfd):
    def build(flat):
        raise AssertionError("read")

    flat = main.arguments.flat_config(main.arguments.parse(["", f"--config={DIGITS}"]))
    with held(tmp_path / "a run", flat):
        assert command(build=build, run_all=None)[0] == 1
    assert f"is held by process {os.getpid()} on " in capfd.readouterr().err


# Judging


class Judged:
    """Evaluation of made-up arms: judging one is to note its name."""

    def __init__(self, workdir, monkeypatch, after=lambda name: None):
        self.workdir, self.names, self.ua = workdir, [], 0.25
        self.done, self.trials = 0, workdir.trials
        self.x = types.SimpleNamespace(unpruner=None)

        def of_arm(run, arm, prune_seconds, distances):
            assert run is self and prune_seconds == 0.5 and not distances.outputs
            self.names.append(arm.method)
            after(arm.method)
            rates = dict.fromkeys(("ua", "ra", "ta", "mia_efficacy"), self.ua)
            same = {"method": arm.method, "sparsity": arm.sparsity, "models": judge.stamp(arm)}
            return [{**same, "trial": t, "forgotten_classes": [], **rates} for t in range(2)]

        monkeypatch.setattr(judge, "judge", of_arm)

    def evaluate(self, made="1"):
        arms = [
            Arm(name, 0.0, None, None, None, {"prune_seconds": 0.5}, name + made, "")
            for name in ("original", "fisher", "retrain")
        ]
        self.names.clear()
        return judge.evaluate(self, arms, {})


@pytest.fixture
def workdir(tmp_path):
    with held(tmp_path, CONFIG) as workdir:
        yield workdir


def test_judging_stops_between_arms_and_goes_on(workdir, monkeypatch):
    whole = Judged(workdir, monkeypatch)
    rows = whole.evaluate()
    assert whole.names == ["retrain", "original", "fisher"]
    assert [row["method"] for row in rows] == ["fisher"] * 2 + ["original"] * 2 + ["retrain"] * 2
    assert rows[0]["gap_retrain_ua"] == 0.0 and "check" not in rows[0]
    text = workdir.results.read_text()
    assert results.read_whole(workdir.results, workdir.trials) == rows
    workdir.results.unlink()

    stopped = workdir._replace(stop=StopRequest())
    judged = Judged(stopped, monkeypatch, after=lambda name: stopped.stop.ask(2))
    with pytest.raises(Stopped):
        judged.evaluate()
    assert judged.names == ["retrain"]  # the arm under way is finished
    with pytest.raises(Stopped):
        judged.evaluate()
    assert judged.names == []
    judged = Judged(workdir, monkeypatch)
    assert judged.evaluate() == rows and judged.names == ["original", "fisher"]
    assert workdir.results.read_text() == text
    stopped.stop.ask(2)
    assert Judged(stopped, monkeypatch).evaluate() == rows  # nothing is left to be stopped


def test_rows_of_other_models_are_all_judged_again(workdir, monkeypatch, caplog):
    judged = Judged(workdir, monkeypatch)
    first = judged.evaluate()
    text = workdir.results.read_text()
    judged.ua = 0.75
    again = judged.evaluate(made="2")
    assert judged.names == ["retrain", "original", "fisher"]
    assert caplog.text.count("its rows are of other models") == 1
    assert {row["ua"] for row in again} == {0.75} and len(again) == len(first)
    assert workdir.results.read_text().startswith(text + results.line(results.ANEW))
    assert judged.evaluate(made="2") == again == results.read_whole(workdir.results, workdir.trials)
    assert judged.names == []


def test_a_kill_while_all_is_judged_again_keeps_what_was(workdir, monkeypatch):
    judged = Judged(workdir, monkeypatch)
    judged.evaluate()
    size = workdir.results.stat().st_size

    def kill(name):
        if name == "original":
            raise KeyboardInterrupt

    for judgements in (["retrain", "original"], ["original"], ["original"]):
        again = Judged(workdir, monkeypatch, after=kill)
        with pytest.raises(KeyboardInterrupt):
            again.evaluate(made="2")
        assert again.names == judgements
    assert workdir.results.stat().st_size < 2 * size  # it does not grow with every start


@pytest.mark.parametrize("last", [False, True])
def test_a_damaged_row_is_judged_again_and_said(workdir, monkeypatch, caplog, last):
    judged = Judged(workdir, monkeypatch)
    rows = judged.evaluate()
    text = workdir.results.read_text()
    lines = text.splitlines(keepends=True)
    number = 6 if last else 3  # fisher's second row, the original's first
    lines[number - 1] = lines[number - 1].replace("0.25", "0.35", 1)
    workdir.results.write_text("".join(lines))
    assert judged.evaluate() == rows
    assert judged.names == (["fisher"] if last else ["original"])
    assert [record.getMessage() for record in caplog.records] == [
        f"{workdir.results}, line {number}: is damaged; what it said is judged again"
    ]
    assert workdir.results.read_text().startswith("".join(lines))  # appended, not repaired
    assert results.read_whole(workdir.results, workdir.trials) == rows
    assert judged.evaluate() == rows and judged.names == [] and len(caplog.records) == 1
