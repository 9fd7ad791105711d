"""Un-pruning measured: tables T1 to T5, plots and controls. ``results/unpruning.md``.

    python -m experiments.unpruning digits --workdir=DIR      # all arms, MLP, 5 seeds
    python -m experiments.unpruning more --workdir=DIR        # sparsities, units, minibatches, CNN,
                                                              # attack, controls, pre-stated tests
    python -m experiments.unpruning cifar --workdir=DIR --data_dir=DIR [--network=resnet20s]
    python -m experiments.unpruning report --workdir=DIR      # tables and plots of what is there

Each bench leaves one JSON file in the workdir and is not run again while that is there. With
``--keep`` the report is written to ``experiments/results/unpruning.md``, plots beside it.
"""

import argparse
import itertools
import json
import os
import time
from pathlib import Path

import jax

from experiments.benchmark import machine

RESULTS = Path(__file__).parents[1] / "results"
WHATS = ("digits", "more", "cifar", "report")


def main() -> None:
    """Runs sweeps, then writes the tables of all that is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=WHATS)
    parser.add_argument("--workdir", type=Path, required=True, help="figures go and are found here")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0")
    parser.add_argument("--data_dir", help="TFDS directory that holds cifar10")
    parser.add_argument("--network", default="resnet20s", choices=("resnet20s", "resnet18"))
    parser.add_argument("--epochs", type=int, default=8, help="of cifar's trainings")
    parser.add_argument("--limit", type=int, default=2000, help="training rows of cifar; 0 = all")
    parser.add_argument(
        "--masks_only", action="store_true", help="cifar without outputs (T3) and unlearners"
    )
    parser.add_argument("--keep", action="store_true", help="write to experiments/results")
    given = parser.parse_args()
    if given.what == "cifar" and not given.data_dir:
        parser.error("cifar needs --data_dir")
    if given.seeds < 2:
        parser.error(f"--seeds={given.seeds}: must be at least 2, one has no interval")
    if jax.config.jax_platforms in (None, "cpu"):
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    from experiments.unpruning import benches, cifar, report  # the devices are set before

    began, seeds, folder = time.perf_counter(), tuple(range(given.seeds)), given.workdir
    steps = {
        "digits": lambda: benches.run(benches.digits(), seeds, folder),
        "more": lambda: itertools.chain(
            benches.run(benches.more_digits(), seeds, folder),
            benches.attack(seeds, folder),
            benches.free_masks(seeds, folder),
            benches.paired(folder),
        ),
        "cifar": lambda: benches.run(
            [
                cifar.planned(
                    given.data_dir,
                    given.network,
                    given.epochs,
                    given.limit,
                    masks_only=given.masks_only,
                )
            ],
            seeds,
            folder,
        ),
        "report": lambda: iter(()),
    }
    lines = []
    try:
        for line in steps[given.what]():
            lines.append(line)
            print(line, flush=True)
    except benches.MadeOtherwiseError as error:
        parser.error(str(error))
    if lines and all(line.endswith("done") for line in lines):
        seconds = time.perf_counter() - began
        ran = f"{given.what}: {seconds:.0f} s, {len(seeds)} seeds; {machine()}"
        print(ran)
        known = folder / "ran.json"
        before = json.loads(known.read_text()) if known.exists() else {}
        known.write_text(json.dumps(before | {given.what: ran}, indent=1))
    print(report.write(folder, RESULTS if given.keep else folder))


if __name__ == "__main__":
    main()
