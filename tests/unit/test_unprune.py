"""The pieces of un-pruning by hand: estimates, projection, starting weights, cost, errors."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_mu import masks, unlearn
from sparse_mu.types import Model
from sparse_mu.unlearn import estimates, projection, regrow

RNG = np.random.default_rng(0)


def tree(*values):
    return {"w": np.array([values], np.float32), "b": np.zeros(1, np.float32)}


def stacked(one, count=1):
    return jax.tree.map(lambda leaf: np.stack([leaf] * count), one)


def mask_of(*kept):
    return {"w": np.array([kept], bool), "b": np.ones(1, bool)}


FLOATS = st.floats(-100, 100, width=32)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=8))
def test_a_difference_of_equal_trainings_keeps_every_bit(pairs):
    end, then = (tree(*values) for values in zip(*pairs, strict=True))
    found = estimates.difference(end, then, then)
    np.testing.assert_array_equal(found["w"], end["w"])
    # and at the end of the training it is the retrained model
    found = estimates.difference(end, then, end)
    np.testing.assert_array_equal(found["w"], then["w"])
    assert found["w"].dtype == np.float32


def test_projected_weights_stand_where_the_mask_says():
    weights = tree(4.0, -1.0, 2.0, -3.0)
    kept = mask_of(True, True, False, False)  # tau is 2.5, the middle of 3 and 2
    found = estimates.projected(weights, kept, masks.matrices)["w"][0]
    np.testing.assert_allclose(found, [4, -2.5, 2, -2.5], rtol=1e-5)
    again = projection.by_magnitude(masks.matrices)({"w": found[None], "b": weights["b"]}, kept)
    np.testing.assert_array_equal(again["w"], kept["w"])  # and its mask is that mask


def test_projecting_on_ones_own_mask_moves_nothing():
    weights = {"w": RNG.standard_normal((5, 8)).astype(np.float32)}
    for scope, structure in (("global", "entries"), ("leaf", "entries"), ("global", "filters")):
        own = masks.from_scores(
            jax.tree.map(np.abs, weights), 0.5, masks.matrices, scope=scope, structure=structure
        )
        found = estimates.projected(weights, own, masks.matrices, scope, structure)
        np.testing.assert_allclose(found["w"], weights["w"], rtol=1e-6)
    dense = jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), weights)
    np.testing.assert_array_equal(
        estimates.projected(weights, dense, masks.matrices)["w"], weights["w"]
    )


def test_projected_zeros_and_filters():
    zero = estimates.projected(tree(0.0, 1.0, 3.0), mask_of(True, False, False), masks.matrices)
    np.testing.assert_allclose(zero["w"][0], [2, 1, 2], rtol=1e-5)  # tau = 2
    weights = {"w": np.array([[1.0, 4.0], [1.0, 2.0]], np.float32)}  # filters of mean 1 and 3
    first = {"w": np.array([[True, False], [True, False]])}
    found = estimates.projected(weights, first, masks.matrices, structure="filters")["w"]
    np.testing.assert_allclose(found, [[2, 8 / 3], [2, 4 / 3]], rtol=1e-5)


@pytest.mark.parametrize("scope", ["global", "leaf"])
@pytest.mark.parametrize("structure", ["entries", "filters", "channels"])
def test_the_new_mask_has_the_counts_of_the_old_one(scope, structure):
    weights = {"a": RNG.standard_normal((6, 5)), "c": RNG.standard_normal((5, 7))}
    weights = jax.tree.map(np.float32, weights)
    old = masks.from_scores(
        jax.tree.map(np.abs, weights), 0.4, masks.matrices, scope=scope, structure=structure
    )
    other = jax.tree.map(lambda leaf: RNG.standard_normal(leaf.shape).astype(np.float32), weights)
    found = projection.by_magnitude(masks.matrices, scope, structure)(other, old)
    expected = masks.from_scores(
        jax.tree.map(np.abs, other), 0.4, masks.matrices, scope=scope, structure=structure
    )
    for name in weights:
        np.testing.assert_array_equal(found[name], expected[name])
    # a count that is no round fraction is kept too
    fewer = {"a": np.zeros((6, 5), bool), "c": np.asarray(old["c"])}
    kept = projection.by_magnitude(masks.matrices, scope, structure)(other, fewer)
    counts = masks.unpruned_counts(kept, masks.matrices, structure)
    wanted = masks.unpruned_counts(fewer, masks.matrices, structure)
    assert counts.sum() == wanted.sum()
    if scope == "leaf":
        assert counts.tolist() == wanted.tolist()


# the procedure on one leaf of four weights, of which two are kept

THETA = Model(stacked(tree(0.1, 0.2, 0.3, 0.4)), {"mean": np.array([[0.0]])})
DENSE = Model(stacked(tree(4.0, 3.0, 2.0, 1.0)), {"mean": np.array([[4.0]])})
KEPT = stacked(mask_of(True, True, False, False))
SPARSE = Model(stacked(tree(5.0, 6.0, 0.0, 0.0)), {"mean": np.array([[5.0]])})
AT_1 = Model(stacked(tree(2.0, 1.5, 1.0, 0.5)), {"mean": np.array([[1.0]])})
RETAIN_1 = Model(stacked(tree(2.0, 0.0, 1.0, 2.5)), {"mean": np.array([[7.0]])})


def path(epochs, enough=None):
    return dict.fromkeys(epochs, RETAIN_1)


def run(mode=None, unlearner=None, train=path, **more):
    if mode is None:
        mode = unlearn.Difference(DENSE, {1: AT_1, 2: AT_1, 3: AT_1})
    given = {"theta_0": THETA, "original": SPARSE, "masks": KEPT, "epochs": 1, "block": 1}
    return unlearn.unprune(
        train,
        unlearner,
        **given | {"mode": mode, "prunable": masks.matrices, "batched": True} | more,
    )


def test_the_difference_by_hand():
    found = run()
    np.testing.assert_allclose(found.estimate["w"][0, 0], [4, 1.5, 2, 3])
    assert found.masks["w"][0, 0].tolist() == [True, False, False, True]
    # 5 is carried, theta_0 begins where only the new mask keeps
    np.testing.assert_allclose(found.model.params["w"][0, 0], [5, 0, 0, 0.4])
    assert found.model.net_state["mean"] == 5
    assert found.cost.retain_epochs.tolist() == [1] and found.cost.all_epochs.tolist() == [0]
    # theta_0, and the weights of theta_T(D) and of one theta_K(D), five floats each
    assert found.cost.stored_bytes == 20 + 8 + 2 * 20
    assert evaluations(found.cost) == [96]


def evaluations(cost):
    """Gradients where an epoch over Dr is stretched to 96 rows."""
    rows = {"epoch_rows": [96], "all_rows": [100], "retain_rows": [90], "forget_rows": [10]}
    return cost.gradient_evaluations(**rows).tolist()


@pytest.mark.parametrize(
    ("weights", "expected", "mean"),
    [
        ("carry", [5, 0, 0, 0.4], 5),
        ("rewind", [0.1, 0, 0, 0.4], 0),
        ("continue", [2, 0, 0, 2.5], 7),
        ("estimate", [4, 0, 0, 3], 7),
    ],
)
def test_what_the_weight_phase_begins_from(weights, expected, mean):
    seen = []

    def unlearner(model, kept, *, start, stop):
        seen.append((model, kept, start, stop))
        return model

    def settle(model, kept, *, start, stop):
        return model._replace(net_state={"mean": model.net_state["mean"] + 0.5})

    found = run(unlearner=unlearner, weights=weights, unlearn_epochs=3, settle=settle)
    (model, kept, start, stop), *rest = seen
    assert not rest and (start, stop) == (0, 3)
    np.testing.assert_allclose(model.params["w"][0, 0], expected, rtol=1e-6)
    np.testing.assert_array_equal(kept["w"], found.masks["w"])
    assert model.net_state["mean"] == mean + 0.5
    assert found.cost.unlearn_epochs.tolist() == [3]


def test_what_each_mode_reads_and_costs():
    again = {1: AT_1}

    def train_again(epochs, enough=None):
        assert enough is None  # the training on D cannot know when Dr's masks settle
        return again

    dense_again = run(unlearn.Difference(DENSE, train_again))
    assert dense_again.cost.all_epochs.tolist() == [1]
    assert dense_again.cost.stored_bytes == 28 + 20 and evaluations(dense_again.cost) == [196]
    projected = run(unlearn.Projected(again))
    # theta_1(D) agrees with M_o already, so it stands for theta_T(D) as it is
    np.testing.assert_allclose(projected.estimate["w"][0, 0], [2, 0, 1, 2.5])
    assert projected.cost.stored_bytes == 28 + 20
    rewound = run(unlearn.Rewind())
    assert rewound.cost.stored_bytes == 28
    np.testing.assert_allclose(rewound.estimate["w"][0, 0], [2, 0, 1, 2.5])
    assert rewound.masks["w"][0, 0].tolist() == [True, False, False, True]


def never(epochs, enough=None):
    raise AssertionError("nothing is to be trained")


def test_scores_at_theta_0_need_no_training():
    total, forgotten = stacked(tree(1.0, 1.0, 1.0, 1.0)), stacked(tree(0.0, 1.0, 0.5, 0.9))
    found = run(unlearn.Rescored(total, forgotten), train=never)
    np.testing.assert_allclose(found.estimate["w"][0, 0], [0.1, 0, 0.15, 0.04], rtol=1e-6)
    assert found.masks["w"][0, 0].tolist() == [True, False, True, False]
    # a pass over Df, and the gradient over D kept
    assert evaluations(found.cost) == [10] and found.cost.stored_bytes == 28 + 20
    gradient = run(unlearn.Rescored(total, forgotten, "gradient"), train=never, weights="rewind")
    np.testing.assert_allclose(gradient.model.params["w"][0, 0], [0.1, 0, 0.3, 0], rtol=1e-6)


def test_masks_that_are_given_are_taken():
    masks_given = stacked(mask_of(False, True, True, False))
    found = run(unlearn.Given(masks_given), train=never)
    np.testing.assert_array_equal(found.masks["w"], masks_given["w"])
    np.testing.assert_allclose(found.model.params["w"][0, 0], [0, 6, 0.3, 0], rtol=1e-6)
    same = run(unlearn.Given(KEPT), train=never)
    np.testing.assert_array_equal(same.model.params["w"], SPARSE.params["w"])


def one(tree):
    return jax.tree.map(lambda leaf: leaf[0], tree)


AGAIN = {1: AT_1, 2: AT_1}
MODES = {
    "difference": unlearn.Difference(DENSE, AGAIN),
    "difference, trained again": unlearn.Difference(DENSE, lambda e, enough=None: AGAIN),
    "projected": unlearn.Projected(AGAIN),
    "rewind": unlearn.Rewind(),
    "rescored": unlearn.Rescored(AT_1.params, RETAIN_1.params),
    "given": unlearn.Given(stacked(mask_of(False, True, True, False))),
    "regrow": unlearn.Regrow(grow="gradient", gradient=lambda model: RETAIN_1.params, rounds=2),
}
SINGLE = {
    "difference": unlearn.Difference(one(DENSE), {1: one(AT_1), 2: one(AT_1)}),
    "difference, trained again": unlearn.Difference(
        one(DENSE), lambda e, enough=None: {1: one(AT_1), 2: one(AT_1)}
    ),
    "projected": unlearn.Projected({1: one(AT_1), 2: one(AT_1)}),
    "rewind": unlearn.Rewind(),
    "rescored": unlearn.Rescored(one(AT_1.params), one(RETAIN_1.params)),
    "given": unlearn.Given(mask_of(False, True, True, False)),
    "regrow": unlearn.Regrow(
        grow="gradient", gradient=lambda model: one(RETAIN_1.params), rounds=2
    ),
}


@pytest.mark.parametrize("name", MODES)
def test_one_model_is_a_batch_of_one(name):
    def path_of_one(epochs, enough=None):
        seen = dict.fromkeys(epochs, one(RETAIN_1))
        assert enough is None or enough(seen, np.array([0])).shape == (1,)
        return seen

    def grow_one(model, kept, *, start, stop):
        return one(growing(stacked(model), stacked(kept), start=start, stop=stop))

    together = run(MODES[name], growing, settle=growing, epochs=2)
    alone = run(
        SINGLE[name], grow_one, train=path_of_one, settle=grow_one, epochs=2, batched=False,
        theta_0=one(THETA), original=one(SPARSE), masks=one(KEPT),
    )  # fmt: skip
    for ours, theirs in zip(
        jax.tree.leaves(alone[:3]), jax.tree.leaves(one(together[:3])), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert alone.epochs.tolist() == together.epochs.tolist()
    assert alone.agreement == together.agreement


def test_looks_come_every_block_and_at_the_end():
    asked = []

    def train(epochs, enough=None):
        asked.append(epochs)
        return dict.fromkeys(epochs, RETAIN_1)

    store = dict.fromkeys(range(1, 8), AT_1)
    run(unlearn.Difference(DENSE, store), train=train, epochs=7, block=3)
    run(unlearn.Difference(DENSE, store), train=train, epochs=2, block=5)
    run(unlearn.Difference(DENSE, store), train=train, epochs=4, block=None)
    assert asked == [(3, 6, 7), (2,), (4,)]


def test_a_path_that_stops_early_may_leave_the_rest_out():
    def train(epochs, enough):
        seen = {}
        for epoch in epochs:
            seen[epoch] = RETAIN_1
            if enough(seen, np.array([0])).all():
                return seen
        raise AssertionError("equal masks must be enough")

    store = dict.fromkeys(range(1, 8), AT_1)
    found = run(unlearn.Difference(DENSE, store), train=train, epochs=7)
    assert found.epochs.tolist() == [3] and found.agreement == [[1.0, 1.0]]


def growing(model, kept, *, start, stop):
    """Adds 1 to every kept weight, so that re-grown ones catch up."""
    return model._replace(
        params=jax.tree.map(lambda m, w: np.where(m, np.sign(w) * (np.abs(w) + 1), 0), kept,
                            model.params)
    )  # fmt: skip


def test_regrowth_by_hand():
    grown = []

    def unlearner(model, kept, *, start, stop):
        grown.append((model.params["w"][0, 0].tolist(), start, stop))
        return growing(model, kept, start=start, stop=stop)

    mode = unlearn.Regrow(fraction=0.5, cap=0, rounds=2)
    found = run(mode, unlearner, train=never, unlearn_epochs=4)
    # |theta_0| ranks the pruned: the fourth comes back first, with theta_0
    first, second = grown
    np.testing.assert_allclose(first[0], [5, 6, 0, 0.4], rtol=1e-6)
    assert first[1:] == (0, 4) and second[1:] == (4, 8)
    assert found.masks["w"][0, 0].tolist() == [True, True, False, False]
    assert found.agreement == [[1.0, 1.0]]
    assert found.cost.retain_epochs.tolist() == [0] and evaluations(found.cost) == [0]
    by_gradient = mode._replace(grow="gradient", gradient=lambda model: RETAIN_1.params)
    again = run(by_gradient, growing, train=never)
    assert evaluations(again.cost) == [90 * int(again.epochs[0])]  # a pass over Dr each round


@pytest.mark.parametrize(
    ("start", "expected"), [("initial", [0.3, 0.4]), ("zero", [0, 0]), ("clip", [0.3, 0.36])]
)
def test_what_regrown_weights_begin_with(start, expected):
    sparse = SPARSE._replace(params=stacked(tree(0.4, 6.0, 0.0, 0.0)))  # 0.9 of the least is 0.36
    seen = []

    def unlearner(model, kept, *, start, stop):
        seen.append(model.params["w"][0, 0])
        return model

    run(unlearn.Regrow(grow="all", start=start, rounds=1), unlearner, train=never, original=sparse)
    np.testing.assert_allclose(seen[0], [0.4, 6, *expected], rtol=1e-6)


def test_regrowth_by_gradient_and_its_cap():
    gradient = stacked(tree(0.0, 0.0, -3.0, 2.0))
    mode = unlearn.Regrow(grow="gradient", fraction=1.0, cap=0.5, gradient=lambda model: gradient)
    one = jax.tree.map(lambda leaf: leaf[0], (KEPT, jax.tree.map(np.abs, gradient)))
    # at most cap * kept = 1 of the two pruned, that of the larger gradient
    found = regrow._grown(*one, mode, 0, masks.matrices, "entries")
    assert found["w"][0].tolist() == [True, True, True, False]
    late = regrow._grown(*one, mode._replace(rounds=2), 1, masks.matrices, "entries")
    assert late["w"][0].sum() == 3  # half the cap, rounded up


def test_a_mask_that_comes_back_ends_the_loop():
    turns = [0]

    def swapping(model, kept, *, start, stop):
        turns[0] += 1
        order = [9, 1, 8, 2] if turns[0] % 2 else [9, 8, 1, 2]
        return model._replace(params=stacked(tree(*map(float, order))))

    found = run(unlearn.Regrow(grow="all", rounds=9), swapping, train=never)
    assert found.epochs.tolist() == [2]
    np.testing.assert_allclose(found.agreement[0], [1 / 3, 1 / 3])


def test_trials_that_have_ended_keep_what_they_had():
    sparse = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), SPARSE)
    kept = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), KEPT)
    theta = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), THETA)
    turns = [0]

    def unlearner(model, wide, *, start, stop):
        turns[0] += 1
        params = model.params["w"].copy()
        params[0] += 1.0  # the first trial's mask never moves
        params[1] = [[[9, 1, 8, 2], [9, 2, 1, 8], [1, 9, 8, 2]][turns[0] - 1]]
        return model._replace(params=model.params | {"w": params})

    found = run(
        unlearn.Regrow(grow="all", rounds=3), unlearner, train=never, original=sparse, masks=kept,
        theta_0=theta,
    )  # fmt: skip
    assert found.epochs.tolist() == [2, 3]
    np.testing.assert_allclose(found.model.params["w"][0, 0], [7, 8, 0, 0])
    np.testing.assert_allclose(found.model.params["w"][1, 0], [0, 9, 8, 0])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"epochs": 0}, "epochs = 0, block = 1"),
        ({"block": 0}, "block = 0"),
        ({"tolerance": 1.0}, "tolerance = 1.0"),
        ({"weights": "keep"}, "weights = 'keep': must be one of carry, rewind"),
        ({"epochs": 9}, "snapshots has no model of epoch 4"),
        ({"masks": {"w": KEPT["w"]}}, "leaf 'b' is missing"),
        ({"mode": unlearn.Regrow()}, "unlearn = None"),
        ({"mode": unlearn.Regrow(), "unlearner": growing, "scope": "leaf"}, "scope = 'leaf'"),
        ({"mode": unlearn.Regrow(grow="up"), "unlearner": growing}, "grow = 'up'"),
        ({"mode": unlearn.Regrow(start="one"), "unlearner": growing}, "start = 'one'"),
        ({"mode": unlearn.Regrow(fraction=0), "unlearner": growing}, "fraction = 0"),
        ({"mode": unlearn.Regrow(rounds=0), "unlearner": growing}, "rounds = 0"),
        ({"mode": unlearn.Regrow(grow="gradient"), "unlearner": growing}, "gradient = None"),
        ({"mode": unlearn.Rescored(THETA.params, THETA.params, "up")}, "score = 'up'"),
        (
            {"mode": unlearn.Rescored(THETA.params, THETA.params), "weights": "continue"},
            "weights = 'continue': must be carry or rewind",
        ),
        ({"mode": unlearn.Given({"w": KEPT["w"]})}, "leaf 'b' is missing"),
        (
            {"mode": unlearn.Projected({1: AT_1}), "project": lambda w, m: m},
            "project= is given: Projected",
        ),
        (
            {"mode": unlearn.Regrow(), "unlearner": growing, "project": lambda w, m: m},
            "project= is given: Regrow",
        ),
        (
            {"mode": unlearn.Given(stacked(mask_of(True, True, True, False)))},
            r"the mask found for trial 0 keeps \[3\] entries, the original's \[2\]",
        ),
        ({"project": lambda w, m: jax.tree.map(np.ones_like, m)}, r"keeps \[4\] entries"),
        ({"mode": unlearn.Difference(THETA._replace(params={}), {1: AT_1})}, "is not expected"),
        (
            {"mode": unlearn.Difference(DENSE, {1: AT_1._replace(params=one(AT_1.params))})},
            "leaf 'b' has shape",
        ),
        ({"theta_0": THETA._replace(params=one(THETA.params))}, "leaf 'b' has shape"),
    ],
)
def test_what_cannot_be_run_is_refused(changed, said):
    with pytest.raises(ValueError, match=said):
        run(**changed)
