"""Where a fit stands between two steps, and how that goes to disk and back.

A fit runs group after group of trials. What it needs to go on to the same bits is what the groups
before have left, and the state of the group under way: weights, statistics, masks, momentum,
hyper-parameters, keys and the method's own sums.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_mu.types import Array, Execution, Key, PyTree


class Position(NamedTuple):
    """The next step of a fit, and what the steps before have cost.

    Attributes:
        group: number of the group of trials under way.
        epoch: of that group.
        step: of that epoch; above 0 only where a loop in Python was stopped inside an epoch.
        done: group-epochs that are finished.
        seconds: of the loop so far, compiling included.
        compile_seconds: of these.
    """

    group: int
    epoch: int
    step: int
    done: int
    seconds: float
    compile_seconds: float


class Standing(NamedTuple):
    """The arrays of a fit at a position, on the host.

    Attributes:
        finished: ``[T', ...]`` (model, masks, told, alive) of the groups before; ``()`` of none.
        snapshots: ``[T', ...]`` models by epoch, of the groups that have passed it.
        loss: ``float32[T', epochs]``, mean loss of every finished epoch, NaN of those to come.
        state: of the group under way, keys as their numbers.
        alive: ``bool[G]``, False where a trial of that group has diverged.
        sums: of the epoch under way; ``()`` before its first step.
    """

    finished: PyTree
    snapshots: dict[str, PyTree]
    loss: np.ndarray
    state: PyTree
    alive: np.ndarray
    sums: PyTree


LikeAt = Callable[[Position], Standing]


class Keeper(NamedTuple):
    """Where a fit leaves its standing, and finds the one it left before.

    Attributes:
        load: given the shapes of a standing at each position, the newest one that is whole, or
            None.
        save: keeps one more.
        every: epochs of a group between two of them.
        stop_asked: whether to save and raise :class:`sparse_mu.stopping.Stopped`.
    """

    load: Callable[[LikeAt], tuple[Standing, Position] | None]
    save: Callable[[Standing, Position], None]
    every: int
    stop_asked: Callable[[], bool]


def not_kept(stop_asked: Callable[[], bool] = lambda: False) -> Keeper:
    """A fit that leaves nothing behind; asked to stop, it stops."""
    return Keeper(lambda like: None, lambda standing, position: None, 2**31, stop_asked)


def stacked(parts: list[PyTree]) -> PyTree:
    """Trees ``[G, ...]`` one after another along the axis of trials; ``()`` of no trees."""
    if not parts:
        return ()
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def unstacked(tree: PyTree, group: int) -> list[PyTree]:
    """The inverse of :func:`stacked`."""
    leaves = jax.tree.leaves(tree)
    firsts = range(0, len(leaves[0]) if leaves else 0, group)
    return [jax.tree.map(lambda leaf, i=i: leaf[i : i + group], tree) for i in firsts]


def _is_key(leaf: Array | jax.ShapeDtypeStruct) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def to_host(state: PyTree, execution: Execution) -> PyTree:
    """A state as numpy arrays ``[G, ...]``; keys become their numbers."""
    return execution.get(
        jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, state)
    )


def to_devices(state: PyTree, like: PyTree, keys: Key, execution: Execution) -> PyTree:
    """The inverse of :func:`to_host`.

    Args:
        state: numpy arrays.
        like: the state's shapes, which tell its keys.
        keys: any keys of the kind that the state holds.
        execution: where to.
    """
    impl = jax.random.key_impl(keys)

    def wrap(leaf: np.ndarray, shape: jax.ShapeDtypeStruct) -> Array:
        return jax.random.wrap_key_data(jnp.asarray(leaf), impl=impl) if _is_key(shape) else leaf

    return execution.put_state(jax.tree.map(wrap, state, like))


def on_host(shapes: PyTree) -> PyTree:
    """Shapes of a program's result as :func:`to_host` makes it.

    Args:
        shapes: of a result that ends in a flag ``bool[G]``; the axes that this has before it are
            those of the devices (:func:`sparse_mu.execution.mapped`).
    """
    extra = len(shapes[-1].shape) - 1
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[extra:], leaf.dtype), shapes)


def as_numbers(shapes: PyTree) -> PyTree:
    """Shapes of a state with keys as shapes of what :func:`to_host` makes of it."""

    def of_leaf(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf

    return jax.tree.map(of_leaf, shapes)


def repeated(shapes: PyTree, groups: int) -> PyTree:
    """The shapes of :func:`stacked` parts of these shapes."""
    if not groups:
        return ()
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((groups * leaf.shape[0], *leaf.shape[1:]), leaf.dtype),
        shapes,
    )
