"""The command: ``python -m sparse_mu.main --config=configs/NAME.py --workdir=DIR``.

Exit codes: 0 done; 1 data or disk trouble; 2 a wrong flag or config; 130 and 143 interrupted (the
same command continues).
"""

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from sparse_mu import arguments, builders, manifest, stages, terminal
from sparse_mu import run as pipeline
from sparse_mu.checkpoint import CheckpointError
from sparse_mu.config import ConfigError, Flat
from sparse_mu.data.sources import DataError


def run(argv: Sequence[str]) -> None:
    """Runs one experiment from the command line to the report."""
    values = arguments.parse(argv)
    if values.help or not values["config"].present:
        print(arguments.overview())
        return
    flat = arguments.flat_config(values)
    if not values.workdir:
        raise ConfigError(f"--workdir is missing: a folder for the run, as in {arguments.EXAMPLE}")
    folder = Path(values.workdir)
    if values.report_only:
        with stages.held(folder, flat, may_be_new=False) as workdir:
            summary = manifest.write_derived(workdir, workdir.read_rows(), flat, None)
    else:
        summary = _experiment(folder, flat)
    terminal.show(summary, folder / "report.html")


def _experiment(folder: Path, flat: Flat) -> dict:
    """Everything is refused that can be before anything is written."""
    stages.examine(folder, flat)
    _start_jax(flat["trials"])
    with terminal.ProgressBar() as bar:
        experiment = builders.build(flat)
        with stages.held(folder, flat) as workdir:
            rows, digests = pipeline.run_all(experiment, workdir, bar.update)
            described = manifest.describe(experiment.data.name, digests)
            return manifest.write_derived(workdir, rows, flat, described)


def _start_jax(trials: int) -> None:
    """A CPU device per core with a trial to run; compiled programs kept between runs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with contextlib.suppress(RuntimeError):  # a process that already computes keeps its devices
        jax.config.update("jax_num_cpu_devices", min(cores or 1, trials))
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "sparse_mu", "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def main(argv: Sequence[str]) -> int:
    """Runs the command; every expected failure is one line on standard error and an exit code."""
    try:
        run(argv)
    except (KeyboardInterrupt, SystemExit) as stop:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130 if isinstance(stop, KeyboardInterrupt) else int(stop.code or 0)
    except (ConfigError, DataError, stages.WorkdirError, CheckpointError, OSError) as error:
        print("error:", *str(error).split(), file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main(sys.argv))
