"""``fit``: trials over devices, loops, schedules, snapshots and divergence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_network as tiny
from comparing import assert_close, assert_same_bits, differs, host
from unlearner_cases import (
    CASES,
    FIRST_ORDER,
    LOCAL,
    METHODS,
    QUICK,
    by_default,
    devices_of,
    method,
    one,
    run_fit,
    trial_of,
)

from sparse_mu import unlearn
from sparse_mu.execution import mapped, over_trials, sharded, single
from sparse_mu.losses import classification
from sparse_mu.optimiser import hyper_parameters
from sparse_mu.types import LossAux


@by_default("finetune", rest=pytest.mark.ci)
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


@by_default("finetune", "influence_cg")
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


def never_reads_forget(name):
    case = CASES[name]
    return case.reads == "retain" and case.surveys in (None, "retain")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in METHODS
        if never_reads_forget(name)
    ],
)
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


# ---- batches split over devices --------------------------------------------------------------

SPLIT = {"sharded": sharded, "mapped": mapped}


@by_default("finetune", "fisher_forgetting")
def test_batches_sharded_over_four_devices_equal_one_device(name):
    assert_split_equals_one_device(name, "sharded")


@by_default("finetune", rest=pytest.mark.ci)
def test_batches_mapped_over_four_devices_equal_one_device(name):
    assert_split_equals_one_device(name, "mapped")


def assert_split_equals_one_device(name, mode):
    execution = SPLIT[mode](jax.devices())
    batched = tiny.batched_trials(2)
    split = run_fit(method(name, execution.axis_name), batched, execution)
    alone = run_fit(method(name), batched, single())
    # eight steps at learning rate 0.1 amplify the rounding of sums in another order
    assert_close(split.model, alone.model, {"rtol": 1e-3, "atol": 1e-4})
    assert_same_bits(split.masks, alone.masks)
    assert split.finite.tolist() == alone.finite.tolist() == [True, True]


@pytest.mark.parametrize("mode", SPLIT)
def test_a_loop_in_python_splits_batches_too(mode):
    batched = tiny.batched_trials(1)
    loops = [SPLIT[mode](jax.devices(), loop=loop) for loop in ("compiled", "python")]
    results = [run_fit(method("finetune", e.axis_name), batched, e) for e in loops]
    assert_close(results[1].model, results[0].model, {"rtol": 1e-4, "atol": 1e-5})


def test_devices_that_end_with_different_models_are_told_of():
    summing_nothing = method("finetune")  # made without the axis
    with pytest.raises(ValueError, match="axis_name='rows'"):
        run_fit(summing_nothing, tiny.batched_trials(1), mapped(jax.devices()))


@pytest.mark.parametrize("mode", SPLIT)
def test_a_batch_that_cannot_be_split_evenly_is_refused(mode):
    with pytest.raises(ValueError, match="batch_size = 6: must be a multiple of 4"):
        run_fit(
            method("finetune"), tiny.batched_trials(1), SPLIT[mode](jax.devices()), batch_size=6
        )


# ---- schedules, snapshots, rewinding ---------------------------------------------------------


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


@pytest.mark.parametrize(
    "execution", [*LOCAL.values(), devices_of(2), over_trials(jax.devices()[:1], per_device=2)]
)
def test_a_group_ends_where_all_its_trials_have_had_enough(execution):
    batched, epochs = tiny.batched_trials(3), (0, 1, 2, 3, 4)
    whole = run_fit(scheduled(momentum=0.9), batched, execution, epochs=4, snapshot_epochs=epochs)
    ends, asked = np.array([1, 3, 2]), []

    def enough(seen, trials):
        asked.append((max(seen), trials.tolist()))
        np.testing.assert_equal(sorted(seen), list(range(max(seen) + 1)))
        for epoch, model in seen.items():
            part = jax.tree.map(lambda leaf: leaf[trials], whole.snapshots[epoch])
            assert_same_bits(model, part)
        return max(seen) >= ends[trials]

    result = run_fit(
        scheduled(momentum=0.9), batched, execution, epochs=4, snapshot_epochs=epochs, enough=enough
    )
    groups = [list(range(at, min(at + execution.group, 3))) for at in range(0, 3, execution.group)]
    for trials in groups:
        last = int(ends[trials].max())
        for trial in trials:
            for epoch in epochs:  # after the end its last models stand for the rest
                ours = jax.tree.map(lambda leaf, t=trial: leaf[t], result.snapshots[epoch])
                then = min(epoch, last)
                assert_same_bits(
                    ours, jax.tree.map(lambda leaf, t=trial: leaf[t], whole.snapshots[then])
                )
            assert np.isfinite(result.loss[trial]).sum() == last
    told = [(epoch, trials) for trials in groups for epoch in range(ends[trials].max() + 1)]
    assert asked == told


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

    unlearner = unlearn.finetune(classification(tiny.apply_fn), hyper=hyper_parameters())
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
