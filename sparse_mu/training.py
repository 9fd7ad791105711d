"""``fit``: the only loop over steps, for training, retraining and every unlearner.

An epoch is one compiled program over device-resident data: it draws the order of the rows, gathers
each batch, prepares it (crop, flip) and steps. How many epochs and steps run is an argument, never
part of the program, so D, Dr and Df and short and long trainings share one compilation.
"""

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparse_mu.types import (
    Array,
    Batch,
    Dataset,
    Execution,
    Hyper,
    Key,
    Masks,
    Model,
    Program,
    PyTree,
    Stats,
    Trials,
    UnlearnBatch,
    Unlearner,
    UnlearnState,
)
from sparse_mu.unlearn.contract import OneSet

Prepare = Callable[[PyTree, Key], PyTree]
OnEpoch = Callable[[int, int], None]
Adapt = Callable[[PyTree, np.ndarray], PyTree]


def as_they_are(inputs: PyTree, key: Key) -> PyTree:
    """The ``prepare`` of inputs the network reads unchanged (tokens, floats)."""
    del key
    return inputs


class FitResult(NamedTuple):
    """What a phase leaves behind, on the host.

    Attributes:
        model: the ``[T]`` models.
        snapshots: ``[T]`` models at the epochs asked for, by epoch.
        finite: ``bool[T]``, False where a trial diverged; its model is the last finite one.
        loss: ``float64[T, epochs]``, mean training loss of each epoch.
        seconds: wall time of the loop, compiling left out.
        compile_seconds: tracing, lowering and compiling; milliseconds where the programs were
            known.
    """

    model: Model
    snapshots: dict[int, Model]
    finite: np.ndarray
    loss: np.ndarray
    seconds: float
    compile_seconds: float


class _Order(NamedTuple):
    """An epoch's rows of one set: the first ``count`` of ``rows`` are members."""

    rows: Array
    count: Array


class _Carry(NamedTuple):
    state: UnlearnState
    alive: Array
    stats: Stats


def epoch_order(members: Array, order_key: Key, epoch: Array) -> Array:
    """``argsort(where(member, u, inf))`` with u uniform per data set row from (key, epoch).

    Deleting rows keeps the order of the rest: that is what "the same batch order" means for an
    original and a retrained model. ``bool[N] -> int32[N]``, members first.
    """
    key = jax.random.fold_in(jax.random.fold_in(order_key, 0), epoch)
    draws = jax.random.uniform(key, members.shape)
    return jnp.argsort(jnp.where(members, draws, jnp.inf))


def _gather(dataset: Dataset, order: _Order, index: Array, size: int) -> Batch:
    """Batch ``index``; past the end, rows from the start of the order at weight 0."""
    position = index * size + jnp.arange(size)
    rows = order.rows[position % jnp.maximum(order.count, 1)]
    weights = (position < order.count).astype(jnp.float32)
    return Batch(dataset.inputs[rows], dataset.labels[rows], weights)


class _Programs(NamedTuple):
    """The compiled pieces of an epoch: all of it, or its order, its batches and its steps apart.

    Apart, only the small pieces depend on the number of rows; the step, which is slow to compile,
    serves data sets of any size.
    """

    whole: Program
    order: Program
    take: Program
    step: Program


@functools.lru_cache(maxsize=256)
def _programs(
    step: Callable[..., PyTree],
    reads: str | None,
    batch_size: int,
    prepare: Prepare,
    execution: Execution,
) -> _Programs:
    """Programs of one step body; ``reads`` None hands it the one batch itself."""

    def draw(own: Trials, epoch: Array) -> tuple[_Order, ...]:
        sets = (own.forget, own.retain) if reads == "both" else (own.retain,)
        return tuple(
            _Order(epoch_order(members, own.order_key, epoch), jnp.sum(members)) for members in sets
        )

    def steps_of(orders: tuple[_Order, ...]) -> Array:
        most = functools.reduce(jnp.maximum, [order.count for order in orders])
        return -(-most // batch_size)

    def take(own: Trials, orders: tuple[_Order, ...], shared: tuple) -> tuple:
        """The batches of one step, and whether the trial has such a step."""
        dataset, epoch, index = shared
        key = jax.random.fold_in(jax.random.fold_in(own.order_key, 1), epoch)
        key = jax.random.fold_in(key, index)
        gathered = [
            execution.put_batch(_gather(dataset, order, index, batch_size)) for order in orders
        ]
        batches = [b._replace(inputs=prepare(b.inputs, key)) for b in gathered]
        return batches, index < steps_of(orders)

    def advance(carry: _Carry, batches: list[Batch], has_step: Array) -> _Carry:
        """Steps, unless the trial has finished or diverged: then it is held."""
        batch: Batch | UnlearnBatch = batches[0]
        if reads is not None:
            names = ("forget", "retain") if reads == "both" else (reads,)
            batch = UnlearnBatch(None, None)._replace(**dict(zip(names, batches, strict=True)))
        state, stats = step(carry.state, batch)
        active = has_step & carry.alive
        taken = active & stats.finite
        hold = functools.partial(jax.tree.map, lambda new, old: jnp.where(taken, new, old))
        alive = carry.alive & (stats.finite | ~active)
        sums = jax.tree.map(lambda total, new: total + jnp.where(taken, new, 0), carry.stats, stats)
        return _Carry(hold(state, carry.state), alive, sums._replace(finite=alive))

    def begin(state: UnlearnState, alive: Array) -> _Carry:
        zero = jnp.zeros((), jnp.float32)
        return _Carry(state, alive, Stats(zero, zero, zero, alive))

    def whole(started: tuple, own: Trials, shared: tuple) -> tuple:
        dataset, epoch = shared
        orders = draw(own, epoch)
        carry = jax.lax.fori_loop(
            0,
            steps_of(orders),
            lambda index, carry: advance(carry, *take(own, orders, (dataset, epoch, index))),
            begin(*started),
        )
        return (carry.state, carry.alive), carry.stats

    def order(started: tuple, own: Trials, shared: tuple) -> tuple:
        del started
        orders = draw(own, shared[1])
        return orders, steps_of(orders)

    def take_one(started: tuple, own: tuple, shared: tuple) -> tuple:
        del started
        trial, orders = own
        return take(trial, orders, shared)

    def one_step(carry: _Carry, own: tuple, shared: tuple) -> _Carry:
        del shared
        return advance(carry, *own)

    return _Programs(
        whole=execution.compile(whole, donate=True),
        order=execution.compile(order, donate=False),
        take=execution.compile(take_one, donate=False),
        step=execution.compile(one_step, donate=True),
    )


@functools.lru_cache(maxsize=256)
def _finish_program(
    finish: Callable[[UnlearnState], UnlearnState], execution: Execution
) -> Program:
    def held(state: UnlearnState, own: tuple, shared: tuple) -> tuple[Model, Array]:
        """Keeps the model where finishing would leave a parameter that is not finite."""
        del own, shared
        finished = finish(state).model
        finite = jnp.isfinite(optax.tree.norm(finished.params))
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), finished, state.model)
        return kept, finite

    return execution.compile(held, donate=False)


def _first_carry(execution: Execution, started: tuple) -> _Carry:
    """The carry before an epoch's first step, made outside the programs."""
    state, alive = started
    zeros = execution.put_state(np.zeros(alive.shape, np.float32))
    # each sum gets its own buffer: a donated carry may not hold one array twice
    stats = Stats(jnp.copy(zeros), jnp.copy(zeros), jnp.copy(zeros), alive)
    return _Carry(state, jnp.copy(alive), stats)


def _compile(
    programs: _Programs,
    execution: Execution,
    unlearner: Unlearner,
    started: tuple,
    own: Trials,
    shared: tuple,
) -> float:
    """Compiles ahead of the first call, which finds it done; returns the seconds it took."""
    began = time.perf_counter()
    if execution.loop == "compiled":
        programs.whole.lower(started, own, shared).compile()
    else:
        orders, _ = programs.order((), own, shared)
        batches = programs.take((), (own, orders), (*shared, np.int32(0)))
        programs.step.lower(_first_carry(execution, started), batches, ()).compile()
    if unlearner.passes == "once":
        _finish_program(unlearner.finish, execution).lower(started[0], (), ()).compile()
    return time.perf_counter() - began


def _run_epoch(
    programs: _Programs, execution: Execution, started: tuple, own: Trials, shared: tuple
) -> tuple:
    if execution.loop == "compiled":
        return programs.whole(started, own, shared)
    orders, steps = programs.order((), own, shared)
    carry = _first_carry(execution, started)
    for index in range(int(np.max(execution.get(steps)))):
        batches = programs.take((), (own, orders), (*shared, np.int32(index)))
        carry = programs.step(carry, batches, ())
    return (carry.state, jnp.copy(carry.alive)), carry.stats


class _Length(NamedTuple):
    """How long each trial's training is: what its schedules are laid over."""

    epochs: Array
    steps_per_epoch: Array
    first_step: Array


def _lengths(members: np.ndarray, batch_size: int, epochs: int, start: int) -> _Length:
    steps = np.maximum(-(-np.sum(members, axis=1) // batch_size), 1).astype(np.float32)
    return _Length(np.full_like(steps, epochs), steps, (start * steps).astype(np.int32))


@functools.lru_cache(maxsize=64)
def _begin_program(
    init: Callable[[Model, Masks, Key], UnlearnState], execution: Execution
) -> Program:
    def begin(placed: tuple, length: _Length, shared: tuple) -> tuple[UnlearnState, Array]:
        del shared
        state = init(*placed)
        if isinstance(state.hyper, Hyper):
            hyper = state.hyper._replace(
                epochs=length.epochs, steps_per_epoch=length.steps_per_epoch
            )
            state = state._replace(hyper=hyper)
        return state._replace(step=state.step + length.first_step), jnp.ones((), bool)

    return execution.compile(begin, donate=False)


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
    dataset: Dataset,
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
        dataset: device-resident rows, shared; placed by ``execution.put_shared``.
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
        ValueError: if there is no epoch to run, or a snapshot is asked for outside of them.
    """
    if unlearner.passes == "once":
        start, epochs = 0, 1
    if not 0 <= start < epochs:
        raise ValueError(f"start = {start}, epochs = {epochs}: there is no epoch to run")
    if not all(start <= epoch <= epochs for epoch in snapshot_epochs):
        raise ValueError(f"snapshot_epochs = {snapshot_epochs}: must be in [{start}, {epochs}]")
    if isinstance(unlearner.step, OneSet):
        step, reads = unlearner.step.on_batch, None
    else:
        step, reads = unlearner.step, unlearner.reads
    programs = _programs(step, reads, batch_size, prepare, execution)
    # a step that reads one set finds it in the retain slot of the trial, so that fine-tuning and
    # ascent are one program
    forget, retain = np.asarray(trials.forget), np.asarray(trials.retain)
    if unlearner.reads == "forget":
        retain = forget
    lengths = _lengths(retain, batch_size, horizon or epochs, start)
    begin = _begin_program(unlearner.init, execution)
    count = retain.shape[0]
    total = -(-count // execution.group) * (epochs - start)
    results, snapshots, stats_of = [], {epoch: [] for epoch in snapshot_epochs}, []
    began = time.perf_counter()
    done, compiling = 0, 0.0
    for first in range(0, count, execution.group):
        index = np.arange(first, first + execution.group)
        inert = index >= count
        index = np.where(inert, 0, index)
        own = Trials(forget[index], retain[index], trials.order_key[index])
        own = own._replace(forget=own.forget & ~inert[:, None], retain=own.retain & ~inert[:, None])
        own = execution.put_state(own)
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
        epoch_stats = []
        for epoch in range(start, epochs):
            if epoch in snapshots:
                snapshots[epoch].append(execution.get(started[0].model))
            shared = (dataset, np.int32(epoch))
            if not done:
                compiling += _compile(programs, execution, unlearner, started, own, shared)
            started, stats = _run_epoch(programs, execution, started, own, shared)
            epoch_stats.append(stats)
            done += 1
            if on_epoch is not None:
                if len(epoch_stats) > 1:  # wait for the one before: never idle, never far ahead
                    jax.block_until_ready(epoch_stats[-2].weight)
                on_epoch(done, total)
        state, alive = started
        if unlearner.passes == "once":
            finished, finite = _finish_program(unlearner.finish, execution)(state, (), ())
            results.append(execution.get((finished, alive & finite)))
        else:
            results.append(execution.get((state.model, alive)))
        if epochs in snapshots:
            snapshots[epochs].append(results[-1][0])
        stats_of.append(execution.get(epoch_stats))
    seconds = time.perf_counter() - began

    def stack(parts: list) -> PyTree:
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)

    final, alive = stack(results)
    finite = alive & np.asarray([_all_finite(final, t) for t in range(count)])
    losses = [[s.loss / np.maximum(s.weight, 1e-12) for s in group] for group in stats_of]
    loss = np.concatenate([np.stack(group, axis=1) for group in losses])[:count]
    return FitResult(
        model=final,
        snapshots={epoch: stack(parts) for epoch, parts in snapshots.items()},
        finite=finite,
        loss=loss.astype(np.float64),
        seconds=seconds - compiling,
        compile_seconds=compiling,
    )


def _all_finite(model: Model, trial: int) -> bool:
    return all(np.isfinite(leaf[trial]).all() for leaf in jax.tree.leaves(model))
