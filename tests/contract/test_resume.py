"""A fit that was stopped anywhere goes on to the same bits: weights, masks, losses, snapshots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_network as tiny
from comparing import assert_same_bits, differs
from test_streaming import stream_of
from unlearner_cases import LOCAL, by_default, devices_of, method, run_fit

from sparse_mu import trees
from sparse_mu.execution import mapped, over_trials, sharded
from sparse_mu.stages import keeper_in
from sparse_mu.standing import Keeper
from sparse_mu.stopping import Stopped
from sparse_mu.training import fit

TRIALS, EPOCHS = 3, 2


class Memory:
    """A keeper without a disk, which stops a fit at the n-th time it is asked."""

    def __init__(self, every=2**31, stop_at=None):
        self.last, self.saved, self.asked, self.stop_at = None, [], 0, stop_at
        self.keeper = Keeper(self.load, self.save, every, self.stop_asked)

    def load(self, like_at):
        if self.last is None:
            return None
        standing, position = self.last
        assert trees.describe_mismatch(standing, like_at(position)) is None
        return standing, position

    def save(self, standing, position):
        # as from a disk: nothing that goes on may reach what was saved
        standing = jax.tree.map(lambda leaf: np.array(leaf), standing)
        self.last = standing, position
        self.saved.append(position)

    def stop_asked(self):
        self.asked += 1
        return self.asked == self.stop_at


def same(result, whole):
    assert_same_bits(
        (result.model, result.masks, result.told, result.snapshots),
        (whole.model, whole.masks, whole.told, whole.snapshots),
    )
    np.testing.assert_array_equal(result.loss, whole.loss)
    np.testing.assert_array_equal(result.finite, whole.finite)


def run_kept(name, execution, keeper, *, data=None, epochs=EPOCHS, enough=None):
    unlearner = method(name, execution.axis_name)
    batched = tiny.batched_trials(TRIALS)
    data = execution.put_shared(tiny.dataset()) if data is None else data
    snapshots = () if unlearner.passes == "once" else (0, 1, 2)
    return fit(
        unlearner,
        *batched,
        data,
        batch_size=8,
        epochs=epochs,
        execution=execution,
        snapshot_epochs=snapshots,
        enough=enough,
        keeper=keeper,
    )


EXECUTIONS = {
    "compiled": lambda: LOCAL["compiled"],
    "python": lambda: LOCAL["python"],
    "two devices": lambda: devices_of(2),
    "two devices in python": lambda: devices_of(2, "python"),
    "vmapped": lambda: over_trials(jax.devices()[:1], per_device=2),
    "sharded": lambda: sharded(jax.devices(), loop="python"),
    "mapped": lambda: mapped(jax.devices(), loop="python"),
}
QUICK = ("python", "two devices")


def stopped_everywhere(name, execution, **more):
    """Stops at every place in turn, each time goes on; returns the positions it stood at."""
    whole = run_kept(name, execution, Memory().keeper, **more)
    positions = []
    for place in range(1, 1000):
        memory = Memory(stop_at=place)
        try:
            result = run_kept(name, execution, memory.keeper, **more)
        except Stopped:
            positions += memory.saved
            assert len(memory.saved) <= 1  # none while it surveys its data
            result = run_kept(name, execution, memory.keeper, **more)
        else:
            return positions, whole
        same(result, whole)
    raise AssertionError("it never came to an end")


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=() if k in QUICK else pytest.mark.ci) for k in EXECUTIONS]
)
def test_stopped_at_every_step_and_continued(kind):
    execution = EXECUTIONS[kind]()
    positions, whole = stopped_everywhere("finetune", execution)
    groups = -(-TRIALS // execution.group)
    assert len({p.group for p in positions}) == groups
    assert {p.epoch for p in positions if not p.step} == {1, 2}
    # a loop in Python stops inside an epoch, a compiled one after it
    assert any(p.step for p in positions) == (execution.loop == "python")
    assert differs(whole.model, tiny.batched_trials(TRIALS)[0])


@pytest.mark.parametrize("kind", QUICK)
def test_a_fit_that_ends_early_can_be_stopped_at_every_step(kind):
    def enough(seen, trials):
        return max(seen) >= np.array([1, 2, 0])[trials]

    positions, whole = stopped_everywhere("finetune", EXECUTIONS[kind](), enough=enough)
    assert positions
    ran = np.isfinite(whole.loss).sum(axis=1)
    assert ran.tolist() == ([1, 2, 0] if kind == "python" else [2, 2, 0])


@by_default("salun", rest=pytest.mark.ci)
def test_every_method_can_be_stopped_at_every_step(name):
    positions, _ = stopped_everywhere(name, LOCAL["python"])
    assert positions


def test_a_stream_is_stopped_and_continued():
    data = stream_of(tiny.dataset(), draws=0.5)
    positions, _ = stopped_everywhere("negative_gradient", LOCAL["python"], data=data)
    assert any(p.step for p in positions)


def test_a_stop_in_a_survey_saves_nothing_and_the_fit_starts_again():
    memory = Memory(stop_at=1)
    with pytest.raises(Stopped):
        run_kept("influence_official", LOCAL["python"], memory.keeper)
    assert not memory.saved


def test_checkpoints_come_every_so_many_epochs_of_a_group():
    memory = Memory(every=3)
    run_kept("finetune", LOCAL["compiled"], memory.keeper, epochs=4)
    assert [p.done for p in memory.saved] == [3, 6, 9, 12]
    assert [(p.group, p.epoch) for p in memory.saved] == [(0, 3), (1, 2), (2, 1), (2, 4)]
    seconds = [p.seconds for p in memory.saved]
    assert seconds == sorted(seconds) and all(p.compile_seconds < p.seconds for p in memory.saved)


def test_the_seconds_of_the_steps_before_are_counted():
    memory = Memory(every=1)
    whole = run_kept("finetune", LOCAL["compiled"], memory.keeper)
    standing, position = memory.last
    memory.last = standing, position._replace(seconds=1000.0, compile_seconds=400.0)
    result = run_kept("finetune", LOCAL["compiled"], memory.keeper)
    same(result, whole)
    assert 400 <= result.compile_seconds < 500 and 600 <= result.seconds < 700


def test_a_trial_that_diverged_before_the_stop_is_still_out_after_it():
    batched = tiny.batched_trials(TRIALS)
    spoiled = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), batched[0])

    def run(keeper):
        return run_fit(method("finetune"), (spoiled, *batched[1:]), LOCAL["python"], keeper=keeper)

    whole = run(None)
    assert whole.finite.tolist() == [True, False, True]
    for place in (2, 6, 9):
        memory = Memory(stop_at=place)
        with pytest.raises(Stopped):
            run(memory.keeper)
        assert_same_bits(run(memory.keeper).finite, whole.finite)


def test_through_the_disk(tmp_path, caplog):
    execution = LOCAL["python"]
    whole = run_kept("salun", execution, Memory().keeper)
    asked = [0]

    def every_second():
        asked[0] += 1
        return asked[0] % 2 == 0

    for stops in range(100):  # noqa: B007 (how often it was stopped)
        try:
            result = run_kept("salun", execution, keeper_in(tmp_path, 1, 2, every_second))
            break
        except Stopped:
            left = sorted(path.name for path in tmp_path.iterdir())
            assert len(left) <= 2
    same(result, whole)
    assert stops > 3
    # the newest is damaged: the one before serves, with a warning
    newest = max(path for path in tmp_path.iterdir() if path.name.isdecimal())
    victim = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    same(run_kept("salun", execution, keeper_in(tmp_path, 1, 2, lambda: False)), whole)
    assert "going back to the checkpoint before" in caplog.text and newest.name in caplog.text
