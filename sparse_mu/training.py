"""``fit``: the only loop over steps, for training, retraining and every unlearner.

An epoch is one compiled program over device-resident data: it draws the order of the rows, gathers
each batch, prepares it (crop, flip) and steps; its pieces are in :mod:`sparse_mu.epoch`, and
:mod:`sparse_mu.streaming` runs them over data that are read as they are needed. Here epochs run:
group after group of trials, one after another.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_mu import streaming
from sparse_mu.epoch import (
    Prepare,
    Programs,
    as_they_are,
    begin_program,
    compile_ahead,
    epoch_programs,
    finish_program,
    lengths_of,
    run_epoch,
    survey_end_program,
)
from sparse_mu.types import (
    Array,
    Dataset,
    Execution,
    Key,
    Masks,
    Model,
    Program,
    PyTree,
    Reads,
    StepFn,
    Streamed,
    Trials,
    Unlearner,
)
from sparse_mu.unlearn.contract import OneSet, unchanged

OnEpoch = Callable[[int, int], None]
Adapt = Callable[[PyTree, np.ndarray], PyTree]


class FitResult(NamedTuple):
    """What a phase leaves behind, on the host.

    Attributes:
        model: the ``[T]`` models.
        masks: their ``[T]`` masks, which few methods change.
        told: ``[T]``, what ``finish`` left in ``aux``, such as how a solver ended.
        snapshots: ``[T]`` models at the epochs asked for, by epoch.
        finite: ``bool[T]``, False where a trial diverged; its model is the last finite one.
        loss: ``float64[T, epochs]``, mean training loss of each epoch.
        seconds: wall time of the loop, compiling left out.
        compile_seconds: tracing, lowering and compiling; milliseconds where the programs were
            known.
    """

    model: Model
    masks: Masks
    told: PyTree
    snapshots: dict[int, Model]
    finite: np.ndarray
    loss: np.ndarray
    seconds: float
    compile_seconds: float


def _rows(tree: PyTree, index: np.ndarray) -> PyTree:
    """Selects trials on the host; PRNG keys stay on the device."""

    def select(leaf: Array) -> Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf[index]
        return np.asarray(leaf)[index]

    return jax.tree.map(select, tree)


class _Pass(NamedTuple):
    """One way over the data: its compiled pieces and what it reads."""

    programs: Programs
    reads: Reads


def _pass(
    step: StepFn, reads: Reads, batch_size: int, prepare: Prepare, execution: Execution
) -> _Pass:
    # a step that reads one set is handed that set alone, in the retain slot of its trial, so that
    # fine-tuning and ascent are one program
    body, slot = (step.on_batch, None) if isinstance(step, OneSet) else (step, reads)
    return _Pass(epoch_programs(body, slot, batch_size, prepare, execution), reads)


def _longest(reads: Reads, forget: np.ndarray, retain: np.ndarray) -> np.ndarray:
    """``int[T]``, the rows of an epoch of each trial."""
    sizes = {"forget": forget.sum(axis=1), "retain": retain.sum(axis=1)}
    return sizes[reads] if reads in sizes else np.maximum(*sizes.values())


def fit(
    unlearner: Unlearner,
    model: Model,
    masks: Masks,
    keys: Key,
    trials: Trials,
    dataset: Dataset | Streamed,
    *,
    batch_size: int,
    epochs: int,
    execution: Execution,
    prepare: Prepare = as_they_are,
    start: int = 0,
    horizon: int | None = None,
    snapshot_epochs: tuple[int, ...] = (),
    adapt: Adapt | None = None,
    on_epoch: OnEpoch | None = None,
) -> FitResult:
    """Runs T trials of one unlearner, each over its own sets in its own order.

    Training is fine-tuning from fresh weights with every row in the retain set.

    Args:
        unlearner: the method; one with ``passes == "once"`` runs one epoch whatever is asked.
        model: ``[T]`` models.
        masks: ``[T]`` masks.
        keys: ``key[T]``, the trials' keys.
        trials: which rows each trial forgets and retains, and the keys of its orders.
        dataset: device-resident rows, shared; placed by ``execution.put_shared``. Or rows that are
            read as the steps need them, augmented anew by every trial and epoch.
        batch_size: rows per step.
        epochs: the epoch to run to (exclusive).
        execution: where and how.
        prepare: ``(inputs of a batch, key) -> what the network reads``, inside the program.
        start: the first epoch; the schedules' step counter starts there too.
        horizon: length the schedules are laid over; default ``epochs``.
        snapshot_epochs: epochs before which (or at the end) a copy of the models is kept.
        adapt: ``(hyper-parameters of a group, its trials' numbers) -> hyper-parameters``, where
            trials differ in them.
        on_epoch: called with (finished, total) group-epochs as they are dispatched.

    Returns:
        The finished models on the host; see :class:`FitResult`.

    Raises:
        ValueError: if there is no epoch to run, a snapshot is asked for outside of them, a method
            with a survey starts late, or a batch cannot be split evenly over the execution's
            devices.
    """
    if unlearner.passes == "once":
        start, epochs = 0, 1
    if not 0 <= start < epochs:
        raise ValueError(f"start = {start}, epochs = {epochs}: there is no epoch to run")
    if not all(start <= epoch <= epochs for epoch in snapshot_epochs):
        raise ValueError(f"snapshot_epochs = {snapshot_epochs}: must be in [{start}, {epochs}]")
    if unlearner.survey is not None and start:
        raise ValueError(f"start = {start}: a method that surveys its data first starts at epoch 0")
    if batch_size % execution.parts:
        raise ValueError(
            f"batch_size = {batch_size}: must be a multiple of {execution.parts}, the devices that "
            "a batch is split over"
        )
    main = _pass(unlearner.step, unlearner.reads, batch_size, prepare, execution)
    last = finish_program(unlearner.finish, execution) if unlearner.finish != unchanged else None
    survey, end_survey = None, None
    if unlearner.survey is not None:
        surveyed = unlearner.survey
        survey = _pass(surveyed.step, surveyed.reads, batch_size, prepare, execution)
        end_survey = survey_end_program(surveyed.finish, execution)
    forget, retain = np.asarray(trials.forget), np.asarray(trials.retain)
    rows = _longest(unlearner.reads, forget, retain)
    lengths = lengths_of(rows, batch_size, horizon or epochs, start)
    begin = begin_program(unlearner.init, execution)
    count = retain.shape[0]
    total = -(-count // execution.group) * (epochs - start + (survey is not None))
    results, snapshots, stats_of = [], {epoch: [] for epoch in snapshot_epochs}, []
    began = time.perf_counter()
    done, compiling, known = 0, 0.0, set()
    resident, streamed = (compile_ahead, run_epoch), (streaming.compile_ahead, streaming.run_epoch)
    compile_pass, run_pass = streamed if isinstance(dataset, Streamed) else resident

    def go(way: _Pass, then: Program | None, started: tuple, sets: Trials, epoch: int) -> tuple:
        nonlocal done, compiling
        own = sets._replace(retain=sets.forget) if way.reads == "forget" else sets
        shared = (dataset, np.int32(epoch))
        if way not in known:
            known.add(way)
            compiling += compile_pass(way.programs, execution, then, started, own, shared)
        done += 1
        return run_pass(way.programs, execution, started, own, shared)

    for first in range(0, count, execution.group):
        index = np.arange(first, first + execution.group)
        inert = index >= count
        index = np.where(inert, 0, index)
        members = (forget[index] & ~inert[:, None], retain[index] & ~inert[:, None])
        own = execution.put_state(Trials(*members, trials.order_key[index]))
        placed = execution.put_state(_rows((model, masks, keys), index))
        length = execution.put_state(_rows(lengths, index))
        if not done:
            tick = time.perf_counter()
            begin.lower(placed, length, ()).compile()
            compiling += time.perf_counter() - tick
        state, alive = begin(placed, length, ())
        del placed  # the state holds copies
        if adapt is not None:
            hyper = adapt(execution.get(state.hyper), index)
            state = state._replace(hyper=execution.put_state(hyper))
        started = (state, alive)
        if survey is not None and end_survey is not None:
            (state, alive), _ = go(survey, end_survey, started, own, start)
            started = (end_survey(state, (), ()), alive)
        epoch_stats = []
        for epoch in range(start, epochs):
            if epoch in snapshots:
                snapshots[epoch].append(execution.get(started[0].model))
            started, stats = go(main, last, started, own, epoch)
            epoch_stats.append(stats)
            if on_epoch is not None:
                if len(epoch_stats) > 1:  # wait for the one before: never idle, never far ahead
                    jax.block_until_ready(epoch_stats[-2].weight)
                on_epoch(done, total)
            elif execution.parts > 1:  # programs that meet over devices: one at a time
                jax.block_until_ready(stats.weight)
        state, alive = started
        finished, told = state.model, ()
        if last is not None:
            finished, told, finite = last(state, (), ())
            alive = alive & finite
        results.append(execution.get((finished, state.masks, told, alive)))
        if epochs in snapshots:
            snapshots[epochs].append(results[-1][0])
        stats_of.append(execution.get(epoch_stats))
    seconds = time.perf_counter() - began

    def stack(parts: list) -> PyTree:
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)

    final, kept, told, alive = stack(results)
    finite = alive & np.asarray([_all_finite(final, t) for t in range(count)])
    losses = [[s.loss / np.maximum(s.weight, 1e-12) for s in group] for group in stats_of]
    loss = np.concatenate([np.stack(group, axis=1) for group in losses])[:count]
    return FitResult(
        model=final,
        masks=kept,
        told=told,
        snapshots={epoch: stack(parts) for epoch, parts in snapshots.items()},
        finite=finite,
        loss=loss.astype(np.float64),
        seconds=seconds - compiling,
        compile_seconds=compiling,
    )


def _all_finite(model: Model, trial: int) -> bool:
    return all(np.isfinite(leaf[trial]).all() for leaf in jax.tree.leaves(model))
