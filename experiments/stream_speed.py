"""The stream of ImageNet-shaped JPEGs against a bare Python loop: ``results/stream_speed.md``.

    python -m experiments.stream_speed

It writes a TFDS directory of generated JPEGs of 500 x 375 pixels, quality 90, then reads the same
rows in the same order in each round by

- a bare loop: record reader, decode and random resized crop one after another in the main thread;
- the stream as it comes: images decoded on 16 threads;
- the stream with two processes that decode (``dataset.workers=2``);
- grain with whole batches as its elements, on one thread per core.

Opening and starting processes count, imports do not. Shared machines change their pace, so what
counts is the ratio within a round; every round starts with another of the four.
"""

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from experiments.benchmark import machine
from sparse_mu.data import crops, encoded, streams

SIZE, DRAW = 224, (0, 0)


def generated_jpeg(rng: np.random.Generator, width: int, height: int) -> bytes:
    """A photograph-like image: smooth shapes, some grain."""
    from PIL import Image

    coarse = rng.integers(0, 256, (height // 25, width // 25, 3), np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.asarray(smooth, np.int16) + rng.integers(-12, 13, (height, width, 1))
    file = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_tfds(folder: Path, images: int) -> None:
    """Prepares a TFDS data set of two splits without TensorFlow."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=["even", "odd"]),
        }
    )

    counts = {"train": images, "validation": 8}

    class Generated(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        name = "generated"

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager: object) -> dict:
            del dl_manager
            return {split: self._generate_examples(count) for split, count in counts.items()}

        def _generate_examples(self, count: int) -> Iterator[tuple[int, dict]]:
            rng = np.random.default_rng(count)
            for row in range(count):
                yield row, {"image": io.BytesIO(generated_jpeg(rng, 500, 375)), "label": row % 2}

    Generated(data_dir=folder, file_format="array_record").download_and_prepare()


def bare_loop(stream: streams.Stream, order: np.ndarray, batch: int) -> int:
    """Decoded images by a plain loop; returns how many."""
    rows_of_batches = order.reshape(-1, batch)
    for rows in rows_of_batches:
        images = np.empty((len(rows), SIZE, SIZE, 3), np.uint8)
        files = stream.files.__getitems__(rows.tolist())
        for place, row, file in zip(images, rows.tolist(), files, strict=True):
            place[...] = crops.training_crop(file, SIZE, np.random.default_rng((*DRAW, 0, row)))
    return rows_of_batches.size


def streamed(stream: streams.Stream, order: np.ndarray, batch: int) -> int:
    """The same by the stream."""
    plan = streams.plan(order, batch)
    return sum(len(read.inputs) for read in streams.Reader(stream, plan, DRAW))


def by_workers(stream: streams.Stream, order: np.ndarray, batch: int) -> int:
    """The same by the stream, decoded in two processes."""
    return streamed(stream._replace(workers=2), order, batch)


def by_batches(stream: streams.Stream, order: np.ndarray, batch: int) -> int:
    """The same by grain on one thread per core, an element being a whole batch."""
    import grain

    def crop(rows: np.ndarray) -> np.ndarray:
        files = stream.files.__getitems__(rows.tolist())
        rngs = [np.random.default_rng((*DRAW, 0, row)) for row in rows.tolist()]
        return np.stack(
            [crops.training_crop(file, SIZE, rng) for file, rng in zip(files, rngs, strict=True)]
        )

    threads = len(os.sched_getaffinity(0))
    batches = grain.MapDataset.source(order.reshape(-1, batch)).map(crop)
    return sum(
        len(read) for read in batches.to_iter_dataset(grain.ReadOptions(threads, threads + 1))
    )


WAYS: dict[str, Callable[[streams.Stream, np.ndarray, int], int]] = {
    "bare loop": bare_loop,
    "stream": streamed,
    "stream, 2 workers": by_workers,
    "grain, whole batches": by_batches,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=6)
    given = parser.parse_args()
    import grain  # noqa: F401  (seconds that are not the stream's)

    with tempfile.TemporaryDirectory() as folder:
        write_tfds(Path(folder), given.images)
        opened = encoded.tfds_files("generated", folder, image_size=SIZE)
        source = opened.source
        stream = streams.Stream(
            name="generated",
            files=opened.files,
            stored=source.train_inputs,
            labels=source.train_labels,
            size=SIZE,
            resized=True,
            augmented=True,
        )
        order = np.random.default_rng(0).permutation(given.images)
        print(
            f"{given.images} JPEGs of 500x375, batches of {given.batch}, images per second and "
            f"their ratio to the bare loop of the round; {machine()}\n"
        )
        names = list(WAYS)
        print(f"| round | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
        rates: dict[str, list[float]] = {name: [] for name in names}
        for number in range(given.rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                began = time.perf_counter()
                count = WAYS[name](stream, order, given.batch)
                rates[name].append(count / (time.perf_counter() - began))
            print(_line(str(number + 1), [rates[name][-1] for name in names]), flush=True)
        print(_line("median", [statistics.median(rates[name]) for name in names]))


def _line(label: str, values: list[float]) -> str:
    loop = values[0]
    cells = [f"{loop:.0f}", *(f"{value:.0f} ({value / loop:.2f})" for value in values[1:])]
    return f"| {label} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
