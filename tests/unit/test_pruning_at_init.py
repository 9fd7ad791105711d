"""Masks without training: SynFlow's rounds, SNIP, GraSP and random masks, per trial."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_network as tiny

from sparse_mu import masks, pruning, scores
from sparse_mu.losses import classification
from sparse_mu.pruning_at_init import _synflow_schedule
from sparse_mu.types import Model

LOSS = classification(tiny.apply_fn)
ONES = jnp.ones((1, tiny.FEATURES))
KEY = jax.random.key(3)
MATRICES = {"prunable": masks.matrices}
WEIGHTS = 45  # of the two kernels of the tiny network

FIND = {
    "random": lambda model, key, batch, **rest: pruning.random_masks(
        key, model, 0.6, **MATRICES, **rest
    ),
    "snip": lambda model, key, batch, **rest: pruning.snip_masks(
        LOSS, model, batch, key, 0.6, **MATRICES, **rest
    ),
    "grasp": lambda model, key, batch, **rest: pruning.grasp_masks(
        tiny.apply_fn, model, batch, key, 0.6, **MATRICES, **rest
    ),
    "synflow": lambda model, key, batch, **rest: pruning.synflow_masks(
        tiny.apply_fn, model, ONES, 0.6, rounds=3, **MATRICES, **rest
    ),
}


def deep_chain(params, net_state, inputs, *, train, key):
    """Three linear layers; nothing else."""
    del train, key
    for name in ("first", "second", "third"):
        inputs = inputs @ params[name]
    return inputs, net_state


def chain_of(scales):
    rng = np.random.default_rng(0)
    shapes = {"first": (4, 6), "second": (6, 6), "third": (6, 3)}
    draws = [rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape) for shape in shapes.values()]
    rows = zip(shapes, draws, scales, strict=True)
    return Model({name: jnp.asarray(draw * scale, jnp.float32) for name, draw, scale in rows})


def per_layer(found):
    return {name: int(leaf.sum()) for name, leaf in found.items()}


@pytest.mark.ci
def test_synflow_keeps_every_layer_where_magnitude_empties_one():
    model, arguments = chain_of([1.0, 1e-3, 1.0]), {"prunable": masks.matrices}
    ones = jnp.ones((1, 4))
    assert per_layer(pruning.omp(model, 0.9, prunable=masks.matrices).masks)["second"] == 0
    found = pruning.synflow_masks(deep_chain, model, ones, 0.9, rounds=20, **arguments)
    assert min(per_layer(found).values()) > 0
    # and the eight that are left still connect: some input reaches some logit
    kept = masks.apply(found, model.params)
    assert jnp.abs(deep_chain(kept, (), ones, train=False, key=None)[0]).sum() > 0
    # scaling a layer scales R and with it every score: the mask is that of equal scales
    equal = pruning.synflow_masks(
        deep_chain, chain_of([1, 1, 1]), ones, 0.9, rounds=20, **arguments
    )
    jax.tree.map(np.testing.assert_array_equal, found, equal)
    assert sum(per_layer(found).values()) == 78 - round(0.9 * 78)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.75, 0.99])
@pytest.mark.parametrize("rounds", [1, 7, 100])
def test_the_rounds_of_synflow_end_at_the_exact_count(sparsity, rounds):
    for size in (5, 45, 267_696):
        schedule = _synflow_schedule([size], sparsity, rounds, "exact")
        assert len(schedule) == rounds
        assert sum(int(gone[0]) for gone in schedule) == round(sparsity * size)
        assert min(int(gone[0]) for gone in schedule) >= 0


def test_the_official_rounds_of_synflow_keep_one_weight_less_of_resnet20s():
    # SPEC section 3: 26,769 kept, one shot 26,770
    official = _synflow_schedule([267_696], 0.9, 100, "official")
    assert 267_696 - sum(int(gone[0]) for gone in official) == 26_769
    # each leaf alone; one of fewer than .5 / q = 21 weights is never pruned
    by_leaf = np.stack(_synflow_schedule([20, 1000], 0.9, 100, "official"))
    assert by_leaf[:, 0].sum() == 0 and abs(by_leaf[:, 1].sum() - 900) < 25


def test_synflow_is_a_loop_of_its_score_and_pruning_further(key):
    model, found = tiny.draw(key), masks.ones_like(tiny.draw(key).params)
    score = jax.jit(lambda kept: scores.synflow(tiny.apply_fn, model, ONES, masks=kept))
    for _ in range(4):
        found = masks.prune_further(found, score(found), 1 - 0.3 ** (1 / 4), masks.matrices)
    official = pruning.synflow_masks(
        tiny.apply_fn, model, ONES, 0.7, rounds=4, counts="official", **MATRICES
    )
    jax.tree.map(np.testing.assert_array_equal, found, official)


def test_synflow_reads_no_data():
    for function in (pruning.synflow_masks, scores.synflow):
        assert not {"batch", "labels", "key", "loss_fn"} & set(
            inspect.signature(function).parameters
        )


@pytest.mark.parametrize(("scale", "message"), [(1e20, "not finite"), (0.0, "all 0")])
def test_a_flow_that_overflows_or_vanishes_is_refused(scale, message):
    model = chain_of([scale] * 3)
    with pytest.raises(ValueError, match=message):
        pruning.synflow_masks(
            deep_chain, model, jnp.ones((1, 4)), 0.5, rounds=1, prunable=masks.matrices
        )


@pytest.mark.parametrize("name", FIND)
def test_each_trial_has_the_mask_of_its_own_weights_key_and_batch(name):
    models, _, keys, _ = tiny.batched_trials(2)
    batches = jax.tree.map(lambda *rows: jnp.stack(rows), tiny.batch(1), tiny.batch(2))
    together = FIND[name](models, keys, batches, batched=True)
    for trial in range(2):
        own = jax.tree.map(lambda leaf, t=trial: leaf[t], (models, keys, batches, together))
        alone = FIND[name](*own[:3])
        jax.tree.map(np.testing.assert_array_equal, own[3], alone)
        assert int(masks.pruned(alone, masks.matrices)[0]) == round(0.6 * WEIGHTS)
    assert any(bool((leaf[0] != leaf[1]).any()) for leaf in jax.tree.leaves(together))


@pytest.mark.parametrize("name", FIND)
def test_scope_and_structure_are_handed_on(name, key):
    found = FIND[name](tiny.draw(key), KEY, tiny.batch(1), scope="leaf", structure="filters")
    for layer, filters in (("hidden", tiny.HIDDEN), ("head", tiny.CLASSES)):
        kernel = np.asarray(found[layer]["kernel"])
        np.testing.assert_array_equal(kernel.any(axis=0), kernel.all(axis=0))
        assert kernel.any(axis=0).sum() == filters - round(0.6 * filters)


def test_the_official_forms_differ_from_the_published_ones(key):
    model = tiny.draw(key)
    for name in ("snip", "grasp"):
        published, official = (
            FIND[name](model, KEY, tiny.batch(1), form=form) for form in ("published", "official")
        )
        differ = jax.tree.map(lambda one, other: int((one != other).sum()), published, official)
        assert sum(jax.tree.leaves(differ)) > 0, name


def test_grasp_keeps_the_highest_signed_score(key):
    model = tiny.draw(key)
    found = FIND["grasp"](model, KEY, tiny.batch(1))
    signed = jax.jit(scores.grasp, static_argnums=0)(tiny.apply_fn, model, tiny.batch(1), KEY)
    kept, gone = [], []
    for layer in found:
        mask, score = np.asarray(found[layer]["kernel"]), np.asarray(signed[layer]["kernel"])
        kept.append(score[mask])
        gone.append(score[~mask])
    assert np.concatenate(gone).max() < np.concatenate(kept).min()
    assert np.concatenate(gone).min() < 0, "a large negative score goes first, whatever its size"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: FIND["snip"](model, KEY, tiny.batch(1), form="theirs"), "form = 'theirs'"),
        (lambda model: FIND["grasp"](model, KEY, tiny.batch(1), form="theirs"), "form = 'theirs'"),
        (lambda model: FIND["grasp"](model, KEY, tiny.batch(1), temperature=0), "temperature"),
        (lambda model: FIND["synflow"](model, KEY, None, counts="some"), "counts = 'some'"),
        (
            lambda model: pruning.synflow_masks(
                tiny.apply_fn, model, ONES, 0.5, rounds=0, **MATRICES
            ),
            "rounds = 0",
        ),
        (
            lambda model: pruning.synflow_masks(tiny.apply_fn, model, ONES, 1.0, **MATRICES),
            "sparsity = 1.0",
        ),
        (lambda model: pruning.random_masks(KEY, model, 1.5, **MATRICES), "sparsity = 1.5"),
        (lambda model: pruning.random_masks(KEY, model, 0.5), "prunable="),
    ],
)
def test_bad_arguments_are_named(call, message, key):
    with pytest.raises(ValueError, match=message):
        call(tiny.draw(key))


def test_score_rows_are_so_many_of_each_class():
    labels = np.array([0, 1, 2, 1] * 10)
    members = np.arange(40) >= 8
    rows = pruning.score_rows(KEY, labels, 3, members)
    assert labels[rows].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert members[rows].all() and len(set(rows.tolist())) == 9
    other = pruning.score_rows(jax.random.key(4), labels, 3, members)
    assert set(rows.tolist()) != set(other.tolist())
    with pytest.raises(ValueError, match="class 0 has only 8 rows"):
        pruning.score_rows(KEY, labels, 9, members)
