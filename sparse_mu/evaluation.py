"""Logits of many models over the whole data set, forward passes only."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sparse_mu.epoch import Prepare, as_they_are
from sparse_mu.types import ApplyFn, Array, Dataset, Execution, Model, Program


@functools.lru_cache(maxsize=64)
def _program(apply_fn: ApplyFn, prepare: Prepare, batch_size: int, execution: Execution) -> Program:
    def one_trial(model: Model, own: tuple, shared: Dataset) -> Array:
        del own
        key = jax.random.key(0)

        def chunk(inputs: Array) -> Array:
            inputs = prepare(inputs, key)
            return apply_fn(model.params, model.net_state, inputs, train=False, key=key)[0]

        return jax.lax.map(chunk, shared.inputs)

    return execution.compile(one_trial, donate=False)


def predict(
    apply_fn: ApplyFn,
    model: Model,
    inputs: Array,
    *,
    batch_size: int,
    execution: Execution,
    prepare: Prepare = as_they_are,
) -> np.ndarray:
    """Logits ``float32[T, N, K]`` of ``[T]`` models in evaluation mode over ``[N, ...]`` rows.

    Rows are un-augmented and read in chunks of ``batch_size``; the last chunk is filled up with
    rows that are cut off again.
    """
    inputs = np.asarray(inputs)
    rows, chunks = len(inputs), -(-len(inputs) // batch_size)
    filled = inputs[np.arange(chunks * batch_size) % rows]
    filled = filled.reshape(chunks, batch_size, *inputs.shape[1:])
    shared = execution.put_shared(Dataset(jnp.asarray(filled), jnp.zeros((), jnp.int32)))
    program = _program(apply_fn, prepare, batch_size, execution)
    count = len(jax.tree.leaves(model)[0])
    parts = []
    for first in range(0, count, execution.group):
        index = np.arange(first, first + execution.group)
        index = np.where(index < count, index, 0)
        group = jax.tree.map(lambda leaf, index=index: np.asarray(leaf)[index], model)
        parts.append(program(execution.put_state(group), (), shared))
    logits = np.concatenate([execution.get(part) for part in parts])[:count]
    return logits.reshape(count, -1, logits.shape[-1])[:, :rows]
