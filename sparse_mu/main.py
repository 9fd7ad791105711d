"""The command: ``python -m sparse_mu.main --config=configs/NAME.py --workdir=DIR``.

Exit codes: 0 done; 1 data or disk trouble; 2 a wrong flag or config; 130 and 143 interrupted (the
same command continues).
"""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from sparse_mu import arguments, builders, manifest, stages, terminal
from sparse_mu import run as pipeline
from sparse_mu.checkpoint import CheckpointError
from sparse_mu.config import ConfigError, Flat
from sparse_mu.data.types import DataError
from sparse_mu.interop import StateDictError

TROUBLE = (DataError, stages.WorkdirError, CheckpointError, StateDictError, OSError)


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
        if values.export:
            raise ConfigError("--export: needs the models of a run; leave out --report_only")
        with stages.held(folder, flat, may_be_new=False) as workdir:
            summary = manifest.write_derived(workdir, workdir.read_rows(), flat, None)
    else:
        summary = _experiment(folder, flat, values.export)
    terminal.show(summary, folder / "report.html")


def _experiment(folder: Path, flat: Flat, export: bool) -> dict:
    """Everything is refused that can be before anything is written."""
    stages.examine(folder, flat)
    builders.start_backend(flat)
    with terminal.ProgressBar() as bar:
        experiment = builders.build(flat)
        with stages.held(folder, flat) as workdir:
            rows, digests = pipeline.run_all(experiment, workdir, bar.update, export=export)
            described = manifest.describe(experiment.data, digests, experiment.imported)
            return manifest.write_derived(workdir, rows, flat, described)


def main(argv: Sequence[str]) -> int:
    """Runs the command; every expected failure is one line on standard error and an exit code."""
    try:
        run(argv)
    except (KeyboardInterrupt, SystemExit) as stop:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130 if isinstance(stop, KeyboardInterrupt) else int(stop.code or 0)
    except (ConfigError, *TROUBLE) as error:
        print("error:", *str(error).split(), file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main(sys.argv))
