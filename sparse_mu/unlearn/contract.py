"""What every unlearner shares: how a state begins, and how a step reads one of the two sets."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from sparse_mu import masks as mask_trees
from sparse_mu.types import (
    Batch,
    Key,
    Masks,
    Model,
    Params,
    PyTree,
    Stats,
    UnlearnBatch,
    UnlearnState,
)


def begin(
    model: Model,
    masks: Masks,
    key: Key,
    *,
    hyper: PyTree,
    opt_state: Callable[[Params], PyTree],
    aux: Callable[[Params], PyTree] = lambda params: (),
) -> UnlearnState:
    """The state before the first step: pruned weights exactly 0, everything copied.

    Copies, because a donated state deletes its arrays, and the caller still owns the model.

    Raises:
        ValueError: if the masks do not fit the parameters, naming the leaf.
    """
    mask_trees.check(masks, model.params)
    params = mask_trees.apply(masks, model.params)
    copied = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), (model.net_state, masks))
    net_state, masks = copied
    return UnlearnState(
        model=Model(params, net_state),
        masks=masks,
        opt_state=opt_state(params),
        # of a definite type: Python numbers would be another program than arrays are
        hyper=jax.tree.map(
            lambda leaf: jnp.array(leaf, dtype=jnp.result_type(leaf), copy=True), hyper
        ),
        step=jnp.zeros((), jnp.int32),
        key=jnp.array(key, copy=True),
        aux=aux(params),
    )


def device_own(tree: PyTree, batch: Batch, axis_name: str | None) -> PyTree:
    """Marks replicated leaves as each device's own before they are differentiated.

    Under ``shard_map`` with its default ``check_vma=True`` jax sums the gradient with respect to a
    replicated value over the axis; the step's own ``psum`` would then count it twice.
    Elsewhere (``pmap``, ``vmap``, ``check_vma=False``) nothing is marked.
    """
    if axis_name is None or axis_name not in jax.typeof(batch.weights).manual_axis_type.varying:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.pcast(leaf, axis_name, to="varying"), tree)


def unchanged(state: UnlearnState) -> UnlearnState:
    """The ``finish`` of a method whose steps have done all the work."""
    return state


@dataclasses.dataclass(frozen=True)
class OneSet:
    """The step of a method that reads one set: picks it from the batch and calls ``on_batch``.

    Two methods that differ only in the set they read hold the same ``on_batch``, so that a driver
    which hands over the one batch itself compiles them once.

    Attributes:
        on_batch: ``(UnlearnState, Batch) -> (UnlearnState, Stats)``.
        reads: the slot of the :class:`~sparse_mu.types.UnlearnBatch` it is given.
    """

    on_batch: Callable[[UnlearnState, Batch], tuple[UnlearnState, Stats]]
    reads: Literal["retain", "forget"]

    def __call__(self, state: UnlearnState, batch: UnlearnBatch) -> tuple[UnlearnState, Stats]:
        """One step on ``batch.retain`` or ``batch.forget``.

        Raises:
            ValueError: if that slot is None.
        """
        chosen = getattr(batch, self.reads)
        if chosen is None:
            raise ValueError(
                f"this unlearner reads the {self.reads} set: batch.{self.reads} is None"
            )
        return self.on_batch(state, chosen)
