"""The compiled pieces of an epoch: its order, its batches, its steps, and what surrounds them.

How many steps run is an argument, never part of a program, so D, Dr and Df and short and long
trainings share one compilation.
"""

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_mu import memory, trees
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
    UnlearnState,
)

Prepare = Callable[[PyTree, Key], PyTree]


def as_they_are(inputs: PyTree, key: Key) -> PyTree:
    """The ``prepare`` of inputs the network reads unchanged (tokens, floats)."""
    del key
    return inputs


class Order(NamedTuple):
    """An epoch's rows of one set.

    Attributes:
        rows: ``int32[N]``, the members first.
        count: how many members there are.
        counted: how many rows of the epoch count; past ``count`` the order starts again.
    """

    rows: Array
    count: Array
    counted: Array


class Carry(NamedTuple):
    """What goes from step to step: a state, whether its trial is alive, the sums so far."""

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


def _gather(dataset: Dataset, order: Order, index: Array, size: int) -> Batch:
    """Batch ``index``; past the end the order starts again, and past what counts at weight 0."""
    position = index * size + jnp.arange(size)
    rows = order.rows[position % jnp.maximum(order.count, 1)]
    weights = ((position < order.counted) & (order.count > 0)).astype(jnp.float32)
    return Batch(dataset.inputs[rows], dataset.labels[rows], weights)


class Programs(NamedTuple):
    """The compiled pieces of an epoch: all of it, or its order, its batches and its steps apart.

    Apart, only the small pieces depend on the number of rows; the step, which is slow to compile,
    serves data sets of any size. Rows that the host reads take ``prepare`` in place of ``take``.

    Attributes:
        whole: an epoch.
        order: its orders, one per set, and how many steps it has.
        take: the batches of one step, gathered and prepared.
        prepare: the same of batches that are gathered already.
        step: one step.
        batch_size: rows of a set in one step.
    """

    whole: Program
    order: Program
    take: Program
    prepare: Program
    step: Program
    batch_size: int


@functools.lru_cache(maxsize=256)
def epoch_programs(
    step: Callable[..., PyTree],
    reads: str | None,
    batch_size: int,
    prepare: Prepare,
    execution: Execution,
) -> Programs:
    """Programs of one step body; ``reads`` None hands it the one batch itself."""
    names = ("forget", "retain") if reads in ("both", "paired") else (reads or "retain",)

    def draw(own: Trials, epoch: Array) -> tuple[Order, ...]:
        sets = (own.forget, own.retain) if len(names) == 2 else (own.retain,)
        counts = [jnp.sum(members) for members in sets]
        counted = counts
        if reads == "paired":
            counted = [functools.reduce(jnp.maximum, counts)] * len(counts)
        elif len(sets) == 1:
            least = counts[0] if own.at_least is None else own.at_least
            counted = [jnp.where(counts[0] > 0, jnp.maximum(counts[0], least), 0)]
        rows = [epoch_order(members, own.order_key, epoch) for members in sets]
        return tuple(map(Order, rows, counts, counted))

    def steps_of(orders: tuple[Order, ...]) -> Array:
        longest = functools.reduce(jnp.maximum, [order.counted for order in orders])
        return -(-longest // batch_size)

    def take(own: Trials, orders: tuple[Order, ...], shared: tuple) -> tuple:
        """The batches of one step, and whether the trial has such a step."""
        dataset, epoch, index = shared
        batches = [_gather(dataset, order, index, batch_size) for order in orders]
        return prepared(own, batches, epoch, index), index < steps_of(orders)

    def prepared(own: Trials, batches: list[Batch], epoch: Array, index: Array) -> list[Batch]:
        key = jax.random.fold_in(jax.random.fold_in(own.order_key, 1), epoch)
        key = jax.random.fold_in(key, index)
        return [batch._replace(inputs=prepare(batch.inputs, key)) for batch in batches]

    def advance(carry: Carry, batches: list[Batch], has_step: Array) -> Carry:
        """Steps, unless the trial has finished or diverged: then it is held."""
        # prepared whole, then split: what a row becomes does not depend on the devices
        batches = [execution.put_batch(batch) for batch in batches]
        batch: Batch | UnlearnBatch = batches[0]
        if reads is not None:
            given = dict(zip(names, batches, strict=True))
            batch = UnlearnBatch(given.get("forget"), given.get("retain"))
        state, stats = step(carry.state, batch)
        active = has_step & carry.alive
        taken = active & stats.finite
        hold = functools.partial(jax.tree.map, lambda new, old: jnp.where(taken, new, old))
        alive = carry.alive & (stats.finite | ~active)
        sums = jax.tree.map(lambda total, new: total + jnp.where(taken, new, 0), carry.stats, stats)
        return Carry(hold(state, carry.state), alive, sums._replace(finite=alive))

    def begin(state: UnlearnState, alive: Array) -> Carry:
        zero = jnp.zeros((), jnp.float32)
        return Carry(state, alive, Stats(zero, zero, zero, alive))

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

    def prepare_one(started: tuple, own: tuple, shared: tuple) -> tuple:
        del started
        trial, batches, has_step = own
        return prepared(trial, batches, *shared), has_step

    def one_step(carry: Carry, own: tuple, shared: tuple) -> Carry:
        del shared
        return advance(carry, *own)

    return Programs(
        whole=execution.compile(whole, donate=True),
        order=execution.compile(order, donate=False),
        take=execution.compile(take_one, donate=False),
        prepare=execution.compile(prepare_one, donate=False),
        step=execution.compile(one_step, donate=True),
        batch_size=batch_size,
    )


@functools.lru_cache(maxsize=256)
def finish_program(finish: Callable[[UnlearnState], UnlearnState], execution: Execution) -> Program:
    """The finished model, what ``finish`` left in ``aux``, and whether the model is finite.

    If it is not, the model is the one before finishing.
    """

    def held(state: UnlearnState, own: tuple, shared: tuple) -> tuple[Model, PyTree, Array]:
        del own, shared
        ended = finish(state)
        finite = trees.all_finite(ended.model)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), ended.model, state.model)
        return kept, ended.aux, finite

    return execution.compile(held, donate=False)


def first_carry(execution: Execution, started: tuple, sums: Stats | None = None) -> Carry:
    """The carry before a loop's first step, made outside the programs; ``sums`` of steps before."""
    state, alive = started
    if sums is not None:
        return Carry(state, jnp.copy(alive), jax.tree.map(jnp.copy, sums))
    zeros = execution.put_state(np.zeros(execution.group, np.float32))
    # each sum gets its own buffer: a donated carry may not hold one array twice
    stats = Stats(jnp.copy(zeros), jnp.copy(zeros), jnp.copy(zeros), alive)
    return Carry(state, jnp.copy(alive), stats)


@functools.lru_cache(maxsize=64)
def survey_end_program(
    finish: Callable[[UnlearnState], UnlearnState], execution: Execution
) -> Program:
    """The state after a survey, ready for the first step."""

    def end(state: UnlearnState, own: tuple, shared: tuple) -> UnlearnState:
        del own, shared
        return finish(state)

    return execution.compile(end, donate=False)


class Ahead(NamedTuple):
    """What compiling ahead took, and what its programs will.

    Attributes:
        seconds: of compiling.
        needed: bytes of the largest program on each device; None where that is not known.
    """

    seconds: float
    needed: int | None


def compile_ahead(
    programs: Programs,
    execution: Execution,
    started: tuple,
    own: Trials,
    shared: tuple,
) -> Ahead:
    """Compiles a pass ahead of its first call.

    Raises:
        sparse_mu.memory.MemoryShort: if there is less memory than it needs.
    """
    began = time.perf_counter()
    if execution.loop == "compiled":
        needed = memory.compile_ahead(programs.whole, execution, started, own, shared)
    else:
        orders, _ = programs.order((), own, shared)
        batches = programs.take((), (own, orders), (*shared, np.int32(0)))
        carry = first_carry(execution, started)
        needed = memory.compile_ahead(programs.step, execution, carry, batches, ())
    return Ahead(time.perf_counter() - began, needed)


class Within(NamedTuple):
    """Which part of an epoch is to run; a compiled epoch runs whole.

    Attributes:
        first: its first step.
        sums: of the steps before, ``[G]``; None before the first.
        stop: asked before every other step: whether to end before it.
    """

    first: int = 0
    sums: Stats | None = None
    stop: Callable[[], bool] = lambda: False


def run_epoch(
    programs: Programs,
    execution: Execution,
    started: tuple,
    own: Trials,
    shared: tuple,
    within: Within,
) -> tuple[tuple, Stats, int | None]:
    """One epoch of a group, or what is left of it.

    Returns:
        ``(state, alive)``, the sums of its stats so far, and the step it was stopped before; None
        at its end.
    """
    if execution.loop == "compiled":
        return *programs.whole(started, own, shared), None
    orders, steps = programs.order((), own, shared)
    carry = first_carry(execution, started, within.sums)
    stopped = None
    for index in range(within.first, int(np.max(execution.get(steps)))):
        if index > within.first and within.stop():
            stopped = index
            break
        batches = programs.take((), (own, orders), (*shared, np.int32(index)))
        carry = programs.step(carry, batches, ())
    return (carry.state, jnp.copy(carry.alive)), carry.stats, stopped


class Length(NamedTuple):
    """``[T]``: how long each trial's training is, what its schedules are laid over."""

    epochs: Array
    steps_per_epoch: Array
    first_step: Array


def lengths_of(rows: np.ndarray, batch_size: int, epochs: int, start: int) -> Length:
    """From the trials' own numbers of rows, ``int[T]``, and the epoch they start at."""
    steps = np.maximum(-(-rows // batch_size), 1).astype(np.float32)
    return Length(np.full_like(steps, epochs), steps, (start * steps).astype(np.int32))


@functools.lru_cache(maxsize=64)
def begin_program(
    init: Callable[[Model, Masks, Key], UnlearnState], execution: Execution
) -> Program:
    """The state before the first step and a flag, from (model, masks, key) of each trial."""

    def begin(placed: tuple, length: Length, shared: tuple) -> tuple[UnlearnState, Array]:
        del shared
        state = init(*placed)

        def fill(node: PyTree) -> PyTree:
            if not isinstance(node, Hyper):
                return node
            return node._replace(epochs=length.epochs, steps_per_epoch=length.steps_per_epoch)

        # the method's own numbers may stand around a Hyper, as in negative_gradient
        hyper = jax.tree.map(fill, state.hyper, is_leaf=lambda node: isinstance(node, Hyper))
        step = state.step + length.first_step
        return state._replace(hyper=hyper, step=step), jnp.ones((), bool)

    return execution.compile(begin, donate=False)
