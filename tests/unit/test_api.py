"""The calls of a library user, on a network of plain dicts."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_network as tiny

import sparse_mu
from sparse_mu.optimiser import LEARNING_RATE_SCHEDULES

LOSS = sparse_mu.classification(tiny.apply_fn)
RATE = optax.sgd(0.5)
FINETUNE = sparse_mu.finetune(LOSS, RATE)
RETAIN, FORGET, TEST = tiny.examples(0, 24), tiny.examples(1, 8), tiny.examples(2, 12)


@pytest.fixture
def model(key):
    return tiny.draw(key)


def logits_of(model, inputs):
    key = jax.random.key(0)
    return tiny.apply_fn(model.params, model.net_state, inputs, train=False, key=key)[0]


def assert_same_bits(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_one_full_batch_of_finetuning_is_one_gradient_step(model, key):
    inputs, labels = RETAIN
    found = sparse_mu.forget(FINETUNE, model, retain=RETAIN, batch_size=24, key=key)

    def mean_loss(params):
        logits = logits_of(sparse_mu.Model(params), inputs)
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(24), labels])

    gradient = jax.grad(mean_loss)(model.params)
    expected = jax.tree.map(lambda w, g: w - 0.5 * g, model.params, gradient)
    # the sum over rows is taken in another order
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found.params, expected
    )


def test_the_model_is_untouched_and_the_result_repeats(model, key):
    before = jax.tree.map(np.array, model)
    given = {"retain": RETAIN, "forget": FORGET, "batch_size": 8, "epochs": 2, "key": key}
    once, twice = (sparse_mu.forget(FINETUNE, model, **given) for _ in range(2))
    assert_same_bits(once, twice)
    assert_same_bits(model, before)
    assert jax.tree.map(jax.typeof, once) == jax.tree.map(jax.typeof, model)
    other = sparse_mu.forget(FINETUNE, model, **given | {"key": jax.random.key(9)})
    assert not np.array_equal(other.params["head"]["kernel"], once.params["head"]["kernel"])


def test_a_raw_key_and_lists_of_rows_are_taken_too(model):
    inputs, labels = RETAIN
    for kind in (jax.random.key, jax.random.PRNGKey):
        typed = sparse_mu.forget(FINETUNE, model, retain=RETAIN, batch_size=8, key=kind(3))
        listed = sparse_mu.forget(
            FINETUNE, model, retain=(inputs.tolist(), labels.tolist()), batch_size=8, key=kind(3)
        )
        assert_same_bits(typed, listed)


def test_pruned_weights_stay_zero(model, key):
    sparse, kept = sparse_mu.omp(model, 0.5, prunable=sparse_mu.matrices)
    found = sparse_mu.forget(FINETUNE, sparse, kept, retain=RETAIN, batch_size=8, key=key)
    gone = jax.tree.map(lambda mask, leaf: np.asarray(leaf)[~np.asarray(mask)], kept, found.params)
    assert sum(leaf.size for leaf in jax.tree.leaves(gone)) == 22
    assert not any(leaf.any() for leaf in jax.tree.leaves(gone))


@pytest.mark.ci
def test_a_second_request_starts_from_the_unlearned_model(model, key):
    ascent = sparse_mu.gradient_ascent(LOSS, optax.sgd(0.1))
    first_set, second_set = tiny.examples(5, 8), tiny.examples(6, 8)

    def ask(start, examples):
        return sparse_mu.forget(ascent, start, forget=examples, batch_size=8, key=key)

    def loss(one, examples):
        batch = sparse_mu.Batch(*map(jnp.asarray, examples), jnp.ones(8))
        return float(LOSS(one.params, one.net_state, batch, key)[0])

    once = ask(model, first_set)
    twice = ask(once, second_set)
    assert loss(once, first_set) > loss(model, first_set)
    assert loss(twice, second_set) > loss(once, second_set)
    assert_same_bits(ask(model, first_set), once)


@pytest.mark.parametrize("reads", ["retain", "forget", "both"])
def test_a_set_that_the_method_reads_is_asked_for_by_name(model, key, reads):
    make = {
        "retain": lambda: FINETUNE,
        "forget": lambda: sparse_mu.gradient_ascent(LOSS, RATE),
        "both": lambda: sparse_mu.influence_unlearning(LOSS, rows=4),
    }
    given = {"retain": {"forget": FORGET}, "forget": {"retain": RETAIN}, "both": {"retain": RETAIN}}
    missing = "forget" if reads == "both" else reads
    with pytest.raises(ValueError, match=f"pass {missing}="):
        sparse_mu.forget(make[reads](), model, key=key, **given[reads])


def bad_rows():
    inputs, labels = RETAIN
    broken = inputs.copy()
    broken[5, 2] = np.nan
    return {
        "24 inputs but 23 labels": (inputs, labels[:-1]),
        "the set is empty": (inputs[:0], labels[:0]),
        "vector of integers, got float32": (inputs, labels.astype(np.float32)),
        r"vector of integers, got int32\[24, 1\]": (inputs, labels[:, None]),
        "label -3 is no class": (inputs, np.where(labels == 0, -3, labels)),
        "inputs of row 5 are not finite": (broken, labels),
    }


@pytest.mark.parametrize("message", bad_rows())
def test_malformed_rows_are_refused_with_the_name_of_their_set(model, key, message):
    rows = bad_rows()[message]
    with pytest.raises(ValueError, match=f"retain: .*{message}"):
        sparse_mu.forget(FINETUNE, model, retain=rows, key=key)
    with pytest.raises(ValueError, match=f"test: .*{message}"):
        sparse_mu.evaluate(tiny.apply_fn, model, retain=RETAIN, forget=FORGET, test=rows)


@pytest.mark.parametrize("numbers", [{"batch_size": 0}, {"epochs": 0}, {"epochs": -1}])
def test_sizes_below_one_are_refused(model, key, numbers):
    with pytest.raises(ValueError, match="both must be at least 1"):
        sparse_mu.forget(FINETUNE, model, retain=RETAIN, key=key, **numbers)


def test_a_model_that_is_not_finite_is_refused_by_leaf(model, key):
    broken = jax.tree.map(lambda leaf: leaf, model.params)
    broken["head"]["bias"] = jnp.array([0.0, jnp.nan, 0.0])
    with pytest.raises(ValueError, match="'params/head/bias' holds values that are not finite"):
        sparse_mu.forget(FINETUNE, model._replace(params=broken), retain=RETAIN, key=key)


def test_a_mask_that_does_not_fit_is_refused_by_leaf(model, key):
    kept = sparse_mu.masks.ones_like(model.params)
    kept["head"]["kernel"] = jnp.ones((2, 2), bool)
    with pytest.raises(ValueError, match="head/kernel"):
        sparse_mu.forget(FINETUNE, model, kept, retain=RETAIN, key=key)


def test_divergence_warns_and_returns_the_last_finite_model(model, key):
    wild = sparse_mu.finetune(LOSS, optax.sgd(1e38))
    with pytest.warns(sparse_mu.DivergedWarning, match="diverged"):
        found = sparse_mu.forget(wild, model, retain=RETAIN, batch_size=8, epochs=3, key=key)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_evaluate_counts_correct_rows_of_each_set(model):
    values = sparse_mu.evaluate(
        tiny.apply_fn, model, retain=RETAIN, forget=FORGET, test=TEST, batch_size=7
    )

    def accuracy(examples):
        return float(np.mean(np.argmax(logits_of(model, examples[0]), axis=1) == examples[1]))

    assert values["ua"] == pytest.approx(1 - accuracy(FORGET))
    assert values["ra"] == pytest.approx(accuracy(RETAIN))
    assert values["ta"] == values["ta_all"] == pytest.approx(accuracy(TEST))
    assert 0 <= values["mia_efficacy"] <= 1
    assert not any(name.startswith("gap_") or name == "ua_test" for name in values)


def test_gaps_to_a_reference_are_signed_differences(model):
    sets = {"retain": RETAIN, "forget": FORGET, "test": TEST}
    other = tiny.draw(jax.random.key(4))
    values = sparse_mu.evaluate(tiny.apply_fn, model, reference=other, **sets)
    of_other = sparse_mu.evaluate(tiny.apply_fn, other, **sets)
    for name in ("ua", "ra", "ta", "mia_efficacy"):
        assert values[f"gap_retrain_{name}"] == pytest.approx(values[name] - of_other[name])
    assert any(values[f"gap_retrain_{name}"] != 0 for name in ("ua", "ra", "ta"))


def test_a_forgotten_class_leaves_the_test_accuracy_and_adds_its_own(model):
    test = tiny.examples(2, 60)
    forget_class = tiny.examples(1, 40)
    keep = forget_class[1] == 1
    values = sparse_mu.evaluate(
        tiny.apply_fn, model, retain=RETAIN, test=test, forgotten_classes=(1,),
        forget=(forget_class[0][keep], forget_class[1][keep]),
    )  # fmt: skip
    right = np.argmax(logits_of(model, test[0]), axis=1) == test[1]
    assert values["ta"] == pytest.approx(right[test[1] != 1].mean())
    assert values["ua_test"] == pytest.approx(1 - right[test[1] == 1].mean())
    assert "mia_class" in values


def test_evaluate_refuses_a_model_whose_logits_are_not_finite(model):
    broken = jax.tree.map(lambda leaf: leaf * jnp.inf, model)
    with pytest.raises(ValueError, match="not finite"):
        sparse_mu.evaluate(tiny.apply_fn, broken, retain=RETAIN, forget=FORGET, test=TEST)


def test_importing_the_package_loads_nothing_heavy_and_starts_no_backend():
    heavy = ["flax", "orbax", "tensorflow_datasets", "tensorflow", "sklearn", "matplotlib", "torch"]
    program = (
        "import sys, sparse_mu; from jax._src import xla_bridge; "
        f"print([m for m in {heavy} if m in sys.modules], xla_bridge.backends_are_initialized())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[] False"


# training_path


def all_examples():
    return tuple(np.concatenate(parts) for parts in zip(RETAIN, FORGET, strict=True))


RETAINED = np.arange(32) < 24


def test_a_path_is_the_training_seen_on_its_way(model, key):
    path = sparse_mu.training_path(
        FINETUNE, model, examples=RETAIN, epochs=4, batch_size=8, key=key
    )
    seen = path((1, 3))
    assert sorted(seen) == [1, 3]
    for epochs, found in seen.items():
        given = {"retain": RETAIN, "batch_size": 8, "epochs": epochs, "key": key}
        assert_same_bits(found, sparse_mu.forget(FINETUNE, model, **given))
    asked = []

    def enough(seen, trials):
        asked.append((sorted(seen), trials.tolist()))
        assert jax.tree.map(jnp.shape, seen[1]) == jax.tree.map(jnp.shape, model)
        return np.array([len(seen) == 2])

    assert_same_bits(path((1, 2, 3), enough)[2], path((2,))[2])
    assert asked == [([1], [0]), ([1, 2], [0])]


def test_paths_of_one_key_share_their_order_and_their_number_of_steps(model, key):
    """Noted by a loss whose network state counts the rows it saw, weighed by their place."""

    def noting(params, net_state, batch, key):
        rows = batch.inputs[:, 0].astype(int)
        place = net_state["steps"] * 8 + jnp.arange(8)
        at = jnp.where(batch.weights > 0, rows, 32)
        noted = {
            "steps": net_state["steps"] + 1,
            "order": net_state["order"].at[place].set(jnp.where(batch.weights > 0, rows, -1)),
            "seen": net_state["seen"].at[at].add(1, mode="drop"),
        }
        total = jnp.sum(params["w"]) * 0
        return total, sparse_mu.LossAux(jnp.sum(batch.weights), noted, total)

    blank = {
        "steps": jnp.int32(0),
        "order": jnp.zeros(32, jnp.int32),
        "seen": jnp.zeros(32, jnp.int32),
    }
    counting = sparse_mu.Model({"w": jnp.ones(2)}, blank)
    numbered = (np.arange(32, dtype=np.float32)[:, None], np.zeros(32, int))
    recipe = sparse_mu.finetune(noting, optax.sgd(0.1))
    whole, rest = (
        sparse_mu.training_path(
            recipe, counting, examples=numbered, members=members, epochs=1, batch_size=8, key=key
        )((1,))[1].net_state
        for members in (None, RETAINED)
    )
    assert whole["steps"] == rest["steps"] == 4  # 24 rows alone would be 3
    kept = [row for row in whole["order"].tolist() if row < 24]
    assert rest["order"].tolist()[:24] == kept
    assert sorted(rest["seen"].tolist()) == [0] * 8 + [1] * 16 + [2] * 8


def test_a_path_that_ends_early_follows_the_schedule_of_the_whole_training(model, key):
    """With the horizon of its own end, the cosine would be through half way."""
    cosine = sparse_mu.finetune(
        LOSS,
        hyper=sparse_mu.hyper_parameters(
            learning_rate=0.1, lr_schedule=LEARNING_RATE_SCHEDULES.index("cosine")
        ),
    )
    given = {"examples": RETAIN, "batch_size": 8, "key": key}
    path = sparse_mu.training_path(cosine, model, epochs=4, **given)
    assert_same_bits(path((2,))[2], path((2, 4))[2])
    shorter = sparse_mu.training_path(cosine, model, epochs=2, **given)((2,))[2]
    assert not np.array_equal(*(jax.tree.leaves(m.params)[0] for m in (shorter, path((2,))[2])))
    with pytest.raises(ValueError, match=r"epoch 5 is asked for: the training has 4"):
        path((5,))


def test_bad_members_are_refused(model, key):
    for members in (np.ones(3, bool), np.zeros(24, bool), np.ones(24)):
        with pytest.raises(ValueError, match=r"members: must be bool\[24\]"):
            sparse_mu.training_path(
                FINETUNE, model, examples=RETAIN, members=members, epochs=1, key=key
            )


def test_unpruning_one_model_is_exact_after_the_whole_training(model, key):
    given = {"examples": all_examples(), "epochs": 4, "batch_size": 8, "key": key}
    over_all = sparse_mu.training_path(FINETUNE, model, **given)
    over_retain = sparse_mu.training_path(FINETUNE, model, members=RETAINED, **given)
    seen = over_all((2, 4))
    original, masks = sparse_mu.omp(seen[4], 0.5, prunable=sparse_mu.matrices)
    _, target = sparse_mu.omp(over_retain((4,))[4], 0.5, prunable=sparse_mu.matrices)

    def unlearn(model, masks, *, start, stop):
        return sparse_mu.forget(
            FINETUNE, model, masks, retain=RETAIN, batch_size=8, epochs=stop, key=key
        )

    found = sparse_mu.unprune(
        over_retain,
        unlearn,
        theta_0=model,
        original=original,
        masks=masks,
        mode=sparse_mu.Difference(dense=seen[4], snapshots=seen),
        epochs=4,
        block=2,
        unlearn_epochs=2,
        prunable=sparse_mu.matrices,
    )
    assert_same_bits(found.masks, jax.tree.map(np.asarray, target))
    gone = jax.tree.map(lambda m, w: np.where(m, 0, w), found.masks, found.model.params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gone))
    assert found.epochs.tolist() == [4]
