"""Hold-outs and forget sets: the official draws, set algebra, and every bad input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_mu.data.splits import (
    ForgetSetError,
    forget_class,
    forget_indices,
    forget_random,
    hold_out,
    read_rows,
)

LABELS = np.repeat(np.arange(3), 4)


def fails(match, function, *args, **kwargs):
    with pytest.raises(ForgetSetError, match=match) as info:
        function(*args, **kwargs)
    assert "\n" not in str(info.value)


def test_hold_out_has_the_official_overlaps():
    # Only the count per class matters for the overlap, so CIFAR-10's order is not needed.
    labels = np.tile(np.arange(10), 5000)
    held = {seed: hold_out(labels, 0.1, seed)[1] for seed in (1, 2, 3, 4, 5)}
    overlaps = [np.intersect1d(held[1], held[seed]).size for seed in (2, 3, 4, 5)]
    assert overlaps == [512, 502, 471, 533]  # SPEC section 1.2


@settings(deadline=None, max_examples=30)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    fraction=st.floats(0, 0.99),
    seed=st.integers(0, 2**32 - 1),
)
def test_hold_out_partitions_each_class(labels, fraction, seed):
    labels = np.array(labels)
    train, held = hold_out(labels, fraction, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, held])), np.arange(len(labels)))
    assert (np.diff(train) > 0).all() and (np.diff(held) > 0).all()
    for label in np.unique(labels):
        assert (labels[held] == label).sum() == int(fraction * (labels == label).sum())
    np.testing.assert_array_equal(held, hold_out(labels, fraction, seed)[1])


@pytest.mark.parametrize("fraction", [-0.1, 1, float("nan")])
def test_hold_out_refuses_a_bad_fraction(fraction):
    with pytest.raises(ValueError, match="held-out fraction"):
        hold_out(LABELS, fraction, 1)


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


def test_read_rows_of_a_text_file(tmp_path):
    path = tmp_path / "rows.txt"
    path.write_text("# forgotten\n3\n\n 1 \r\n0012 # a cat\n-4\n")
    rows = read_rows(path)
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(rows, [3, 1, 12, -4])  # ranges are forget_indices' business
    np.testing.assert_array_equal(read_rows(str(path)), rows)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.uint64, ">i4"])
def test_read_rows_of_a_npy_file(tmp_path, dtype):
    path = tmp_path / "rows.npy"
    np.save(path, np.array([5, 0, 9], dtype))
    rows = read_rows(path)
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(rows, [5, 0, 9])


@pytest.mark.parametrize(
    "line", ["1.0", "cat", "1 2", "1,2", "1_000", "0x10", "--1", "+1", "²", "٣", "9" * 30]
)
def test_read_rows_names_the_bad_line(tmp_path, line):
    path = tmp_path / "rows.txt"
    path.write_text(f"# rows\n4\n{line}\n", encoding="utf-8")
    fails(r"rows\.txt, line 3: .* is not a row number", read_rows, path)


def test_read_rows_refuses_bad_files(tmp_path):
    def written(name, content):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    def saved(name, array):
        path = tmp_path / name
        np.save(path, array, allow_pickle=True)
        return path

    fails("gone.txt cannot be read: No such file", read_rows, tmp_path / "gone.txt")
    fails("gone.npy cannot be read: No such file", read_rows, tmp_path / "gone.npy")
    (tmp_path / "folder.txt").mkdir()
    fails("folder.txt cannot be read", read_rows, tmp_path / "folder.txt")
    fails("ends in '.csv'; allowed: .txt, .npy", read_rows, written("rows.csv", b"1\n"))
    fails("ends in ''", read_rows, tmp_path)
    fails("holds no row numbers", read_rows, written("empty.txt", b"# none\n\n"))
    fails("not a text file", read_rows, written("latin.txt", b"\xff\xfe1\n"))
    fails("holds no row numbers", read_rows, saved("empty.npy", np.zeros(0, int)))
    fails("not a .npy file", read_rows, written("no.npy", b""))
    fails("not a .npy file", read_rows, written("text.npy", b"1\n2\n3\n"))
    fails("not a .npy file", read_rows, saved("pickle.npy", np.array([1, None], object)))
    fails("holds float64", read_rows, saved("float.npy", np.array([1.0])))
    fails("holds bool", read_rows, saved("bool.npy", np.array([True])))
    fails(r"holds int64\[2, 2\]", read_rows, saved("square.npy", np.zeros((2, 2), int)))
    fails(r"holds int64\[\]", read_rows, saved("scalar.npy", np.array(3)))
    fails("out of range", read_rows, saved("huge.npy", np.array([2**63], np.uint64)))
    with (tmp_path / "zip.npy").open("wb") as file:
        np.savez(file, rows=np.arange(3))
    fails("not a .npy file", read_rows, tmp_path / "zip.npy")
    whole = saved("whole.npy", np.arange(9)).read_bytes()
    fails("not a .npy file", read_rows, written("cut.npy", whole[:-4]))
    fails("not a .npy file", read_rows, written("head.npy", whole.replace(b"(9,)", b"(99**9,)")))


@settings(deadline=None, max_examples=200)
@given(position=st.integers(0, 199), byte=st.integers(0, 255))
def test_a_damaged_npy_file_is_read_or_refused(tmp_path_factory, position, byte):
    path = tmp_path_factory.getbasetemp() / "damaged.npy"
    np.save(path, np.arange(9))
    content = bytearray(path.read_bytes())
    content[position] = byte
    path.write_bytes(content)
    try:
        rows = read_rows(path)
    except ForgetSetError as error:
        assert "\n" not in str(error)
    else:
        assert rows.dtype == np.int64 and rows.ndim == 1
