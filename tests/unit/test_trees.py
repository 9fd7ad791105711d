"""The names of leaves and the first difference of two trees."""

from collections import namedtuple

import jax
import numpy as np
import pytest

from sparse_mu import trees

Pair = namedtuple("Pair", ["first", "second"])
TREE = {"a": {"kernel": np.zeros((2, 3), np.float32)}, "b": [np.zeros(4), np.zeros(2, np.int32)]}


def test_leaves_are_named_by_path_in_the_order_of_jax():
    tree = {"z": Pair(1, [2, 3]), "a": {"kernel": 4}}
    assert trees.leaf_names(tree) == ["a/kernel", "z/first", "z/second/0", "z/second/1"]
    assert jax.tree.leaves(tree) == [4, 1, 2, 3]


def test_a_bare_array_is_called_the_root():
    assert trees.leaf_names(np.zeros(3)) == ["(root)"]
    assert trees.leaf_names({}) == []


def test_equal_trees_have_no_mismatch():
    assert trees.describe_mismatch(TREE, TREE) is None
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), TREE)
    assert trees.describe_mismatch(TREE, shapes) is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"a": {}}, "'a/kernel' is missing"),
        ({"c": np.zeros(1)}, "'c' is not expected"),
        ({"a": {"kernel": np.zeros((3, 2), np.float32)}}, "'a/kernel' has shape (3, 2)"),
        ({"a": {"kernel": np.zeros((2, 3), np.int8)}}, "'a/kernel' has dtype int8"),
        ({"b": (np.zeros(4), np.zeros(2, np.int32))}, "other containers"),
        ({"a": {"kernel": 1.0}}, "'a/kernel' has shape ()"),
    ],
)
def test_the_first_difference_is_named(changed, words):
    message = trees.describe_mismatch(TREE | changed, TREE)
    assert words in message
    assert "\n" not in message


def test_dtypes_may_be_left_out():
    other = TREE | {"a": {"kernel": np.zeros((2, 3), np.int8)}}
    assert trees.describe_mismatch(other, TREE, dtypes=False) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_is_found(bad):
    tree = {"a": [np.zeros((2, 3), np.float32), np.array([1, 2])], "key": jax.random.key(0)}
    assert bool(trees.all_finite(tree))
    tree["a"][0][1, 2] = bad
    assert not bool(trees.all_finite(tree))


def test_numbers_whose_norm_overflows_are_finite_and_so_is_nothing_at_all():
    assert bool(trees.all_finite({"w": np.full(9, 3e38, np.float32)}))
    assert bool(trees.all_finite({"n": np.arange(3), "mask": np.ones(2, bool)}))
    assert bool(trees.all_finite(()))
