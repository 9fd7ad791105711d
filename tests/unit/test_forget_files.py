"""Files that list what to forget: four formats, rows and ids, and every bad file."""

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_mu.data import forget_files
from sparse_mu.data.forget_files import read_listed, training_rows
from sparse_mu.data.forget_sets import ForgetSetError

IDS = [f"train_{number:05d}" for number in (7, 3, 9, 0, 4)]


def fails(match, function, *args, **kwargs):
    with pytest.raises(ForgetSetError, match=match) as info:
        function(*args, **kwargs)
    assert "\n" not in str(info.value) and len(str(info.value)) < 400


@pytest.fixture
def written(tmp_path):
    def write(name, content):
        path = tmp_path / name
        if isinstance(content, np.ndarray):
            np.save(path, content, allow_pickle=True)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def rows_of(path, ids=IDS):
    rows = training_rows(read_listed(path), ids, None, "pets")
    assert rows.dtype == np.int64 and rows.ndim == 1
    return rows.tolist()


def test_row_numbers_in_every_format(written):
    text = "# forgotten\n3\n\n 1 \r\n0012 # a cat\n-4\n"  # ranges are forget_indices' business
    for ids in (IDS, None):
        assert rows_of(written("rows.txt", text), ids) == [3, 1, 12, -4]
        assert rows_of(str(written("rows.TXT", "5")), ids) == [5]
        assert rows_of(written("rows.csv", "3\n\n1\n"), ids) == [3, 1]
        assert rows_of(written("rows.csv", "\ufeffIndex,label\n3,cat\n1,dog\n"), ids) == [3, 1]
        assert rows_of(written("rows.csv", 'label, row \n"cat, tabby",3\n\ndog,1\n'), ids) == [3, 1]
        assert rows_of(written("rows.json", "[3, 1]"), ids) == [3, 1]
        assert rows_of(written("rows.json", '["3", "1"]'), ids) == [3, 1]
        assert rows_of(written("rows.npy", np.array(["3", "1"])), ids) == [3, 1]


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.uint64, ">i4"])
def test_integers_of_a_npy_file(written, dtype):
    assert rows_of(written("rows.npy", np.array([5, 0, 9], dtype))) == [5, 0, 9]


def test_ids_in_every_format(written):
    first, second = IDS[2], IDS[0]
    assert rows_of(written("ids.txt", f"# some\n{first}\n{second} # one more\n")) == [2, 0]
    assert rows_of(written("ids.csv", f"{first}\n{second}\n")) == [2, 0]
    assert rows_of(written("ids.csv", f",id,label\n0,{first},1\n1,{second},0\n")) == [2, 0]
    assert rows_of(written("ids.json", json.dumps([first, second]))) == [2, 0]
    assert rows_of(written("ids.npy", np.array([first, second]))) == [2, 0]
    assert rows_of(written("ids.npy", np.array([first, second], "S11"))) == [2, 0]
    named = ["cat #1.png", "a dog.png"]
    assert rows_of(written("ids.json", json.dumps(named)), named) == [0, 1]
    assert rows_of(written("ids.csv", "\n".join(named)), named) == [0, 1]


def test_ids_that_look_like_numbers(written):
    ids = ["10", "11", "007"]
    assert rows_of(written("a.txt", "11\n007\n"), ids) == [1, 2]
    assert rows_of(written("a.txt", "0\n2\n"), ids) == [0, 2]  # none is an id: rows
    assert rows_of(written("a.csv", "row\n1\n"), ["1", "0"]) == [1]  # the header says which
    assert rows_of(written("a.csv", "id\n1\n"), ["1", "0"]) == [0]
    assert rows_of(written("a.json", "[1]"), ["1", "0"]) == [1]  # a number is a row, a text an id
    assert rows_of(written("a.json", '["1"]'), ["1", "0"]) == [0]
    fails(
        "line 2: '2' is not the id of a training row of pets; its ids are such as '10'$",
        rows_of,
        written("a.txt", "11\n2"),
        ids,
    )
    fails("line 2: '0' is not the id", rows_of, written("a.csv", "id\n0\n"), ids)


def test_ids_bad_input(written):
    three = f"{IDS[1]}\ntrain_1\n{IDS[0]}\ncat\n17b\n"
    fails(
        "line 2: 'train_1' is not the id of a training row of pets, nor are 2 more; its ids are "
        "such as 'train_00007'$",
        rows_of,
        written("a.txt", three),
    )
    mixed = f"4\n{IDS[1]}\n2\n"
    fails(
        "line 2: 'train_00003' is an id and '4' .line 1. a row number; one kind",
        rows_of,
        written("a.txt", mixed),
    )
    fails("line 3: 'cat' is an id and '4' .line 2. a row", rows_of, written("a.txt", "#\n4\ncat"))
    fails(
        "line 2: 'train_00003' is not a row number, and pets has no ids",
        rows_of,
        written("a.txt", mixed),
        None,
    )
    fails(
        "lists ids, but pets has none; list row numbers", rows_of, written("a.csv", "id\n3\n"), None
    )
    fails(
        "line 3: 'train_00003' stands in line 1, too",
        rows_of,
        written("a.txt", f"{IDS[1]}\n{IDS[0]}\n{IDS[1]}"),
    )
    fails(
        "entry 2: 'train_00003' stands in entry 1",
        rows_of,
        written("a.json", json.dumps([IDS[1]] * 2)),
    )
    fails("line 2: 'train_00003' is not a row number$", rows_of, written("a.csv", f"row\n{IDS[1]}"))
    fails(
        "line 1: 'x' is the id of 2 rows of pets; list row numbers",
        rows_of,
        written("a.txt", "x"),
        ["x", "y", "x"],
    )
    assert rows_of(written("a.txt", "y"), ["x", "y", "x"]) == [1]


@pytest.mark.parametrize(
    "line", ["1.0", "cat", "1 2", "1,2", "1_000", "0x10", "--1", "+1", "²", "٣", "9" * 30]
)
def test_the_bad_line_is_named(written, line):
    path = written("rows.txt", f"# rows\n4\n{line}\n")
    fails(r"rows\.txt, line 3: .* is not a row number", rows_of, path, None)


def test_bad_files(written, tmp_path, monkeypatch):
    def refused(match, name, content):
        fails(match, read_listed, written(name, content))

    for suffix in ("txt", "npy", "csv", "json"):
        fails("cannot be read: No such file", read_listed, tmp_path / f"gone.{suffix}")
        refused(
            "holds no row numbers|is not" if suffix in ("npy", "json") else "holds no row numbers",
            f"empty.{suffix}",
            b"",
        )
    (tmp_path / "folder.txt").mkdir()
    fails("folder.txt cannot be read: it is not a file", read_listed, tmp_path / "folder.txt")
    os.mkfifo(tmp_path / "pipe.txt")  # opening it would wait for ever
    fails("pipe.txt cannot be read: it is not a file", read_listed, tmp_path / "pipe.txt")
    refused("ends in '.tsv'; allowed: .txt, .csv, .npy, .json", "rows.tsv", "1")
    fails("ends in ''", read_listed, tmp_path)
    refused("holds no row numbers", "none.txt", "# none\n\n")
    refused("holds no row numbers", "header.csv", "id\n")
    refused("holds no row numbers", "empty.json", "[]")
    refused("is not a text file", "latin.txt", b"\xff\xfe1\n")
    refused("is not a text file", "latin.csv", b"\xff\xfe1\n")
    refused("several columns; a header must name one", "wide.csv", "3,cat\n1,dog\n")
    refused("columns row and id; leave one", "two.csv", "row,id\n1,a\n")
    refused("columns id and id; leave one", "twice.csv", "id,ID\n1,a\n")
    refused("line 3: has nothing in the column id", "short.csv", "label,id\ncat,a\ndog\n")
    refused("line 2: has nothing in the column id", "blank.csv", "label,id\ncat,\n")
    refused("is not CSV", "quote.csv", '"a" b\n')
    refused("is not JSON", "words.json", "[cat]")
    refused("is not JSON", "deep.json", "[" * 100_000)
    refused("is not JSON", "digits.json", "[" + "9" * 5000 + "]")
    refused("holds no list", "object.json", '{"rows": [1]}')
    refused("row 9223372036854775808 is out of range", "large.json", "[9223372036854775808]")
    refused(
        "entry 2: 1.5; a list of whole numbers alone",
        "float.json",
        "[1, 1.5]".replace("1,", '"a",'),
    )
    for content in ("[1.5]", "[true]", "[null]", "[[1]]", "[NaN]", '[1, "a"]', '["a", 1]'):
        refused("entry [12]: .*; a list of whole numbers alone, or of texts", "bad.json", content)
    refused("not a .npy file", "text.npy", b"1\n2\n3\n")
    refused("not a .npy file", "pickle.npy", np.array([1, None], object))
    refused("holds float64", "float.npy", np.array([1.0]))
    refused("holds bool", "bool.npy", np.array([True]))
    refused(r"holds int64\[2, 2\]", "square.npy", np.zeros((2, 2), int))
    refused(r"holds int64\[\]", "scalar.npy", np.array(3))
    refused("out of range", "huge.npy", np.array([2**63], np.uint64))
    refused("not a .npy file", "bytes.npy", np.array([b"\xff"]))
    refused("holds no row", "none.npy", np.zeros(0, int))
    whole = written("whole.npy", np.arange(9)).read_bytes()
    refused("not a .npy file", "cut.npy", whole[:-4])
    refused("not a .npy file", "head.npy", whole.replace(b"(9,)", b"(99**9,)"))
    with (tmp_path / "zip.npy").open("wb") as file:
        np.savez(file, rows=np.arange(3))
    fails("not a .npy file", read_listed, tmp_path / "zip.npy")
    monkeypatch.setattr(forget_files, "LARGEST_FILE", 5)
    refused("has 6 bytes; allowed: 5", "long.txt", "1\n2\n34")


@pytest.mark.parametrize("content", ["9\n2\n", np.array([9, 2])])
def test_row_numbers_that_are_not_counted_from_0(written, content):
    numbers = np.array([2, 3, 7, 8, 9])
    path = written("rows.npy" if isinstance(content, np.ndarray) else "rows.txt", content)
    assert training_rows(read_listed(path), None, numbers, "pets").tolist() == [4, 0]
    by_id = training_rows(read_listed(written("ids.txt", IDS[3])), IDS, numbers, "pets")
    assert by_id.tolist() == [3]
    for missing, shown in ((1, "1"), (4, "4"), (10, "10"), (-1, "-1")):
        listed = [3, missing, missing]
        texts = written("bad.csv", "row\n" + "\n".join(map(str, listed)))
        both = ((texts, f"bad.csv, line 3: '{shown}'"), (written("bad.json", str(listed)), shown))
        for file, expected in both:
            match = f"{expected} is not the number of a training row of pets, nor of 1 more; it was"
            fails(match, training_rows, read_listed(file), None, numbers, "pets")
    twice = read_listed(written("twice.json", "[3, 7, 3]"))
    fails("entry 3: 3 stands in entry 1, too; once is", training_rows, twice, IDS, numbers, "pets")


@settings(deadline=None, max_examples=200)
@given(position=st.integers(0, 199), byte=st.integers(0, 255), texts=st.booleans())
def test_a_damaged_npy_file_is_read_or_refused(tmp_path_factory, position, byte, texts):
    path = tmp_path_factory.getbasetemp() / "damaged.npy"
    np.save(path, np.array(["a", "bcd"] * 3) if texts else np.arange(9))
    content = bytearray(path.read_bytes())
    content[position] = byte
    path.write_bytes(content)
    try:
        listed = read_listed(path)
    except ForgetSetError as error:
        assert "\n" not in str(error)
    else:
        assert len(listed.values) == len(listed.places)


@settings(deadline=None, max_examples=200)
@given(
    suffix=st.sampled_from(["txt", "csv", "json"]),
    content=st.one_of(
        st.binary(max_size=30), st.text(' \n,"[]#id0123ab-\r\0', max_size=20).map(str.encode)
    ),
    ids=st.sampled_from([None, ["a", "b", "0"], IDS]),
)
def test_any_file_is_read_or_refused(tmp_path_factory, suffix, content, ids):
    path = tmp_path_factory.getbasetemp() / f"any.{suffix}"
    path.write_bytes(content)
    try:
        rows = training_rows(read_listed(path), ids, None, "pets")
    except ForgetSetError as error:
        assert "\n" not in str(error)
    else:
        assert rows.dtype == np.int64 and rows.size


@settings(deadline=None, max_examples=50)
@given(rows=st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True), data=st.data())
def test_every_format_says_the_same(tmp_path_factory, rows, data):
    as_ids = data.draw(st.booleans())
    texts = [IDS[row] if as_ids else str(row) for row in rows]
    folder = tmp_path_factory.getbasetemp()
    (folder / "same.txt").write_text("\n".join(texts))
    (folder / "same.csv").write_text("\n".join(["id" if as_ids else "row", *texts]))
    (folder / "same.json").write_text(json.dumps(texts if as_ids else rows))
    np.save(folder / "same.npy", np.array(texts if as_ids else rows))
    for suffix in ("txt", "csv", "json", "npy"):
        assert rows_of(folder / f"same.{suffix}") == rows
