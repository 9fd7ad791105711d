"""A few of the faults of ``experiments/faults.py``, whose whole output is kept beside it."""

from signal import SIGTERM

import pytest

from experiments.faulting import flips, kills, observing, saves, signals, starts
from experiments.faulting.command import FEWEST, Bench

# whole runs, one after another, on a machine that may be busy with other tests
pytestmark = [pytest.mark.ci, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory, pytestconfig):
    kept = getattr(pytestconfig, "cache", None)  # absent with -p no:cacheprovider
    return kept.mkdir("command") if kept else tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory, cache):
    """A bench of small runs, and one that was left alone."""
    bench = Bench(tmp_path_factory.mktemp("faults"), cache, FEWEST)
    return bench, kills.reference(bench)


@pytest.fixture
def bench(tmp_path, cache):
    return Bench(tmp_path, cache, FEWEST)


def test_a_killed_run_ends_with_the_same_bits(disturbed):
    # which acts are hit depends on the pace of the machine: the experiment aims, this does not
    found = kills.kills(*disturbed, count=6, least=0, seed=0)
    assert not found.problems and sum(found.by_act.values()) == 6
    assert found.by_act.keys() == set(observing.ACTS)


def test_the_comparison_can_fail(disturbed):
    told, problems = kills.controls(*disturbed)
    assert len(told) == 2 and not problems


def test_a_save_that_is_killed_leaves_what_was_whole(bench):
    found = saves.saves(bench, count=3, seed=0)
    assert not found.problems and sum(found.hit.values()) == 3


def test_a_flipped_byte_is_found_or_harmless(bench):
    found = flips.flips(bench, count=20, seed=0)
    assert not found.problems
    assert sum(sum(by.values()) for by in found.counts.values()) == 20
    assert sum(found.verified.values()) > 5  # of about 18 in a finished run


def test_sigterm_names_the_command_that_continues(disturbed):
    found = signals.signals(*disturbed, wanted=[SIGTERM], seed=0)
    assert not found.problems and found.stopped == {"SIGTERM": 1}


def test_one_of_three_starts_runs(disturbed):
    found = starts.starts(*disturbed, count=3)
    assert not found.problems and (found.ran, found.refused) == (1, 2)
