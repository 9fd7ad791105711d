"""Speed of reading images, measured.

    python -m experiments.data_speed --data_dir=DIR [--name=cifar10] [--image_size=0]

reads a prepared TFDS set to uint8 arrays, once into an empty cache and then from it,
each time in a fresh process: wall and CPU seconds of the call alone (what it imports included), and
the seconds to copy the arrays it returns, so that every byte has been read. Shared machines change
their pace: beside each stands what a fixed loop took just before and after it, as in
``experiments.benchmark``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from experiments.benchmark import ROOT, machine, pace

READ = """
import json, sys, time
import numpy as np
from sparse_mu.data.sources import tfds_images
name, data_dir, size, cache_dir = sys.argv[1:]
began, spent = time.perf_counter(), time.process_time()
source = tfds_images(name, data_dir, image_size=int(size), cache_dir=cache_dir)
wall, cpu = time.perf_counter() - began, time.process_time() - spent
began = time.perf_counter()
inputs = np.concatenate([source.train_inputs, source.test_inputs])
copied = time.perf_counter() - began
print(json.dumps([len(inputs), inputs.nbytes, wall, cpu, copied]))
"""


def decode(name: str, data_dir: str, image_size: int, again: int) -> None:
    """Times a set that is not in the cache, and then ``again`` times one that is."""
    print(f"{name}, image_size {image_size}; {machine()}")
    with tempfile.TemporaryDirectory() as cache:
        for turn in range(1 + again):
            before = pace()
            done = subprocess.run(
                [sys.executable, "-c", READ, name, data_dir, str(image_size), cache],
                cwd=ROOT,
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
                stdout=subprocess.PIPE,
                check=True,
            )
            rows, size, wall, cpu, copied = json.loads(done.stdout)
            what = f"cached, run {turn}" if turn else "decoded and kept"
            rate = "" if turn else f", {rows / wall:,.0f} images/s"
            print(
                f"{what}: {rows:,} images, {size / 2**20:.0f} MiB: {wall:.2f} s "
                f"({cpu:.2f} s of CPU{rate}), copied in {copied:.2f} s "
                f"(pace {before:.2f}, {pace():.2f})",
                flush=True,
            )
        kept = sum(path.stat().st_size for path in Path(cache).rglob("*") if path.is_file())
        print(f"the cache takes {kept / 2**20:.0f} MiB")


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True, help="TFDS directory")
    parser.add_argument("--name", default="cifar10", help="data set")
    parser.add_argument("--image_size", type=int, default=0, help="side in pixels; 0 = as stored")
    parser.add_argument("--again", type=int, default=3, help="runs from the cache")
    given = parser.parse_args()
    decode(given.name, given.data_dir, given.image_size, given.again)


if __name__ == "__main__":
    main()
