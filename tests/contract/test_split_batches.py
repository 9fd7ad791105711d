"""A batch split over devices gives what the whole batch does: pmap, shard_map, sharded jit."""

import jax
import pytest
import tiny_network as tiny
from comparing import assert_close
from unlearner_cases import (
    CASES,
    METHODS,
    QUICK,
    by_default,
    jitted,
    method,
    one,
    pmap_of,
    shard_map_of,
    sharded_jit_of,
    started,
)

from sparse_mu.types import UnlearnBatch


def split_batch():
    """16 rows; the last device of four gets rows of weight 0 only."""
    return UnlearnBatch(tiny.batch(0, 16, padding=5), tiny.batch(1, 16, padding=1))


@by_default(*QUICK, rest=pytest.mark.ci)
def test_pmap_over_four_devices_equals_the_unsplit_batch(name):
    state, batch = started(name, "sparse"), split_batch()
    parts = jax.tree.map(lambda leaf: leaf.reshape(4, 4, *leaf.shape[1:]), batch)
    split, stats = pmap_of(method(name, "devices").step)(state, parts)
    whole, whole_stats = jitted(name)[0](state, batch)
    for device in range(4):
        assert_close((one(split, device), one(stats, device)), (whole, whole_stats))


@by_default(*QUICK, rest=pytest.mark.ci)
def test_a_batch_sharded_by_the_compiler_equals_the_unsplit_batch(name):
    state, batch = started(name, "sparse"), split_batch()
    expected = jitted(name)[0](state, batch)
    assert_close(sharded_jit_of(method(name).step)(state, batch), expected)


@pytest.mark.parametrize(
    ("name", "check_vma"),
    [
        pytest.param(name, check, marks=() if name in QUICK else pytest.mark.ci)
        for name in METHODS
        for check in (False, True)
        if not (check and CASES[name].gathers)
    ],
)
def test_shard_map_over_four_devices_equals_the_unsplit_batch(name, check_vma):
    state, batch = started(name, "sparse"), split_batch()
    expected, expected_stats = jitted(name)[0](state, batch)
    actual, stats = shard_map_of(method(name, "devices").step, check_vma)(state, batch)
    assert_close((actual, stats), (expected, expected_stats))
    _, finish = jitted(name)
    assert_close(finish(actual).model, finish(expected).model)
