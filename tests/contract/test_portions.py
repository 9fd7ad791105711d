"""Less at a time: fewer trials in one dispatch, fewer rows of a batch; equal up to rounding."""

import functools

import jax
import numpy as np
import pytest
import tiny_network as tiny
from comparing import assert_close, assert_same_bits, differs
from unlearner_cases import jit_of, method, one, run_fit, single, started, three_batches, trial_of

from sparse_mu import unlearn
from sparse_mu.evaluation import predict
from sparse_mu.execution import over_trials
from sparse_mu.memory import MemoryShort, needed
from sparse_mu.retry import Portion, within_memory

# sums of 8 rows in other parts; influence solves systems whose condition is about 1e2
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}
# eight steps at learning rate 0.1 amplify the rounding of another program
TRAINED = {"rtol": 1e-3, "atol": 1e-4}
SUMMING = ["fisher_forgetting", "influence_unlearning", "influence_cg", "influence_official"]
by_default = pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n == "influence_unlearning" else pytest.mark.ci) for n in SUMMING],
)


# ---- rows ------------------------------------------------------------------------------------


@by_default
def test_a_method_that_sums_finds_the_same_in_parts_of_its_batches(name):
    batched = tiny.batched_trials(1)
    whole = run_fit(method(name), batched, single())
    assert differs(whole.model, batched[0])
    parted = run_fit(unlearn.in_parts(method(name), 3), batched, single())  # of 8: 3, 3 and 2
    assert_close(parted.model, whole.model, ROUNDING)
    if name == "influence_cg":
        assert parted.told.iterations.tolist() == whole.told.iterations.tolist()
        assert parted.told.converged.tolist() == whole.told.converged.tolist()


def test_a_step_in_parts_counts_as_one_and_sums_what_its_parts_saw():
    state, batch = started("influence_unlearning"), three_batches()[1]
    whole = jit_of(method("influence_unlearning").step)(state, batch)
    parted = jit_of(unlearn.in_parts(method("influence_unlearning"), 2).step)(state, batch)
    assert_close(parted, whole, ROUNDING)
    assert parted[0].step == whole[0].step == state.step + 1
    assert parted[1].weight == whole[1].weight > 0
    assert_same_bits(parted[0].aux[1].filled, whole[0].aux[1].filled)  # the same rows are kept


def test_a_part_that_is_not_finite_marks_the_whole_step():
    state, batch = started("influence_unlearning"), three_batches()[0]
    inputs = batch.retain.inputs.at[1].set(np.nan)  # in the first part of four
    broken = batch._replace(retain=batch.retain._replace(inputs=inputs))
    step = jit_of(unlearn.in_parts(method("influence_unlearning"), 2).step)
    assert not step(state, broken)[1].finite and step(state, batch)[1].finite


@pytest.mark.parametrize("name", ["fisher_forgetting", "influence_unlearning"])
def test_parts_need_less_memory(name):
    state, batch = started(name), tiny.both_sets(0, count=256)

    def more(unlearner):
        step = jax.jit(unlearner.step, donate_argnums=0)
        return needed(step.lower(state, batch).compile()).more

    # the gradients of 16 rows in place of 256; what else a step needs is a few copies of the state
    assert more(unlearn.in_parts(method(name), 16)) < more(method(name)) / 3


def test_parts_of_no_rows_are_refused():
    with pytest.raises(ValueError, match="rows = 0: must be at least 1"):
        unlearn.in_parts(method("fisher_forgetting"), 0)


# ---- trials ----------------------------------------------------------------------------------


@functools.cache
def vmapped(per_device):
    return over_trials(jax.devices()[:1], per_device=per_device)


def limited(per_device, free):
    return over_trials(jax.devices()[:1], per_device=per_device, room=lambda: free)


def fitted(name, batched, asked):
    def attempt(portion):
        return run_fit(method(name), batched, portion.execution)

    return within_memory(attempt, Portion(asked, None), what="it", lower="train.batch_size")


@pytest.mark.ci
def test_trials_that_memory_does_not_hold_together_go_one_half_after_the_other():
    batched = tiny.batched_trials(4)
    whole, portion = fitted("finetune", batched, vmapped(4))
    assert portion.execution.group == whole.chunk.trials == 4
    fewer, _ = fitted("finetune", batched, vmapped(2))
    assert 0 < fewer.chunk.bytes < whole.chunk.bytes
    # room for what two trials need at most, and not for four
    short = limited(4, int(fewer.chunk.bytes / 0.9))
    halved, portion = fitted("finetune", batched, short)
    assert portion.execution.group == halved.chunk.trials == 2
    assert_same_bits(halved.model, fewer.model)
    assert_close(halved.model, whole.model, TRAINED)
    assert halved.finite.tolist() == [True] * 4


def test_without_room_for_one_trial_the_error_names_the_key():
    with pytest.raises(
        MemoryShort, match=r"with 1 trial at a time; lower config\.train\.batch_size"
    ):
        fitted("finetune", tiny.batched_trials(2), limited(2, 100))


class Exhausting:
    """An execution whose first calls of steps find no memory, as XLA says it."""

    def __init__(self, times):
        self.left, self.calls = times, 0

    def over(self, execution):
        def compiling(function, *, donate):
            program = execution.compile(function, donate=donate)
            if not donate:  # only what steps is given its state to use up
                return program

            def run(*given):
                self.calls += 1
                if self.left:
                    self.left -= 1
                    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
                return program(*given)

            run.lower = program.lower
            return run

        fewer = execution.fewer and (lambda: self.over(execution.fewer()))
        return execution._replace(compile=compiling, fewer=fewer)


@pytest.mark.ci
def test_memory_that_runs_out_in_a_step_is_tried_once_more_with_half_the_trials(caplog):
    batched = tiny.batched_trials(4)
    whole, _ = fitted("finetune", batched, vmapped(4))
    once = Exhausting(times=1)
    halved, portion = fitted("finetune", batched, once.over(vmapped(4)))
    assert portion.execution.group == halved.chunk.trials == 2 and once.calls == 1 + 2 * 2
    assert_close(halved.model, whole.model, TRAINED)
    assert len(caplog.messages) == 1
    twice = Exhausting(times=2)
    with pytest.raises(MemoryShort, match="memory ran out"):
        fitted("finetune", batched, twice.over(vmapped(4)))
    assert twice.calls == 2


# ---- forward passes --------------------------------------------------------------------------


def test_forward_passes_of_fewer_rows_give_the_same_logits():
    model, inputs = tiny.batched_trials(2)[0], tiny.dataset().inputs
    sizes = []

    def attempt_in(room):
        def attempt(portion):
            sizes.append(portion.rows)
            return predict(
                *(tiny.apply_fn, model, inputs),
                batch_size=portion.rows,
                execution=limited(1, room),
            )

        return attempt

    asked = Portion(single(), 16)
    whole, _ = within_memory(attempt_in(2**40), asked, what="it", lower="key")
    short, portion = within_memory(attempt_in(1350), asked, what="it", lower="key")
    assert sizes[0] == 16 and portion.rows < 16
    assert_close(short, whole)
    with pytest.raises(MemoryShort, match="1 row at a time"):
        within_memory(attempt_in(10), asked, what="it", lower="key")


# ---- a trial that diverges beside others -----------------------------------------------------


def poisoned(hyper, trials):
    """Trial 1 takes a step that is not finite."""
    if hasattr(hyper, "descent"):  # SalUn's own numbers stand around those of its descent
        return hyper._replace(descent=poisoned(hyper.descent, trials))
    field = "learning_rate" if hasattr(hyper, "learning_rate") else "alpha"
    value = np.asarray(getattr(hyper, field))
    return hyper._replace(**{field: np.where(trials == 1, np.float32(np.inf), value)})


@pytest.mark.parametrize(
    ("name", "per_device"),
    [
        ("finetune", 2),
        *(pytest.param(n, 2, marks=pytest.mark.ci) for n in ("salun", *SUMMING)),
        *(pytest.param(n, 3, marks=pytest.mark.ci) for n in ("finetune", "influence_cg")),
    ],
)
def test_a_trial_that_diverges_leaves_the_others_of_its_dispatch_their_bits(name, per_device):
    batched, execution = tiny.batched_trials(3), vmapped(per_device)
    calm = run_fit(method(name), batched, execution, adapt=lambda hyper, trials: hyper)
    hit = run_fit(method(name), batched, execution, adapt=poisoned)
    assert calm.finite.tolist() == [True] * 3
    assert hit.finite.tolist() == [True, False, True]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(hit.model))
    for trial in (0, 2):
        assert_same_bits(one(hit.model, trial), one(calm.model, trial))
        assert_same_bits(one(hit.masks, trial), one(calm.masks, trial))
        np.testing.assert_array_equal(hit.loss[trial], calm.loss[trial])
    assert differs(one(hit.model, 1), one(calm.model, 1))


def test_a_trial_whose_rows_are_not_finite_leaves_the_others_their_bits():
    batched, data = tiny.batched_trials(3), tiny.dataset()
    row = int(np.flatnonzero(batched[3].retain.sum(axis=0) == 1)[0])  # of one trial alone
    owner = int(np.flatnonzero(batched[3].retain[:, row])[0])
    broken = data._replace(inputs=data.inputs.at[row].set(np.nan))
    calm = run_fit(method("finetune"), batched, vmapped(2))
    hit = run_fit(method("finetune"), batched, vmapped(2), data=broken)
    assert hit.finite.tolist() == [trial != owner for trial in range(3)]
    for trial in {0, 1, 2} - {owner}:
        assert_same_bits(one(hit.model, trial), one(calm.model, trial))
    alone = run_fit(method("finetune"), trial_of(batched, owner), single(), data=broken)
    assert alone.finite.tolist() == [False]
