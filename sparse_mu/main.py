"""The command: ``python -m sparse_mu.main --config=configs/NAME.py --workdir=DIR``.

Exit codes: 0 done; 1 data or disk trouble; 2 a wrong flag or config; 130 and 143 interrupted (the
same command continues).
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from sparse_mu import arguments, builders, manifest, stages, terminal
from sparse_mu import run as pipeline
from sparse_mu.checkpoint import CheckpointError
from sparse_mu.config import ConfigError
from sparse_mu.data.sources import DataError


def run(argv: Sequence[str]) -> None:
    """Runs one experiment from the command line to the report."""
    values = arguments.parse(argv)
    if values.config is None or values.help:
        print(arguments.overview())
        return
    flat = arguments.flat_config(values)
    if not values.workdir:
        raise ConfigError(f"--workdir is missing: a folder for the run, as in {arguments.EXAMPLE}")
    _start_jax(flat["trials"])
    with stages.held(Path(values.workdir), flat) as workdir:
        if values.report_only:
            rows, described = workdir.read_rows(), None
        else:
            with terminal.ProgressBar() as bar:
                experiment = builders.build(flat)
                rows, digests = pipeline.run_all(experiment, workdir, bar.update)
                described = manifest.describe(experiment.data.name, digests)
        terminal.show(manifest.write_derived(workdir, rows, flat, described))
        print(f"\nreport: {workdir.path / 'report.html'}")


def _start_jax(trials: int) -> None:
    """A CPU device per core that has a trial to run; compiled programs kept between runs."""
    jax.config.update("jax_num_cpu_devices", min(len(os.sched_getaffinity(0)), trials))
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "sparse_mu", "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def main(argv: Sequence[str]) -> int:
    """Runs the command; every expected failure is one line on standard error and an exit code."""
    sys.argv = list(argv)  # ml_collections reads overrides from here
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        run(argv)
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (DataError, stages.WorkdirError, CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
