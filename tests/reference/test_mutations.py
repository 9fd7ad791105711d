"""The comparisons must fail for a wrong implementation: one test per row of PARITY's table.

Each test spoils one part and asks that a limit is broken; the controls, with nothing spoiled, pass
in ``test_official_methods`` and here.
"""

import functools

import comparisons
import jax
import mistakes
import numpy as np
import pytest
import vectors

from sparse_mu import membership, models, scores
from sparse_mu.models import convolution, normalisation, resnet20s

KIND = vectors.METHODS
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("float32"):
        yield


@pytest.fixture
def broken(request):
    """Takes rows; returns the last words of the keys of those beyond their limit."""

    def of_rows(rows):
        beyond = [row for row in rows if not row.passed]
        for row in beyond:
            found = [request.node.name, row.key, float(row.error), float(row.limit)]
            request.node.user_properties.append(("reference_mistake", found))
        return {row.key.split(" ", 1)[1] for row in beyond}

    return of_rows


def optimiser_rows(path, key, kind):
    """First-order rows with :data:`mistakes.MISTAKEN_SGD`, whose mistake is set in its state."""
    return comparisons.first_order_rows(
        path, key, tx=mistakes.MISTAKEN_SGD, mistake=mistakes.OPTIMISER.index(kind)
    )


@pytest.mark.parametrize("key", ["ft_dense", "l1_dense"])
def test_the_spoilt_optimiser_without_a_mistake_passes(recorded, key, broken):
    assert not broken(optimiser_rows(recorded, key, "none"))


@pytest.mark.parametrize(
    "kind", ["nesterov", "dampening", "decoupled decay", "decay of kernels only"]
)
def test_a_wrong_optimiser_fails(recorded, kind, broken):
    assert broken(optimiser_rows(recorded, "ft_dense", kind))


@pytest.mark.parametrize("kind", ["l1 on convolutions only", "l1 on kernels only"])
def test_a_penalty_of_some_leaves_fails(recorded, kind, broken):
    assert broken(optimiser_rows(recorded, "l1_dense", kind))


@pytest.mark.parametrize("key", ["ft_dense", "ga_dense"])
def test_no_weight_decay_fails(recorded, key, broken):
    assert broken(comparisons.first_order_rows(recorded, key, weight_decay=0.0))


def test_no_penalty_fails(recorded, broken):
    assert broken(comparisons.first_order_rows(recorded, "l1_dense", gamma=0.0))


def test_a_penalty_that_does_not_decay_fails(recorded, broken):
    alpha = vectors.settings_of(recorded)["l1_alpha"]
    changes = {"gamma": alpha, "gamma_schedule": 0}
    assert broken(comparisons.first_order_rows(recorded, "l1_dense", **changes))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (functools.partial(normalisation.BatchNorm, epsilon=1e-3), {"together"}),
        (functools.partial(normalisation.BatchNorm, momentum=0.01), {"running statistics"}),
        # the parameters do not show it
        (mistakes.BiasedBatchNorm, {"running statistics"}),
    ],
    ids=["epsilon", "momentum", "biased variance"],
)
def test_wrong_batch_normalisation_fails(recorded, monkeypatch, change, expected, broken):
    monkeypatch.setattr(resnet20s, "BatchNorm", change)
    network = vectors.network_of(recorded)
    rows = comparisons.first_order_rows(recorded, "ft_dense", network=network)
    assert expected <= broken(rows)


@pytest.mark.parametrize("key", ["ft_dense", "ga_dense"])
def test_batch_normalisation_in_evaluation_mode_fails(recorded, key, broken):
    assert "together" in broken(comparisons.first_order_rows(recorded, key, train=False))


def test_same_padding_fails(recorded, monkeypatch, broken):
    monkeypatch.setattr(convolution, "convolve", mistakes.same_padding)
    network = vectors.network_of(recorded)
    rows = comparisons.first_order_rows(recorded, "ft_dense", network=network)
    assert "together" in broken(rows)
    assert broken(comparisons.forward_rows(recorded, network))


@pytest.mark.parametrize("key", ["iu_dense", "iu_sparse"])
def test_influence_without_its_recursion_fails(recorded, key, broken):
    assert "together" in broken(comparisons.influence_rows(recorded, key, passes=0))


@pytest.mark.parametrize(
    "change", [{"score": scores.snip}, {"train": False}], ids=["abs(w g)", "evaluation mode"]
)
def test_wrong_snip_fails(recorded, change, broken):
    assert broken(comparisons.snip_rows(recorded, **change))


@pytest.mark.parametrize(
    "score",
    [
        scores.grasp,
        functools.partial(scores.grasp_official, temperature=1.0),
        mistakes.flow_of_convolutions,
    ],
    ids=["signed", "no temperature", "g over convolutions"],
)
def test_wrong_grasp_fails(recorded, score, broken):
    assert broken(comparisons.grasp_rows(recorded, score=score))


def test_synflow_without_the_normaliser_fails(recorded, broken):
    plain = models.Channels((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    side = vectors.rows_of(recorded, "test")[0].shape[1]
    network = vectors.make_network("resnet20s", vectors.classes_of(recorded), plain, side)
    assert broken(comparisons.synflow_rows(recorded, network=network))


def test_synflow_in_train_mode_fails(recorded, broken):
    shipped = comparisons.shipped(recorded).apply_fn

    def apply_fn(params, net_state, inputs, *, train, key):
        del train
        return shipped(params, net_state, inputs, train=True, key=key)[0], net_state

    assert broken(comparisons.synflow_rows(recorded, apply_fn=apply_fn))


def test_synflow_in_one_round_fails(recorded, broken):
    assert broken(comparisons.synflow_rows(recorded, rounds=1))


def test_synflow_that_rounds_down_fails(recorded, monkeypatch, broken):
    monkeypatch.setattr(np, "round", np.floor)  # its schedule is counted by numpy
    assert broken(comparisons.synflow_rows(recorded))


def test_modified_entropy_as_intended_is_not_the_official_one(recorded, broken):
    rows = comparisons.attack_rows(recorded, features={"m_entropy": "modified_entropy"})
    assert broken(rows) == {"efficacy m_entropy", "privacy m_entropy"}


def test_an_svc_with_gamma_scale_fails(recorded, monkeypatch, broken):
    """Gamma "scale" is gamma "auto" of scores divided by their standard deviation."""

    def scaled(name):
        plain = membership.FEATURES[name]
        _, labels, _ = comparisons.set_logits(recorded)
        logits = comparisons.set_logits(recorded)[0]
        shadows = np.concatenate([
            plain(membership.softmax(logits[part]), labels[part])[: len(labels["test"])]
            for part in ("retain", "test")
        ])  # fmt: skip
        return lambda probabilities, labels: plain(probabilities, labels) / shadows.std()

    changed = {name: scaled(name) for name in ("confidence", "entropy")}
    monkeypatch.setattr(membership.features, "FEATURES", membership.FEATURES | changed)
    rows = comparisons.attack_rows(
        recorded, features={"confidence": "confidence", "entropy": "entropy"}
    )
    assert {"efficacy confidence", "efficacy entropy"} <= broken(rows)


def test_fisher_of_single_rows_is_not_the_official_one(recorded, broken):
    assert broken(comparisons.exact_fisher_rows(recorded))


@pytest.mark.parametrize(
    ("scenario", "change"),
    [
        ("random", {"noise": "floored"}),
        ("random", {"head_treatment": "zeroed"}),
        ("class", {"head_treatment": "intact"}),
        ("class", {"head_treatment": "removed"}),
    ],
)
def test_another_law_of_noise_fails(recorded, scenario, change, broken):
    assert broken(comparisons.gaussian_rows(recorded, scenario, **change))


def test_a_mask_of_another_rate_fails(recorded, broken):
    model, _ = comparisons.trained(recorded)
    rate = vectors.settings_of(recorded)["rate"]
    ours = comparisons.magnitude_masks(model, sparsity=rate + 1e-4)
    assert broken(comparisons.mask_rows(recorded, "omp_mask", ours, 0))
