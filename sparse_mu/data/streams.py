"""Images that are decoded whenever they are read: a stream of batches over encoded records.

What a row becomes depends on its number and on what its augmentation is drawn from, never on the
batch, the number of workers or of processes. grain reads ahead of who asks: image after image on
threads (Pillow decodes without the interpreter's lock), or batch after batch in processes.
"""

import hashlib
import json
import signal
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from sparse_mu.data import crops, pictures
from sparse_mu.data.types import DataError
from sparse_mu.types import Batch

THREADS = 16  # that read ahead; more than cores, for they wait for disks and for each other


class Files(Protocol):
    """Image files by number, such as :class:`sparse_mu.data.records.Files`; pickled for workers."""

    def __getitems__(self, numbers: Sequence[int]) -> Sequence[bytes]:
        """Some of them, of any format and size."""
        ...


class Stream(NamedTuple):
    """Images as rows.

    Attributes:
        name: what messages call the data.
        files: the encoded images.
        stored: ``int64[N]``, which file is a row's.
        labels: ``int32[N]``.
        size: S, the side of the images in pixels.
        resized: whether they are brought to it (``pictures.fit``); False: stored in that size.
        augmented: whether training rows are random resized crops, flipped; else as in evaluation.
        workers: processes that decode; 0 = threads of this one.
    """

    name: str
    files: Files
    stored: np.ndarray
    labels: np.ndarray
    size: int
    resized: bool
    augmented: bool
    workers: int = 0


class Plan(NamedTuple):
    """Which rows make up the batches of one process.

    Attributes:
        rows: ``int64[S, B]``.
        weights: ``float32[S, B]``, 0 for the rows that only fill up the last batch.
        passes: ``int64[S, B]``, how often the order has started again before; augmentation is
            drawn anew each time.
    """

    rows: np.ndarray
    weights: np.ndarray
    passes: np.ndarray


def plan(
    order: np.ndarray, batch_size: int, *, process_index: int = 0, process_count: int = 1
) -> Plan:
    """Cuts an order into steps, and every step into one batch per process.

    Over all processes every row of ``order`` has weight 1 exactly once, however many there are. All
    have equally many batches; the last step is filled up with rows from the start of the order.

    For loops of one's own over :class:`Reader`. ``fit`` and the command read in one process, in
    batches that they cut themselves (:func:`read`); in this repository only the tests and
    ``experiments/stream_speed.py`` call this.

    Args:
        order: ``int[N]``, row numbers in the order to be read.
        batch_size: rows per batch of one process.
        process_index: ``jax.process_index()``.
        process_count: ``jax.process_count()``.

    Raises:
        ValueError: if a number is out of range.
    """
    if batch_size < 1 or not 0 <= process_index < process_count:
        raise ValueError(
            f"batch_size = {batch_size}, process {process_index} of {process_count}: there must be "
            "a row in a batch, and processes count from 0"
        )
    order = np.asarray(order, np.int64)
    steps = -(-len(order) // (batch_size * process_count))
    position = np.arange(steps * process_count * batch_size)
    position = position.reshape(steps, process_count, batch_size)[:, process_index]
    passes, wrapped = np.divmod(position, max(len(order), 1))
    return Plan(order[wrapped], (position < len(order)).astype(np.float32), passes)


class Reader:
    """The batches of a plan, one after another, decoded ahead of who asks for them.

    :func:`read`, by which ``fit`` and the command read, goes through it from the first batch to the
    last: a run that is interrupted goes on at a stage, not in the middle of an epoch. ``state`` and
    ``restore`` are for loops of one's own; in this repository only the tests call them.
    """

    def __init__(self, stream: Stream, plan: Plan, draw: tuple[int, ...] | None = None) -> None:
        """Starts at the first batch.

        Args:
            stream: the images.
            plan: which of them, in which batches.
            draw: whole numbers, of at least 0, that augmentation is drawn from: those of a seed
                and the epoch, say. None reads un-augmented.
        """
        self._stream, self._plan, self._draw = stream, plan, draw
        self._next = 0
        self._decoded: Iterator[np.ndarray] | None = None

    def __iter__(self) -> Iterator[Batch]:
        """Itself."""
        return self

    def __next__(self) -> Batch:
        """The next batch, of ``uint8[B, S, S, 3]`` images.

        Raises:
            DataError: if one of its records cannot be read or decoded.
        """
        if self._next >= len(self._plan.rows):
            raise StopIteration
        if self._decoded is None:
            left = (self._plan.rows[self._next :], self._plan.passes[self._next :])
            self._decoded = _read_ahead(self._stream, *left, self._draw)
        try:
            inputs = next(self._decoded)
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise DataError(f"{self._stream.name} cannot be read: {reason}") from error
        rows, weights = self._plan.rows[self._next], self._plan.weights[self._next]
        self._next += 1
        return Batch(inputs, self._stream.labels[rows], weights)

    def state(self) -> bytes:
        """Where it stands, as JSON: a reader of the same plan goes on from there."""
        return json.dumps({"next": self._next, "of": self._digest()}).encode()

    def restore(self, state: bytes) -> None:
        """Goes to where :meth:`state` was taken.

        Raises:
            ValueError: if it was taken of other batches.
        """
        found = json.loads(state)
        if found["of"] != self._digest():
            raise ValueError("the state is of a reader of other batches, or of another draw")
        self._next, self._decoded = found["next"], None

    def _digest(self) -> str:
        kind = (self._plan.rows.shape, self._draw, self._stream.size, self._stream.augmented)
        drawn = self._plan.rows.tobytes() + self._plan.passes.tobytes()
        return hashlib.sha256(repr(kind).encode() + drawn).hexdigest()[:16]


def read(
    stream: Stream,
    rows: np.ndarray,
    draw: tuple[int, ...] | None,
    passes: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """Images ``uint8[B, S, S, 3]`` of ``int[S, B]`` rows; see :class:`sparse_mu.types.ReadFn`."""
    rows = np.asarray(rows, np.int64)
    passes = np.zeros_like(rows) if passes is None else np.asarray(passes, np.int64)
    everything = Plan(rows, np.ones(rows.shape, np.float32), passes)
    return (np.asarray(batch.inputs) for batch in Reader(stream, everything, draw))


class _Decoded:
    """A random access source of decoded images, ``int[E, n]`` rows and passes to E times n of them.

    It is what grain's threads and workers call.
    """

    def __init__(
        self, stream: Stream, rows: np.ndarray, passes: np.ndarray, draw: tuple[int, ...] | None
    ) -> None:
        self._stream, self._rows, self._passes = stream, rows, passes
        self._draw = draw if stream.augmented else None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> np.ndarray:
        rows, size = self._rows[index].tolist(), self._stream.size
        images = np.empty((len(rows), size, size, 3), np.uint8)
        files = self._stream.files.__getitems__(self._stream.stored[rows].tolist())
        passes = self._passes[index].tolist()
        for place, row, number, encoded in zip(images, rows, passes, files, strict=True):
            try:
                image = self._image(row, number, encoded)
                if image.shape != place.shape:
                    raise pictures.PictureError(f"it is of shape {image.shape}, not {place.shape}")
                place[...] = image
            except pictures.PictureError as error:
                raise ValueError(f"the image of row {row}: {error}") from error
        return images

    def _image(self, row: int, number: int, encoded: bytes) -> np.ndarray:
        size, resized = self._stream.size, self._stream.resized
        if self._draw is None:
            return pictures.decode(encoded, size=size if resized else 0)
        rng = np.random.default_rng((*self._draw, number, row))
        return crops.training_crop(encoded, size, rng)


def _read_ahead(
    stream: Stream, rows: np.ndarray, passes: np.ndarray, draw: tuple[int, ...] | None
) -> Iterator[np.ndarray]:
    """The batches of ``int[S, B]`` rows in their order, decoded before they are asked for."""
    import grain

    size = rows.shape[1]
    if stream.workers:
        _parse_flags()
        one_ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        workers = min(stream.workers, len(rows))
        processes = grain.MultiprocessingOptions(workers, per_worker_buffer_size=1)
        batches = grain.MapDataset.source(_Decoded(stream, rows, passes, draw))
        yield from batches.to_iter_dataset(one_ahead).mp_prefetch(processes, _outlive_interrupts)
        return
    ahead = grain.ReadOptions(THREADS, prefetch_buffer_size=max(2 * size, THREADS))
    single = (rows.reshape(-1, 1), passes.reshape(-1, 1))
    images = grain.MapDataset.source(_Decoded(stream, *single, draw))
    decoded = iter(images.to_iter_dataset(ahead))
    for _ in rows:
        yield np.concatenate([next(decoded) for _ in range(size)])


def _outlive_interrupts(index: int, count: int) -> None:
    """Ctrl-C reaches all processes of a terminal; who started this one says when it ends."""
    del index, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _parse_flags() -> None:
    """Grain's workers read an absl flag, which fails in a program that never parsed any."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
