"""One workdir from the command's side: a run in it, or its report made again."""

import contextlib
from pathlib import Path

from sparse_mu import builders, manifest, memory, results, terminal
from sparse_mu import run as pipeline
from sparse_mu.acts import Run
from sparse_mu.config import Flat
from sparse_mu.harmful import class_scores
from sparse_mu.signals import Signals
from sparse_mu.workdir import examine, held


def perform(folder: Path, flat: Flat, signals: Signals, key: bytes | None, *, export: bool) -> dict:
    """Runs an experiment in a workdir, or what is left of it; returns the summary.

    Everything is refused that can be before anything is written.

    Args:
        folder: the workdir.
        flat: the checked config.
        signals: those of the process; from the first stage on they wait for the step to end.
        key: signs the manifest; None leaves it unsigned.
        export: whether models are written as files, too.

    Raises:
        ConfigError, DataError, WorkdirError, CheckpointError, StateDictError, MemoryShort, OSError:
            what :mod:`sparse_mu.main` turns into one line.
        sparse_mu.stopping.Stopped: if a signal asked for it.
    """
    is_new = examine(folder, flat)
    with contextlib.ExitStack() as stack:
        stack.enter_context(memory.told("lower config.trials, or take a smaller network"))
        holding = held(folder, flat, stop=signals.stop)
        # a workdir that is there is taken first: another owner is found before the data are read
        workdir = None if is_new else stack.enter_context(holding)
        builders.start_backend(flat)
        bar = stack.enter_context(terminal.ProgressBar())
        choice = builders.build_choice(flat)
        experiment = builders.build(choice.backbones if choice else flat)
        if choice is not None:
            choice.check(experiment.network.num_classes)
        workdir = workdir or stack.enter_context(holding)
        signals.patient = True
        influence = None
        if choice is not None:
            influence = class_scores(Run(experiment, workdir, bar.update))
            experiment = builders.build(choice.forgetting(influence.value.tolist()))
        rows, arms = pipeline.run_all(experiment, workdir, bar.update, export=export)
        described = manifest.describe(experiment.data, arms, experiment.imported, influence)
        return manifest.write_derived(workdir, rows, flat, described, key)


def report_again(folder: Path, flat: Flat, key: bytes | None) -> dict:
    """Summary and report of a finished run, made again from its rows; returns the summary.

    Raises:
        ConfigError: if another config made the workdir.
        WorkdirError: if the run has not finished, or its rows or manifest are damaged.
    """
    with held(folder, flat, may_be_new=False) as workdir:
        rows = results.read_whole(workdir.results, workdir.trials)
        return manifest.write_derived(workdir, rows, flat, None, key)
