"""Steps and finish alone: pure, and the same under jit, scan, vmap and donation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_network as tiny
from comparing import assert_close, assert_same_bits, differs, host
from hypothesis import given, settings
from hypothesis import strategies as st
from unlearner_cases import (
    CASES,
    METHODS,
    QUICK,
    by_default,
    donating_jit_of,
    each_mask,
    each_method,
    jitted,
    method,
    one,
    run_three,
    scan_of,
    started,
    surveyed,
    three_batches,
    vmap_of,
)

from sparse_mu import masks, unlearn
from sparse_mu.losses import classification
from sparse_mu.proximal import l1_prox
from sparse_mu.pruning import random_masks
from sparse_mu.types import UnlearnBatch


@each_method
def test_step_and_finish_change_nothing_they_are_given(name):
    unlearner, state, batch = method(name), started(name, "sparse"), tiny.both_sets(0)
    before = host((state, batch))
    once, twice = (unlearner.step(state, batch) for _ in range(2))
    assert_same_bits(once, twice)
    stepped = host(once[0])
    assert_same_bits(*(unlearner.finish(once[0]) for _ in range(2)))
    assert_same_bits((state, batch), before)
    assert_same_bits(once[0], stepped)
    assert differs(run_three(name, state).model, state.model)  # the method does something


@each_method
def test_jit_equals_eager(name):
    unlearner, state, batch = method(name), started(name, "sparse"), tiny.both_sets(0)
    step, finish = jitted(name)
    (eager, eager_stats), (compiled, stats) = unlearner.step(state, batch), step(state, batch)
    assert_close((compiled, stats), (eager, eager_stats))
    assert_close(finish(eager), unlearner.finish(eager))


@by_default(*QUICK, rest=pytest.mark.ci)
def test_scan_equals_a_loop_of_steps(name):
    state = started(name, "sparse")
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *three_batches())
    scanned, stats = scan_of(method(name).step)(state, stacked)
    assert stats.weight.shape == (3,)
    assert_close(jitted(name)[1](scanned), run_three(name, state))


@by_default(*QUICK, rest=pytest.mark.ci)
def test_vmap_over_trials_equals_one_by_one(name):
    states = [started(name, "sparse", seed) for seed in range(3)]

    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    for batch in three_batches():
        together, _ = vmap_of(method(name).step)(together, batch)
    together = jax.jit(jax.vmap(method(name).finish))(together)
    for index, state in enumerate(states):
        assert_close(one(together, index), run_three(name, state))


# finishing drops what was accumulated: those donated buffers have nowhere to go
@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
@by_default(*QUICK, rest=pytest.mark.ci)
@each_mask
def test_a_model_survives_two_unlearnings_with_donated_states(name, mask):
    model = tiny.draw(jax.random.key(0))
    kept = masks.ones_like(model.params) if mask == "dense" else tiny.half_masks(model)
    before = host((model, kept))
    step, finish = donating_jit_of(method(name).step), donating_jit_of(method(name).finish)
    results = []
    for _ in range(2):
        state = surveyed(method(name), method(name).init(model, kept, jax.random.key(50)))
        given = jax.tree.leaves(state)
        for batch in three_batches():
            state, _ = step(state, batch)
        assert all(leaf.is_deleted() for leaf in given if leaf.ndim == 2)  # it was donated
        results.append(finish(state).model)
    assert_same_bits(*results)
    inputs = tiny.examples(0, 4)[0]
    logits, _ = tiny.apply_fn(model.params, model.net_state, inputs, train=False, key=None)
    assert np.isfinite(logits).all()
    assert_same_bits((model, kept), before)


@each_method
@each_mask
def test_the_model_keeps_its_tree(name, mask):
    state = started(name, mask)
    given = tiny.draw(jax.random.key(0))
    for tree in (state.model, jitted(name)[0](state, tiny.both_sets(0))[0].model):
        assert jax.tree.map(jax.typeof, tree) == jax.tree.map(jax.typeof, given)
    finished = run_three(name, state)
    assert jax.tree.map(jax.typeof, finished.model) == jax.tree.map(jax.typeof, given)
    assert jax.tree.map(jax.typeof, finished.masks) == jax.tree.map(jax.typeof, state.masks)


@each_method
@settings(max_examples=8, deadline=None, derandomize=True)
@given(sparsity=st.floats(0, 0.98), seed=st.integers(0, 2**16))
def test_pruned_weights_and_momentum_are_exactly_zero_after_every_step(name, sparsity, seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    model = tiny.draw(keys[0])
    kept = random_masks(keys[1], model, sparsity, prunable=masks.matrices)
    assert int(masks.pruned(kept, masks.matrices)[0]) == round(sparsity * 45)
    step, finish = jitted(name)

    def assert_zero(state):
        gone = {leaf.shape: ~leaf for leaf in jax.tree.leaves(state.masks) if leaf.ndim == 2}
        jax.tree.map(lambda now, first: np.testing.assert_array_less(now, first + 1), *(
            jax.tree.map(lambda leaf: np.asarray(leaf, np.int8), tree)
            for tree in (state.masks, kept)
        ))  # fmt: skip
        buffers = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim == 2]
        assert len(buffers) == (2 if CASES[name].trace else 0)
        for leaf in [*buffers, *(p for p in jax.tree.leaves(state.model.params) if p.ndim == 2)]:
            np.testing.assert_array_equal(leaf[gone[leaf.shape]], 0)

    state = surveyed(method(name), method(name).init(model, kept, keys[2]))
    assert_zero(state)
    for batch in three_batches():
        state, _ = step(state, batch)
        assert_zero(state)
    assert_zero(finish(state))


@pytest.mark.parametrize(
    "tx",
    [
        optax.sgd(0.1, momentum=0.9, nesterov=True),
        optax.adamw(0.01, weight_decay=0.1),
        optax.chain(optax.sgd(0.1, momentum=0.9), l1_prox(0.1, 0.01, masks.matrices)),
    ],
    ids=["nesterov", "adamw", "l1_prox"],
)
def test_a_readers_optimiser_keeps_pruned_weights_and_buffers_at_zero(tx):
    unlearner = unlearn.finetune(classification(tiny.apply_fn), tx)
    model = tiny.draw(jax.random.key(0))
    kept = tiny.half_masks(model)
    state = unlearner.init(model, kept, jax.random.key(1))
    for batch in three_batches():
        state, _ = unlearner.step(state, batch)
    shaped = [leaf for leaf in jax.tree.leaves((state.model, state.opt_state)) if leaf.ndim == 2]
    gone = {leaf.shape: ~leaf for leaf in jax.tree.leaves(kept) if leaf.ndim == 2}
    assert len(shaped) >= 4
    for leaf in shaped:
        np.testing.assert_array_equal(leaf[gone[leaf.shape]], 0)


@each_method
def test_rows_of_weight_zero_add_nothing_and_their_content_is_inert(name):
    state, (step, finish) = started(name), jitted(name)
    padded = UnlearnBatch(tiny.batch(0, padding=3), tiny.batch(1, padding=3))

    def garbled(batch):
        inputs = jnp.where(batch.weights[:, None] == 0, 1e3, batch.inputs)
        return batch._replace(inputs=inputs, labels=jnp.where(batch.weights == 0, 2, batch.labels))

    def without_padding(batch):
        return jax.tree.map(lambda leaf: leaf[:5], batch)

    expected, expected_stats = step(state, padded)
    actual, stats = step(state, jax.tree.map(garbled, padded, is_leaf=_is_batch))
    assert_same_bits((actual, stats), (expected, expected_stats))
    shorter, shorter_stats = step(state, jax.tree.map(without_padding, padded, is_leaf=_is_batch))
    assert_close(shorter_stats, expected_stats)
    assert_close(finish(shorter).model, finish(expected).model)


def _is_batch(node):
    return hasattr(node, "weights")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n == "influence_official" else ()) for n in METHODS],
)
def test_randomness_is_the_trials_key_folded_with_the_step(name):
    seen = []

    def listening(params, net_state, inputs, *, train, key):
        numbers = jax.random.key_data(key)
        if not isinstance(numbers, jax.core.Tracer):
            seen.append(tuple(numbers.tolist()))
        return tiny.noisy_apply_fn(params, net_state, inputs, train=train, key=key)

    unlearner = method.__wrapped__(name, None, listening)
    model, trial_key = tiny.draw(jax.random.key(0)), jax.random.key(5)
    state = unlearner.init(model, masks.ones_like(model.params), trial_key)
    state = surveyed(unlearner, state)
    for step in (0, 3):
        seen.clear()
        at_step = state._replace(step=jnp.int32(step))
        # a branch taken in Python, so that the keys in it can be read
        with jax.disable_jit(name == "influence_official"):
            next_state, _ = unlearner.step(at_step, tiny.both_sets(0))
        expected = jax.random.key_data(jax.random.fold_in(trial_key, step))
        assert set(seen) == {tuple(np.asarray(expected).tolist())}
        assert int(next_state.step) == step + 1
        assert_same_bits(next_state.key, trial_key)


@each_method
def test_a_mask_that_does_not_fit_raises_at_init_and_names_the_leaf(name):
    model, good = tiny.draw(jax.random.key(0)), started(name).masks

    def bad(kernel):
        return good | {"head": good["head"] | {"kernel": kernel}}

    for kernel in (jnp.ones((3, 5), bool), jnp.ones((5, 3)), {}):
        with pytest.raises(ValueError, match="head/kernel"):
            method(name).init(model, bad(kernel), jax.random.key(0))


@each_method
def test_a_missing_set_raises_and_is_named(name):
    empty = UnlearnBatch(None, None)
    reads = CASES[name].reads
    named = reads if reads in ("retain", "forget") else r"forget or batch\.retain"
    with pytest.raises(ValueError, match=rf"batch\.{named} is None"):
        method(name).step(started(name), empty)


@each_method
def test_what_a_method_says_it_reads(name):
    said, case = method(name), CASES[name]
    assert (said.reads, said.passes) == (case.reads, case.passes)
    assert (said.survey.reads if said.survey else None) == case.surveys


def test_gradient_ascent_is_finetuning_with_the_gradient_turned():
    plain = optax.sgd(0.1)
    loss_fn = classification(tiny.apply_fn)
    batch = UnlearnBatch(tiny.batch(0), tiny.batch(0))
    up, down = (make(loss_fn, plain) for make in (unlearn.gradient_ascent, unlearn.finetune))
    model = tiny.draw(jax.random.key(0))
    dense = masks.ones_like(model.params)
    ends = [m.step(m.init(model, dense, jax.random.key(0)), batch)[0].model for m in (up, down)]
    moved = [jax.tree.map(jnp.subtract, end.params, model.params) for end in ends]
    assert_close(moved[0], jax.tree.map(jnp.negative, moved[1]))
    loss = [
        float(loss_fn(end.params, end.net_state, batch.forget, jax.random.key(0))[0])
        for end in ends
    ]
    assert loss[0] > loss[1]


def test_retrain_reads_nothing_of_the_given_model_but_its_masks():
    unlearner = method("retrain")
    given, other = (tiny.draw(jax.random.key(seed)) for seed in (0, 1))
    kept = tiny.half_masks(given)
    states = [unlearner.init(model, kept, jax.random.key(3)) for model in (given, other)]
    assert_same_bits(*states)
    fresh = tiny.draw(jax.random.key(3))
    assert_same_bits(states[0].model.params, masks.apply(kept, fresh.params))
