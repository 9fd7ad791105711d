"""The command: ``python -m sparse_mu.main --config=configs/NAME.py --workdir=DIR``.

Exit codes: 0 done; 1 data, disk or memory trouble, or what does not verify; 2 a wrong flag or
config; 130 and 143 interrupted (the command that continues is printed).
"""

import sys
from collections.abc import Sequence

from sparse_mu import arguments, builders, sealing, session, terminal, verify
from sparse_mu.checkpoint import CheckpointError
from sparse_mu.config import ConfigError, one_line
from sparse_mu.data.types import DataError
from sparse_mu.interop import StateDictError
from sparse_mu.memory import MemoryShort
from sparse_mu.signals import Signals, handled, resuming
from sparse_mu.stopping import Stopped
from sparse_mu.workdir import WorkdirError

TROUBLE = (DataError, WorkdirError, CheckpointError, StateDictError, MemoryShort, OSError)


def run(argv: Sequence[str], signals: Signals) -> int:
    """Runs one experiment from the command line to the report, or verifies one; the exit code."""
    values = arguments.parse(argv)
    if not values.help and (made := arguments.to_verify(values)):
        builders.stay_on_cpu()
        return terminal.show_lines(verify.check(made, sealing.read_key(values.key_file)))
    if values.help or not values["config"].present:
        print(arguments.overview(keys=values.help))
        return 0
    flat = arguments.flat_config(values)
    folder = arguments.run_folder(values)
    key = sealing.key_for(folder, values.key_file)
    if values.report_only:
        summary = session.report_again(folder, flat, key)
    else:
        summary = session.perform(folder, flat, signals, key, export=values.export)
    terminal.show(summary, folder / "report.html")
    return 0


def main(argv: Sequence[str]) -> int:
    """Runs the command; every expected failure is one line on standard error and an exit code."""
    with handled() as signals:
        try:
            code = run(argv, signals)
            if signals.stop.asked():  # too late to stop anything
                raise Stopped
            return code
        except (Stopped, KeyboardInterrupt):
            print("interrupted; this continues it:", resuming(argv), file=sys.stderr)
            return signals.exit_code()
        except (ConfigError, *TROUBLE) as error:
            print("error:", one_line(error), file=sys.stderr)
            return 2 if isinstance(error, ConfigError) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv))
