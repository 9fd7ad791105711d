"""Accuracies against counts made by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_mu import metrics


def logits_predicting(predictions, classes):
    return np.eye(classes, dtype=np.float32)[np.asarray(predictions)]


# Ten rows of three classes: rows 0-2 forget, 3-5 retain, 6-9 test.
LABELS = np.array([2, 2, 2, 0, 1, 1, 0, 1, 1, 2])
PREDICTIONS = np.array([2, 0, 1, 0, 1, 0, 0, 1, 0, 0])
LOGITS = logits_predicting(PREDICTIONS, 3)
FORGET, RETAIN, TEST = (
    np.isin(np.arange(10), rows) for rows in ([0, 1, 2], [3, 4, 5], range(6, 10))
)


def row_of(forgotten_classes):
    return metrics.row_metrics(
        LOGITS, LABELS, retain=RETAIN, forget=FORGET, test=TEST, forgotten_classes=forgotten_classes
    )


def test_accuracy_counts_only_members():
    assert metrics.accuracy(LOGITS, LABELS) == 5 / 10
    assert metrics.accuracy(LOGITS, LABELS, RETAIN) == 2 / 3
    assert np.isnan(metrics.accuracy(LOGITS, LABELS, np.zeros(10, bool)))
    assert type(metrics.accuracy(LOGITS, LABELS)) is float


def test_per_class_accuracy_is_nan_for_an_absent_class():
    found = metrics.per_class_accuracy(logits_predicting([0, 1, 1], 4), np.array([0, 0, 1]))
    np.testing.assert_array_equal(found, [0.5, 1.0, np.nan, np.nan])
    np.testing.assert_array_equal(metrics.per_class_accuracy(LOGITS, LABELS, TEST), [1.0, 0.5, 0.0])


def test_row_of_random_forgetting():
    assert row_of(()) == {
        "ua": 1 - 1 / 3,
        "ra": 2 / 3,
        "ta": 2 / 4,
        "ta_all": 2 / 4,
        "ta_worst_class": 0.0,
    }


def test_row_of_class_forgetting_leaves_the_class_out_of_ta():
    assert row_of((2,)) == {
        "ua": 1 - 1 / 3,
        "ra": 2 / 3,
        "ta": 2 / 3,
        "ta_all": 2 / 4,
        "ta_worst_class": 0.5,
        "ua_test": 1.0,
    }


def test_row_without_test_rows_is_nan_there():
    nobody = np.zeros(10, bool)
    row = metrics.row_metrics(
        LOGITS, LABELS, retain=RETAIN, forget=FORGET, test=nobody, forgotten_classes=(1,)
    )
    undefined = {name for name, value in row.items() if np.isnan(value)}
    assert undefined == {"ta", "ta_all", "ta_worst_class", "ua_test"}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_accuracy_is_the_count_weighted_mean_of_class_accuracies(pairs):
    predictions, labels = np.array(pairs).T
    logits = logits_predicting(predictions, 4)
    counts = np.bincount(labels, minlength=4)
    per_class = metrics.per_class_accuracy(logits, labels)
    np.testing.assert_array_equal(np.isnan(per_class), counts == 0)
    expected = np.nansum(per_class * counts) / counts.sum()
    assert metrics.accuracy(logits, labels) == pytest.approx(expected, abs=1e-12)


def test_a_trojan_by_hand():
    """Four test images of classes 0, 1, 2, 1; class 1 is wanted."""
    called = np.eye(3)
    found = metrics.trojan_metrics(
        called[[1, 1, 0, 1]],  # with the trigger
        called[[0, 1, 1, 2]],  # without
        wanted=np.array([1, 1, 1, 1]),
        counted=np.array([True, False, True, False]),
    )
    assert found == {"asr": 0.5, "asr_all": 0.75, "false_target": 0.5}
    nobody = metrics.trojan_metrics(
        called[[1]], called[[1]], wanted=np.array([1]), counted=np.array([False])
    )
    assert np.isnan(nobody["asr"]) and nobody["asr_all"] == 1
    with pytest.raises(ValueError, match="counted"):
        metrics.trojan_metrics(called, called, wanted=np.array([1, 1, 1]), counted=np.array([True]))


def test_signed_gaps_keep_their_sign():
    gaps = metrics.signed_gaps({"ua": 0.25, "ra": 1.0}, {"ua": 0.5, "ra": 0.75}, ["ua", "ra"])
    assert gaps == {"ua": -0.25, "ra": 0.25}
    with pytest.raises(KeyError, match="ta"):
        metrics.signed_gaps({"ua": 0.25}, {"ua": 0.5}, ["ta"])


@pytest.mark.parametrize(
    ("logits", "labels", "members", "message"),
    [
        (LOGITS[0], LABELS, None, "want logits"),
        (LOGITS, LABELS[:9], None, "want logits"),
        (LOGITS, LABELS + 1, None, r"in \[0, 3\)"),
        (LOGITS, LABELS.astype(float), None, "integers"),
        (LOGITS, LABELS, RETAIN.astype(int), "members must be bool"),
        (LOGITS, LABELS, RETAIN[:9], "members must be bool"),
        (np.where(np.arange(10)[:, None] == 7, np.nan, LOGITS), LABELS, None, "1 rows .* row 7"),
        (np.where(np.arange(10)[:, None] == 7, np.inf, LOGITS), LABELS, None, "not finite"),
    ],
)
def test_bad_input_is_refused(logits, labels, members, message):
    with pytest.raises(ValueError, match=message):
        metrics.accuracy(logits, labels, members)


def test_an_unknown_forgotten_class_is_refused():
    with pytest.raises(ValueError, match="forgotten class 3"):
        row_of((3,))
