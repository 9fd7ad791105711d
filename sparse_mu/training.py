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

from sparse_mu import memory, streaming
from sparse_mu.epoch import (
    Length,
    Prepare,
    Within,
    as_they_are,
    begin_program,
    compile_ahead,
    finish_program,
    lengths_of,
    run_epoch,
    survey_end_program,
)
from sparse_mu.passes import Pass, check, pass_of, rows_of_epoch
from sparse_mu.standing import (
    Keeper,
    Position,
    Standing,
    as_numbers,
    not_kept,
    on_host,
    repeated,
    stacked,
    to_devices,
    to_host,
    unstacked,
)
from sparse_mu.stopping import Stopped
from sparse_mu.types import (
    Array,
    Dataset,
    EnoughFn,
    Execution,
    Key,
    Masks,
    Model,
    Program,
    PyTree,
    Stats,
    Streamed,
    Trials,
    Unlearner,
)
from sparse_mu.unlearn.contract import unchanged

LONG = 10.0  # seconds of a fit that are worth a checkpoint at its end
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
        chunk: how much of the trials was on the devices at a time.
    """

    model: Model
    masks: Masks
    told: PyTree
    snapshots: dict[int, Model]
    finite: np.ndarray
    loss: np.ndarray
    seconds: float
    compile_seconds: float
    chunk: memory.Chunk


def _rows(tree: PyTree, index: np.ndarray) -> PyTree:
    """Selects trials on the host; PRNG keys stay on the device."""

    def select(leaf: Array) -> Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf[index]
        return np.asarray(leaf)[index]

    return jax.tree.map(select, tree)


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
    enough: EnoughFn | None = None,
    adapt: Adapt | None = None,
    on_epoch: OnEpoch | None = None,
    keeper: Keeper | None = None,
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
        enough: asked at each of these of a group's models so far; where it is true of all trials of
            the group, the group ends there, and later snapshots hold its last models.
        adapt: ``(hyper-parameters of a group, its trials' numbers) -> hyper-parameters``, where
            trials differ in them.
        on_epoch: called with (finished, total) group-epochs as they are dispatched.
        keeper: where this fit's checkpoints are, which it goes on from and adds to; default: none.

    Returns:
        The finished models on the host; see :class:`FitResult`.

    Raises:
        sparse_mu.memory.MemoryShort: if there is less memory than a program needs.
        ValueError: if there is no epoch to run, a snapshot is asked for outside of them, a method
            with a survey starts late, or a batch cannot be split evenly over the execution's
            devices.
        sparse_mu.stopping.Stopped: if it was asked to stop; where it stood is kept.
    """
    keeper = keeper or not_kept()
    if unlearner.passes == "once":
        start, epochs = 0, 1
    check(unlearner, execution, batch_size, start, epochs, snapshot_epochs)
    main = pass_of(unlearner.step, unlearner.reads, batch_size, prepare, execution)
    last = finish_program(unlearner.finish, execution) if unlearner.finish != unchanged else None
    survey, end_survey = None, None
    if unlearner.survey is not None:
        surveyed = unlearner.survey
        survey = pass_of(surveyed.step, surveyed.reads, batch_size, prepare, execution)
        end_survey = survey_end_program(surveyed.finish, execution)
    count, size = len(trials.retain), execution.group
    forget, retain = np.asarray(trials.forget), np.asarray(trials.retain)
    at_least = np.zeros(count, np.int32) if trials.at_least is None else trials.at_least
    rows = rows_of_epoch(unlearner.reads, Trials(forget, retain, trials.order_key, at_least))
    lengths = lengths_of(rows, batch_size, horizon or epochs, start)
    begin = begin_program(unlearner.init, execution)
    groups = -(-count // size)
    total = groups * (epochs - start + (survey is not None))
    resident, streamed = (compile_ahead, run_epoch), (streaming.compile_ahead, streaming.run_epoch)
    compile_pass, run_pass = streamed if isinstance(dataset, Streamed) else resident

    def inputs_of(group: int) -> tuple[np.ndarray, Trials, tuple, Length]:
        """Its trials (filled up inertly): numbers, sets, what their states begin from."""
        index = np.arange(group * size, (group + 1) * size)
        inert = index >= count
        index = np.where(inert, 0, index)
        members = (forget[index] & ~inert[:, None], retain[index] & ~inert[:, None])
        sets = Trials(*members, trials.order_key[index], at_least[index])
        own = execution.put_state(sets)
        placed = execution.put_state(_rows((model, masks, keys), index))
        return index, own, placed, execution.put_state(_rows(lengths, index))

    def before_first_step(placed: tuple, length: Length) -> tuple:
        """The shapes of a group's states, of which a survey may leave others than it found."""
        state, alive = jax.eval_shape(begin, placed, length, ())
        if end_survey is not None:
            state = jax.eval_shape(end_survey, state, (), ())
        return state, alive

    def like_at(at: Position) -> Standing:
        _, _, placed, length = inputs_of(0)
        shapes = before_first_step(placed, length)
        state, alive = on_host(shapes)
        told = ()
        if last is not None:
            _, told, _ = on_host(jax.eval_shape(last, shapes[0], (), ()))
        passed = {epoch: at.group + (at[1:3] > (epoch, 0)) for epoch in snapshot_epochs}
        zero = np.zeros(size, np.float32)
        sums = Stats(loss=zero, weight=zero, correct=zero, finite=zero > 0)
        return Standing(
            finished=repeated((state.model, state.masks, told, alive), at.group),
            snapshots={str(e): repeated(state.model, n) for e, n in passed.items()},
            loss=np.zeros((groups * size, epochs - start), np.float32),
            state=as_numbers(state),
            alive=alive,
            sums=sums if at.step else (),
        )

    loss = np.full((groups * size, epochs - start), np.nan, np.float32)
    results, snapshots = [], {epoch: [] for epoch in snapshot_epochs}
    at = Position(group=0, epoch=start, step=0, done=0, seconds=0.0, compile_seconds=0.0)
    kept: Standing | None = None
    if (found := keeper.load(like_at)) is not None:
        kept, at = found
        results, loss = unstacked(kept.finished, size), kept.loss.copy()
        snapshots = {int(e): unstacked(models, size) for e, models in kept.snapshots.items()}
    began, since = time.perf_counter(), 0
    saved = began
    done, compiling, known = at.done, at.compile_seconds, set()
    needed: int | None = None

    def compile_one(program: Program, *given: PyTree) -> None:
        nonlocal compiling, needed
        tick = time.perf_counter()
        needed = memory.larger(needed, memory.compile_ahead(program, execution, *given))
        compiling += time.perf_counter() - tick

    def go(
        way: Pass, then: Program | None, started: tuple, sets: Trials, epoch: int, within: Within
    ) -> tuple[tuple, Stats, int | None]:
        nonlocal compiling, needed
        own = sets._replace(retain=sets.forget) if way.reads == "forget" else sets
        if way is survey:  # which sees each row once
            own = own._replace(at_least=None)
        shared = (dataset, np.int32(epoch))
        if way not in known:
            known.add(way)
            ahead = compile_pass(way.programs, execution, started, own, shared)
            compiling, needed = compiling + ahead.seconds, memory.larger(needed, ahead.needed)
            if then is not None:
                compile_one(then, started[0], (), ())
        return run_pass(way.programs, execution, started, own, shared, within)

    def begun(own: Trials, index: np.ndarray, placed: tuple, length: Length) -> tuple:
        """The states before the first step, and which are alive."""
        nonlocal done
        if begin not in known:
            known.add(begin)
            compile_one(begin, placed, length, ())
        state, alive = begin(placed, length, ())
        if adapt is not None:
            hyper = adapt(execution.get(state.hyper), index)
            state = state._replace(hyper=execution.put_state(hyper))
        if survey is not None and end_survey is not None:
            (state, alive), _, stopped = go(
                survey, end_survey, (state, alive), own, start, Within(stop=keeper.stop_asked)
            )
            if stopped is not None:  # nothing is lost but the survey
                raise Stopped
            state = end_survey(state, (), ())
            done += 1
        return state, alive

    def keep(started: tuple, sums: Stats, group: int, epoch: int, step: int) -> None:
        nonlocal saved
        seconds = at.seconds + time.perf_counter() - began
        models = {str(epoch): stacked(parts) for epoch, parts in snapshots.items()}
        state, alive = to_host(started, execution)
        left = execution.get(sums) if step else ()
        standing = Standing(stacked(results), models, loss, state, alive, left)
        keeper.save(standing, Position(group, epoch, step, done, seconds, compiling))
        saved = time.perf_counter()

    def had_enough(enough: EnoughFn, group: int, index: np.ndarray) -> bool:
        """Of its own trials; those that fill it up are not asked."""
        own = slice(0, count - group * size)
        seen = {e: parts[group] for e, parts in snapshots.items() if len(parts) > group}
        seen = jax.tree.map(lambda leaf: leaf[own], seen)
        return bool(enough(seen, index[own]).all())

    for group in range(at.group, groups):
        index, own, placed, length = inputs_of(group)
        epoch, within = start, Within(stop=keeper.stop_asked)
        if kept is not None and group == at.group:
            shapes = before_first_step(placed, length)
            started = to_devices((kept.state, kept.alive), shapes, keys, execution)
            sums = execution.put_state(kept.sums) if at.step else None
            epoch, within = at.epoch, within._replace(first=at.step, sums=sums)
        else:
            started = begun(own, index, placed, length)
        del placed  # the state holds copies
        recent: list[tuple[int, Stats]] = []

        def note(recent: list[tuple[int, Stats]] = recent, group: int = group) -> None:
            for number, stats in recent:
                sums = execution.get(stats)
                mean = sums.loss / np.maximum(sums.weight, 1e-12)
                loss[group * size : (group + 1) * size, number - start] = mean
            recent.clear()

        while epoch < epochs:
            if epoch in snapshots and not within.first:
                snapshots[epoch].append(execution.get(started[0].model))
                if enough is not None and had_enough(enough, group, index):
                    done += epochs - epoch
                    break
            started, stats, stopped = go(main, last, started, own, epoch, within)
            if stopped is not None:
                note()
                keep(started, stats, group, epoch, stopped)
                raise Stopped
            recent.append((epoch, stats))
            epoch, within = epoch + 1, Within(stop=keeper.stop_asked)
            done, since = done + 1, since + 1
            if on_epoch is not None:
                if len(recent) > 1:  # wait for the one before: never idle, never far ahead
                    jax.block_until_ready(recent[-2][1].weight)
                on_epoch(done, total)
            elif execution.parts > 1:  # programs that meet over devices: one at a time
                jax.block_until_ready(stats.weight)
            asked = keeper.stop_asked()
            # what follows the last epoch, such as timing, must not cost a long fit
            ends = (group, epoch) == (groups - 1, epochs)
            is_long = ends and time.perf_counter() - saved > LONG
            if asked or is_long or since >= keeper.every:
                note()
                keep(started, stats, group, epoch, step=0)
                since = 0
            if asked:
                raise Stopped
        state, alive = started
        finished, told = state.model, ()
        if last is not None:
            finished, told, finite = last(state, (), ())
            alive = alive & finite
        results.append(execution.get((finished, state.masks, told, alive)))
        for parts in snapshots.values():
            if len(parts) == group:  # of the last epoch, or of those that were not needed
                parts.append(results[-1][0])
        note()
    seconds = at.seconds + time.perf_counter() - began
    final, kept_masks, told, alive = jax.tree.map(lambda leaf: leaf[:count], stacked(results))
    finite = alive & np.asarray([_all_finite(final, t) for t in range(count)])
    return FitResult(
        model=final,
        masks=kept_masks,
        told=told,
        snapshots={
            epoch: jax.tree.map(lambda leaf: leaf[:count], stacked(parts))
            for epoch, parts in snapshots.items()
        },
        finite=finite,
        loss=loss[:count].astype(np.float64),
        seconds=seconds - compiling,
        compile_seconds=compiling,
        chunk=memory.Chunk(execution.group, batch_size, needed),
    )


def _all_finite(model: Model, trial: int) -> bool:
    return all(np.isfinite(leaf[trial]).all() for leaf in jax.tree.leaves(model))
