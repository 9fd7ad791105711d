"""The command that is disturbed: shrunken digits runs, each in a process of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
BASELINES = ("finetune_and_prune", "negative_gradient", "random_label", "salun", "scrub")
METHODS = ("finetune", "gradient_ascent", "fisher", "influence", "l1_sparse", *BASELINES)

Overrides = Mapping[str, object]

_SHRUNKEN = {
    "dataset.limit": 300,
    "prune.rewind_epoch": 1,
    "unlearn.influence.rows": 32,
    "evaluate.mia_draws": 1,
    "evaluate.rte_repeats": 0,
    "train.budget": "steps",
    "unprune.methods": "finetune",
    "unprune.epochs": 2,
    "unprune.block": 1,
}
# every act and every method
WHOLE: Overrides = _SHRUNKEN | {
    "trials": 3,
    "train.epochs": 4,
    "unlearn.methods": ",".join(METHODS),
    **{f"unlearn.{m}.epochs": 1 for m in METHODS if m not in ("fisher", "influence")},
    "unlearn.scrub.max_epochs": 1,
    "checkpoint.every_epochs": 4,  # of a training: once in each group of two trials
}
# every act, two methods
FEW: Overrides = _SHRUNKEN | {
    "trials": 2,
    "train.epochs": 2,
    "unlearn.methods": "finetune,influence",
    "unlearn.finetune.epochs": 2,
    "checkpoint.every_epochs": 1,
}
# every act, one method
FEWEST: Overrides = FEW | {"unlearn.methods": "finetune"}


class Ended(NamedTuple):
    """What a process left: its exit code, what it printed, and the seconds that it took."""

    code: int
    out: str
    err: str
    seconds: float


class Bench(NamedTuple):
    """Where runs of one setting are made.

    Attributes:
        folder: scratch; their workdirs lie in it.
        cache: of compiled programs, shared by all of them.
        overrides: of ``configs/digits.py``.
    """

    folder: Path
    cache: Path
    overrides: Overrides

    def flags(self, workdir: Path, **changed: object) -> list[str]:
        """The flags of a run; ``changed`` are keys at the top of the config."""
        given = {**self.overrides, **changed}
        overrides = [f"--config.{key}={value}" for key, value in given.items()]
        return [f"--config={ROOT}/configs/digits.py", *overrides, f"--workdir={workdir}"]

    def environment(self) -> dict[str, str]:
        """Of a process that keeps compiled programs in the shared cache."""
        return os.environ | {"JAX_COMPILATION_CACHE_DIR": str(self.cache), "PYTHONPATH": str(ROOT)}

    def start(self, command: list[str]) -> subprocess.Popen[str]:
        """Starts a command line."""
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=self.environment(),
        )

    def command(self, workdir: Path, **changed: object) -> list[str]:
        """The command line of a run."""
        return [sys.executable, "-m", "sparse_mu.main", *self.flags(workdir, **changed)]

    def start_run(self, workdir: Path, **changed: object) -> subprocess.Popen[str]:
        """Starts a run in a workdir, or continues it."""
        return self.start(self.command(workdir, **changed))

    def run(self, workdir: Path, **changed: object) -> Ended:
        """A run from its start to its end."""
        began = time.perf_counter()
        process = self.start_run(workdir, **changed)
        out, err = process.communicate()
        return Ended(process.returncode, out, err, time.perf_counter() - began)


def one_line(text: str) -> bool:
    """Whether a text is one line and no traceback."""
    return text.count("\n") == 1 and text.endswith("\n") and "Traceback" not in text
