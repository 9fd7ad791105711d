"""The one seam between pure per-trial functions and devices.

``compile`` lifts a function of one trial, ``function(state, own, shared) -> out``, over a group of
trials. With :func:`over_trials` the trials are spread over devices: on CPU a group is one trial per
device, each run unbatched, so that a trial in a batch and the same trial alone run the very same
program and agree bit for bit; on accelerators a group is every trial, vmapped and sharded. With
:func:`sharded` and :func:`mapped` one trial at a time has its batches split over all devices.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sparse_mu.memory import room_on
from sparse_mu.types import Array, Execution, Loop, Program, PyTree

_TRIAL = "trial"
ROWS = "rows"  # the axis that a batch is split over


def _identity(tree: PyTree) -> PyTree:
    return tree


def _to_host(tree: PyTree) -> PyTree:
    return jax.tree.map(np.asarray, jax.device_get(tree))


def _agree(first: np.ndarray, last: np.ndarray) -> bool:
    """Whether two devices hold one value, up to what an unordered sum may change."""
    return np.allclose(first, last, rtol=1e-3, atol=1e-6, equal_nan=True)


def _alone(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Runs ``function`` on a group of exactly one trial, without a batch dimension."""

    def on_group(state: PyTree, own: PyTree, shared: PyTree) -> PyTree:
        out = function(*jax.tree.map(lambda leaf: leaf[0], (state, own)), shared)
        return jax.tree.map(lambda leaf: leaf[None], out)

    return on_group


def _together(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    return jax.vmap(function, in_axes=(0, 0, None))


@functools.lru_cache(maxsize=16)
def single(loop: Loop = "compiled") -> Execution:
    """One device, one trial per dispatch.

    Args:
        loop: ``"compiled"`` keeps an epoch in one program; ``"python"`` dispatches every step,
            which XLA on CPU needs for networks with real convolutions (28 times faster there).
    """

    def lift(function: Callable[..., PyTree], *, donate: bool) -> Program:
        return jax.jit(_alone(function), donate_argnums=0 if donate else ())

    return Execution(
        axis_name=None,
        compile=lift,
        put_state=jax.device_put,
        put_shared=jax.device_put,
        put_batch=_identity,
        get=_to_host,
        group=1,
        parts=1,
        loop=loop,
    )


def over_trials(
    devices: Sequence[jax.Device],
    *,
    per_device: int = 1,
    loop: Loop = "compiled",
    room: Callable[[], int | None] | None = None,
) -> Execution:
    """The trial axis sharded over devices; no collective is needed.

    Args:
        devices: one or more devices of one kind.
        per_device: trials of one dispatch on each device; with more than one they are vmapped.
        loop: as in :func:`single`.
        room: bytes that are free on each device; asked of the devices unless given.
    """
    mesh = Mesh(np.asarray(devices), (_TRIAL,))
    split, whole = PartitionSpec(_TRIAL), PartitionSpec()
    over_group = _alone if per_device == 1 else _together

    def lift(function: Callable[..., PyTree], *, donate: bool) -> Program:
        sharded = jax.shard_map(
            over_group(function),
            mesh=mesh,
            in_specs=(split, split, whole),
            out_specs=split,
            check_vma=False,
        )
        return jax.jit(sharded, donate_argnums=0 if donate else ())

    @functools.cache  # so that what runs with fewer trials finds its programs again
    def fewer() -> Execution:
        half = -(-per_device // 2)
        return over_trials(devices, per_device=half, loop=loop, room=room)

    return Execution(
        axis_name=None,
        compile=lift,
        put_state=lambda tree: jax.device_put(tree, NamedSharding(mesh, split)),
        put_shared=lambda tree: jax.device_put(tree, NamedSharding(mesh, whole)),
        put_batch=_identity,
        get=_to_host,
        group=per_device * len(devices),
        parts=1,
        loop=loop,
        room=room or room_on(devices),
        fewer=fewer if per_device > 1 else None,
    )


def sharded(devices: Sequence[jax.Device], *, loop: Loop = "compiled") -> Execution:
    """Each batch split over devices by the compiler, one trial at a time.

    States are whole on every device; sums over the rows of a batch, BatchNorm's statistics among
    them, become collectives that XLA inserts, so results differ from one device by rounding only.

    Args:
        devices: one or more devices of one kind.
        loop: as in :func:`single`.
    """
    mesh = Mesh(np.asarray(devices), (ROWS,))
    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(ROWS))

    def lift(function: Callable[..., PyTree], *, donate: bool) -> Program:
        return jax.jit(_alone(function), donate_argnums=0 if donate else (), out_shardings=whole)

    def put(tree: PyTree) -> PyTree:
        return jax.device_put(tree, whole)

    return Execution(
        axis_name=None,
        compile=lift,
        put_state=put,
        put_shared=put,
        put_batch=lambda batch: jax.lax.with_sharding_constraint(batch, split),
        get=_to_host,
        group=1,
        parts=len(devices),
        loop=loop,
        room=room_on(devices),
    )


def mapped(devices: Sequence[jax.Device], *, loop: Loop = "compiled") -> Execution:
    """Each batch split over devices by ``pmap``, one trial at a time.

    Unlearners and BatchNorm must be made with ``axis_name=ROWS``: a step sees its device's part of
    the batch and sums over the axis. States carry a leading device axis.

    Args:
        devices: one or more devices of one kind.
        loop: as in :func:`single`.
    """
    count = len(devices)
    mesh = Mesh(np.asarray(devices), (ROWS,))
    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(ROWS))

    def lift(function: Callable[..., PyTree], *, donate: bool) -> Program:
        return jax.pmap(
            _alone(function),
            axis_name=ROWS,
            in_axes=(0, 0, None),
            devices=devices,
            donate_argnums=0 if donate else (),
        )

    def copy_to_each(leaf: Array) -> Array:
        return jax.device_put(jnp.broadcast_to(leaf[None], (count, *leaf.shape)), split)

    def part(batch: PyTree) -> PyTree:
        def of_leaf(leaf: Array) -> Array:
            size = leaf.shape[0] // count
            return jax.lax.dynamic_slice_in_dim(leaf, jax.lax.axis_index(ROWS) * size, size)

        return jax.tree.map(of_leaf, batch)

    def get(tree: PyTree) -> PyTree:
        host = _to_host(tree)
        if not all(_agree(leaf[0], leaf[-1]) for leaf in jax.tree.leaves(host)):
            raise ValueError(
                f"the devices ended with different values: make the unlearner and BatchNorm with "
                f"axis_name={ROWS!r}, the axis that batches are split over"
            )
        return jax.tree.map(lambda leaf: leaf[0], host)

    return Execution(
        axis_name=ROWS,
        compile=lift,
        put_state=lambda tree: jax.tree.map(copy_to_each, tree),
        put_shared=lambda tree: jax.device_put(tree, whole),
        put_batch=part,
        get=get,
        group=1,
        parts=count,
        loop=loop,
        room=room_on(devices),
    )


def for_library() -> Execution:
    """What :func:`sparse_mu.forget` uses on the reader's own network: the default device alone.

    On CPU steps are dispatched one by one, because the network may hold real convolutions.
    """
    return single("python" if jax.default_backend() == "cpu" else "compiled")
