"""Every method against a file of what the official code did with the same weights and data."""

import comparisons
import jax
import pytest
import vectors

KIND = vectors.METHODS


def lengthy(test):
    """Slow by default; never left out of a run with ``--vectors`` (see conftest)."""
    test.lengthy = True
    return test


def needs(path, key):
    if not vectors.group(path, key):
        pytest.skip(f"{path.name} holds no '{key}'")


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("float32"):
        yield


def test_logits(recorded, record):
    needs(recorded, "forward")
    record(comparisons.forward_rows(recorded))


def test_magnitude_mask(recorded, record):
    needs(recorded, "omp_mask")
    record(comparisons.omp_rows(recorded))


@pytest.mark.ci
@pytest.mark.parametrize("arm", ["dense", "sparse"])
@pytest.mark.parametrize("method", ["ft", "l1", "ga"])
def test_first_order_methods(recorded, record, method, arm):
    key = f"{method}_{arm}"
    needs(recorded, key)
    record(comparisons.first_order_rows_in_double(recorded, key))
    single = {"limits": comparisons.SINGLE, "note": ", float32"}
    record(comparisons.first_order_rows(recorded, key, **single))


@lengthy
def test_snip_mask(recorded, record):
    needs(recorded, "snip_mask")
    record(comparisons.snip_rows(recorded))


@lengthy
def test_grasp_mask(recorded, record):
    needs(recorded, "grasp_mask")
    record(comparisons.grasp_rows(recorded))


@lengthy
def test_synflow_mask(recorded, record):
    needs(recorded, "synflow_mask")
    record(comparisons.synflow_rows(recorded))


@lengthy
@pytest.mark.parametrize("arm", ["dense", "sparse"])
def test_influence(recorded, record, arm):
    needs(recorded, f"iu_{arm}")
    record(comparisons.influence_rows(recorded, f"iu_{arm}"))


@lengthy
def test_fisher_estimate(recorded, record):
    needs(recorded, "ff_fisher")
    record(comparisons.fisher_rows(recorded))


@lengthy
@pytest.mark.parametrize("scenario", ["random", "class"])
def test_fisher_noise(recorded, record, scenario):
    needs(recorded, f"ff_variance_{scenario}")
    record(comparisons.gaussian_rows(recorded, scenario))


def test_membership_attack(recorded, record):
    needs(recorded, "mia")
    record(comparisons.attack_rows(recorded))
