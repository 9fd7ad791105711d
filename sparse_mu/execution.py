"""The one seam between pure per-trial functions and devices.

``compile`` lifts a function of one trial, ``function(state, own, shared) -> out``, over a group of
trials. On CPU a group is one trial per device: each device runs its trial unbatched, so that a
trial in a batch and the same trial alone run the very same program and agree bit for bit. On
accelerators a group is every trial, vmapped and sharded over the devices.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sparse_mu.types import Execution, Loop, Program, PyTree

_TRIAL = "trial"


def _identity(tree: PyTree) -> PyTree:
    return tree


def _to_host(tree: PyTree) -> PyTree:
    return jax.tree.map(np.asarray, jax.device_get(tree))


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
        loop=loop,
    )


def over_trials(
    devices: Sequence[jax.Device], *, per_device: int = 1, loop: Loop = "compiled"
) -> Execution:
    """The trial axis sharded over devices; no collective is needed.

    Args:
        devices: one or more devices of one kind.
        per_device: trials of one dispatch on each device; with more than one they are vmapped.
        loop: as in :func:`single`.
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

    return Execution(
        axis_name=None,
        compile=lift,
        put_state=lambda tree: jax.device_put(tree, NamedSharding(mesh, split)),
        put_shared=lambda tree: jax.device_put(tree, NamedSharding(mesh, whole)),
        put_batch=_identity,
        get=_to_host,
        group=per_device * len(devices),
        loop=loop,
    )


def for_library() -> Execution:
    """What :func:`sparse_mu.forget` uses on the reader's own network: the default device alone.

    On CPU steps are dispatched one by one, because the network may hold real convolutions.
    """
    return single("python" if jax.default_backend() == "cpu" else "compiled")
