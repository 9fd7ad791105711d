"""Logits of many models over the whole data set, forward passes only."""

import functools
from collections.abc import Iterator

import jax
import numpy as np

from sparse_mu import streaming
from sparse_mu.epoch import Prepare, as_they_are
from sparse_mu.memory import compile_ahead
from sparse_mu.types import ApplyFn, Array, Execution, Model, Program, Streamed


@functools.lru_cache(maxsize=64)
def _program(apply_fn: ApplyFn, prepare: Prepare, batch_size: int, execution: Execution) -> Program:
    def one_trial(model: Model, own: tuple, shared: Array) -> Array:
        del own
        key = jax.random.key(0)

        def chunk(inputs: Array) -> Array:
            inputs = prepare(inputs, key)
            return apply_fn(model.params, model.net_state, inputs, train=False, key=key)[0]

        return jax.lax.map(chunk, shared)

    return execution.compile(one_trial, donate=False)


def predict(
    apply_fn: ApplyFn,
    model: Model,
    inputs: Array | Streamed,
    *,
    batch_size: int,
    execution: Execution,
    prepare: Prepare = as_they_are,
) -> np.ndarray:
    """Logits ``float32[T, N, K]`` of ``[T]`` models in evaluation mode over ``[N, ...]`` rows.

    Rows are un-augmented and go through the network ``batch_size`` at a time; the last batch is
    filled up with rows that are cut off again. Outputs go into the one array that is returned as
    they come, so that a stream needs the memory of that array and of one batch.

    Raises:
        sparse_mu.memory.MemoryShort: if there is less memory than a forward pass needs.
    """
    program = _program(apply_fn, prepare, batch_size, execution)
    count, rows = len(jax.tree.leaves(model)[0]), inputs.shape[0]

    def group(first: int) -> Model:
        index = np.arange(first, first + execution.group)
        index = np.where(index < count, index, 0)
        return execution.put_state(jax.tree.map(lambda leaf: np.asarray(leaf)[index], model))

    firsts = range(0, count, execution.group)

    def outputs() -> Iterator[tuple[int, int, np.ndarray]]:
        """The first trial and the first row of every part ``[G, chunks, B, K]``, and the part."""
        if isinstance(inputs, Streamed):
            states = [group(first) for first in firsts]
            empty = np.zeros((1, batch_size, *inputs.shape[1:]), inputs.dtype)
            compile_ahead(program, execution, states[0], (), execution.put_shared(empty))
            batches = streaming.forward(program, states, inputs, batch_size, execution)
            for index, parts in enumerate(batches):
                for first, part in zip(firsts, parts, strict=True):
                    yield first, index * batch_size, part
            return
        chunks = -(-rows // batch_size)
        filled = np.asarray(inputs)[np.arange(chunks * batch_size) % rows]
        filled = filled.reshape(chunks, batch_size, *filled.shape[1:])
        shared = execution.put_shared(filled)
        compile_ahead(program, execution, group(0), (), shared)
        running = [program(group(first), (), shared) for first in firsts]
        for first, part in zip(firsts, running, strict=True):
            yield first, 0, execution.get(part)

    logits: np.ndarray | None = None
    for first, row, part in outputs():
        of_rows = part.reshape(len(part), -1, part.shape[-1])
        if logits is None:  # only now the classes are known
            logits = np.empty((count, rows, part.shape[-1]), part.dtype)
        place = logits[first : first + len(part), row : row + of_rows.shape[1]]
        place[...] = of_rows[: place.shape[0], : place.shape[1]]
    assert logits is not None
    return logits
