"""``fit`` and ``predict`` over rows that are read as they are needed, against resident rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_network as tiny
from comparing import assert_close, assert_same_bits, differs
from unlearner_cases import by_default, devices_of, method, run_fit

from sparse_mu import streaming
from sparse_mu.evaluation import predict
from sparse_mu.execution import mapped, sharded, single
from sparse_mu.training import fit
from sparse_mu.types import Dataset, Streamed

PYTHON = single("python")  # the loop that a stream has, so its resident twin is bit-equal


def noise_of(draw, number, row):
    """What augmentation adds to a row in a pass."""
    return np.float32(np.random.default_rng((*draw, int(number), int(row))).normal())


def stream_of(data, told=None, draws=0.0):
    """The rows of a resident data set as a stream; ``draws`` scales what augmentation adds."""
    inputs = np.asarray(data.inputs)

    def read(rows, draw, passes=None):
        for batch, numbers in zip(
            rows, np.zeros_like(rows) if passes is None else passes, strict=True
        ):
            if told is not None:
                told.append((batch.copy(), draw, numbers.copy()))
            noise = [
                np.float32(0 if draw is None else draws) * noise_of(draw or (), number, row)
                for row, number in zip(batch, numbers, strict=True)
            ]
            yield inputs[batch] + np.array(noise)[:, None]

    return Streamed(inputs.shape, np.asarray(data.labels), read, "tiny", np.float32)


def resident_twin(batched, data, epochs, draws, size=8):
    """The same rows with their numbers beside them, and the ``prepare`` that adds the same noise.

    ``prepare`` sees neither epoch nor step nor pass. It finds trial, epoch and step by the key that
    it is given, set and count by the rows themselves, and from these the pass.
    """
    forget, count = np.asarray(batched[3].forget), len(data.labels)
    steps = -(-count // size)  # at least
    keys, noise = [], np.empty((len(forget), epochs, steps * size, count), np.float32)
    for trial, order_key in enumerate(batched[3].order_key):
        words = tuple(map(int, jax.random.key_data(order_key)))
        for epoch in range(epochs):
            key = jax.random.fold_in(jax.random.fold_in(order_key, 1), epoch)
            keys += [jax.random.key_data(jax.random.fold_in(key, step)) for step in range(steps)]
            for number, row in np.ndindex(noise.shape[2:]):
                noise[trial, epoch, number, row] = noise_of((*words, epoch), number, row)
    sizes = np.stack([(~forget).sum(axis=1), forget.sum(axis=1)], axis=1)  # [T, 2]
    known, table = jnp.stack(keys), jnp.float32(draws) * noise
    members, counts = jnp.asarray(forget), jnp.asarray(sizes)

    def prepare(inputs, key):
        where = jnp.argmax(jnp.all(known == jax.random.key_data(key)[None], axis=1))
        trial, epoch, step = jnp.unravel_index(where, (len(forget), epochs, steps))
        rows = inputs[:, -1].astype(int)
        position = step * size + jnp.arange(size)
        number = position // counts[trial, members[trial, rows].astype(int)]
        return inputs[:, :-1] + table[trial, epoch, number, rows][:, None]

    numbered = jnp.concatenate([data.inputs, jnp.arange(count, dtype=float)[:, None]], axis=1)
    return Dataset(numbered, data.labels), prepare


def run_streamed(unlearner, batched, execution, stream, epochs=2):
    return fit(unlearner, *batched, stream, batch_size=8, epochs=epochs, execution=execution)


@by_default("finetune", "negative_gradient")  # of one set, and of two of which one starts again
def test_a_stream_equals_resident_rows_bit_for_bit(name):
    batched, data = tiny.batched_trials(2), tiny.dataset()
    twin, prepare = resident_twin(batched, data, epochs=2, draws=0.5)
    resident = run_fit(method(name), batched, PYTHON, data=twin, prepare=prepare)
    streamed = run_streamed(method(name), batched, PYTHON, stream_of(data, draws=0.5))
    assert_same_bits(streamed.model, resident.model)
    np.testing.assert_array_equal(streamed.loss, resident.loss)
    assert differs(resident.model, batched[0])


def test_a_stretched_epoch_is_streamed_as_it_is_gathered():
    model, dense, keys, trials = tiny.batched_trials(2)
    batched = (model, dense, keys, trials._replace(at_least=np.array([30, 0], np.int32)))
    resident = run_fit(method("finetune"), batched, PYTHON)
    streamed = run_streamed(method("finetune"), batched, PYTHON, stream_of(tiny.dataset()))
    assert_same_bits(streamed.model, resident.model)
    plain = run_fit(method("finetune"), tiny.batched_trials(2), PYTHON)
    np.testing.assert_array_equal(plain.loss[1], resident.loss[1])
    assert (plain.loss[0] != resident.loss[0]).all()


@pytest.mark.parametrize(
    "execution",
    [
        devices_of(2),
        pytest.param(sharded(jax.devices()), marks=pytest.mark.slow),
        pytest.param(mapped(jax.devices()), marks=pytest.mark.slow),
    ],
    ids=["trials over two devices", "sharded", "mapped"],
)
def test_a_stream_feeds_trials_and_batches_spread_over_devices(execution):
    batched, data = tiny.batched_trials(3), tiny.dataset()
    unlearner = method("finetune", execution.axis_name)
    resident = run_fit(unlearner, batched, execution, data=data)
    streamed = run_streamed(unlearner, batched, execution, stream_of(data))
    # eight steps at learning rate 0.1 amplify the rounding of another program
    assert_close(streamed.model, resident.model, {"rtol": 1e-3, "atol": 1e-4})


def test_rows_are_read_in_the_order_of_the_trial_and_drawn_from_its_key_and_epoch():
    told = []
    batched, data = tiny.batched_trials(1), tiny.dataset()
    run_streamed(method("finetune"), batched, PYTHON, stream_of(data, told))
    retain = np.flatnonzero(batched[3].retain[0])
    words = tuple(map(int, jax.random.key_data(batched[3].order_key)[0]))
    assert {draw for _, draw, _ in told} == {(*words, 0), (*words, 1)}
    for epoch in range(2):
        read = np.concatenate([rows for rows, draw, _ in told if draw[-1] == epoch])
        np.testing.assert_array_equal(np.sort(read[: len(retain)]), retain)
        np.testing.assert_array_equal(read[len(retain) :], read[: len(read) - len(retain)])


def test_a_set_that_starts_again_is_drawn_anew():
    told = []
    batched = tiny.batched_trials(1)  # 4 rows are forgotten, 26 retained: 4 steps of 8
    stream = stream_of(tiny.dataset(), told)
    run_streamed(method("negative_gradient"), batched, PYTHON, stream, epochs=1)
    rows, _, passes = zip(*told, strict=True)
    forgotten, numbers = (np.stack(each)[:, :8].ravel() for each in (rows, passes))
    np.testing.assert_array_equal(np.unique(forgotten), np.flatnonzero(batched[3].forget[0]))
    np.testing.assert_array_equal(numbers, np.repeat(np.arange(8), 4))
    assert len({*zip(forgotten, numbers, strict=True)}) == 32  # no row twice in one pass
    np.testing.assert_array_equal(np.stack(passes)[:, 8:].ravel(), np.arange(32) >= 26)


def test_what_augmentation_makes_of_a_row_reaches_the_training():
    batched, data = tiny.batched_trials(1), tiny.dataset()
    plain, drawn = (
        run_streamed(method("finetune"), batched, PYTHON, stream_of(data, draws=draws))
        for draws in (0.0, 0.5)
    )
    assert differs(plain.model, drawn.model)


@pytest.mark.parametrize("execution", [single(), devices_of(2)])
def test_predictions_over_a_stream_read_every_row_once_for_all_models(execution):
    told = []
    model, data = tiny.batched_trials(3)[0], tiny.dataset()  # 30 rows
    given = {"batch_size": 8, "execution": execution}
    resident = predict(tiny.apply_fn, model, data.inputs, **given)
    streamed = predict(tiny.apply_fn, model, stream_of(data, told, draws=9.0), **given)
    assert resident.shape == (3, 30, tiny.CLASSES)
    np.testing.assert_allclose(streamed, resident, rtol=1e-6)  # another program's rounding
    rows = np.concatenate([rows for rows, _, _ in told])
    np.testing.assert_array_equal(rows[:30], np.arange(30))
    assert len(rows) == 32 and {draw for _, draw, _ in told} == {None}


def test_some_rows_of_a_stream_are_those_of_the_array():
    data = tiny.dataset()
    for inputs in (data.inputs, stream_of(data, draws=9.0)):
        rows = streaming.rows_of(inputs, np.array([4, 0, 29]))
        np.testing.assert_array_equal(rows, np.asarray(data.inputs)[[4, 0, 29]])
