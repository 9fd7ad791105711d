"""Linear probes and the influence of classes: what must come out exactly, what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_mu import transfer

RNG = np.random.default_rng(0)


def blobs(count, spread, seed):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), count)
    middles = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    features = middles[labels] + spread * rng.standard_normal((len(labels), 2))
    return features.astype(np.float32), labels


def test_a_probe_of_features_that_tell_everything_is_right():
    found = transfer.linear_probe(*blobs(40, 0.1, 0), *blobs(20, 0.1, 1))
    assert found.accuracy == 1 and found.converged and found.validation_loss < 0.01
    assert found.regulariser == max(transfer.REGULARISERS)  # nothing speaks against it


def test_a_probe_of_noise_wants_to_be_regularised():
    train = RNG.standard_normal((90, 60)), np.repeat(np.arange(3), 30)
    found = transfer.linear_probe(*train, *train)
    assert found.regulariser < 1 and found.validation_loss > 1


def test_the_probe_is_the_logistic_regression_it_is_said_to_be():
    """Its gradient is zero: sum of (p - y) f + w / C."""
    train, labels = blobs(40, 2.0, 0)
    head = transfer._fit(train, labels, 0.5)
    wide = (train - train.mean(axis=0, dtype=np.float64)) / train.std(axis=0, dtype=np.float64)
    logits = wide @ head.classifier.coef_.T + head.classifier.intercept_
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    gradient = (p - np.eye(3)[labels]).T @ wide + head.classifier.coef_ / 0.5
    assert np.abs(gradient).max() < 1e-2  # the solver's tolerance is 1e-4 of the mean over 120 rows
    intercepts = np.abs((p - np.eye(3)[labels]).mean(axis=0)).max()
    slope = max(np.abs(gradient).max() / len(labels), intercepts)
    assert head.slope(train, labels, 0.5) == pytest.approx(slope, rel=1e-6) and head.converged
    own = -np.log(p[np.arange(len(labels)), labels]).mean()
    assert head.loss(train, labels) == pytest.approx(own, rel=1e-6)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_probe_that_was_stopped_says_so(monkeypatch):
    train, labels = blobs(40, 2.0, 0)
    two = labels < 2
    given = ((train, labels), (train[two], labels[two]))
    assert all(transfer.linear_probe(*rows, *rows).converged for rows in given)
    monkeypatch.setattr(transfer, "MOST_STEPS", 2)
    for rows in given:
        assert not transfer.linear_probe(*rows, *rows).converged
        assert not transfer.validation_losses(*rows).converged


def test_scales_do_not_matter_and_a_constant_feature_does_no_harm():
    train, labels = blobs(40, 1.0, 0)
    test, other = blobs(40, 1.0, 1)
    plain = transfer.linear_probe(train, labels, test, other)
    scaled = [np.column_stack([x * [1000, 1e-3], np.full(len(x), 7.0)]) for x in (train, test)]
    again = transfer.linear_probe(scaled[0], labels, scaled[1], other)
    assert again.accuracy == plain.accuracy and again.regulariser == plain.regulariser


def test_validation_rows_are_a_share_of_every_class():
    labels = np.array([0] * 10 + [1] * 20 + [2] * 5)
    rest, held = transfer.split_off(labels, 0.2, 0)
    assert np.bincount(labels[held]).tolist() == [2, 4, 1]
    assert sorted([*rest, *held]) == list(range(35))
    assert not np.array_equal(transfer.split_off(labels, 0.2, 1)[1], held)
    with pytest.raises(ValueError, match=r"validation = 0.05: leaves class 0 with 10 rows none"):
        transfer.split_off(labels, 0.05, 0)


def test_features_that_are_not_finite_are_refused():
    train, labels = blobs(10, 0.1, 0)
    bad = train.copy()
    bad[3] = np.nan
    for features in ((bad, train), (train, bad)):
        with pytest.raises(ValueError, match="not finite"):
            transfer.linear_probe(features[0], labels, features[1], labels)


@settings(max_examples=40, deadline=None)
@given(st.integers(5, 9), st.integers(0, 2**31))
def test_the_influence_of_a_loss_that_is_linear_is_found_exactly(classes, seed):
    inside = transfer.random_subsets(classes, 2 * classes + 4, seed)
    rng = np.random.default_rng(seed)
    true = rng.standard_normal(classes)
    found = transfer.class_influence(inside, 0.7 + inside @ true)
    np.testing.assert_allclose(found.value, true, atol=1e-8)
    np.testing.assert_allclose(found.error, 0, atol=1e-8)


def test_the_standard_errors_cover():
    inside = transfer.random_subsets(6, 40, 0)
    true = np.array([0.3, 0, 0, -0.2, 0, 0.1])
    inner = 0
    for seed in range(200):
        noise = 0.2 * np.random.default_rng(seed).standard_normal(40)
        found = transfer.class_influence(inside, inside @ true + noise)
        inner += (np.abs(found.value - true) < 2.0345 * found.error).sum()  # t of 33, 95%
    # binomial of 1,200 at 0.95: 1,140 with a deviation of 7.5; the six of a draw hang together
    assert abs(inner - 1140) < 45


def test_random_subsets_come_in_opposite_pairs():
    found = transfer.random_subsets(6, 12, 3)
    assert (found[::2] == ~found[1::2]).all() and (found.mean(axis=0) == 0.5).all()
    assert (found.sum(axis=1) >= 2).all() and (found.sum(axis=1) <= 4).all()
    np.testing.assert_array_equal(found, transfer.random_subsets(6, 12, 3))
    for wrong in ((4, 12), (6, 13), (6, 10)):
        with pytest.raises(ValueError, match="must be at least 5 classes"):
            transfer.random_subsets(*wrong, 0)


def test_subsets_that_tell_nothing_are_refused():
    same = np.ones((8, 3), bool)
    with pytest.raises(ValueError, match="do not tell 3 classes apart"):
        transfer.class_influence(same, np.zeros(8))
    with pytest.raises(ValueError, match="do not tell 6 classes apart"):
        transfer.class_influence(transfer.random_subsets(6, 12, 0)[:7], np.zeros(7))
    with pytest.raises(ValueError, match="losses: must be 12 finite numbers"):
        transfer.class_influence(transfer.random_subsets(6, 12, 0), np.full(12, np.nan))
