"""One-shot magnitude pruning: in place, rewound, per trial, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_network as tiny

from sparse_mu import masks, pruning


@pytest.fixture
def model(key):
    return tiny.draw(key)


def kernels(tree):
    return np.concatenate([np.ravel(tree["head"]["kernel"]), np.ravel(tree["hidden"]["kernel"])])


def test_omp_in_place_keeps_the_largest_weights_and_zeroes_the_rest(model):
    sparse, found = pruning.omp(model, 0.8, prunable=masks.matrices)
    weights = kernels(model.params)
    kept = np.abs(weights) >= np.sort(np.abs(weights))[36]  # 36 of 45 go
    np.testing.assert_array_equal(kernels(found), kept)
    np.testing.assert_array_equal(kernels(sparse.params), np.where(kept, weights, 0))
    np.testing.assert_array_equal(sparse.params["head"]["bias"], model.params["head"]["bias"])
    assert float(masks.sparsity(found, masks.matrices)) == pytest.approx(0.8)


def test_sparsity_zero_changes_nothing(model):
    sparse, found = pruning.omp(model, 0.0, prunable=masks.matrices)
    jax.tree.map(np.testing.assert_array_equal, sparse, model)
    assert kernels(found).all()


def test_rewinding_masks_the_rewound_weights_by_the_trained_ones_and_trains(model):
    rewound = tiny.draw(jax.random.key(9))
    calls = []

    def train(given, given_masks, *, start, stop):
        calls.append((given, given_masks, start, stop))
        return given._replace(params=jax.tree.map(lambda leaf: 2 * leaf, given.params))

    sparse, found = pruning.omp(
        model, 0.5, prunable=masks.matrices, rewind=rewound, train=train, start=3, stop=9
    )
    jax.tree.map(
        np.testing.assert_array_equal, found, pruning.magnitude_masks(model, 0.5, masks.matrices)
    )
    ((given, given_masks, start, stop),) = calls
    assert (start, stop) == (3, 9)
    jax.tree.map(np.testing.assert_array_equal, given_masks, found)
    expected = masks.apply(found, rewound.params)
    jax.tree.map(np.testing.assert_array_equal, given.params, expected)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, expected)
    jax.tree.map(np.testing.assert_array_equal, sparse.params, doubled)


def test_batched_trials_are_pruned_each_by_its_own_weights():
    models, *_ = tiny.batched_trials(3)
    together = pruning.omp(models, 0.5, prunable=masks.matrices, batched=True)
    for trial in range(3):
        one, pruned = jax.tree.map(lambda leaf, t=trial: leaf[t], (models, together))
        alone = pruning.omp(one, 0.5, prunable=masks.matrices)
        jax.tree.map(np.testing.assert_array_equal, pruned, alone)


@pytest.mark.parametrize("half", [{"rewind": True}, {"train": True}])
def test_rewind_without_train_or_the_reverse_is_refused(model, half):
    given = {"rewind": {"rewind": model}, "train": {"train": lambda *a, **k: model}}
    with pytest.raises(ValueError, match="go together"):
        pruning.omp(model, 0.5, prunable=masks.matrices, **given[next(iter(half))])


@pytest.mark.parametrize("sparsity", [-0.5, 1.0, 90])
def test_a_sparsity_that_is_no_fraction_is_refused(model, sparsity):
    with pytest.raises(ValueError, match="must be a fraction"):
        pruning.omp(model, sparsity, prunable=masks.matrices)


def test_a_network_without_convolutions_asks_for_prunable(model):
    with pytest.raises(ValueError, match="prunable="):
        pruning.omp(model, 0.5)


def test_the_given_model_stays_as_it_was(model):
    before = jax.tree.map(np.array, model)
    pruning.omp(model, 0.5, prunable=masks.matrices)
    jax.tree.map(np.testing.assert_array_equal, model, before)
    assert jnp.all(model.params["head"]["kernel"] != 0)
