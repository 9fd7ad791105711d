"""Magnitude pruning, one-shot and iterative: in place, rewound, per trial, and what it refuses."""

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


def test_omp_hands_on_scope_and_structure(model):
    _, found = pruning.omp(model, 0.4, prunable=masks.matrices, scope="leaf", structure="channels")
    for layer, inputs in (("hidden", tiny.FEATURES), ("head", tiny.HIDDEN)):
        rows = np.asarray(found[layer]["kernel"])
        np.testing.assert_array_equal(rows.any(axis=1), rows.all(axis=1))
        assert rows.any(axis=1).sum() == inputs - round(0.4 * inputs)


def test_a_mask_found_elsewhere_is_applied_and_trained(model):
    found = tiny.half_masks(model)
    in_place = pruning.sparsify(model, found)
    jax.tree.map(
        np.testing.assert_array_equal, in_place.model.params, masks.apply(found, model.params)
    )
    trained = pruning.sparsify(model, found, train=Doubling(), start=0, stop=5)
    jax.tree.map(
        lambda twice, once: np.testing.assert_array_equal(twice, 2 * once),
        trained.model.params,
        in_place.model.params,
    )


class Doubling:
    """Training that doubles the weights, and notes what it was given."""

    def __init__(self):
        self.calls = []

    def __call__(self, model, masks, *, start, stop):
        self.calls.append((model, masks, start, stop))
        return model._replace(params=jax.tree.map(lambda leaf: 2 * leaf, model.params))


def targets(plan):
    return [(this.parent, round(this.sparsity, 6), this.exact) for this in plan]


def test_imp_rounds_prune_a_fifth_of_what_remains_and_the_last_to_the_target():
    plan = pruning.imp_plan([0.5])
    assert targets(plan) == [
        (None, 0.2, False),
        (0, 0.36, False),
        (1, 0.488, False),
        (2, 0.5, True),
    ]


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.75, 0.9, 0.95, 0.99])
def test_imp_takes_as_many_rounds_as_the_logarithm_says(sparsity):
    expected = int(np.ceil(np.log(1 - sparsity) / np.log(0.8)))
    plan = pruning.imp_plan([sparsity])
    assert len(plan) == expected
    assert [this.parent for this in plan] == [None, *range(expected - 1)]
    for index, this in enumerate(plan[:-1]):
        assert 1 - this.sparsity == pytest.approx(0.8 ** (index + 1))


def test_requested_sparsities_share_one_chain():
    plan = pruning.imp_plan([0.75, 0.0, 0.5, 0.75])
    assert targets(plan) == [
        (None, 0.2, False),
        (0, 0.36, False),
        (1, 0.488, False),
        (2, 0.5, True),
        (2, 0.5904, False),
        (4, 0.67232, False),
        (5, 0.737856, False),
        (6, 0.75, True),
    ]
    # a sparsity on the chain is a round of the chain, and deeper ones go on from it
    on_chain = pruning.imp_plan([0.36, 0.2, 0.4])
    assert targets(on_chain) == [(None, 0.2, True), (0, 0.36, True), (1, 0.4, True)]
    assert pruning.imp_plan([0.0]) == ()


def test_imp_reaches_every_sparsity_exactly_with_the_fewest_trainings(model):
    train = Doubling()
    asked = [0.5, 0.0, 0.6, 0.2]
    dense, rewound = model, tiny.draw(jax.random.key(9))
    found = pruning.imp(
        dense, asked, train=train, rewind=rewound, start=2, stop=7, prunable=masks.matrices
    )
    # .2, .36, .488, then .5 and .5904, .6
    assert len(train.calls) == 6
    for sparsity, (sparse, kept) in zip(asked, found, strict=True):
        assert int(masks.pruned(kept, masks.matrices)[0]) == round(sparsity * 45)
        if sparsity:
            doubled = jax.tree.map(lambda leaf: 2 * leaf, masks.apply(kept, rewound.params))
            jax.tree.map(np.testing.assert_array_equal, sparse.params, doubled)
        else:
            jax.tree.map(np.testing.assert_array_equal, sparse, dense)
    # 20% of the remaining, half to even: 9 of 45, 7 of 36, 6 of 29, 5 of 23; .5 prunes 22 in all
    counts = [45 - int(masks.pruned(kept, masks.matrices)[0]) for _, kept, *_ in train.calls]
    assert counts == [36, 29, 23, 23, 18, 18]
    for given, kept, start, stop in train.calls:
        assert (start, stop) == (2, 7)
        jax.tree.map(np.testing.assert_array_equal, given.params, masks.apply(kept, rewound.params))


def test_imp_masks_are_nested_and_ranked_on_the_trained_weights(model):
    train = Doubling()
    pruning.imp(model, [0.45], train=train, stop=1, prunable=masks.matrices)
    earlier = masks.ones_like(model.params)
    weights = kernels(model.params)
    for given, kept, *_ in train.calls:
        assert not (kernels(kept) & ~kernels(earlier)).any()
        before, now = kernels(earlier), kernels(kept)
        gone = before & ~now
        assert np.abs(weights[gone]).max() < np.abs(weights[now]).min()
        # no rewinding: the parent's trained weights go on, twice as large after every round
        jax.tree.map(np.testing.assert_array_equal, given.params, masks.apply(kept, given.params))
        np.testing.assert_array_equal(kernels(given.params), np.where(now, weights, 0))
        weights, earlier = 2 * weights, kept
    assert len(train.calls) == 3


def test_imp_ranks_by_what_training_made_of_the_weights(model):
    def train(given, kept, *, start, stop):  # turns the order of the magnitudes round
        turned = jax.tree.map(lambda leaf: jnp.exp(-10 * jnp.abs(leaf)), given.params)
        return given._replace(params=masks.apply(kept, turned))

    ((_, kept),) = pruning.imp(
        model, [0.3], train=train, rewind=model, stop=1, prunable=masks.matrices
    )
    # round 1 takes the 9 smallest; round 2 the 5 (to round(13.5) = 14) largest of the given
    order = np.argsort(np.abs(kernels(model.params)))
    expected = np.ones(45, bool)
    expected[order[:9]] = expected[order[-5:]] = False
    np.testing.assert_array_equal(kernels(kept), expected)


def test_imp_of_batched_trials_is_imp_of_each():
    models, *_ = tiny.batched_trials(2)
    arguments = {"stop": 1, "prunable": masks.matrices, "scope": "leaf"}
    together = pruning.imp(models, [0.3], train=Doubling(), batched=True, **arguments)
    for trial in range(2):
        one, sparse = jax.tree.map(lambda leaf, t=trial: leaf[t], (models, together))
        alone = pruning.imp(one, [0.3], train=Doubling(), **arguments)
        jax.tree.map(np.testing.assert_array_equal, sparse, alone)
    for layer, size in (("hidden", 30), ("head", 15)):
        kernel = alone[0].masks[layer]["kernel"]
        assert int(kernel.sum()) == size - round(0.3 * size)


@pytest.mark.parametrize(
    ("sparsities", "rate", "message"),
    [([0.5, 1.0], 0.2, "sparsities holds 1.0"), ([0.5], 0.0, "rate = 0.0"), ([0.5], 1, "rate = 1")],
)
def test_imp_refuses_what_no_chain_reaches(sparsities, rate, message):
    with pytest.raises(ValueError, match=message):
        pruning.imp_plan(sparsities, rate)
