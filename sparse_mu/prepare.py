"""The command ``python -m sparse_mu.prepare --dataset=NAME --data_dir=DIR [--manual_dir=DIR]``.

Exit codes: 0 done now or before; 1 data or disk trouble; 2 a wrong flag; 130 and 143 interrupted.
"""

import argparse
import gc
import itertools
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from sparse_mu.config import ConfigError, nearest, one_line
from sparse_mu.data.catalogue import RECIPES
from sparse_mu.data.prepare import prepare
from sparse_mu.data.types import DataError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def overview() -> str:
    """The data sets, each with its official archives: file, size, and where it comes from."""
    lines = ["data sets (without SVHN's extra, ImageNet's test), and what --manual_dir holds:"]
    for archives, names in itertools.groupby(RECIPES, lambda name: RECIPES[name].archives):
        lines += [f"  {name}" for name in names]
        for file, url, size, page in archives:
            lines.append(f"    {file:<26}{size / 1e6:>9,.0f} MB  {page or url}")
    example = "python -m sparse_mu.prepare --dataset=cifar10 --data_dir=data"
    return "\n".join([*lines, "", "for example:", f"  {example}"])


def run(argv: Sequence[str]) -> None:
    """Prepares what the flags say."""
    parser = _Parser(
        "python -m sparse_mu.prepare",
        epilog=overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--dataset", required=True, metavar="NAME", help="one of those below")
    parser.add_argument("--data_dir", required=True, metavar="DIR", help="where TFDS data sets are")
    parser.add_argument("--manual_dir", metavar="DIR", help="official archives; else downloaded")
    flags = parser.parse_args(argv[1:])
    if flags.dataset not in RECIPES:
        hint = nearest(flags.dataset, RECIPES) or f"; there are {', '.join(RECIPES)}"
        raise ConfigError(f"--dataset={flags.dataset}: there is no such data set{hint}")
    made = prepare(flags.dataset, flags.data_dir, flags.manual_dir, progress=sys.stderr.isatty())
    done = "prepared" if made.is_new else "was prepared before, nothing to do"
    rows = ", ".join(f"{split} {count:,}" for split, count in made.rows.items())
    print(f"{made.name} {made.version}: {done}; {rows} rows in {made.folder}")
    for other in made.others:
        print(f"{other}: another version, left alone; delete it if nothing else reads it")


def main(argv: Sequence[str]) -> int:
    """Runs the command; every expected failure is one line on standard error and an exit code."""
    try:
        run(argv)
    except (KeyboardInterrupt, SystemExit) as stop:
        code = int(stop.code or 0) if isinstance(stop, SystemExit) else 130
        if code:  # 0 is that of --help
            print("interrupted; nothing half-made is left", file=sys.stderr)
        return code
    except (ConfigError, DataError) as error:
        print("error:", one_line(error), file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


if __name__ == "__main__":
    gc.callbacks.clear()  # jax's would swallow a Ctrl-C, and nothing here uses jax
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    code = main(sys.argv)  # done by now; Python would wait for a download in another thread
    sys.stdout.flush()
    os._exit(code)
