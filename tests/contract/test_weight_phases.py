"""``unprune`` around every unlearner: the weight phase is whatever the contract suite runs over."""

import functools

import jax
import numpy as np
import pytest
import tiny_network as tiny
from comparing import assert_same_bits, differs
from unlearner_cases import CASES, LOCAL, by_default, devices_of, method, run_fit

from sparse_mu import masks, topology, unlearn
from sparse_mu.types import Model

TRIALS, WHOLE, HALF = 3, 4, 2
EXECUTION = LOCAL["compiled"]


@functools.cache
def batched():
    return tiny.batched_trials(TRIALS)


def fitted(unlearner, model, kept, trials, *, execution=EXECUTION, epochs=WHOLE, **more):
    given = (model, kept, batched()[2], trials)
    return run_fit(unlearner, given, execution, epochs=epochs, horizon=WHOLE, **more)


def everything():
    trials = batched()[3]
    whole = np.ones_like(trials.retain)
    return trials._replace(retain=whole, forget=~whole)


def stretched():
    """The retained rows, as many steps an epoch as all rows take."""
    trials = batched()[3]
    return trials._replace(at_least=np.full(TRIALS, trials.retain.shape[1], np.int32))


@functools.cache
def original():
    """theta_0, the dense training with its snapshots, the masks and the pruned model."""
    theta_0, dense = batched()[:2]
    end = fitted(method("finetune"), theta_0, dense, everything(), snapshot_epochs=(HALF, WHOLE))
    kept = jax.vmap(half)(end.model.params)
    return end, kept, Model(masks.apply(kept, end.model.params), end.model.net_state)


def half(params):
    return masks.from_scores(jax.tree.map(abs, params), 0.5, masks.matrices)


def path(execution=EXECUTION):
    theta_0, dense = batched()[:2]

    def train(epochs, enough=None):
        return fitted(
            method("finetune"), theta_0, dense, stretched(), execution=execution,
            epochs=max(epochs), snapshot_epochs=epochs, enough=enough,
        ).snapshots  # fmt: skip

    return train


def phase(name, execution=EXECUTION):
    def train(model, kept, *, start, stop):
        result = fitted(
            method(name), model, kept, batched()[3], execution=execution, epochs=stop,
            start=0 if CASES[name].surveys else start,
        )  # fmt: skip
        assert_same_bits(result.masks, jax.tree.map(np.asarray, kept))
        return result.model

    return train


def unpruned(unlearner, mode=None, *, train=None, epochs=WHOLE, **more):
    end, kept, sparse = original()
    mode = unlearn.Difference(end.model, end.snapshots) if mode is None else mode
    return unlearn.unprune(
        train or path(), unlearner, theta_0=batched()[0], original=sparse, masks=kept, mode=mode,
        epochs=epochs, block=HALF, prunable=masks.matrices, batched=True, **more,
    )  # fmt: skip


def check(found):
    kept = original()[1]
    before = jax.vmap(lambda m: masks.pruned(m, masks.matrices)[0])(kept)
    after = jax.vmap(lambda m: masks.pruned(m, masks.matrices)[0])(found.masks)
    np.testing.assert_array_equal(before, after)
    gone = jax.tree.map(lambda m, w: np.where(m, 0, w), found.masks, found.model.params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gone))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.model.params))


def retrained_masks():
    theta_0, dense = batched()[:2]
    end = fitted(method("finetune"), theta_0, dense, stretched())
    return jax.vmap(half)(end.model.params)


# pruning by itself, it changes the masks of its weight phase
@by_default("finetune", "salun", "fisher_forgetting", rest=pytest.mark.ci)
@pytest.mark.parametrize("weights", ["carry", "rewind"])
def test_any_unlearner_is_the_weight_phase(name, weights):
    if name == "finetune_and_prune":
        pytest.skip("it prunes by itself, so the masks after it are its own")
    found = unpruned(phase(name), weights=weights)
    check(found)
    still = unpruned(None, weights=weights)
    assert_same_bits(found.masks, still.masks)
    assert differs(found.model, still.model)
    assert_same_bits(found.masks, jax.tree.map(np.asarray, retrained_masks()))
    assert found.cost.unlearn_epochs.tolist() == [1] * TRIALS
    assert still.cost.unlearn_epochs.tolist() == [0] * TRIALS


@pytest.mark.parametrize("mode", ["difference", "rewind", "regrow"])
def test_trials_over_devices_equal_the_same_alone(mode):
    end, _, _ = original()
    made = {
        "difference": unlearn.Difference(end.model, end.snapshots),
        "rewind": unlearn.Rewind(),
        "regrow": unlearn.Regrow(rounds=2),
    }[mode]
    two = devices_of(2)
    together = unpruned(phase("finetune", two), made, train=path(two))
    alone = unpruned(phase("finetune"), made)
    check(together)
    assert_same_bits(together.masks, alone.masks)
    assert_same_bits(together.model, alone.model)
    assert together.agreement == alone.agreement


def test_a_trial_ends_at_its_own_look():
    # at a loose tolerance every trial ends after three looks, at none it goes to the end
    end, kept, sparse = original()
    dense = fitted(
        method("finetune"), *batched()[:2], everything(), snapshot_epochs=(1, 2, 3, 4)
    )  # fmt: skip
    given = {
        "theta_0": batched()[0], "original": sparse, "masks": kept, "epochs": WHOLE, "block": 1,
        "mode": unlearn.Difference(end.model, dense.snapshots), "prunable": masks.matrices,
        "batched": True,
    }  # fmt: skip
    loose = unlearn.unprune(path(), None, **given, tolerance=0.9)
    assert loose.epochs.tolist() == [3, 3, 3]
    assert loose.cost.retain_epochs.tolist() == [3, 3, 3]
    strict = unlearn.unprune(path(), None, **given)
    for trial, told in enumerate(strict.agreement):
        assert strict.epochs[trial] == (WHOLE if min(told[-2:]) < 1 else 1 + len(told))
    ious = [
        topology.iou(*(jax.tree.map(lambda x, t=t: x[t], m) for m in (loose.masks, strict.masks)),
                     masks.matrices) for t in range(TRIALS)
    ]  # fmt: skip
    assert min(ious) > 0.5
