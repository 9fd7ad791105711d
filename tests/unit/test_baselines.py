"""NegGrad+, random labels, SalUn and SCRUB: closed forms, and what the contract suite leaves out.

Closed forms are computed with numpy in float64 on a linear softmax model, whose gradient is
``sum_i w_i x_i (p_i - y_i)``. ``ROUNDING`` allows the float32 of the code under test: values of
order one, a few tens of operations. ``comparing.CLOSE`` allows three steps.

tests/contract runs the four methods too; here stands only what it does not see, such as the min
passes of SCRUB.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
import tiny_network as tiny
from comparing import assert_close, assert_same_bits, differs, host
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec

import sparse_mu
from sparse_mu import masks, unlearn
from sparse_mu.execution import single
from sparse_mu.losses import classification
from sparse_mu.optimiser import hyper_parameters
from sparse_mu.training import fit
from sparse_mu.types import Batch, Hyper, Model, UnlearnBatch
from sparse_mu.unlearn.descent import both_sets
from sparse_mu.unlearn.random_label import wrong_labels
from sparse_mu.unlearn.salun import Saliency, most_salient
from sparse_mu.unlearn.scrub import divergence

ROUNDING = {"rtol": 1e-5, "atol": 1e-6}
HYPER = {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
METHODS = ("negative_gradient", "random_label", "salun", "scrub")
KEY = jax.random.key(11)


TRACES = []


def apply_fn(params, net_state, inputs, *, train, key):
    """The tiny network; notes that Python ran it."""
    TRACES.append(None)
    return tiny.apply_fn(params, net_state, inputs, train=train, key=key)


LOSS = classification(apply_fn)


@functools.lru_cache(maxsize=64)
def method(name, axis_name=None):
    common = {"hyper": hyper_parameters(**HYPER), "axis_name": axis_name}
    if name == "negative_gradient":
        return unlearn.negative_gradient(LOSS, retain_weight=0.8, **common)
    if name == "random_label":
        return unlearn.random_label(LOSS, num_classes=tiny.CLASSES, **common)
    if name == "salun":
        return unlearn.salun(LOSS, num_classes=tiny.CLASSES, **common)
    return unlearn.scrub(apply_fn, alpha=0.5, temperature=2.0, **common)


jit_of = functools.lru_cache(maxsize=64)(jax.jit)
each_method = pytest.mark.parametrize("name", METHODS)


TINY = tiny.draw(KEY)
TINY_DENSE, TINY_HALF = masks.ones_like(TINY.params), tiny.half_masks(TINY)


def started(name):
    """A state ready for its first step: SalUn has seen one batch of the forget set."""
    unlearner = method(name)
    state = unlearner.init(TINY, TINY_HALF, jax.random.key(50))
    if unlearner.survey is not None:
        state, _ = jit_of(unlearner.survey.step)(state, tiny.both_sets(9))
        state = jit_of(unlearner.survey.finish)(state)
    return state


def three_batches():
    return [tiny.both_sets(seed, padding=seed) for seed in range(3)]


# ---- closed forms on a linear model ----------------------------------------------------------


def linear(params, net_state, inputs, *, train, key):
    del train, key
    return inputs @ params["kernel"], net_state


LINEAR_LOSS = classification(linear)
LINEAR = Model({"kernel": jax.random.normal(jax.random.key(2), (tiny.FEATURES, tiny.CLASSES))})
DENSE = masks.ones_like(LINEAR.params)
RATE, DECAY = 0.1, 0.01


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def numbers(batch, labels=None):
    """Weights, inputs, one-hot labels in float64."""
    labels = np.asarray(batch.labels if labels is None else labels)
    hot = np.eye(tiny.CLASSES)[labels]
    return np.asarray(batch.weights, np.float64), np.asarray(batch.inputs, np.float64), hot


def mean_gradient(kernel, batch, labels=None):
    """Mean cross entropy of a batch and its gradient."""
    weights, inputs, hot = numbers(batch, labels)
    found = softmax(inputs @ kernel)
    loss = -np.sum(weights * np.log(np.sum(found * hot, axis=1))) / weights.sum()
    return loss, inputs.T @ (weights[:, None] * (found - hot)) / weights.sum()


def kernel_of(model):
    return np.asarray(model.params["kernel"], np.float64)


def descended(kernel, gradient):
    return kernel - RATE * (gradient + DECAY * kernel)


def linear_hyper(**more):
    return hyper_parameters(learning_rate=RATE, weight_decay=DECAY, **more)


def first_step(unlearner, batch, model=LINEAR, kept=DENSE):
    return jit_of(unlearner.step)(unlearner.init(model, kept, KEY), batch)


@pytest.mark.parametrize("ceiling", [math.inf, 0.1])
def test_negative_gradient_descends_on_dr_and_ascends_on_df_below_the_ceiling(ceiling):
    unlearner = unlearn.negative_gradient(
        LINEAR_LOSS, retain_weight=0.7, ceiling=ceiling, hyper=linear_hyper()
    )
    batch = tiny.both_sets(3, padding=2)
    state, stats = first_step(unlearner, batch)
    kernel = kernel_of(LINEAR)
    retain, down = mean_gradient(kernel, batch.retain)
    forget, up = mean_gradient(kernel, batch.forget)
    assert forget > 0.1  # so that a ceiling of 0.1 is reached and one of infinity is not
    raised = 0.3 * up if ceiling > forget else 0
    expected = descended(kernel, 0.7 * down - raised)
    np.testing.assert_allclose(state.model.params["kernel"], expected, **ROUNDING)
    objective = 0.7 * retain - 0.3 * min(forget, ceiling)
    np.testing.assert_allclose(stats.loss / stats.weight, objective, **ROUNDING)
    assert float(stats.weight) == 8


def test_random_label_descends_towards_the_labels_it_draws():
    unlearner = unlearn.random_label(
        LINEAR_LOSS, num_classes=3, retain_weight=0.6, hyper=linear_hyper()
    )
    batch = tiny.both_sets(3, padding=2)
    start, drawn = unlearner.init(LINEAR, DENSE, KEY), []
    for step in (0, 3):
        state, stats = jit_of(unlearner.step)(start._replace(step=jnp.int32(step)), batch)
        key = jax.random.fold_in(jax.random.fold_in(KEY, step), 1)  # 1: the labels' own draw
        wrong = np.asarray(jit_of(wrong_labels)(batch.forget.labels, 3, key, jnp.int32(0)))
        assert not np.any(wrong == batch.forget.labels)
        kernel = kernel_of(LINEAR)
        (forget, away), (retain, down) = (
            mean_gradient(kernel, batch.forget, wrong),
            mean_gradient(kernel, batch.retain),
        )
        expected = descended(kernel, away + 0.6 * down)
        np.testing.assert_allclose(state.model.params["kernel"], expected, **ROUNDING)
        np.testing.assert_allclose(stats.loss / stats.weight, forget + 0.6 * retain, **ROUNDING)
        drawn.append(wrong.tolist())
    assert drawn[0] != drawn[1]  # anew in every step


def test_salun_moves_the_entries_of_largest_forget_gradient_as_random_label_does():
    common = {"num_classes": 3, "hyper": linear_hyper()}
    loss_fn = LINEAR_LOSS
    surveyed, plain = unlearn.salun(loss_fn, **common), unlearn.random_label(loss_fn, **common)
    seen = [tiny.both_sets(seed, padding=seed) for seed in (4, 5)]
    state = surveyed.init(LINEAR, DENSE, KEY)
    for batch in seen:
        state, _ = jit_of(surveyed.survey.step)(state, batch)
    kernel = kernel_of(LINEAR)
    total = sum(np.sum(b.forget.weights) * mean_gradient(kernel, b.forget)[1] for b in seen)
    np.testing.assert_allclose(state.aux.gradients["kernel"], total, **ROUNDING)
    assert_same_bits(state.model, LINEAR)
    state = jit_of(surveyed.survey.finish)(state)
    salient = np.abs(total) >= np.median(np.abs(total))  # 18 entries: the median parts 9 from 9
    np.testing.assert_array_equal(state.aux.salient["kernel"], salient)
    assert int(state.step) == 0
    moved, _ = jit_of(surveyed.step)(state, tiny.both_sets(3))
    free, _ = first_step(plain, tiny.both_sets(3))
    expected = np.where(salient, free.model.params["kernel"], LINEAR.params["kernel"])
    np.testing.assert_allclose(moved.model.params["kernel"], expected, **ROUNDING)
    np.testing.assert_array_equal(moved.opt_state.trace["kernel"][~salient], 0)


def softened(kernel, batch, temperature):
    return softmax(np.asarray(batch.inputs, np.float64) @ kernel / temperature)


@pytest.mark.parametrize("at_step", [4, 6], ids=["max pass", "min pass"])
def test_scrub_leaves_its_teacher_on_df_and_follows_it_on_dr(at_step):
    # 3 steps an epoch: step 4 is the second epoch (min), 6 the third (max), 4 + 6 beyond both
    alpha, gamma, temperature = 0.3, 0.8, 2.0
    unlearner = unlearn.scrub(
        linear, alpha=alpha, gamma=gamma, temperature=temperature, max_epochs=2,
        hyper=linear_hyper(steps_per_epoch=3),
    )  # fmt: skip
    batch = tiny.both_sets(3, padding=2)
    state = unlearner.init(LINEAR, DENSE, KEY)
    student = Model({"kernel": LINEAR.params["kernel"] + 0.3})
    student.params["kernel"] = student.params["kernel"].at[0, 0].add(1.0)
    at = state._replace(model=student, step=jnp.int32(at_step))
    moved, stats = jit_of(unlearner.step)(at, batch)
    kernel, teacher = kernel_of(student), kernel_of(LINEAR)
    chosen = batch.retain if at_step == 4 else batch.forget
    weights, inputs, _ = numbers(chosen)
    wanted, found = (softened(k, chosen, temperature) for k in (teacher, kernel))
    rows = temperature**2 * np.sum(wanted * np.log(wanted / found), axis=1)
    apart = np.sum(weights * rows) / weights.sum()
    # d KL / d logits = (found - wanted) / T, times T^2
    pull = inputs.T @ (weights[:, None] * temperature * (found - wanted)) / weights.sum()
    entropy, down = mean_gradient(kernel, chosen)
    is_min = at_step == 4
    expected = descended(kernel, alpha * pull + gamma * down if is_min else -pull)
    np.testing.assert_allclose(moved.model.params["kernel"], expected, **ROUNDING)
    objective = alpha * apart + gamma * entropy if is_min else -apart
    np.testing.assert_allclose(stats.loss / stats.weight, objective, **ROUNDING)
    assert float(stats.weight) == weights.sum()
    assert_same_bits(moved.aux, LINEAR)


def test_the_divergence_is_zero_at_the_teacher_and_positive_elsewhere():
    logits = jnp.asarray([[1.0, 2.0, -1.0], [500.0, 0.0, -500.0]])
    np.testing.assert_array_equal(divergence(logits, logits, 2.0), 0)
    assert np.all(np.isfinite(divergence(logits, logits[:, ::-1], 2.0)))
    assert np.all(divergence(logits, logits[:, ::-1], 2.0) > 0)


# ---- what each reduces to --------------------------------------------------------------------


def test_negative_gradient_of_retain_weight_one_is_finetuning():
    hyper, batch = hyper_parameters(**HYPER), tiny.both_sets(0)
    for ceiling in (math.inf, 10.0):
        given_all = unlearn.negative_gradient(LOSS, retain_weight=1.0, ceiling=ceiling, hyper=hyper)
        (actual, stats), (expected, expected_stats) = (
            first_step(unlearner, batch, TINY, TINY_HALF)
            for unlearner in (given_all, unlearn.finetune(LOSS, hyper=hyper))
        )
        assert_close((actual.model, stats), (expected.model, expected_stats))


ROWS = 60  # as many as of the runs through forget below, so that both are one program


def fitted(unlearner, epochs=3, **more):
    model, dense, keys, sets = tiny.batched_trials(1, ROWS)
    return fit(
        unlearner, model, dense, keys, sets, tiny.dataset(count=ROWS),
        batch_size=16, epochs=epochs, execution=single(), **more,
    )  # fmt: skip


def test_scrub_without_max_epochs_and_divergence_is_finetuning():
    hyper = hyper_parameters(**HYPER)
    student = unlearn.scrub(apply_fn, alpha=0.0, gamma=1.0, max_epochs=0, hyper=hyper)
    plain = unlearn.finetune(LOSS, hyper=hyper)
    actual, expected = (u.init(TINY, TINY_HALF, KEY) for u in (student, plain))
    for batch in three_batches():
        actual, found = jit_of(student.step)(actual, batch)
        expected, wanted = jit_of(plain.step)(expected, batch)
        assert_close(found, wanted)
    assert_close((actual.model, actual.opt_state), (expected.model, expected.opt_state))


def test_scrub_passes_alternate_until_the_last_max_epoch():
    assert [unlearn.scrub_passes(epochs, 2) for epochs in (1, 2, 3, 10)] == [2, 4, 5, 12]
    unlearner = unlearn.scrub(
        apply_fn, alpha=0.0, gamma=1.0, max_epochs=2, hyper=hyper_parameters(**HYPER)
    )
    loss = fitted(unlearner, epochs=unlearn.scrub_passes(3, 2)).loss[0]
    # -KL is never positive (rounding aside), cross entropy always: max, min, max, min, min
    assert (loss > 1e-3).tolist() == [False, True, False, True, True]
    assert loss[2] < loss[0]  # it started at its teacher


def test_a_scrub_step_past_the_end_of_its_set_changes_nothing_but_the_count():
    state = started("scrub")
    state, _ = jit_of(method("scrub").step)(state, tiny.both_sets(0))
    state, _ = jit_of(method("scrub").step)(state, tiny.both_sets(1))  # momentum is not 0
    none = tiny.both_sets(2, padding=8)
    held, stats = jit_of(method("scrub").step)(state, none)
    assert_same_bits(held, state._replace(step=state.step + 1))
    assert float(stats.weight) == 0 and bool(stats.finite)


def test_a_min_pass_of_scrub_reads_rows_of_weight_only_and_may_be_split_over_devices():
    # the contract suite compares the first step, a max pass
    state = started("scrub")._replace(step=jnp.int32(1))
    batch = UnlearnBatch(tiny.batch(0, 8, padding=1), tiny.batch(1, 8, padding=3))
    garbled = batch.retain._replace(
        inputs=batch.retain.inputs.at[5:].set(1e3), labels=batch.retain.labels.at[5:].set(2)
    )
    expected = jit_of(method("scrub").step)(state, batch)
    assert differs(expected[0].model, state.model)
    inert = jit_of(method("scrub").step)(state, batch._replace(retain=garbled))
    assert_same_bits(inert, expected)
    mesh = Mesh(np.asarray(jax.devices()), ("devices",))  # the last one has rows of weight 0 only
    whole, split = PartitionSpec(), PartitionSpec("devices")
    spread = jax.shard_map(
        method("scrub", "devices").step, mesh=mesh, in_specs=(whole, split), out_specs=whole
    )
    assert_close(jax.jit(spread)(state, batch), expected)


# ---- random labels ---------------------------------------------------------------------------


def test_wrong_labels_are_uniform_over_the_other_classes():
    labels = jnp.arange(20000, dtype=jnp.int32) % 10
    drawn = np.asarray(wrong_labels(labels, 10, KEY, jnp.int32(0)))
    steps = (drawn - np.asarray(labels)) % 10
    counts = np.bincount(steps, minlength=10)
    assert counts[0] == 0
    # a fixed key: the test decides once; a uniform draw passes with probability 0.999
    assert scipy.stats.chisquare(counts[1:]).pvalue > 1e-3
    per_class = np.histogram2d(labels, drawn, bins=10, range=[[-0.5, 9.5]] * 2)[0]
    observed = per_class[~np.eye(10, dtype=bool)].reshape(10, 9)
    assert scipy.stats.chi2_contingency(observed).pvalue > 1e-3


@settings(max_examples=15, deadline=None)
@given(classes=st.integers(2, 7), seed=st.integers(0, 100))
def test_a_split_draw_is_the_whole_draw_and_never_the_true_label(classes, seed):
    labels = np.arange(12, dtype=np.int32) % classes
    key, draw = jax.random.key(seed), jit_of(wrong_labels)
    whole = np.asarray(draw(labels, classes, key, jnp.int32(0)))
    assert np.all((whole >= 0) & (whole < classes) & (whole != labels))
    parts = [draw(labels[i : i + 4], classes, key, jnp.int32(i)) for i in (0, 4, 8)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


# ---- saliency --------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(fraction=st.floats(0.01, 1.0), seed=st.integers(0, 50), coarse=st.booleans())
def test_the_count_of_salient_weights_is_exact_under_ties_and_masks(fraction, seed, coarse):
    draw = np.random.default_rng(seed)
    gradients = {"a": draw.standard_normal((5, 4)), "b": draw.standard_normal(7)}
    if coarse:  # many ties, zeros among them
        gradients = jax.tree.map(np.round, gradients)
    gradients = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), gradients)
    kept = {"a": jnp.asarray(draw.random((5, 4)) < 0.6), "b": jnp.ones(7, bool)}
    salient = jit_of(most_salient)(gradients, kept, jnp.float32(fraction))
    total = sum(int(leaf.sum()) for leaf in jax.tree.leaves(kept))
    count = sum(int(leaf.sum()) for leaf in jax.tree.leaves(salient))
    assert count == int(np.round(np.float32(fraction) * np.float32(total)))
    assert not any(
        np.any(s & ~k) for s, k in zip(*map(jax.tree.leaves, (salient, kept)), strict=True)
    )
    flat, chosen, alive = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (jax.tree.map(jnp.abs, gradients), salient, kept)
    )
    if 0 < count < total:
        assert flat[chosen].min() >= flat[alive & ~chosen].max()


@pytest.mark.ci
@pytest.mark.parametrize("tx", [None, optax.adamw(0.01, weight_decay=0.1)], ids=["sgd", "adamw"])
def test_weights_that_are_not_salient_keep_their_bits_and_have_no_momentum(tx):
    unlearner = unlearn.salun(
        LOSS, tx, num_classes=3, saliency=0.25,
        hyper=hyper_parameters(learning_rate=0.1, momentum=0.9, weight_decay=0.5, gamma=0.1),
    )  # fmt: skip
    state = unlearner.init(TINY, TINY_HALF, KEY)
    state, _ = jit_of(unlearner.survey.step)(state, tiny.both_sets(9))
    state = jit_of(unlearner.survey.finish)(state)
    salient, before = host(state.aux.salient), host(state.model.params)
    total = sum(int(leaf.sum()) for leaf in jax.tree.leaves(TINY_HALF))  # 53 - 22 pruned
    assert total == 31 and sum(int(leaf.sum()) for leaf in jax.tree.leaves(salient)) == 8
    for batch in three_batches():
        state, _ = jit_of(unlearner.step)(state, batch)
        assert_same_bits(state.aux.salient, salient)

    def check(mask, old, new):
        np.testing.assert_array_equal(new[~mask], old[~mask])
        if mask.any():
            assert np.all(new[mask] != old[mask])

    jax.tree.map(check, salient, before, host(state.model.params))
    shaped = [leaf for leaf in jax.tree.leaves(state.opt_state) if np.shape(leaf) == (6, 5)]
    assert shaped
    for leaf in shaped:
        np.testing.assert_array_equal(np.asarray(leaf)[~salient["hidden"]["kernel"]], 0)


def test_the_survey_differentiates_the_loss_it_is_given_and_leaves_the_model():
    def upside_down(params, net_state, batch, key):
        loss, aux = LOSS(params, net_state, batch, key)
        return -3 * loss, aux._replace(net_state={"seen": net_state["seen"] + 1})

    sums = []
    for saliency_loss_fn in (None, upside_down):
        unlearner = unlearn.salun(
            LOSS, num_classes=3, saliency_loss_fn=saliency_loss_fn, hyper=hyper_parameters()
        )
        state = unlearner.init(TINY, TINY_DENSE, KEY)
        state, _ = jit_of(unlearner.survey.step)(state, tiny.both_sets(9))
        assert_same_bits(state.model, TINY)
        sums.append(state.aux.gradients)
    assert_close(sums[1], jax.tree.map(lambda leaf: -3 * leaf, sums[0]))


# ---- numbers and arguments --------------------------------------------------------------------


@each_method
def test_every_number_is_a_leaf_and_changing_one_does_not_trace_again(name):
    state = started(name)._replace(step=jnp.int32(1))
    step, batch = jit_of(method(name).step), tiny.both_sets(0)
    # a student that has left its teacher: before, temperature changes rounding only
    state = step(state, batch)[0]._replace(step=jnp.int32(1))
    own = [field for field in state.hyper._fields if field not in ("descent", "saliency")]
    moved = step(state, batch)[0].model
    traced = len(TRACES)
    assert traced
    for field in own:
        other = {"num_classes": jnp.int32(2), "ceiling": jnp.float32(1e-3)}.get(
            field, 0 * getattr(state.hyper, field) + 3
        )
        changed = state._replace(hyper=state.hyper._replace(**{field: other}))
        if field == "max_epochs":  # epoch 4 is a max pass of three SCRUB epochs, not of two
            changed = changed._replace(step=jnp.int32(4))
            moved = step(state._replace(step=jnp.int32(4)), batch)[0].model
        assert differs(step(changed, batch)[0].model, moved), field
    assert len(TRACES) == traced


def test_either_set_missing_raises():
    for batch in (UnlearnBatch(None, tiny.batch(0)), UnlearnBatch(tiny.batch(0), None)):
        with pytest.raises(ValueError, match=r"batch\.forget or batch\.retain is None"):
            both_sets(batch)


def test_scrub_refuses_batches_of_two_sizes():
    with pytest.raises(ValueError, match="one size, got 8 rows of the forget set and 4"):
        method("scrub").step(started("scrub"), UnlearnBatch(tiny.batch(0), tiny.batch(1, 4)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: unlearn.negative_gradient(f, retain_weight=1.5), "retain_weight = 1.5"),
        (lambda f: unlearn.negative_gradient(f, ceiling=0.0), "ceiling = 0.0"),
        (lambda f: unlearn.random_label(f, num_classes=1), "num_classes = 1"),
        (lambda f: unlearn.random_label(f, num_classes=3, retain_weight=-1), "retain_weight = -1"),
        (lambda f: unlearn.salun(f, num_classes=3, saliency=0.0), "saliency = 0.0"),
        (lambda f: unlearn.salun(f, num_classes=1), "num_classes = 1"),
        (lambda f: unlearn.scrub(f, alpha=-1.0), "alpha = -1.0"),
        (lambda f: unlearn.scrub(f, temperature=0.0), "temperature = 0.0"),
        (lambda f: unlearn.scrub(f, max_epochs=-1), "max_epochs = -1"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make(LOSS)


# ---- through fit and forget ------------------------------------------------------------------


def test_fit_fills_in_the_length_of_a_hyper_that_stands_inside():
    told = []

    def adapt(hyper, trials):
        told.append((hyper.descent.epochs.tolist(), hyper.descent.steps_per_epoch.tolist()))
        return hyper

    fitted(method("scrub"), epochs=3, adapt=adapt)
    assert told == [([3.0], [4.0])]  # 56 rows of the longer set in batches of 16
    assert isinstance(started("scrub").hyper.descent, Hyper)
    assert isinstance(started("salun").aux, Saliency)


@functools.lru_cache(maxsize=1)
def trained_model():
    return sparse_mu.forget(
        unlearn.finetune(LOSS, hyper=hyper_parameters(learning_rate=0.5, momentum=0.9)),
        TINY, retain=tiny.examples(0, ROWS), batch_size=16, epochs=20, key=KEY,
    )  # fmt: skip


@pytest.mark.ci
@each_method
def test_forget_unlearns_a_trained_network_end_to_end(name):
    trained, (inputs, labels) = trained_model(), tiny.examples(0, ROWS)
    gone = np.arange(ROWS) < 12
    sets = {"forget": (inputs[gone], labels[gone]), "retain": (inputs[~gone], labels[~gone])}
    before = host(trained)
    result = sparse_mu.forget(method(name), trained, **sets, batch_size=16, epochs=4, key=KEY)
    assert_same_bits(trained, before)

    def loss(model, which):
        rows = (jnp.asarray(part) for part in sets[which])
        batch = Batch(*rows, jnp.ones(len(sets[which][1])))
        total, _ = jit_of(LOSS)(model.params, model.net_state, batch, KEY)
        return float(total) / len(batch.labels)

    raised = {which: loss(result, which) - loss(trained, which) for which in sets}
    assert raised["forget"] > max(0, raised["retain"])  # it forgets, and what it should
    for missing in sets:
        rest = {which: pair for which, pair in sets.items() if which != missing}
        with pytest.raises(ValueError, match=f"pass {missing}="):
            sparse_mu.forget(method(name), trained, **rest, key=KEY)
