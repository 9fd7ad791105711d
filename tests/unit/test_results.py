"""results.jsonl: rows that are there or are not, whatever became of the file's bytes."""

import json
import os
import resource

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_mu import results
from sparse_mu.results import ANEW, append, in_order, line, read, read_whole
from sparse_mu.stopping import StopRequest
from sparse_mu.workdir import Workdir, WorkdirError, held

CONFIG = {"trials": 2, "checkpoint.every_epochs": 10, "checkpoint.keep": 2}


def row(method, trial, **more):
    return {"method": method, "sparsity": 0.0, "trial": trial, **more}


FISHER = [row("fisher", trial, ua=None) for trial in range(2)]
RETRAIN = [row("retrain", trial, ua=trial / 3) for trial in range(2)]
AGAIN = [row("fisher", trial, ua=0.1) for trial in range(2)]


@pytest.fixture
def workdir(tmp_path):
    with held(tmp_path, CONFIG) as workdir:
        yield workdir


def lines(*rows):
    return "".join(map(line, rows))


def rows_of(workdir, *texts):
    """What is read of a file with these lines, as bytes or text."""
    parts = (text if isinstance(text, bytes) else text.encode() for text in texts)
    workdir.results.write_bytes(b"".join(parts))
    return read(workdir.results, workdir.trials)


def test_rows_come_back_as_they_were(workdir):
    assert read(workdir.results, workdir.trials).rows == []
    found = append(workdir, read(workdir.results, workdir.trials), RETRAIN)
    found = append(workdir, found, FISHER)
    assert found == read(workdir.results, workdir.trials)
    assert (
        found.rows == read_whole(workdir.results, workdir.trials) == FISHER + RETRAIN
        and found.damaged == ()
    )
    text = workdir.results.read_text()
    assert text == lines(*RETRAIN, *FISHER)  # in the order of writing
    raw = [json.loads(one) for one in text.splitlines()]
    assert {len(one.pop("check")) for one in raw} == {16} and raw == RETRAIN + FISHER


def test_the_digest_is_of_values_not_of_their_order():
    value = {"b": 1, "a": np.float64(0.1), "c": [1.0, None, True]}
    same = {"a": 0.1, "c": [1.0, None, True], "b": 1}
    checks = [json.loads(line(row))["check"] for row in (value, same, same | {"b": 1.0})]
    assert checks[0] == checks[1] != checks[2]


def test_rows_are_added_where_the_file_ends(workdir, monkeypatch):
    """Not written anew: the bytes before stay where they are, in the same file."""
    found = append(workdir, read(workdir.results, workdir.trials), RETRAIN)
    inode = workdir.results.stat().st_ino
    synced = []
    real = os.fsync
    monkeypatch.setattr("os.fsync", lambda file: (synced.append(os.fstat(file)), real(file)))
    append(workdir, found, FISHER)
    assert workdir.results.stat().st_ino == inode
    assert [(status.st_ino, status.st_size) for status in synced] == [
        (inode, len(lines(*RETRAIN, *FISHER)))  # once, after everything was written
    ]


def test_a_new_file_and_its_folder_are_on_the_disk(workdir, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr("os.fsync", lambda file: (synced.append(os.fstat(file)), real(file)))
    append(workdir, read(workdir.results, workdir.trials), RETRAIN)
    inodes = [status.st_ino for status in synced]
    assert inodes == [workdir.results.stat().st_ino, workdir.path.stat().st_ino]


# Kills


WHOLE = lines(*RETRAIN, *FISHER)


@pytest.mark.parametrize("lost", range(1, len(lines(*FISHER)) + 1, 7))
def test_a_torn_end_takes_its_arm_with_it(workdir, lost):
    found = rows_of(workdir, WHOLE[:-lost])
    assert found.rows == RETRAIN and found.damaged == ()
    assert workdir.results.read_text() == WHOLE[:-lost]  # reading changes nothing
    append(workdir, found, FISHER)
    text = workdir.results.read_text()
    again = read(workdir.results, workdir.trials)
    assert again.rows == FISHER + RETRAIN and again.damaged == ()
    assert text.endswith(lines(*FISHER)) and text.startswith(lines(*RETRAIN))


def test_a_kill_while_everything_is_taken_back(workdir):
    """Any beginning of what is written holds old rows, or none, or new ones."""
    before = append(workdir, read(workdir.results, workdir.trials), RETRAIN)
    append(workdir, before, AGAIN, anew=True)
    text = workdir.results.read_bytes()
    kept = [rows_of(workdir, text[:end]).rows for end in range(before.end, len(text) + 1)]
    assert [rows for i, rows in enumerate(kept) if not i or rows != kept[i - 1]] == [
        RETRAIN, [], AGAIN,
    ]  # fmt: skip


# Sets of rows


def test_the_last_whole_set_of_an_arm_counts(workdir):
    assert rows_of(workdir, lines(*FISHER, *RETRAIN, *AGAIN)).rows == AGAIN + RETRAIN
    half = [row("fisher", 0, ua=0.9)]
    assert rows_of(workdir, lines(*FISHER, *half)).rows == FISHER
    assert rows_of(workdir, lines(*half, *AGAIN)).rows == AGAIN


@pytest.mark.parametrize(
    "text",
    [
        lines(FISHER[0], AGAIN[0]),
        lines(FISHER[1], AGAIN[0]),
        lines(FISHER[0], *RETRAIN, FISHER[1]),
        lines(FISHER[0]) + "damaged\n" + lines(FISHER[1]),
        lines(FISHER[0], row("fisher", 2), FISHER[1]),
        lines(FISHER[0], FISHER[1] | {"sparsity": 0.5}),
        lines(FISHER[0], ANEW, FISHER[1]),
    ],
)
def test_a_set_is_one_arm_trial_after_trial(workdir, text):
    assert not [found for found in rows_of(workdir, text).rows if found["method"] == "fisher"]


def test_rows_can_be_taken_back(workdir):
    found = append(workdir, read(workdir.results, workdir.trials), FISHER)
    found = append(workdir, found, RETRAIN, anew=True)
    assert found == read(workdir.results, workdir.trials) and found.rows == RETRAIN
    assert workdir.results.read_text() == lines(*FISHER, ANEW, *RETRAIN)
    found = append(workdir, found, [], anew=True)
    assert found.rows == [] == read(workdir.results, workdir.trials).rows


def test_the_order_is_not_that_of_the_file():
    rows = [*RETRAIN, row("a", 0) | {"sparsity": 0.5}, *FISHER]
    assert in_order(rows[::-1]) == [*FISHER, *RETRAIN, rows[2]]


# Damage


BROKEN = [
    *("{torn", "", " ", "3", "null", "[]", "{}", '{"check": 3}', "[" * 100_000, "9" * 5000),
    *(b"\0", b"\xff\xfe", line(FISHER[0]).strip().encode("utf-16-le")),
    *("\ufeff" + line(FISHER[0]).strip(), line(FISHER[0]).strip() + "\0"),
    *(json.dumps(FISHER[0]), line({}).strip(), line({"method": [], "trial": 0}).strip()),
    *(line(row("a", True)).strip(), line(row("a", 0) | {"sparsity": float("nan")}).strip()),
    line(row("a", 0)).strip().replace('"a"', '"b"'),
]  # fmt: skip


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_line_is_named_and_the_others_stand(workdir, text):
    text = text.encode() if isinstance(text, str) else text
    found = rows_of(workdir, lines(*RETRAIN), text, b"\n", lines(*FISHER))
    assert found.damaged == (3,) and found.rows == FISHER + RETRAIN
    with pytest.raises(WorkdirError, match=r"results.jsonl, line 3: is damaged; run without"):
        read_whole(workdir.results, workdir.trials)
    append(workdir, found, found.rows, anew=True)
    assert (
        read(workdir.results, workdir.trials).damaged == ()
        and read_whole(workdir.results, workdir.trials) == FISHER + RETRAIN
    )


def test_many_broken_lines_are_counted(workdir):
    found = rows_of(workdir, "x\n", lines(*RETRAIN), "x\nx\n")
    assert found.damaged == (1, 4, 5)
    said = f"{workdir.results}, line 1: is damaged, as are 2 more"
    assert results.damage(workdir.results, found) == said


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 7))
def test_no_flipped_bit_changes_a_row(tmp_path_factory, place, bit):
    """Every row that is read is one that was written; a row that is not is missed."""
    flipped = bytearray(WHOLE.encode())
    flipped[place] ^= 1 << bit
    workdir = Workdir(tmp_path_factory.getbasetemp(), 2, 10, 2, StopRequest(), (0, 0))
    found = rows_of(workdir, bytes(flipped))
    assert all(of_file in RETRAIN + FISHER for of_file in found.rows)
    if found.rows != FISHER + RETRAIN:
        # a last line that has lost its end looks like one torn by a kill
        assert found.damaged or place == len(WHOLE) - 1
        assert len(found.rows) in (0, 2)


def test_a_file_that_cannot_be_read_is_named(workdir):
    workdir.results.mkdir()
    with pytest.raises(WorkdirError, match=r"results.jsonl: is no file"):
        read(workdir.results, workdir.trials)


# Trouble while the run goes on


@pytest.mark.parametrize("call", ["os.fsync", "os.replace"])
def test_an_append_that_fails_changes_nothing(workdir, monkeypatch, call):
    def full(*_):
        raise OSError(28, "No space left on device")

    found = (
        read(workdir.results, workdir.trials)
        if call == "os.replace"
        else append(workdir, read(workdir.results, workdir.trials), RETRAIN)
    )
    before = found.rows
    refused = pytest.raises(WorkdirError, match=r"results.jsonl: cannot be written .No space left")
    with monkeypatch.context() as patched, refused:
        patched.setattr(call, full)
        append(workdir, found, FISHER)
    assert (
        read(workdir.results, workdir.trials) == found
        and read(workdir.results, workdir.trials).rows == before
    )
    assert append(workdir, found, FISHER).rows == FISHER + before


def test_a_file_that_may_not_grow(workdir):
    """The kernel refuses the write itself, after a part of it (Python ignores its signal)."""
    found = append(workdir, read(workdir.results, workdir.trials), RETRAIN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (found.end + 40, hard))
    try:
        with pytest.raises(WorkdirError, match=r"results.jsonl: cannot be written .File too large"):
            append(workdir, found, FISHER)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert workdir.results.read_text() == lines(*RETRAIN)


@pytest.mark.parametrize("trouble", ["deleted", "cut", "lengthened", "replaced"])
def test_no_row_is_lost_to_who_touches_the_file(workdir, trouble):
    found = append(workdir, read(workdir.results, workdir.trials), RETRAIN)
    text = workdir.results.read_text()
    if trouble == "cut":
        os.truncate(workdir.results, 10)
    elif trouble == "lengthened":
        workdir.results.write_text(text + "{}\n")
    else:
        workdir.results.rename(workdir.path / "elsewhere")  # keeps the inode from being used again
    if trouble == "replaced":
        workdir.results.write_text(text.replace("0.33", "0.99"))
    found = append(workdir, found, FISHER)
    assert found == read(workdir.results, workdir.trials) and found.rows == FISHER + RETRAIN
    assert (
        append(workdir, found, AGAIN).rows
        == AGAIN + RETRAIN
        == read_whole(workdir.results, workdir.trials)
    )


def test_damaged_lines_stay_until_the_file_is_written_again(workdir):
    found = append(workdir, rows_of(workdir, "x\n", lines(*RETRAIN)), FISHER)
    assert found == read(workdir.results, workdir.trials) and found.damaged == (1,)
    workdir.results.unlink()
    found = append(workdir, found, AGAIN)
    assert (
        found == read(workdir.results, workdir.trials)
        and found.damaged == ()
        and found.rows == AGAIN + RETRAIN
    )


def test_a_file_that_appears_is_not_taken_for_ours(workdir):
    found = read(workdir.results, workdir.trials)
    workdir.results.write_text(lines(*AGAIN))
    assert (
        append(workdir, found, RETRAIN).rows
        == RETRAIN
        == read_whole(workdir.results, workdir.trials)
    )


def test_a_folder_that_is_gone_is_said(workdir):
    found = append(workdir, read(workdir.results, workdir.trials), RETRAIN)
    workdir.path.rename(workdir.path.with_name("moved"))
    with pytest.raises(WorkdirError, match="was deleted or replaced under the run"):
        append(workdir, found, FISHER)
    assert not workdir.path.exists()
    moved = workdir._replace(path=workdir.path.with_name("moved"))
    assert read_whole(moved.results, moved.trials) == RETRAIN
