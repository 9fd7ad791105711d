"""Generated lists of rows to forget, most of them wrong, in every format."""

import io
import json
import struct

import numpy as np
from bad_bytes import damaged
from fuzzing import DIGITS, PIPE, Case, Link
from hypothesis import strategies as st

ROWS = (3, 14, 15, 92, 65)  # of 200
SUFFIXES = (".txt", ".csv", ".json", ".npy")


def npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def npy_of_header(header, content=b"", version=(1, 0)):
    """A .npy whose header says anything at all."""
    text = header.encode("latin-1", "replace") + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text) % 2**16)
    return b"\x93NUMPY" + bytes(version) + length + text + content


PLAIN = {
    ".txt": "\n".join(map(str, ROWS)).encode() + b" # mine\n",
    ".csv": b"name,row\n" + b"".join(b'"a",%d\r\n' % row for row in ROWS),
    ".json": json.dumps(ROWS).encode(),
    ".npy": npy(np.array(ROWS)),
}


def case(suffix, content, more=()):
    arguments = (
        f"--config={DIGITS}",
        *("--config.trials=2", "--config.dataset.limit=200", "--config.dataset.validation=0"),
        *("--config.forget.scenario=indices", f"--config.forget.file=DIR/rows{suffix}"),
    )
    return Case((*arguments, *more), ((f"rows{suffix}", content),))


VALID = {suffix: case(suffix, content) for suffix, content in PLAIN.items()}

_CELLS = st.one_of(
    st.integers(-5, 260).map(str),
    st.integers().map(str),
    st.text(max_size=8),
    st.floats().map(str),
    st.sampled_from(
        (
            *("1_0", "+1", "٣", "0x1", "1e2", "", " ", "#", "1 # x", '"', '"a', "=1+1", "\x1b[2J"),
            *("9" * 30, "9" * 5000, "row_3", "train/cat/001.png", "\u2028", "-0", "007", "NaN"),
        )
    ),
)
_ENCODINGS = st.sampled_from(("utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1", "utf-32"))


@st.composite
def texts(draw):
    """Lines of cells with one separator, in one encoding."""
    separator = draw(st.sampled_from(("\n", "\n", "\r\n", "\r", ",", ";", "\0", "\x0b", "\x85")))
    cells = draw(st.lists(_CELLS, max_size=6))
    header = draw(st.sampled_from(("", "", "row\n", "id\n", "row,id\n", "index,x\n", "a,b\n", '"')))
    encoding = draw(_ENCODINGS)
    return (header + separator.join(cells)).encode(encoding, "replace")


_JSON = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
        st.integers(-3, 300),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
).map(json.dumps)
_JSON_TEXTS = st.one_of(
    _JSON,
    st.lists(st.integers(-2, 210), max_size=8).map(json.dumps),
    st.sampled_from(
        (
            *("[" * 10**5, "[" * 900 + "]" * 900, "[1e400]", "[1" + "0" * 5000 + "]", "{}", "[]"),
            *('["\\ud800"]', '["\\u0000"]', "[1,]", "[1] [2]", "[-0]", "[Infinity]", "[1.0]"),
            *('{"a":' * 10**5, "[true]", "[null]", '["1", 1]', "﻿[1]", '["' + "a" * 10**5 + '"]'),
        )
    ),
).map(lambda text: text.encode("utf-8", "surrogatepass"))

_DTYPES = st.sampled_from(
    (
        *("<i8", ">i4", "|u1", "<u8", "<f8", "<U3", "<U0", "|S2", "|S0", "|O", "|b1", "<c16", "V0"),
        *("<M8[ns]", "<m8[s]", "<U99999999", "|V8", "i8,f4", "<i8' + __import__('os')", "", "x"),
    )
)
_SHAPES = st.sampled_from(
    (
        *("(5,)", "()", "(0,)", "(1000000000000,)", "(5, 1)", "(-1,)", "(2, 0)", "(3L,)", "[5]"),
        *(f"({2**63},)", f"({2**31}, {2**33})", "(1.0,)", "('5',)", "(True,)", "None", "5"),
    )
)
_HEADERS = st.tuples(_DTYPES, _SHAPES, st.sampled_from(("False", "True", "0", "None"))).map(
    lambda given: f"{{'descr': '{given[0]}', 'fortran_order': {given[2]}, 'shape': {given[1]}, }}"
)


class Touch:
    """Pickled, it would make a file; nothing may ever unpickle it."""

    def __reduce__(self):
        return open, ("unpickled", "w")


_ARRAYS = st.one_of(
    st.lists(st.integers(-3, 210), max_size=6).map(lambda rows: np.array(rows, np.int64)),
    st.lists(st.text(max_size=4), max_size=4).map(lambda names: np.array(names, dtype=str)),
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3).map(
        lambda rows: np.array(rows, np.uint64)
    ),
    st.sampled_from(
        (
            *(np.array([Touch()], object), np.array([1, None], object), np.arange(3.0)),
            *(np.ones((2, 2), int), np.array(3), np.array([], int), np.array([b"\xff"])),
            *(np.array([True]), np.zeros(3, "i8,f4"), np.array(["2020"], "M8[D]")),
            *(np.arange(3, dtype=">i2"), np.array([[1], [2]], order="F"), np.array(["", "1"])),
        )
    ),
)
_NPY = st.one_of(
    _ARRAYS.map(npy),
    st.builds(
        npy_of_header,
        st.one_of(_HEADERS, st.text(max_size=40)),
        st.sampled_from((b"", b"\0" * 40, b"\x01" * 39)),
        st.sampled_from(((1, 0), (2, 0), (3, 0), (9, 9))),
    ),
)
_OWN = {".txt": texts(), ".csv": texts(), ".json": _JSON_TEXTS, ".npy": _NPY}
_NO_FILES = st.sampled_from((PIPE, None, Link("nowhere"), Link("rows.txt"), Link("/dev/zero")))


def lists(suffix):
    """Lists in one format: as it should be but for the values, damaged, or another format's."""
    contents = st.one_of(
        _OWN[suffix],
        _OWN[suffix],
        damaged(PLAIN[suffix]),
        damaged(PLAIN[suffix]),
        st.one_of(st.binary(max_size=30), _NO_FILES, *_OWN.values()),
    )
    return contents.map(lambda content: case(suffix, content))


LISTS = st.one_of(*map(lists, SUFFIXES))
