"""What a generated input is, how the command is run on it in this process, and what is held then.

The run itself stands still: ``run_all`` is replaced by one that only says that the input was
accepted, so an example costs no training.
"""

import contextlib
import functools
import hashlib
import io
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path
from typing import NamedTuple

import hypothesis
import jax
import numpy as np

from configs import digits
from sparse_mu import builders, config, rules
from sparse_mu import run as pipeline
from sparse_mu.builders import sources as source_builders
from sparse_mu.data import sources
from sparse_mu.main import main

ROOT = Path(__file__).parents[2]
DIGITS = str(ROOT / "configs" / "digits.py")
HERE = "DIR"  # in arguments and files: the folder that a case's files are written to
CPU_SECONDS, SECONDS = (
    5,
    30,
)  # that one example may take: it computes, and it waits on a busy machine
MOST_GROWTH = 256 * 2**10  # KiB of memory that one example may add; the largest file has 70 KiB
MEMORY = 12 * 2**20  # KiB that a process may map
PIPE = "a pipe"
FLAT = config.flatten(digits.get_config().to_dict())


class Link(NamedTuple):
    """A symbolic link."""

    target: str


class Case(NamedTuple):
    """An input: arguments of the command, and files of the folder that they call DIR.

    Attributes:
        arguments: without ``--workdir``.
        files: path below the folder and content: bytes, a `Link`, `PIPE`, or None for a folder.
    """

    arguments: tuple
    files: tuple = ()

    def digest(self):
        return hashlib.sha256(repr(self).encode("utf-8", "surrogatepass")).digest()

    def write(self, folder):
        """Writes the files into a folder of nothing else."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, content in self.files:
            with contextlib.suppress(FileExistsError, NotADirectoryError):  # the first one wins
                _write(folder / name, content)

    def argv(self, folder, workdir):
        given = [argument.replace(HERE, str(folder)) for argument in self.arguments]
        return ["sparse_mu", *given, f"--workdir={workdir}"]


def _write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        path.mkdir()
    elif content is PIPE:
        os.mkfifo(path)
    elif isinstance(content, Link):
        path.symlink_to(content.target)
    else:
        path.write_bytes(content)


def zipped(members, compression=zipfile.ZIP_STORED):
    """A zip archive of (name, content), the same bytes at any time."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as made:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            made.writestr(info, content)
    return file.getvalue()


class Accepted(BaseException):
    """The input was taken, and this is the experiment that it means."""

    def __init__(self, experiment):
        super().__init__()
        self.experiment = experiment


class Hang(BaseException):
    """An example took longer than any may."""


class Said(NamedTuple):
    """How the command ended: its code and what it printed, or the experiment it would have run."""

    code: int | None
    out: str
    err: str
    experiment: object
    warned: list


def stand_still(monkeypatch):
    """Replaces the run, and keeps what every example builds alike."""

    def accepted(experiment, *_, **__):
        raise Accepted(experiment)

    built = {}
    build_network = builders.build_network

    def kept_network(flat, data, axis_name=None):
        facts = [flat[key] for key in flat if key.startswith(("model.", "execution."))]
        key = (*facts, data.inputs.shape[1:], len(data.class_names), data.name, axis_name)
        if key not in built:
            built[key] = build_network(flat, data, axis_name)
        return built[key]

    monkeypatch.setattr(pipeline, "run_all", accepted)
    monkeypatch.setattr(builders, "build_network", kept_network)
    monkeypatch.setattr(sources, "digits", functools.cache(sources.digits))
    assert source_builders.sources is sources
    # nothing is computed, and the cache of the machine's user is none of this test's
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "unused")


def run_here(argv):
    """Runs the command in this process, seeing all that a terminal would."""
    seen = _Records()
    logging.getLogger().addHandler(seen)
    code = experiment = None
    with _streams() as read, _default_warnings() as warned, _limits():
        try:
            code = main(argv)
        except Accepted as taken:
            experiment = taken.experiment
    logging.getLogger().removeHandler(seen)
    out, err = read()
    return Said(code, out, err, experiment, [*seen.lines, *(str(w.message) for w in warned)])


class _Records(logging.Handler):
    """What a process would have shown of its log."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@contextlib.contextmanager
def _streams():
    """Catches what is written to standard output and error, by Python or by a library."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        kept = os.dup(1), os.dup(2)
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        # as the interpreter opens them; its own sys.stderr is pytest's here
        names = ("strict", "backslashreplace")
        texts = [
            io.TextIOWrapper(io.FileIO(fd, "w", closefd=False), "utf-8", errors, newline="")
            for fd, errors in zip((1, 2), names, strict=True)
        ]
        found = []

        def read():
            return found

        try:
            with contextlib.redirect_stdout(texts[0]), contextlib.redirect_stderr(texts[1]):
                yield read
        finally:
            for text in texts:
                text.flush()
            for number, before in zip((1, 2), kept, strict=True):
                os.dup2(before, number)
                os.close(before)
            for file in (out, err):
                file.seek(0)
                found.append(file.read().decode("utf-8", "surrogateescape"))


@contextlib.contextmanager
def _default_warnings():
    """Python's own filters, as in a process: pytest's would turn warnings into errors."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.resetwarnings()
        warnings.simplefilter("default")
        for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", kind)
        yield warned


@contextlib.contextmanager
def _limits():
    """Raises `Hang` in an example that computes or waits too long."""

    def stop(number, frame):
        raise Hang(f"more than {CPU_SECONDS} s of computing or {SECONDS} s")

    # pytest-timeout, too, has an alarm
    before = {number: signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)}
    left, _ = signal.setitimer(signal.ITIMER_REAL, SECONDS)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    began = time.monotonic()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 0.1))


def one_line_of(said):
    """The line of a refused input, once it is found to keep the contract."""
    assert said.code in (1, 2), said
    assert said.out == "" and not said.warned, said
    assert said.err.startswith("error: ") and said.err.endswith("\n"), said.err
    line = said.err[:-1]
    assert line.isprintable() and len(line.encode()) < 10_000, line[:2000]
    assert len(line.removeprefix("error: ")) > 10 and "Traceback" not in line, line
    return line


def check_sound(experiment):
    """An accepted input means an experiment that can be run."""
    flat, data = experiment.config, experiment.data
    assert list(flat) == list(rules.RULES)
    for key, value in FLAT.items():
        assert type(flat[key]) is type(value), (key, flat[key])
        assert not isinstance(value, float) or np.isfinite(flat[key]), (key, flat[key])
    assert data.inputs.dtype == np.uint8 and data.inputs.ndim == 4 and data.inputs.size
    assert data.labels.dtype == np.int32 and len(data.labels) == len(data.inputs)
    classes = len(data.class_names)
    assert set(np.unique(data.labels)) == set(range(classes)) and classes >= 2
    assert data.forget.shape == data.retain.shape == (flat["trials"], data.train_rows)
    assert data.forget.any(1).all() and data.retain.any(1).all()
    assert not (data.forget & data.retain).any()
    given = experiment.imported
    if given is not None:
        like = jax.eval_shape(experiment.network.init, jax.random.key(0))
        assert jax.tree.structure(given.model) == jax.tree.structure(like)
        for leaf, wanted in zip(jax.tree.leaves(given.model), jax.tree.leaves(like), strict=True):
            assert leaf.shape == wanted.shape and leaf.dtype == wanted.dtype
            assert np.isfinite(leaf).all()
        for mask, weight in zip(
            jax.tree.leaves(given.masks), jax.tree.leaves(given.model.params), strict=True
        ):
            assert mask.shape == weight.shape and mask.dtype == bool


def contents(folder):
    """Every file of a folder, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


class Bench:
    """Runs cases of one kind, next to a workdir that a valid case of that kind has made."""

    def __init__(self, folder, valid):
        self.folder, self.valid = folder, valid
        self.workdir, self.fresh, self.files = folder / "made", folder / "new", folder / "files"
        self.seen, self.refused = set(), set()
        valid.write(self.files)
        said = run_here(valid.argv(self.files, self.workdir))
        assert said.experiment is not None, said  # the control: what is damaged below is valid
        check_sound(said.experiment)
        (self.workdir / "results.jsonl").write_text('{"method": "retrain", "sparsity": 0.0}\n')
        stage = self.workdir / "stages" / "retrain-0123456789abcdef"
        stage.mkdir(parents=True)
        (stage / "meta.json").write_text("{}")
        self.before = contents(self.workdir)

    def check(self, case, *, new=False):
        """Runs a case; returns its line, or None where it was accepted."""
        self.seen.add(case.digest())
        case.write(self.files)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        workdir = self.fresh if new or case.arguments != self.valid.arguments else self.workdir
        said = run_here(case.argv(self.files, workdir))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
        assert grown < MOST_GROWTH, f"{grown} KiB more memory"
        if said.experiment is not None:
            check_sound(said.experiment)
            shutil.rmtree(self.fresh, ignore_errors=True)
            line = None
        elif said.code == 0:
            assert said.out.startswith("usage: ") and said.err == "", said  # --help
            line = None
        else:
            line = one_line_of(said)
        assert contents(self.workdir) == self.before
        assert not self.fresh.exists()
        if line is not None:
            self.refused.add(case.digest())
        return line

    def in_a_process(self, case):
        """Runs a case that is refused as a process of its own: it says the same, and no more."""
        line = self.check(case, new=True)
        if line is None:
            return False
        case.write(self.files)
        limited = ["bash", "-c", f'ulimit -v {MEMORY} && exec "$@"', "bash"]
        command = [sys.executable, "-m", "sparse_mu.main"]
        env = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
        env |= {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(self.folder / "cache")}
        done = subprocess.run(
            [*limited, *command, *case.argv(self.files, self.fresh)[1:]],
            capture_output=True,
            timeout=120,
            env=env,
        )
        assert done.returncode in (1, 2) and done.stdout == b"", done
        assert done.stderr.decode() == f"{line}\n"
        assert contents(self.workdir) == self.before
        assert not self.fresh.exists()
        return True


def run_examples(strategy, count, check):
    """Runs ``check`` on ``count`` drawn examples, the same in every run."""

    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],  # no shrinking: every example is small
    )
    @hypothesis.given(strategy)
    def every(example):
        check(example)

    with warnings.catch_warnings():  # of how long a failing example is, in place of the failure
        warnings.simplefilter("ignore", hypothesis.errors.HypothesisWarning)
        every()
