"""Intervals and disparities against scipy, closed forms and simulation with a fixed seed."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_mu import statistics

finite = st.floats(-100, 100)


@settings(max_examples=50, deadline=None)
@given(st.lists(finite, min_size=2, max_size=12), st.floats(0.5, 0.999))
def test_interval_is_scipys_student_interval(values, level):
    found = statistics.mean_interval(values, level)
    with np.errstate(invalid="ignore"):
        error = scipy.stats.sem(values)
        low, high = scipy.stats.t.interval(
            level, len(values) - 1, np.mean(values), max(error, 1e-300)
        )
    assert found.n == len(values)
    assert found.mean == pytest.approx((low + high) / 2, abs=1e-9)
    assert found.half_width == pytest.approx((high - low) / 2, abs=1e-9)


def test_one_trial_has_no_half_width():
    found = statistics.mean_interval([0.25])
    assert (found.mean, found.n) == (0.25, 1)
    assert np.isnan(found.half_width)


def test_student_interval_covers_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(3.0, 2.0, (4000, 4))
    found = [statistics.mean_interval(values, 0.9) for values in draws]
    covered = np.mean([abs(each.mean - 3.0) <= each.half_width for each in found])
    # Standard error sqrt(.9 * .1 / 4000) = .005; a normal quantile in place of t would cover .81.
    assert covered == pytest.approx(0.9, abs=0.015)


def test_paired_difference_cancels_what_the_trial_contributes():
    trial = np.array([0.1, 0.5, 0.9])
    found = statistics.paired_difference(trial + 0.25, trial)
    assert found.mean == pytest.approx(0.25)
    assert found.half_width == pytest.approx(0.0, abs=1e-12)
    assert statistics.paired_difference([0.5, 0.75], [0.25, 0.0]).mean == 0.5


def trials_of(rng, metrics=3, n=6):
    return {f"m{i}": rng.normal(size=n) for i in range(metrics)}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 8))
def test_disparity_from_itself_is_zero(seed, n):
    values = trials_of(np.random.default_rng(seed), n=n)
    assert statistics.disparity(values, values, resamples=50) == (0.0, 0.0, 0.0, n)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_disparity_is_symmetric_and_below_the_mean_of_absolute_gaps(seed):
    rng = np.random.default_rng(seed)
    method, target = trials_of(rng), trials_of(rng)
    found = statistics.disparity(method, target, resamples=50)
    assert found == statistics.disparity(target, method, resamples=50)
    per_trial = np.mean([np.abs(method[name] - target[name]).mean() for name in method])
    assert 0 <= found.value <= per_trial + 1e-12
    assert found.low <= found.high


def test_disparity_is_less_biased_than_the_mean_of_absolute_gaps():
    # SPEC.md section 5: true gap 0, trial sd 0.5: the mean of |gap| tends to 0.5 sqrt(2 / pi) =
    # 0.40, the disparity of n trials to 0.40 / sqrt(n).
    rng = np.random.default_rng(1)
    gaps = rng.normal(0.0, 0.5, (2000, 16))
    found = [statistics.disparity({"ua": g}, {"ua": np.zeros(16)}, resamples=1).value for g in gaps]
    assert np.abs(gaps).mean() == pytest.approx(0.399, abs=0.01)
    assert np.mean(found) == pytest.approx(0.399 / 4, abs=0.01)


def test_disparity_by_hand_takes_means_over_trials_before_the_absolute_value():
    method = {"ua": [0.0, 1.0], "ra": [0.5, 0.7]}
    target = {"ua": [1.0, 0.0], "ra": [0.8, 0.8]}
    assert statistics.disparity(method, target).value == pytest.approx((0.0 + 0.2) / 2)


def test_resampling_keeps_trials_whole():
    # Within each trial the two metrics' gaps are equal and opposite in what varies: only if both
    # metrics take the same trials does every resample give (|1 + e| + |1 - e|) / 2 = 1.
    noise = np.array([0.3, -0.2, 0.1, 0.4, -0.5])
    method = {"a": 1 + noise, "b": 1 - noise}
    zero = {"a": np.zeros(5), "b": np.zeros(5)}
    found = statistics.disparity(method, zero)
    np.testing.assert_allclose(found[:3], 1.0, atol=1e-12)
    # Trial effects that method and target share cancel only if they are resampled as pairs.
    shared = {"a": noise, "b": 2 * noise}
    found = statistics.disparity({name: each + 1 for name, each in shared.items()}, shared)
    np.testing.assert_allclose(found[:3], 1.0, atol=1e-12)


def test_bootstrap_covers_a_disparity_away_from_zero():
    rng = np.random.default_rng(2)
    zeros = {"ua": np.zeros(20), "ta": np.zeros(20)}
    hits = 0
    for _ in range(300):
        gaps = {"ua": rng.normal(2.0, 0.5, 20), "ta": rng.normal(-1.0, 0.5, 20)}
        found = statistics.disparity(gaps, zeros, resamples=400)
        hits += found.low <= 1.5 <= found.high
    # The percentile bootstrap of 20 trials covers a little less than it says; standard error .013.
    assert 0.88 <= hits / 300 <= 0.98


def test_bootstrap_repeats_with_its_seed_and_one_trial_has_none():
    rng = np.random.default_rng(3)
    method, target = trials_of(rng), trials_of(rng)
    first = statistics.disparity(method, target)
    assert first == statistics.disparity(method, target)
    assert first[1:3] != statistics.disparity(method, target, seed=1)[1:3]
    single = statistics.disparity({"ua": [0.5]}, {"ua": [0.25]})
    assert (single.value, single.n) == (0.25, 1)
    assert np.isnan([single.low, single.high]).all()


def test_within_floor_compares_the_low_end_with_the_floors_high_end():
    floor = statistics.Disparity(0.02, 0.01, 0.03, 10)
    assert statistics.within_floor(floor, floor)
    assert statistics.within_floor(statistics.Disparity(0.05, 0.03, 0.08, 10), floor)
    assert not statistics.within_floor(statistics.Disparity(0.05, 0.031, 0.08, 10), floor)
    single = statistics.Disparity(0.0, float("nan"), float("nan"), 1)
    assert statistics.within_floor(single, floor) is False
    assert statistics.within_floor(floor, single) is False


@pytest.mark.parametrize("values", [[], [[1.0]], 1.0, [0.5, np.nan], [np.inf, 1.0]])
def test_bad_trials_are_refused(values):
    with pytest.raises(ValueError, match=r"one value per trial|not finite"):
        statistics.mean_interval(values)


def test_bad_arguments_are_refused():
    two = {"ua": [0.0, 1.0]}
    with pytest.raises(ValueError, match="level"):
        statistics.mean_interval([0.0, 1.0], 95)
    with pytest.raises(ValueError, match="equally many trials, got 2 and 3"):
        statistics.paired_difference([0.0, 1.0], [0.0, 1.0, 2.0])
    with pytest.raises(ValueError, match="same metrics"):
        statistics.disparity(two, {"ra": [0.0, 1.0]})
    with pytest.raises(ValueError, match="same metrics"):
        statistics.disparity({}, {})
    with pytest.raises(ValueError, match="equally many trials"):
        statistics.disparity(two, {"ua": [0.0, 1.0, 2.0]})
    with pytest.raises(ValueError, match="target ua"):
        statistics.disparity(two, {"ua": [0.0, np.nan]})
    with pytest.raises(ValueError, match="resamples"):
        statistics.disparity(two, two, resamples=0)
