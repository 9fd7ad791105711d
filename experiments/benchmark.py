"""Speed, measured: the figures kept in ``experiments/results/benchmark.md``.

    python -m experiments.benchmark trials                    # ten trials against one, interleaved
    python -m experiments.benchmark run                       # the digits run, cold and warm cache
    python -m experiments.benchmark cifar --data_dir=DIR      # CIFAR-10, ResNet-20s, shrunk

``trials`` times the same training of the digits network (15 epochs, 2 CPU devices, programs
compiled before) for ten trials and for one, in turn, and prints medians and the ratio of the
medians; a ratio of 10 would mean that batching gains nothing. ``run`` and ``cifar`` start the
command as a user would, each in a fresh process, and print wall seconds and peak memory. Shared
machines change their pace: next to each wall time stands what a fixed loop took just before and
after it, so that figures of a fast and of a slow hour can be told apart.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

ROOT = Path(__file__).parent.parent
SHRUNK = (
    "--config=configs/cifar10_resnet20s.py",
    "--config.dataset.limit=2000",
    "--config.trials=1",
    "--config.train.epochs=2",
    "--config.prune.rewind_epoch=0",
    "--config.unlearn.methods=finetune,gradient_ascent",
    "--config.unlearn.finetune.epochs=1",
    "--config.unlearn.gradient_ascent.epochs=1",
    "--config.evaluate.rte_repeats=0",
)


def machine() -> str:
    """The machine and the versions a figure belongs to."""
    cores = len(os.sched_getaffinity(0))
    return f"{cores} CPU cores, Python {platform.python_version()}, jax {jax.__version__}"


def trials(pairs: int) -> None:
    """Ten trials of a training against one trial alone, interleaved."""
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    from configs import digits
    from sparse_mu import builders, config
    from sparse_mu.training import fit
    from sparse_mu.types import Dataset, Trials

    x = builders.build(config.check(digits.get_config().to_dict()))
    data, count = x.data, len(x.data.forget)
    keys = jax.random.split(jax.random.key(0), count)
    draw = jax.jit(x.network.init)
    model = jax.tree.map(lambda *leaves: np.stack(leaves), *map(draw, keys))
    masks = jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), model.params)
    rows = x.execution.put_shared(
        Dataset(data.inputs[: data.train_rows], data.labels[: data.train_rows])
    )
    sets = {
        "original, D": data.trained,
        "retrained, Dr": data.retain,
    }
    print(f"{count} trials against 1, {x.training.epochs} epochs, {pairs} pairs; {machine()}")
    for name, retain in sets.items():

        def seconds(keep: slice, retain: np.ndarray = retain) -> float:
            return fit(
                x.training.unlearner,
                *jax.tree.map(lambda leaf: leaf[keep], (model, masks)),
                keys[keep],
                Trials(data.forget[keep], retain[keep], keys[keep]),
                rows,
                batch_size=x.training.batch_size,
                epochs=x.training.epochs,
                execution=x.execution,
                prepare=x.prepare_train,
            ).seconds

        both, one = slice(None), slice(0, 1)
        seconds(both)
        timed = [(seconds(both), seconds(one), seconds(one)) for _ in range(pairs)]
        ten = statistics.median(t[0] for t in timed)
        alone = statistics.median(s for t in timed for s in t[1:])
        print(
            f"{name}: ten {ten:.2f} s (min {min(t[0] for t in timed):.2f}), one {alone:.3f} s "
            f"(min {min(min(t[1:]) for t in timed):.3f}), ratio of medians {ten / alone:.2f}"
        )


class Timed(NamedTuple):
    """Wall seconds of a command, and the machine's pace before and after it."""

    seconds: float
    before: float
    after: float

    def __str__(self) -> str:
        """How it is printed."""
        return f"{self.seconds:.1f} s (pace {self.before:.2f}, {self.after:.2f})"


def pace() -> float:
    """Seconds of three million additions in Python, median of 5: how fast the machine is now."""

    def once() -> float:
        began, total = time.perf_counter(), 0
        for number in range(3_000_000):
            total += number
        return time.perf_counter() - began

    return statistics.median(once() for _ in range(5))


def command(arguments: tuple[str, ...], cache: Path) -> Timed:
    """The command in a fresh process and an empty workdir."""
    before = pace()
    with tempfile.TemporaryDirectory() as workdir:
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "sparse_mu.main", *arguments, f"--workdir={workdir}/run"],
            cwd=ROOT,
            env=os.environ | {"XDG_CACHE_HOME": str(cache)},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        seconds = time.perf_counter() - began
    return Timed(seconds, before, pace())


def timed_command(name: str, arguments: tuple[str, ...], warm: int) -> None:
    """Prints a command's wall time with a cold and with a warm compilation cache."""
    with tempfile.TemporaryDirectory() as cache:
        cold = command(arguments, Path(cache))
        again = [command(arguments, Path(cache)) for _ in range(warm)]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    warmly = f", warm cache {', '.join(map(str, again))}" if again else ""
    print(f"{name}: cold cache {cold}{warmly}; peak memory {peak:.2f} GiB; {machine()}")


def main() -> None:
    """Runs one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("trials", "run", "cifar"))
    parser.add_argument("--pairs", type=int, default=10, help="interleaved pairs of `trials`")
    parser.add_argument("--data_dir", help="TFDS directory that holds cifar10, for `cifar`")
    chosen = parser.parse_args()
    if chosen.what == "trials":
        trials(chosen.pairs)
    elif chosen.what == "run":
        timed_command("digits run", ("--config=configs/digits.py",), warm=2)
    else:
        if not chosen.data_dir:
            parser.error("cifar needs --data_dir")
        data = f"--config.dataset.data_dir={chosen.data_dir}"
        timed_command("CIFAR-10, ResNet-20s, shrunk", (*SHRUNK, data), warm=0)


if __name__ == "__main__":
    main()
