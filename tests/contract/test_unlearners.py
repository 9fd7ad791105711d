"""One suite for every unlearner: the contract of DESIGN section 3.

Tolerances: programs that sum in another order differ by float32 rounding, about 1e-7 of values of
order one per operation. ``CLOSE`` allows that for three steps; where two programs must be the same
program, bits are compared.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_network as tiny
from jax.sharding import Mesh, PartitionSpec

from sparse_mu import masks, unlearn
from sparse_mu.epoch import epoch_order
from sparse_mu.execution import over_trials, single
from sparse_mu.losses import classification
from sparse_mu.optimiser import hyper_parameters
from sparse_mu.proximal import GAMMA_SCHEDULES, l1_prox
from sparse_mu.training import fit
from sparse_mu.types import LossAux, Stats, Trials, UnlearnBatch, Unlearner
from sparse_mu.unlearn.contract import begin, unchanged

CLOSE = {"rtol": 2e-5, "atol": 2e-6}
HYPER = {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
FIRST_ORDER = ("finetune", "gradient_ascent", "l1_sparse", "retrain")
METHODS = (*FIRST_ORDER, "fisher_forgetting", "influence_unlearning")
READ_RETAIN_ONLY = ("finetune", "l1_sparse", "retrain", "fisher_forgetting")


@functools.lru_cache(maxsize=64)
def method(name, axis_name=None, apply_fn=tiny.apply_fn):
    loss_fn = classification(apply_fn)
    common = {"hyper": hyper_parameters(**HYPER), "axis_name": axis_name}
    if name == "finetune":
        return unlearn.finetune(loss_fn, **common)
    if name == "gradient_ascent":
        return unlearn.gradient_ascent(loss_fn, **common)
    if name == "l1_sparse":
        return unlearn.l1_sparse(loss_fn, gamma=0.01, **common)
    if name == "retrain":
        return unlearn.retrain(loss_fn, reinit=tiny.draw, **common)
    if name == "fisher_forgetting":
        return unlearn.fisher_forgetting(
            apply_fn,
            1e-4,
            num_classes=tiny.CLASSES,
            head=tiny.HEAD,
            head_treatment="zeroed",
            forgotten_classes=(1,),
            axis_name=axis_name,
        )
    return unlearn.influence_unlearning(
        classification(apply_fn, train=False), 0.5, rows=12, axis_name=axis_name
    )


# Methods that share a step body share its compiled forms: each of these is found again.
jit_of = functools.lru_cache(maxsize=64)(jax.jit)
donating_jit_of = functools.lru_cache(maxsize=64)(functools.partial(jax.jit, donate_argnums=0))


def jitted(name):
    return jit_of(method(name).step), jit_of(method(name).finish)


@functools.lru_cache(maxsize=64)
def scan_of(step):
    return jax.jit(lambda state, batches: jax.lax.scan(step, state, batches))


@functools.lru_cache(maxsize=64)
def vmap_of(function):
    return jax.jit(jax.vmap(function, in_axes=(0, None)))


@functools.lru_cache(maxsize=64)
def pmap_of(step):
    return jax.pmap(step, axis_name="devices", in_axes=(None, 0))


@functools.lru_cache(maxsize=64)
def shard_map_of(step, check_vma):
    mesh = Mesh(np.asarray(jax.devices()), ("devices",))
    whole, split = PartitionSpec(), PartitionSpec("devices")
    return jax.jit(
        jax.shard_map(
            step, mesh=mesh, in_specs=(whole, split), out_specs=whole, check_vma=check_vma
        )
    )


def started(name, mask="dense", seed=0):
    model = tiny.draw(jax.random.key(seed))
    kept = masks.ones_like(model.params) if mask == "dense" else tiny.half_masks(model)
    return method(name).init(model, kept, jax.random.key(seed + 50))


def three_batches():
    return [tiny.both_sets(seed, padding=seed) for seed in range(3)]


def run_three(name, state):
    step, finish = jitted(name)
    for batch in three_batches():
        state, _ = step(state, batch)
    return finish(state)


def host(tree):
    """Numpy copies; a typed key becomes its numbers."""

    def copied(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.array(jax.random.key_data(leaf) if is_key else leaf)

    return jax.tree.map(copied, tree)


def assert_same_bits(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, host(actual), host(expected))


def assert_close(actual, expected, tolerance=None):
    compare = functools.partial(np.testing.assert_allclose, **(tolerance or CLOSE))
    jax.tree.map(compare, host(actual), host(expected))


def differs(first, second):
    pairs = zip(jax.tree.leaves(host(first)), jax.tree.leaves(host(second)), strict=True)
    return any(not np.array_equal(a, b) for a, b in pairs)


def one(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


each_method = pytest.mark.parametrize("name", METHODS)
each_mask = pytest.mark.parametrize("mask", ["dense", "sparse"])


# ---- step and finish alone -------------------------------------------------------------------


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


@each_method
def test_scan_equals_a_loop_of_steps(name):
    state = started(name, "sparse")
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *three_batches())
    scanned, stats = scan_of(method(name).step)(state, stacked)
    assert stats.weight.shape == (3,)
    assert_close(jitted(name)[1](scanned), run_three(name, state))


@each_method
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
@each_method
@each_mask
def test_a_model_survives_two_unlearnings_with_donated_states(name, mask):
    model = tiny.draw(jax.random.key(0))
    kept = masks.ones_like(model.params) if mask == "dense" else tiny.half_masks(model)
    before = host((model, kept))
    step, finish = donating_jit_of(method(name).step), donating_jit_of(method(name).finish)
    results = []
    for _ in range(2):
        state = method(name).init(model, kept, jax.random.key(50))
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
def test_pruned_weights_and_momentum_are_exactly_zero_after_every_step(name):
    state = started(name, "sparse")
    step, finish = jitted(name)
    pruned = jax.tree.map(jnp.logical_not, state.masks)
    assert sum(int(leaf.sum()) for leaf in jax.tree.leaves(pruned)) == 22  # half of 45, to even

    def assert_zero(tree):
        jax.tree.map(lambda leaf, gone: np.testing.assert_array_equal(leaf[gone], 0), tree, pruned)

    assert_zero(state.model.params)
    for batch in three_batches():
        state, _ = step(state, batch)
        assert_zero(state.model.params)
        if name in FIRST_ORDER:
            assert_zero(state.opt_state.trace)
    assert_zero(finish(state).model.params)


@pytest.mark.parametrize(
    "tx",
    [
        optax.sgd(0.1, momentum=0.9, nesterov=True),
        optax.adamw(0.01, weight_decay=0.1),
        optax.chain(optax.sgd(0.1, momentum=0.9), l1_prox(0.1, 0.01)),
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


@each_method
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
    for step in (0, 3):
        seen.clear()
        at_step = state._replace(step=jnp.int32(step))
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
    named = {"gradient_ascent": "forget", "influence_unlearning": "forget or batch.retain"}
    with pytest.raises(ValueError, match=rf"batch\.{named.get(name, 'retain')} is None"):
        method(name).step(started(name), empty)


def test_what_each_method_says_it_reads():
    said = {name: (method(name).reads, method(name).passes) for name in METHODS}
    assert said == {
        "finetune": ("retain", "epochs"),
        "gradient_ascent": ("forget", "epochs"),
        "l1_sparse": ("retain", "epochs"),
        "retrain": ("retain", "epochs"),
        "fisher_forgetting": ("retain", "once"),
        "influence_unlearning": ("both", "once"),
    }


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


# ---- a batch split over devices --------------------------------------------------------------


def split_batch():
    """16 rows; the last device of four gets rows of weight 0 only."""
    return UnlearnBatch(tiny.batch(0, 16, padding=5), tiny.batch(1, 16, padding=1))


@each_method
def test_pmap_over_four_devices_equals_the_unsplit_batch(name):
    state, batch = started(name, "sparse"), split_batch()
    parts = jax.tree.map(lambda leaf: leaf.reshape(4, 4, *leaf.shape[1:]), batch)
    split, stats = pmap_of(method(name, "devices").step)(state, parts)
    whole, whole_stats = jitted(name)[0](state, batch)
    for device in range(4):
        assert_close((one(split, device), one(stats, device)), (whole, whole_stats))


# influence keeps gathered rows, which jax's replication check cannot see are equal everywhere
@pytest.mark.parametrize(
    ("name", "check_vma"),
    [(name, False) for name in METHODS] + [(name, True) for name in METHODS[:-1]],
)
def test_shard_map_over_four_devices_equals_the_unsplit_batch(name, check_vma):
    state, batch = started(name, "sparse"), split_batch()
    expected, expected_stats = jitted(name)[0](state, batch)
    actual, stats = shard_map_of(method(name, "devices").step, check_vma)(state, batch)
    assert_close((actual, stats), (expected, expected_stats))
    _, finish = jitted(name)
    assert_close(finish(actual).model, finish(expected).model)


# ---- hyper-parameters are leaves -------------------------------------------------------------


def counting_loss():
    """A loss function of its own (no cache knows it) and how often Python ran it."""
    inner, calls = classification(tiny.apply_fn), []

    def loss_fn(params, net_state, batch, key):
        calls.append(None)
        return inner(params, net_state, batch, key)

    return loss_fn, calls


def test_first_order_methods_share_one_step_body():
    bodies = {method(name).step.on_batch for name in FIRST_ORDER}
    assert len(bodies) == 1


def test_changing_a_hyper_parameter_does_not_trace_again():
    loss_fn, calls = counting_loss()
    unlearner = unlearn.finetune(loss_fn)
    model = tiny.draw(jax.random.key(0))
    state = unlearner.init(model, masks.ones_like(model.params), jax.random.key(0))
    step, batch = jax.jit(unlearner.step), tiny.both_sets(0)
    moved = []
    for hyper in (
        hyper_parameters(learning_rate=0.1),
        hyper_parameters(learning_rate=0.2),
        hyper_parameters(learning_rate=0.1, sign=-1.0),
        hyper_parameters(learning_rate=0.1, gamma=0.5, gamma_schedule=2),
        hyper_parameters(learning_rate=0.1, lr_schedule=2, epochs=3, warmup_epochs=1),
    ):
        moved.append(step(state._replace(hyper=hyper), batch)[0].model.params)
    assert len(calls) == 1
    assert all(differs(moved[0], other) for other in moved[1:4])  # and the leaves are read


def test_every_first_order_method_and_length_is_one_trace_through_fit():
    loss_fn, calls = counting_loss()
    model, dense, keys, trials = tiny.batched_trials(2)
    sparse = jax.vmap(tiny.half_masks)(model)
    execution, data = single(), tiny.dataset()
    made = [
        unlearn.finetune(loss_fn, hyper=hyper_parameters(**HYPER)),
        unlearn.gradient_ascent(loss_fn, hyper=hyper_parameters(learning_rate=1e-3)),
        unlearn.retrain(loss_fn, reinit=tiny.draw, hyper=hyper_parameters(learning_rate=0.2)),
        *(unlearn.l1_sparse(loss_fn, schedule=schedule) for schedule in GAMMA_SCHEDULES),
    ]
    for epochs, unlearner in enumerate(made, start=1):
        for kept in (dense, sparse):
            fit(
                unlearner, model, kept, keys, trials, data,
                batch_size=8, epochs=epochs, execution=execution,
            )  # fmt: skip
    assert len(calls) == 1


def test_python_numbers_and_arrays_as_hyper_parameters_are_one_trace_through_fit():
    loss_fn, calls = counting_loss()
    hyper = hyper_parameters(**HYPER)
    for given in (hyper, hyper._replace(learning_rate=0.05), hyper._replace(momentum=0.5)):
        run_fit(unlearn.finetune(loss_fn, hyper=given), tiny.batched_trials(1), single())
    assert len(calls) == 1


# ---- fit: trials, devices, loops -------------------------------------------------------------


def run_fit(unlearner, batched, execution, *, data=None, batch_size=8, epochs=2, **more):
    model, dense, keys, trials = batched
    data = tiny.dataset() if data is None else data
    return fit(
        unlearner, model, dense, keys, trials, execution.put_shared(data),
        batch_size=batch_size, epochs=epochs, execution=execution, **more,
    )  # fmt: skip


def trial_of(batched, index):
    """One trial of a batch, alone, with its leading axis of length one."""
    return jax.tree.map(lambda leaf: leaf[index : index + 1], batched)


LOCAL = {"compiled": single(), "python": single("python")}


@functools.lru_cache(maxsize=8)
def devices_of(count, loop="compiled"):
    return over_trials(jax.devices()[:count], loop=loop)


@each_method
def test_trials_spread_over_devices_equal_the_same_trials_alone_bit_for_bit(name):
    batched = tiny.batched_trials(5)  # divisible by neither 2 nor 4; sets of five sizes
    alone = [run_fit(method(name), trial_of(batched, t), single()) for t in range(5)]
    for count in (2, 4) if name in FIRST_ORDER else (4,):  # one-pass methods are slow to compile
        result = run_fit(method(name), batched, devices_of(count))
        assert jax.tree.leaves(result.model)[0].shape[0] == 5
        for index, expected in enumerate(alone):
            assert_same_bits(one(result.model, index), one(expected.model, 0))
            np.testing.assert_array_equal(result.loss[index], expected.loss[0])
        assert result.finite.tolist() == [True] * 5


@each_method
def test_a_loop_in_python_equals_the_compiled_loop(name):
    batched = tiny.batched_trials(2)
    compiled, python = (run_fit(method(name), batched, LOCAL[loop]) for loop in LOCAL)
    # Fisher amplifies: sqrt(alpha / F) of an F that differs in its last bits
    assert_close(python.model, compiled.model, {"rtol": 1e-4, "atol": 1e-5})
    np.testing.assert_allclose(python.loss, compiled.loss, rtol=1e-5)
    assert differs(compiled.model, batched[0])


def test_vmapped_trials_of_one_device_equal_the_trials_alone():
    batched = tiny.batched_trials(3)
    together = over_trials(jax.devices()[:1], per_device=3)
    result = run_fit(method("finetune"), batched, together)
    alone = run_fit(method("finetune"), batched, single())
    # eight steps at learning rate 0.1 amplify the rounding of another program
    assert_close(result.model, alone.model, {"rtol": 1e-3, "atol": 1e-4})


@pytest.mark.parametrize("name", READ_RETAIN_ONLY)
def test_the_forget_rows_do_not_reach_a_method_that_reads_the_retain_set(name):
    batched, data = tiny.batched_trials(1), tiny.dataset()
    forget = jnp.asarray(batched[3].forget[0])
    garbled = data._replace(
        inputs=jnp.where(forget[:, None], 99.0, data.inputs),
        labels=jnp.where(forget, 0, data.labels),
    )
    clean = run_fit(method(name), batched, single(), data=data)
    other = run_fit(method(name), batched, single(), data=garbled)
    assert_same_bits(clean.model, other.model)


def test_the_forget_rows_do_reach_gradient_ascent():
    batched, data = tiny.batched_trials(1), tiny.dataset()
    flipped = data._replace(labels=jnp.where(batched[3].forget[0], 0, data.labels))
    clean = run_fit(method("gradient_ascent"), batched, single(), data=data)
    other = run_fit(method("gradient_ascent"), batched, single(), data=flipped)
    assert differs(clean.model, other.model)


# ---- fit: the order of an epoch --------------------------------------------------------------


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


def record(members, batch_size, epochs=1, order_keys=None, execution=None):
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
    trials = Trials(~members, members, order_keys)
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


# ---- fit: schedules, snapshots, rewinding ----------------------------------------------------


def scheduled(**values):
    hyper = hyper_parameters(learning_rate=0.1, lr_schedule=1, **values)
    return unlearn.finetune(classification(tiny.apply_fn), hyper=hyper)


@pytest.mark.parametrize("loop", LOCAL)
def test_a_snapshot_is_the_model_of_that_epoch(loop):
    batched = tiny.batched_trials(3)
    execution = LOCAL[loop]
    result = run_fit(
        scheduled(momentum=0.9), batched, execution, epochs=4, snapshot_epochs=(0, 2, 4)
    )
    assert sorted(result.snapshots) == [0, 2, 4]
    assert_same_bits(result.snapshots[0], batched[0])
    assert_same_bits(result.snapshots[4], result.model)
    shorter = run_fit(scheduled(momentum=0.9), batched, execution, epochs=2, horizon=4)
    assert_same_bits(result.snapshots[2], shorter.model)
    assert result.loss.shape == (3, 4)
    np.testing.assert_array_equal(result.loss[:, :2], shorter.loss)


def test_without_momentum_a_run_from_a_snapshot_ends_where_the_whole_run_does():
    # schedule positions and batch orders continue from epoch 1
    batched = tiny.batched_trials(3)
    whole = run_fit(scheduled(), batched, single(), epochs=4, snapshot_epochs=(1,))
    rewound = (whole.snapshots[1], *batched[1:])
    rest = run_fit(scheduled(), rewound, single(), epochs=4, start=1)
    assert_same_bits(rest.model, whole.model)
    np.testing.assert_array_equal(rest.loss, whole.loss[:, 1:])
    from_zero = run_fit(scheduled(), rewound, single(), epochs=3)
    assert differs(from_zero.model, whole.model)


@pytest.mark.parametrize("execution", [devices_of(2), over_trials(jax.devices()[:1], per_device=3)])
def test_each_trial_of_a_group_keeps_its_own_start_and_horizon(execution):
    # trials of three sizes, so of different steps per epoch; on two devices one place is inert
    batched = tiny.batched_trials(3)
    more = {"epochs": 4, "start": 1, "horizon": 6}
    result = run_fit(scheduled(), batched, execution, **more)
    for index in range(3):
        alone = run_fit(scheduled(), trial_of(batched, index), single(), **more)
        np.testing.assert_allclose(
            result.loss[index], alone.loss[0], rtol=1e-4
        )  # vmapped: rounding


def test_the_horizon_lays_out_the_schedules():
    batched = tiny.batched_trials(1)
    short, long = (run_fit(scheduled(), batched, single(), epochs=2, horizon=h) for h in (2, 8))
    np.testing.assert_array_equal(short.loss[:, 0], long.loss[:, 0])
    assert differs(short.model, long.model)  # of 2 epochs the second is at 0.01


@pytest.mark.parametrize(
    "execution", [single(), devices_of(2), over_trials(jax.devices()[:1], per_device=2)]
)
def test_trials_may_differ_in_their_hyper_parameters(execution):
    batched = tiny.batched_trials(2)

    def adapt(hyper, trials):
        return hyper._replace(learning_rate=np.array([0.0, 0.1], np.float32)[trials])

    unlearner = unlearn.finetune(classification(tiny.apply_fn))
    result = run_fit(unlearner, batched, execution, adapt=adapt)
    given = host(batched[0])
    assert_same_bits(one(result.model, 0), one(given, 0))
    assert differs(one(result.model, 1), one(given, 1))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"start": 2}, "no epoch to run"),
        ({"start": -1}, "no epoch to run"),
        ({"snapshot_epochs": (3,)}, "snapshot_epochs"),
        ({"start": 1, "snapshot_epochs": (0,)}, "snapshot_epochs"),
    ],
)
def test_epochs_that_make_no_sense_are_refused(more, message):
    with pytest.raises(ValueError, match=message):
        run_fit(method("finetune"), tiny.batched_trials(1), single(), **more)


def test_progress_counts_every_epoch_of_every_group():
    told = []
    run_fit(
        method("finetune"), tiny.batched_trials(3), single(),
        on_epoch=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert told == [(done, 6) for done in range(1, 7)]


def test_fit_does_not_touch_its_arguments():
    batched, data = tiny.batched_trials(3), tiny.dataset()
    before = host((batched, data))
    run_fit(method("l1_sparse"), batched, devices_of(2), data=data)
    assert_same_bits((batched, data), before)


# ---- divergence ------------------------------------------------------------------------------


@pytest.mark.parametrize("execution", [*LOCAL.values(), devices_of(2)])
def test_a_diverging_trial_keeps_its_last_finite_state_and_disturbs_nobody(execution):
    batched = tiny.batched_trials(3)

    def adapt(hyper, trials):
        return hyper._replace(learning_rate=np.array([0.1, 1e30, 0.1], np.float32)[trials])

    unlearner = method("finetune")
    calm = run_fit(unlearner, batched, execution)
    result = run_fit(unlearner, batched, execution, adapt=adapt)
    assert result.finite.tolist() == [True, False, True]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.model))
    for trial in (0, 2):
        assert_same_bits(one(result.model, trial), one(calm.model, trial))
        np.testing.assert_array_equal(result.loss[trial], calm.loss[trial])


def test_the_state_kept_is_the_one_before_the_step_that_diverged():
    def breaking(params, net_state, batch, key):  # the loss is NaN once two steps were taken
        steps = net_state["seen"][0]
        loss, aux = classification(tiny.apply_fn)(params, net_state, batch, key)
        loss = jnp.where(steps >= 2, jnp.nan, loss)
        return loss, LossAux(aux.weight, {"seen": net_state["seen"] + 1}, aux.correct)

    batched = tiny.batched_trials(1)
    hyper = hyper_parameters(learning_rate=0.1)
    result = run_fit(unlearn.finetune(breaking, hyper=hyper), batched, single(), epochs=2)
    assert result.finite.tolist() == [False]
    assert result.model.net_state["seen"].tolist() == [[2, 2]]
    assert differs(result.model.params, batched[0].params)


def test_a_finish_that_overflows_returns_the_model_it_was_given():
    unlearner = unlearn.influence_unlearning(classification(tiny.apply_fn), 1e38, rows=4)
    batched = tiny.batched_trials(2)
    result = run_fit(unlearner, batched, single())
    assert result.finite.tolist() == [False, False]
    assert_same_bits(result.model, batched[0])
