"""The papers' tables and figures, run here, with what is printed beside ours.

    python -m experiments.paper figure6 --preset=smoke --workdir=DIR      # Trojan, digits
    python -m experiments.paper table4 --preset=smoke --workdir=DIR       # transfer, digits
    python -m experiments.paper figure6 --preset=laptop --workdir=DIR --data_dir=TFDS
    python -m experiments.paper figure6 --preset=paper --workdir=DIR --data_dir=TFDS

``smoke`` runs on digits in minutes, ``laptop`` on a part of CIFAR-10 with ResNet-20s, ``paper``
the paper's own setting. Every run is a workdir of the command's under DIR and is continued where
it stopped; ``DIR/figure6.md`` and ``DIR/table4.md`` hold the tables and plots. With ``--keep`` they
are written to ``experiments/results``, too. With ``smoke`` the exit code is 1 where a control
fails; elsewhere the page says so.
"""

import argparse
import os
import sys
from pathlib import Path

import jax

from experiments.benchmark import machine

RESULTS = Path(__file__).parents[1] / "results"
WHATS = ("figure6", "table4")
PRESETS = ("paper", "laptop", "smoke")


def main() -> int:
    """Runs what is left, then writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=WHATS)
    parser.add_argument("--preset", choices=PRESETS, required=True)
    parser.add_argument("--workdir", type=Path, required=True, help="runs go and are found here")
    parser.add_argument("--data_dir", default="", help="TFDS directory (laptop and paper)")
    parser.add_argument("--keep", action="store_true", help="write to experiments/results, too")
    given = parser.parse_args()
    if given.preset != "smoke" and not given.data_dir:
        parser.error(f"--preset={given.preset} needs --data_dir, the TFDS directory of its images")
    if jax.config.jax_platforms in (None, "cpu"):
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    from experiments.paper import figure6, planted, runs, table4  # the devices are set before
    from sparse_mu.config import ConfigError, one_line
    from sparse_mu.main import TROUBLE
    from sparse_mu.manifest import commit
    from sparse_mu.signals import handled
    from sparse_mu.stopping import Stopped

    module = {"figure6": figure6, "table4": table4}[given.what]
    with handled() as signals:
        try:
            planned = module.plans(given.preset, given.data_dir)
            done = {run.name: runs.perform(run, given.workdir, signals) for run in planned}
            lines, holds = [], True
            title, picture = f"preset {given.preset}", f"{given.what}.png"
            if given.what == "figure6":
                lines = figure6.page(done, title, picture)
                holds = all(ok for _, ok in figure6.controls(done)) or given.preset != "smoke"
            else:
                told = []
                if given.preset == "smoke":
                    found = planted.perform(given.workdir / "planted", signals)
                    told, holds = planted.words(found), found.holds
                lines = table4.page(done, title, picture, told)
        except (Stopped, KeyboardInterrupt):
            print("interrupted; the same command continues it", file=sys.stderr)
            return signals.exit_code()
        except (ConfigError, *TROUBLE) as error:
            print("error:", one_line(error), file=sys.stderr)
            return 2 if isinstance(error, ConfigError) else 1
    lines.insert(1, f"\n`python -m experiments.paper {given.what} --preset={given.preset}`, commit "
                    f"{commit()}; {machine()}.")  # fmt: skip
    for folder in (given.workdir, *([RESULTS] if given.keep else [])):
        module.draw(done, folder / picture)
        page = folder / f"{given.what}.md"
        page.write_text("\n".join(lines).rstrip() + "\n")
        print(page)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
