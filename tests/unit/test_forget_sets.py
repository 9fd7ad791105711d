"""Forget sets: the official draws, classes by number and name, and every bad input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_mu.data.forget_sets import (
    ForgetSetError,
    class_entries,
    forget_class,
    forget_indices,
    forget_random,
    forget_within_classes,
)

LABELS = np.repeat(np.arange(3), 4)
PETS = ("ant", "bee", "cat", "dog")


def fails(match, function, *args, **kwargs):
    with pytest.raises(ForgetSetError, match=match) as info:
        function(*args, **kwargs)
    assert "\n" not in str(info.value)


def test_forget_class_takes_all_rows_of_the_classes():
    np.testing.assert_array_equal(forget_class(LABELS, [1]), LABELS == 1)
    np.testing.assert_array_equal(forget_class(LABELS, [2, 0]), LABELS != 1)


def test_forget_class_bad_input():
    fails("no forget class is given", forget_class, LABELS, [])
    fails("class 3 does not occur; allowed: 0, 1, 2", forget_class, LABELS, [1, 3, 7])
    fails("class -1 does not occur", forget_class, LABELS, [-1])
    fails("class 1 is given twice", forget_class, LABELS, [2, 1, 1])
    fails(r"class 1.5 is float64; integers", forget_class, LABELS, [1.5])
    fails("class True is bool", forget_class, LABELS, [True])
    fails("class 'a' is", forget_class, LABELS, ["a"])
    fails("covers all 12 training rows", forget_class, LABELS, [0, 1, 2])
    many = np.arange(100)
    fails("class 100 does not occur; allowed: 0 to 99", forget_class, many, [100])


def test_forget_random_is_the_official_draw():
    rows = np.random.RandomState(1).choice(45_000, 4500, replace=False)  # --seed 2
    expected = np.zeros(45_000, bool)
    expected[rows] = True
    by_count = forget_random(45_000, count=4500, fraction=None, seed=1)
    by_fraction = forget_random(45_000, count=None, fraction=0.1, seed=1)
    np.testing.assert_array_equal(by_count, expected)
    np.testing.assert_array_equal(by_fraction, expected)


@settings(deadline=None, max_examples=30)
@given(n_rows=st.integers(2, 200), data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_forget_random_has_the_count(n_rows, data, seed):
    count = data.draw(st.integers(1, n_rows - 1))
    members = forget_random(n_rows, count=count, fraction=None, seed=seed)
    assert members.dtype == bool and members.shape == (n_rows,) and members.sum() == count
    again = forget_random(n_rows, count=count, fraction=None, seed=seed)
    np.testing.assert_array_equal(members, again)


def test_forget_random_bad_input():
    def draw(count=None, fraction=None, seed=0):
        return forget_random(10, count=count, fraction=fraction, seed=seed)

    fails("count is None and fraction is None; exactly one", draw)
    fails("count is 1 and fraction is 0.1; exactly one", draw, 1, 0.1)
    fails("count is 0; allowed: 1 to 9", draw, 0)
    fails("count is 10; allowed: 1 to 9", draw, 10)
    fails("count is -1", draw, -1)
    fails("count is 1.5; an integer", draw, 1.5)
    fails("count is True; an integer", draw, True)
    fails("fraction is 0; allowed: 0 < fraction < 1", draw, None, 0)
    fails("fraction is 1; allowed", draw, None, 1)
    fails("fraction is nan; allowed", draw, None, float("nan"))
    fails("fraction 0.01 is 0 of 10 rows", draw, None, 0.01)
    fails("fraction 0.99 is 10 of 10 rows", draw, None, 0.99)
    fails("seed is -1; allowed: 0 to 4294967295", draw, 1, None, -1)


@settings(deadline=None, max_examples=50)
@given(n_rows=st.integers(2, 50), data=st.data())
def test_forget_indices_marks_exactly_the_rows(n_rows, data):
    rows = data.draw(
        st.lists(st.integers(0, n_rows - 1), min_size=1, max_size=n_rows - 1, unique=True)
    )
    members = forget_indices(rows, n_rows)
    assert members.dtype == bool and members.shape == (n_rows,)
    assert set(np.flatnonzero(members)) == set(rows)


@settings(deadline=None, max_examples=100)
@given(rows=st.lists(st.integers(-3, 12), max_size=12))
def test_forget_indices_accepts_nothing_else(rows):
    distinct = len(set(rows)) == len(rows)
    proper = 0 < len(rows) < 10 and distinct and min(rows) >= 0 and max(rows) < 10
    if proper:
        assert forget_indices(rows, 10).sum() == len(rows)
    else:
        fails("^(no forget|forget|the forget set)", forget_indices, rows, 10)


def test_forget_indices_names_the_first_culprit():
    fails("no forget row is given", forget_indices, [], 10)
    fails("row 5 is given twice", forget_indices, [7, 5, 1, 5, 7], 10)
    fails("row 10 is out of range; allowed: 0 to 9", forget_indices, [3, 10, -1], 10)
    fails("row -1 is out of range", forget_indices, [3, -1, 10], 10)
    fails("row 1.0 is float64", forget_indices, [1.0, 2.0], 10)
    fails("row 18446744073709551615 is out of range", forget_indices, np.array([2**64 - 1]), 10)
    fails("integers are needed", forget_indices, [10**30], 10)
    fails("at least one", forget_indices, np.zeros((2, 2), int), 10)
    fails("covers all 4 training rows", forget_indices, [3, 1, 0, 2], 4)


def test_class_entries_are_numbers_names_or_several_joined():
    entries = (3, "cat", "0", "ant+bee", " dog + 1 + ant", "0+2")
    expected = ((3,), (2,), (0,), (0, 1), (3, 1, 0), (0, 2))
    assert class_entries(entries, PETS) == expected
    assert class_entries((), PETS) == ()
    assert class_entries((7,), PETS) == ((7,),)  # forget_class knows which occur


def test_names_that_look_like_something_else():
    digits = tuple("0123456789")
    assert class_entries((3, "4", "5+6"), digits) == ((3,), (4,), (5, 6))
    swapped = ("1", "0", "a+b", "b", "2020")
    assert class_entries((0, 1, "2020"), swapped) == ((0,), (1,), (4,))  # no class 2020
    assert class_entries(("a+b", "b"), swapped) == ((2,), (3,))  # there is no "a" to join
    fails("'1' may be class 0 or class 1; give the number", class_entries, ("1",), swapped)
    fails("'1' may be class 0 or class 1; give", class_entries, ("b+1",), swapped)
    both = ("a", "b", "a+b", "c")
    fails("is the name of class 2 and joins 'a' and 'b', too", class_entries, ("a+b",), both)
    assert class_entries((2, "a + b", "2+3"), both) == ((2,), (0, 1), (2, 3))
    fails("'x' may be class 0 or class 2", class_entries, ("x",), ("x", "y", "x"))


def test_class_entries_bad_input():
    fails(
        "'dgo' does not occur .did you mean .dog...; allowed: 0 to 3 or ant, ",
        class_entries,
        ("dgo",),
        PETS,
    )
    fails("'cta' does not occur .did you mean .cat.", class_entries, ("dog+cta",), PETS)
    fails("'dog.' joins nothing on one side of a .;", class_entries, ("dog+",), PETS)
    fails("class 2 is given twice in 'cat.2'", class_entries, ("cat+2",), PETS)
    fails("classes 2 and 'cat' are the same", class_entries, (2, 0, "cat"), PETS)
    fails("'cat.dog' and 'dog.cat' are the same", class_entries, ("cat+dog", "dog+cat"), PETS)
    many = tuple(f"n{number:08d}" for number in range(1000))
    fails("'zebra' does not occur; allowed: 0 to 999$", class_entries, ("zebra",), many)


@settings(deadline=None, max_examples=100)
@given(
    entry=st.one_of(st.integers(0, 5), st.text("ab+01 ", max_size=5)),
    names=st.lists(st.text("ab+01", min_size=1, max_size=3), min_size=1, max_size=4, unique=True),
)
def test_any_entry_means_one_thing_or_is_refused(entry, names):
    try:
        ((*classes,),) = class_entries((entry,), names)
    except ForgetSetError as error:
        assert "\n" not in str(error)
        assert not isinstance(entry, int)
    else:
        assert classes and len(set(classes)) == len(classes)
        if entry in names:
            assert classes == [names.index(entry)]
        elif isinstance(entry, int) or "+" not in entry:
            assert classes == [int(entry)]


def test_rows_within_a_class_are_the_official_draw():
    labels = np.random.RandomState(0).permutation(np.repeat(np.arange(10), 500))
    rows = np.random.RandomState(1).choice(np.flatnonzero(labels == 4), 100, replace=False)
    expected = np.zeros(5000, bool)
    expected[rows] = True
    drawn = forget_within_classes(labels, [4], count=100, seed=1)
    np.testing.assert_array_equal(drawn, expected)
    whole = forget_within_classes(labels, [4], count=500, seed=1)
    np.testing.assert_array_equal(whole, labels == 4)


@settings(deadline=None, max_examples=30)
@given(count=st.integers(-1, 13), seed=st.integers(0, 2**32 - 1))
def test_rows_within_classes_have_the_count(count, seed):
    if 0 < count <= 8:
        members = forget_within_classes(LABELS, [2, 0], count=count, seed=seed)
        assert members.sum() == count and not members[LABELS == 1].any()
    else:
        message = "allowed: 1 to 8 rows, those of class 2, 0"
        fails(message, forget_within_classes, LABELS, [2, 0], count=count, seed=seed)


def test_rows_within_classes_bad_input():
    fails("class 3 does not occur", forget_within_classes, LABELS, [3], count=1, seed=0)
    fails("covers all 12", forget_within_classes, LABELS, [0, 1, 2], count=12, seed=0)
    fails("seed is -1", forget_within_classes, LABELS, [0], count=1, seed=-1)
