"""What checkpoints, digests, fingerprints and rows cost, timed inside one run of the digits config.

The run is the command a user starts, in its own process; its functions are wrapped with a clock
before it starts, in every module that has them, and only the outermost of nested calls counts. What
is not counted: copies of arrays to the host before a checkpoint, which wait for what is computed.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from experiments.faulting.command import Bench
from sparse_mu import checkpoint, digests, main, manifest, results, sealing, stages
from sparse_mu.standing import Keeper

LIMIT = 0.03  # share of the whole run
CHILD = "import sys; from experiments.faulting import overhead; overhead.child(*sys.argv[1:])"


class Overhead(NamedTuple):
    """What a run spent on not losing anything.

    Attributes:
        whole: seconds of the process, its start included.
        parts: calls and seconds by what they were for.
        share: of ``whole``, all parts together.
        problems: what should not have been.
    """

    whole: float
    parts: dict[str, tuple[int, float]]
    share: float
    problems: list[str]


class Clock:
    """Calls and seconds by name; of nested calls the outermost counts."""

    def __init__(self) -> None:
        """Nothing has been timed."""
        self.parts: dict[str, tuple[int, float]] = {}
        self.running = False

    def timed(self, name: str, function: Callable) -> Callable:
        """A function that is timed under a name."""

        def wrapped(*args: object, **kwargs: object) -> object:
            if self.running:
                return function(*args, **kwargs)
            self.running, began = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                calls, seconds = self.parts.get(name, (0, 0.0))
                self.parts[name] = (calls + 1, seconds + time.perf_counter() - began)
                self.running = False

        self.parts.setdefault(name, (0, 0.0))
        return wrapped


def replace(old: Callable, new: Callable) -> None:
    """Puts a function in the place of another in every module of the package that has it."""
    modules = [m for name, m in sys.modules.items() if name.split(".")[0] == "sparse_mu"]
    for module in modules:
        for name, value in list(vars(module).items()):
            if value is old:
                setattr(module, name, new)


def watch(clock: Clock) -> None:
    """Wraps what the package does so that nothing is lost."""
    keeper_in = stages.keeper_in

    def timed_keeper(*args: object) -> Keeper:
        keeper = keeper_in(*args)
        return keeper._replace(
            load=clock.timed("checkpoints inside stages", keeper.load),
            save=clock.timed("checkpoints inside stages", keeper.save),
        )

    replace(keeper_in, timed_keeper)
    for name, functions in {
        "stages saved": (checkpoint.save,),
        "stages restored": (checkpoint.restore,),
        "fingerprints": (stages.fingerprint,),
        "digests": (
            *(digests.of_arrays, digests.of_tree, digests.of_json, digests.of_file),
            *(manifest.of_code, manifest.of_data, manifest.of_rows),
        ),
        "rows": (results.append, results.read),
        "manifest": (sealing.sealed, checkpoint.write_atomically),
    }.items():
        for function in functions:
            replace(function, clock.timed(name, function))


def child(told: str, *argv: str) -> None:
    """The command, watched; writes the parts to the file ``told``."""
    clock = Clock()
    watch(clock)
    code = main.main(["sparse_mu.main", *argv])
    Path(told).write_text(json.dumps(clock.parts), encoding="utf-8")
    sys.exit(code)


def overhead(bench: Bench) -> Overhead:
    """Runs the config twice, the first time to fill the cache of compiled programs.

    Args:
        bench: whose overrides are those of the config, normally none.
    """
    told = bench.folder / "overhead.json"
    for name in ("cold", "warm"):
        flags = bench.flags(bench.folder / f"overhead-{name}")
        began = time.perf_counter()
        process = bench.start([sys.executable, "-c", CHILD, str(told), *flags])
        _, err = process.communicate()
        whole = time.perf_counter() - began
        if process.returncode:
            return Overhead(whole, {}, 0.0, [f"the run ended with {process.returncode}: {err}"])
    parts = {
        name: (calls, seconds)
        for name, (calls, seconds) in json.loads(told.read_text(encoding="utf-8")).items()
    }
    share = sum(seconds for _, seconds in parts.values()) / whole
    problems = [] if share <= LIMIT else [f"{share:.1%} of the run, more than {LIMIT:.0%}"]
    if never := [n for n, (calls, _) in parts.items() if not calls and n in ALWAYS]:
        problems.append(f"{never[0]}: was never called, so the clock is on the wrong function")
    return Overhead(whole, parts, share, problems)


ALWAYS = ("stages saved", "fingerprints", "digests", "rows", "manifest")
