"""``fit``: the order of an epoch, its fillers, and the keys of its batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_network as tiny
from unlearner_cases import LOCAL, devices_of, run_fit

from sparse_mu.epoch import epoch_order
from sparse_mu.execution import single
from sparse_mu.types import Stats, Survey, Trials, Unlearner
from sparse_mu.unlearn.contract import begin, unchanged


@functools.lru_cache(maxsize=8)
def recorder(rows):
    """An unlearner that only notes, in the net state, which row stood where in its last epoch."""

    def on_step(state, batch):
        ids, weights = batch.retain.labels, batch.retain.weights
        noted, size = state.model.net_state, len(ids)
        position = (noted["steps"] * size + jnp.arange(size)).astype(jnp.int32)
        noted = {
            "steps": noted["steps"] + 1,
            "seen": noted["seen"].at[ids].add(weights.astype(jnp.int32)),
            "fillers": noted["fillers"].at[ids].add((weights == 0).astype(jnp.int32)),
            "position": noted["position"]
            .at[jnp.where(weights > 0, ids, rows)]
            .set(position, mode="drop"),
        }
        total = jnp.sum(weights)
        stats = Stats(jnp.zeros(()), total, jnp.zeros(()), jnp.array(True))
        return state._replace(model=state.model._replace(net_state=noted)), stats

    def init(model, kept, trial_key):
        return begin(model, kept, trial_key, hyper=(), opt_state=lambda params: ())

    return Unlearner(init, on_step, unchanged, "retain", "epochs")


def record(members, batch_size, epochs=1, order_keys=None, execution=None, at_least=None):
    """What T trials with these members saw, as numpy: ``[T, N]`` each."""
    count, rows = members.shape
    noted = {
        name: jnp.zeros((count, rows), jnp.int32) for name in ("seen", "fillers", "position")
    } | {"steps": jnp.zeros(count, jnp.int32)}
    model = jax.vmap(tiny.draw)(jax.random.split(jax.random.key(0), count))
    dense = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), model.params)
    keys = jax.random.split(jax.random.key(1), count)
    order_keys = keys if order_keys is None else order_keys
    data = tiny.dataset(count=rows)._replace(labels=jnp.arange(rows, dtype=jnp.int32))
    trials = Trials(~members, members, order_keys, at_least)
    batched = (model._replace(net_state=noted), dense, keys, trials)
    execution = execution or single()
    result = run_fit(
        recorder(rows), batched, execution, data=data, batch_size=batch_size, epochs=epochs
    )
    return result.model.net_state


@pytest.mark.parametrize("execution", [*LOCAL.values(), devices_of(4), devices_of(4, "python")])
def test_every_member_row_is_seen_once_an_epoch_and_the_last_batch_is_filled(execution):
    members = np.arange(20)[None] % 7 != np.arange(3)[:, None]  # 17, 17 and 17 of 20
    members[2, 4:] = False  # and one trial of 3 rows only, fewer than a batch
    noted = record(members, batch_size=8, epochs=3, execution=execution)
    np.testing.assert_array_equal(noted["seen"], 3 * members)
    assert not (noted["fillers"] * ~members).any()
    assert noted["fillers"].sum(axis=1).tolist() == [3 * 7, 3 * 7, 3 * 5]
    assert noted["steps"].tolist() == [9, 9, 3]


@pytest.mark.parametrize("execution", [*LOCAL.values(), devices_of(2)])
def test_a_stretched_epoch_starts_its_order_again(execution):
    members = np.ones((3, 20), bool)
    members[1, :6] = False  # 14 rows, stretched to 20
    members[2, :15] = False  # 5 rows, which come four times
    stretched = np.array([0, 20, 20], np.int32)
    noted = record(members, batch_size=8, execution=execution, at_least=stretched)
    assert noted["steps"].tolist() == [3, 3, 3]
    assert noted["seen"].sum(axis=1).tolist() == [20, 20, 20]
    np.testing.assert_array_equal(noted["seen"][0], members[0])
    assert sorted(noted["seen"][1][6:]) == [1] * 8 + [2] * 6  # the first six of its order twice
    np.testing.assert_array_equal(noted["seen"][2], 4 * members[2])
    assert not (noted["fillers"] * ~members).any()
    plain = record(members, batch_size=8, execution=execution)
    assert plain["steps"].tolist() == [3, 2, 1]


def test_a_stretched_epoch_of_nothing_is_empty():
    noted = record(np.zeros((1, 20), bool), batch_size=8, at_least=np.array([20], np.int32))
    assert noted["steps"].tolist() == [0]


def test_fillers_are_the_first_rows_of_the_order():
    members = np.ones((1, 20), bool)
    noted = record(members, batch_size=8)
    first = np.argsort(noted["position"][0])[:4]
    assert np.flatnonzero(noted["fillers"][0]).tolist() == sorted(first.tolist())


def test_deleting_rows_keeps_the_order_of_the_rest():
    members = np.ones((2, 20), bool)
    members[1, ::3] = False
    same = jax.random.split(jax.random.key(3), 1)[jnp.array([0, 0])]
    noted = record(members, batch_size=8, order_keys=same)
    full, rest = np.argsort(noted["position"][0]), np.argsort(noted["position"][1])
    assert [row for row in full if members[1, row]] == [row for row in rest if members[1, row]]
    assert full.tolist() != sorted(full.tolist())


def test_the_order_changes_with_the_epoch_and_with_the_trial():
    everyone, order_key = jnp.ones(40, bool), jax.random.key(0)
    first = epoch_order(everyone, order_key, 0)
    assert sorted(first.tolist()) == list(range(40))
    assert first.tolist() != epoch_order(everyone, order_key, 1).tolist()
    assert first.tolist() != epoch_order(everyone, jax.random.key(1), 0).tolist()
    assert first.tolist() == epoch_order(everyone, order_key, 0).tolist()


def counter(reads, passes="epochs", survey=None):
    """An unlearner that adds up, in the net state, the weights its rows had and its steps."""

    def count(name):
        def step(state, batch):
            noted = state.model.net_state
            sets = {"forget": batch.forget, "retain": batch.retain}
            seen = noted[name]
            for which, rows in sets.items():
                if rows is not None:
                    seen = seen | {which: seen[which].at[rows.labels].add(rows.weights)}
            seen = seen | {"steps": seen["steps"] + 1}
            model = state.model._replace(net_state=noted | {name: seen})
            stats = Stats(jnp.zeros(()), jnp.ones(()), jnp.zeros(()), jnp.array(True))
            return state._replace(model=model, step=state.step + 1), stats

        return step

    def init(model, kept, trial_key):
        return begin(model, kept, trial_key, hyper=(), opt_state=lambda params: ())

    def rewound(state):
        return state._replace(step=jnp.zeros_like(state.step))

    before = None if survey is None else Survey(count("survey"), rewound, survey)
    return Unlearner(init, count("steps"), unchanged, reads, passes, before)


def counted(unlearner, forget, retain, batch_size, epochs):
    rows = len(retain)
    model, dense, keys, trials = tiny.batched_trials(1, rows)
    blank = {"forget": jnp.zeros((1, rows)), "retain": jnp.zeros((1, rows)), "steps": jnp.zeros(1)}
    model = model._replace(net_state={"survey": blank, "steps": blank})
    data = tiny.dataset(count=rows)._replace(labels=jnp.arange(rows, dtype=jnp.int32))
    trials = trials._replace(forget=forget[None], retain=retain[None])
    result = run_fit(
        unlearner, (model, dense, keys, trials), single(), data=data, batch_size=batch_size,
        epochs=epochs,
    )  # fmt: skip
    return jax.tree.map(lambda leaf: leaf[0], result.model.net_state)


FORGET = np.arange(20) < 3


def test_both_sets_give_each_row_once_an_epoch():
    noted = counted(counter("both"), FORGET, ~FORGET, batch_size=8, epochs=2)["steps"]
    np.testing.assert_array_equal(noted["forget"], 2 * FORGET)
    np.testing.assert_array_equal(noted["retain"], 2 * ~FORGET)
    assert noted["steps"] == 6


@pytest.mark.parametrize("shorter", ["forget", "retain"])
def test_paired_sets_start_the_shorter_one_again(shorter):
    sets = (FORGET, ~FORGET) if shorter == "forget" else (~FORGET, FORGET)
    noted = counted(counter("paired"), *sets, batch_size=8, epochs=1)["steps"]
    longer = "retain" if shorter == "forget" else "forget"
    np.testing.assert_array_equal(noted[longer], ~FORGET)
    assert sorted(noted[shorter][:3]) == [5, 6, 6]  # 17 rows of 3
    assert not noted[shorter][3:].any()
    assert noted["steps"] == 3


def test_an_empty_set_of_a_pair_counts_nothing():
    noted = counted(counter("paired"), np.zeros(20, bool), ~FORGET, batch_size=8, epochs=1)["steps"]
    assert not noted["forget"].any()
    np.testing.assert_array_equal(noted["retain"], ~FORGET)


@pytest.mark.parametrize("reads", ["forget", "retain", "both"])
def test_a_survey_sees_its_rows_once_before_the_first_step(reads):
    noted = counted(counter("retain", survey=reads), FORGET, ~FORGET, batch_size=8, epochs=3)
    for name, members in {"forget": FORGET, "retain": ~FORGET}.items():
        # a step of one set finds it in the slot it reads
        expected = members if reads in (name, "both") else np.zeros(20)
        np.testing.assert_array_equal(noted["survey"][name], expected)
    np.testing.assert_array_equal(noted["steps"]["retain"], 3 * ~FORGET)
    assert noted["survey"]["steps"] == (1 if reads == "forget" else 3)
    assert noted["steps"]["steps"] == 9


def test_prepares_keys_do_not_repeat_over_steps_and_epochs():
    def key_as_input(inputs, key):
        return inputs.at[:, 0].set(jax.random.uniform(key))

    def on_step(state, batch):
        noted = state.model.net_state
        noted = noted.at[state.step].set(batch.retain.inputs[0, 0])
        stats = Stats(jnp.zeros(()), jnp.ones(()), jnp.zeros(()), jnp.array(True))
        model = state.model._replace(net_state=noted)
        return state._replace(model=model, step=state.step + 1), stats

    def init(model, kept, trial_key):
        return begin(model, kept, trial_key, hyper=(), opt_state=lambda params: ())

    model, dense, keys, trials = tiny.batched_trials(1)
    batched = (model._replace(net_state=jnp.zeros((1, 8))), dense, keys, trials)
    noting = Unlearner(init, on_step, unchanged, "retain", "epochs")
    result = run_fit(noting, batched, single(), prepare=key_as_input)
    assert len(set(result.model.net_state[0].tolist())) == 8  # 2 epochs of 4 steps
