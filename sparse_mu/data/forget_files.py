"""Lists of rows to forget, as files: row numbers or ids of one data set, one kind to a file."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from sparse_mu.data import npy
from sparse_mu.data.forget_sets import ForgetSetError, int64_rows
from sparse_mu.data.regular import stat_file

LARGEST_FILE = 64 * 2**20  # bytes; 1.3 million ids of ImageNet are 31 MB
SUFFIXES = (".txt", ".csv", ".npy", ".json")
_COLUMNS: dict[str, Literal["id", "row"]] = {"id": "id", "row": "row", "index": "row"}
_COMMENT = re.compile(r"(^|\s)#.*")
# int() would also take "1_000", "+1" and the digits of other scripts
_ROW = re.compile(r"-?[0-9]{1,18}")


class Listed(NamedTuple):
    """What a file lists.

    Attributes:
        path: the file.
        values: ``int64[F]`` where the file says that they are numbers, else F texts.
        kind: what the texts are: ids, row numbers, or whatever they look like.
        places: F line numbers of the texts, or their positions, from 1.
        unit: "line" or "entry", what ``places`` counts.
    """

    path: Path
    values: np.ndarray | list[str]
    kind: Literal["id", "row", "either"]
    places: Sequence[int]
    unit: Literal["line", "entry"]

    def at(self, index: int) -> str:
        """Where a value stands, and the value: ``rows.txt, line 3: 'cat'``."""
        value = self.values[index]
        shown = repr(value[:40]) if isinstance(value, str) else str(value)
        return f"forget file {self.path}, {self.unit} {self.places[index]}: {shown}"


def read_listed(path: str | Path) -> Listed:
    """Reads a list of row numbers or ids.

    Args:
        path: one of

            - ``.txt``: one a line; blank lines and ``#`` comments are skipped.
            - ``.csv``: one column, or a header with one column named id, row or index. Under id
              stand ids, under row and index row numbers.
            - ``.json``: a flat list of whole numbers (rows) or of texts.
            - ``.npy``: one dimension of integers (rows) or of texts; pickled objects are refused.

    Returns:
        The list, in the order of the file.

    Raises:
        ForgetSetError: the file is missing, unreadable, empty or larger than ``LARGEST_FILE``, has
            another suffix, or does not hold such a list (with the line).
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ForgetSetError(
            f"forget file {path} ends in {path.suffix!r}; allowed: {', '.join(SUFFIXES)}"
        )
    content = _content(path)
    if suffix == ".npy":
        listed = _read_npy(path, content)
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ForgetSetError(f"forget file {path} is not a text file (UTF-8)") from error
        read = {".txt": _read_txt, ".csv": _read_csv, ".json": _read_json}[suffix]
        listed = read(path, text)
    if not len(listed.values):
        raise ForgetSetError(f"forget file {path} holds no row numbers or ids")
    return listed


def training_rows(
    listed: Listed, ids: Sequence[str] | None, numbers: np.ndarray | None, name: str
) -> np.ndarray:
    """The training rows that a list means, strictly: rows and ids do not mix.

    Texts of no stated kind are ids where every one is an id of the data set; else row numbers where
    all are whole numbers and none is an id; else ids where none is a whole number.

    Args:
        listed: what a file holds.
        ids: of the training rows, in order; None where the data set has none.
        numbers: int64[N] ascending, the training rows' own numbers, which a list of row numbers
            means; None where they are 0..N-1 (``Source.train_rows``).
        name: of the data set.

    Returns:
        int64[F], places among the training rows, in the order of the list. Where ``numbers`` are
        None, their range is for :func:`sparse_mu.data.forget_sets.forget_indices` to check.

    Raises:
        ForgetSetError: ids for a data set without, ids that are unknown (the first, and how many
            more), an id twice or of two rows, rows and ids mixed, a text that is no row number, a
            number of no training row (the first, and how many more) or twice.
    """
    texts = listed.values
    if isinstance(texts, np.ndarray):
        return _rows_of_numbers(listed, texts, numbers, name)
    is_row = [_ROW.fullmatch(text) is not None for text in texts]
    if ids is None and listed.kind == "id":
        raise ForgetSetError(
            f"forget file {listed.path} lists ids, but {name} has none; list row numbers"
        )
    if listed.kind == "either" and ids is not None:
        known = set(ids)
        is_id = [text in known for text in texts]
        if not all(is_id) and any(is_row) and not all(is_row):
            row, other = is_row.index(True), is_row.index(False)
            raise ForgetSetError(
                f"{listed.at(other)} is an id and {texts[row]!r} ({listed.unit} "
                f"{listed.places[row]}) a row number; one kind is allowed"
            )
        as_ids = any(is_id) or not any(is_row)
    else:
        as_ids = listed.kind == "id"
    if as_ids and ids is not None:
        return _rows_of_ids(listed, texts, ids, name)
    if not all(is_row):
        without = f", and {name} has no ids" if ids is None else ""
        raise ForgetSetError(f"{listed.at(is_row.index(False))} is not a row number{without}")
    wanted = np.array([int(text) for text in texts], np.int64)
    return _rows_of_numbers(listed, wanted, numbers, name)


def _rows_of_numbers(
    listed: Listed, wanted: np.ndarray, numbers: np.ndarray | None, name: str
) -> np.ndarray:
    if numbers is None:
        return wanted
    absent = np.flatnonzero(~np.isin(wanted, numbers))
    if len(absent):
        more = f", nor of {len(absent) - 1} more" if len(absent) > 1 else ""
        raise ForgetSetError(
            f"{listed.at(absent[0])} is not the number of a training row of {name}{more}; it was "
            "held out as a test row, or lies outside dataset.limit, or there is no such row"
        )
    _check_once(listed, wanted.tolist())
    return np.searchsorted(numbers, wanted)


def _check_once(listed: Listed, values: Sequence[str] | Sequence[int]) -> None:
    seen: dict[str | int, int] = {}
    for index, value in enumerate(values):
        before = seen.setdefault(value, index)
        if before != index:
            raise ForgetSetError(
                f"{listed.at(index)} stands in {listed.unit} {listed.places[before]}, too; "
                "once is allowed"
            )


def _rows_of_ids(listed: Listed, texts: list[str], ids: Sequence[str], name: str) -> np.ndarray:
    row_of = {text: row for row, text in enumerate(ids)}
    unknown = [index for index, text in enumerate(texts) if text not in row_of]
    if unknown:
        more = f", nor are {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise ForgetSetError(
            f"{listed.at(unknown[0])} is not the id of a training row of {name}{more}; its ids are "
            f"such as {ids[0]!r}"
        )
    _check_once(listed, texts)
    if len(row_of) < len(ids):
        rows_with = Counter(ids)
        shared = [index for index, text in enumerate(texts) if rows_with[text] > 1]
        if shared:
            raise ForgetSetError(
                f"{listed.at(shared[0])} is the id of {rows_with[texts[shared[0]]]} rows of "
                f"{name}; list row numbers"
            )
    return np.array([row_of[text] for text in texts], np.int64)


def _content(path: Path) -> bytes:
    try:
        size = stat_file(path).st_size
        if size > LARGEST_FILE:
            raise ForgetSetError(f"forget file {path} has {size} bytes; allowed: {LARGEST_FILE}")
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ForgetSetError(f"forget file {path} cannot be read: {reason}") from error


def _read_txt(path: Path, text: str) -> Listed:
    lines = [_COMMENT.sub("", line).strip() for line in text.splitlines()]
    places = [number for number, line in enumerate(lines, start=1) if line]
    return Listed(path, [line for line in lines if line], "either", places, "line")


def _read_csv(path: Path, text: str) -> Listed:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((reader.line_num, [cell.strip() for cell in cells]))
    except csv.Error as error:
        raise ForgetSetError(
            f"forget file {path}, line {reader.line_num}: is not CSV ({error})"
        ) from error
    header = [cell.lower() for cell in rows[0][1]] if rows else []
    named = [index for index, cell in enumerate(header) if cell in _COLUMNS]
    if len(named) > 1:
        both = " and ".join(header[index] for index in named)
        raise ForgetSetError(f"forget file {path} has the columns {both}; leave one of them")
    if named:
        rows, column, kind = rows[1:], named[0], _COLUMNS[header[named[0]]]
    else:
        column, kind = 0, "either"
        if any(len(cells) > 1 for _, cells in rows):
            raise ForgetSetError(
                f"forget file {path} has several columns; a header must name one of them id, row "
                "or index"
            )
    for number, cells in rows:
        if len(cells) <= column or not cells[column]:
            raise ForgetSetError(
                f"forget file {path}, line {number}: has nothing in the column {header[column]}"
            )
    values = [cells[column] for _, cells in rows]
    return Listed(path, values, kind, [number for number, _ in rows], "line")


def _read_json(path: Path, text: str) -> Listed:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ForgetSetError(f"forget file {path} is not JSON: {error}") from error
    if not isinstance(values, list):
        raise ForgetSetError(f"forget file {path} holds no list; a flat list is needed")
    places = range(1, len(values) + 1)
    if all(type(value) is int for value in values):
        outside = [value for value in values if not -(2**63) <= value < 2**63]
        if outside:
            raise ForgetSetError(f"forget file {path}: row {str(outside[0])[:40]} is out of range")
        return Listed(path, np.array(values, np.int64), "row", places, "entry")
    for place, value in zip(places, values, strict=True):
        if type(value) is not type(values[0]) or not isinstance(value, str):
            raise ForgetSetError(
                f"forget file {path}, entry {place}: {repr(value)[:40]}; a list of whole numbers "
                "alone, or of texts alone, is needed"
            )
    return Listed(path, values, "either", places, "entry")


def _read_npy(path: Path, content: bytes) -> Listed:
    try:
        stream = io.BytesIO(content)
        claimed = npy.size(*npy.header(stream))
        if claimed != len(content) - stream.tell():
            raise ValueError(f"its shape asks for {claimed} bytes")
        array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
        if array.dtype.kind == "S":
            array = np.char.decode(array, "utf-8")
        values = array.tolist() if array.dtype.kind == "U" else []
    except Exception as error:  # from a damaged header numpy, ast and tokenize raise many kinds
        raise ForgetSetError(
            f"forget file {path} is not a .npy file of plain integers or texts"
        ) from error
    if array.ndim != 1 or array.dtype.kind not in "iuU":
        raise ForgetSetError(
            f"forget file {path} holds {array.dtype}{list(array.shape)}; a list of integers or "
            "texts is needed"
        )
    places = range(1, len(array) + 1)
    if array.dtype.kind == "U":
        return Listed(path, values, "either", places, "entry")
    return Listed(path, int64_rows(array, "forget row"), "row", places, "entry")
