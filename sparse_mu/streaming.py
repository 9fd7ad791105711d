"""Epochs and forward passes over rows that memory does not hold.

The host reads the rows of a step in the order that the ``order`` program drew and hands them to the
same ``step`` program that resident rows go through. Reading overlaps with computing: while a step
runs, the next batch is read and sent to the device, and never more than that one.
"""

import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_mu import memory
from sparse_mu.epoch import Ahead, Order, Programs, Within, first_carry
from sparse_mu.types import Array, Batch, Execution, Program, PyTree, Stats, Streamed, Trials


def rows_of(inputs: Array | Streamed, rows: np.ndarray) -> np.ndarray:
    """Some rows ``[B, ...]`` un-augmented, of an array or of a stream."""
    if isinstance(inputs, Streamed):
        return next(inputs.read(np.asarray(rows)[None], None))
    return np.asarray(inputs[rows])


class Cut(NamedTuple):
    """What every step of an epoch reads, ``[steps, G, sets, batch_size]`` each.

    Attributes:
        rows: int32.
        weights: float32.
        passes: int32, how often the order of the set has started again before.
    """

    rows: np.ndarray
    weights: np.ndarray
    passes: np.ndarray


def cut(orders: tuple[Order, ...], steps: int, batch_size: int) -> Cut:
    """The rows of every step, on the host, as :func:`sparse_mu.epoch.epoch_programs` gathers them.

    Past its end an order starts again, with the next pass; past what counts, rows have weight 0.

    Args:
        orders: one per set, of ``int32[G, N]`` rows and ``int32[G]`` counts.
        steps: of the epoch.
        batch_size: rows of a set in one step.
    """
    position = np.arange(steps * batch_size)
    rows, weights, passes = [], [], []
    for order in orders:
        number, wrapped = np.divmod(position[None, :], np.maximum(order.count, 1)[:, None])
        rows.append(np.take_along_axis(np.asarray(order.rows), wrapped, axis=1))
        passes.append(number.astype(np.int32))
        counts = (position[None, :] < order.counted[:, None]) & (order.count > 0)[:, None]
        weights.append(counts.astype(np.float32))

    def by_step(of_sets: list[np.ndarray]) -> np.ndarray:
        stacked = np.stack(of_sets)  # [sets, G, steps * batch_size]
        parts = stacked.reshape(*stacked.shape[:2], steps, batch_size)
        return parts.transpose(2, 1, 0, 3)

    return Cut(by_step(rows), by_step(weights), by_step(passes))


def _batches(stream: Streamed, epoch: Cut, draws: list[tuple[int, ...]]) -> Iterator[list[Batch]]:
    """Every step's batches, one per set, with a leading axis of trials."""
    rows, weights, passes = epoch
    steps, group, sets, size = rows.shape
    readers = [
        stream.read(rows[:, t].reshape(steps, -1), draw, passes[:, t].reshape(steps, -1))
        for t, draw in enumerate(draws)
    ]
    for step in range(steps):
        inputs = np.stack([next(reader) for reader in readers])
        inputs = inputs.reshape(group, sets, size, *inputs.shape[2:])
        labels = stream.labels[rows[step]]
        yield [Batch(inputs[:, s], labels[:, s], weights[step][:, s]) for s in range(sets)]


def compile_ahead(
    programs: Programs,
    execution: Execution,
    started: tuple,
    own: Trials,
    shared: tuple,
) -> Ahead:
    """As :func:`sparse_mu.epoch.compile_ahead`, of a pass over a stream.

    Args:
        programs: of the pass.
        execution: how trials run.
        started: the states before it, and which are alive.
        own: the trials' sets and orders.
        shared: the stream and the epoch.

    Raises:
        sparse_mu.memory.MemoryShort: if there is less memory than it needs.
    """
    began = time.perf_counter()
    stream, epoch = shared
    orders, _ = execution.get(programs.order((), own, ((), epoch)))
    rows, weights, _ = cut(orders, 1, programs.batch_size)
    sets, labels = range(len(orders)), stream.labels[rows[0]]
    inputs = np.zeros((execution.group, programs.batch_size, *stream.shape[1:]), stream.dtype)
    read = [Batch(inputs, labels[:, s], weights[0][:, s]) for s in sets]
    placed = execution.put_state((read, np.ones(execution.group, bool)))
    batches = programs.prepare((), (own, *placed), (epoch, np.int32(0)))
    carry = first_carry(execution, started)
    needed = memory.compile_ahead(programs.step, execution, carry, batches, ())
    return Ahead(time.perf_counter() - began, needed)


def run_epoch(
    programs: Programs,
    execution: Execution,
    started: tuple,
    own: Trials,
    shared: tuple,
    within: Within,
) -> tuple[tuple, Stats, int | None]:
    """As :func:`sparse_mu.epoch.run_epoch`, over a stream."""
    stream, epoch = shared
    orders, steps = execution.get(programs.order((), own, ((), epoch)))
    pieces = cut(orders, int(np.max(steps)), programs.batch_size)
    pieces = Cut(*(part[within.first :] for part in pieces))
    words = execution.get(jax.random.key_data(own.order_key))
    draws = [tuple(map(int, (*of_trial, epoch))) for of_trial in words]
    carry = first_carry(execution, started, within.sums)
    stopped = None
    for index, read in enumerate(_batches(stream, pieces, draws), start=within.first):
        if index > within.first and within.stop():
            stopped = index
            break
        placed = execution.put_state((read, index < steps))
        batches = programs.prepare((), (own, *placed), (epoch, np.int32(index)))
        jax.block_until_ready(carry.stats.weight)  # one step under way, one batch waiting
        carry = programs.step(carry, batches, ())
    return (carry.state, jnp.copy(carry.alive)), carry.stats, stopped


def forward(
    program: Program,
    states: list[PyTree],
    stream: Streamed,
    batch_size: int,
    execution: Execution,
) -> Iterator[list[np.ndarray]]:
    """Outputs of every group of models, batch after batch, each row read once for all of them.

    Args:
        program: ``(state, (), [1, B, ...] inputs) -> [G, 1, B, K]``.
        states: the groups, placed.
        stream: the rows.
        batch_size: B; the last batch is filled up with the first rows.
        execution: what ``program`` was compiled by.

    Yields:
        Of one batch after another, for every group ``[G, 1, B, K]``.
    """
    count = stream.shape[0]
    chunks = -(-count // batch_size)
    rows = (np.arange(chunks * batch_size) % count).reshape(chunks, batch_size)
    waiting: list[PyTree] = []
    for inputs in stream.read(rows, None):
        shared = execution.put_shared(inputs[None])
        running = [program(state, (), shared) for state in states]
        if waiting:  # the batch before
            yield [execution.get(done) for done in waiting]
        waiting = running
    yield [execution.get(done) for done in waiting]
