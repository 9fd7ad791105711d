"""Stages: what a result depends on, and that it is made once."""

import numpy as np
import pytest

from sparse_mu import checkpoint
from sparse_mu.checkpoint import CheckpointError
from sparse_mu.stages import fingerprint, keeper_in
from sparse_mu.standing import Position, Standing
from sparse_mu.stopping import Stopped
from sparse_mu.workdir import WorkdirError, held

CONFIG = {"trials": 2, "checkpoint.every_epochs": 10, "checkpoint.keep": 2}


@pytest.fixture
def workdir(tmp_path):
    with held(tmp_path, CONFIG) as workdir:
        yield workdir


def test_fingerprints_tell_everything_apart():
    parts = [
        (1,),
        ("1",),
        (1.0,),
        (1, 1),
        ({"a": 1},),
        ({"a": 2},),
        (np.zeros(2, np.int32),),
        (np.zeros(2, np.float32),),
        (np.zeros((2, 1), np.int32),),
        (np.ones(2, np.int32),),
    ]
    prints = [fingerprint(*part) for part in parts]
    assert len(set(prints)) == len(parts)
    assert prints == [fingerprint(*part) for part in parts]
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    matrix = np.arange(6).reshape(2, 3)
    assert fingerprint(matrix.T) == fingerprint(matrix.T.copy())


def test_a_stage_is_made_once(workdir):
    made = []

    def make(keeper):
        del keeper
        made.append(1)
        return {"w": np.arange(3.0, dtype=np.float32)}, {"seconds": 2.0}

    like = {"w": np.zeros(3, np.float32)}
    first = workdir.stage("train", ({"epochs": 3},), make, like)
    again = workdir.stage("train", ({"epochs": 3},), make, like)
    assert len(made) == 1
    assert first.fingerprint == again.fingerprint and again.meta == {"seconds": 2.0}
    assert np.array_equal(again.tree["w"], first.tree["w"])
    other = workdir.stage("train", ({"epochs": 4},), make, like)
    assert len(made) == 2 and other.fingerprint != first.fingerprint
    workdir.stop.ask(15)
    assert workdir.stage("train", ({"epochs": 4},), make, like).meta == other.meta
    with pytest.raises(Stopped):
        workdir.stage("train", ({"epochs": 5},), make, like)
    assert len(made) == 2


def test_a_damaged_stage_is_said_and_made_again(workdir, caplog):
    values = iter([1.0, 1.0, 2.0])

    def make(keeper):
        del keeper
        return {"w": np.float32([next(values)])}, {}

    like = {"w": np.zeros(1, np.float32)}
    workdir.stage("train", (), make, like)
    (folder,) = (workdir.path / "stages").iterdir()
    for file in sorted(path for path in folder.rglob("*") if path.is_file())[:2]:
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        again = workdir.stage("train", (), make, like)
        assert "is made again" in caplog.text and folder.name in caplog.text
        assert caplog.text.count("\n") == 1
        caplog.clear()
    assert again.tree["w"] == 2.0
    assert workdir.stage("train", (), make, like).tree["w"] == 2.0  # as it is now on the disk
    assert not caplog.records


def test_the_checkpoints_of_a_stage_go_when_it_is_finished(workdir):
    seen = []

    def make(keeper):
        for number in range(4):
            position = Position(0, number, 0, number, 1.5, 0.5)
            keeper.save(standing(number), position)
            seen.append(sorted(path.name for path in under_way.iterdir()))
        found, at = keeper.load(lambda at: standing(at.done))
        assert at == position and found.loss[0, 0] == 3
        return like, {}

    like = {"w": np.zeros(1, np.float32)}

    folder = workdir.path / "stages" / f"train-{fingerprint('train')}"
    under_way = folder / "under_way"
    workdir.stage("train", (), make, like)
    assert seen == [["000000"], ["000000", "000001"], ["000001", "000002"], ["000002", "000003"]]
    assert not under_way.exists()
    under_way.mkdir()  # killed before it was taken away
    workdir.stage("train", (), make, like)
    assert not under_way.exists()


def standing(number):
    loss = np.full((1, 1), number, np.float32)
    return Standing((), {}, loss, {"w": np.zeros(2, np.float32)}, np.ones(1, bool), ())


def test_what_a_killed_save_left_is_passed_over_and_taken_away(tmp_path):
    keeper = keeper_in(tmp_path, 1, 2, lambda: False)
    for number in range(2):
        keeper.save(standing(number), Position(0, number, 0, number, 0.0, 0.0))
    (tmp_path / "000001" / "meta.json").unlink()  # killed in the midst of it
    found, at = keeper.load(lambda at: standing(at.done))
    assert at.done == 0 and found.loss[0, 0] == 0
    keeper.save(standing(7), Position(0, 7, 0, 7, 0.0, 0.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000", "000001"]
    assert keeper.load(lambda at: standing(at.done))[1].done == 7


def test_nothing_is_saved_where_nothing_may_be(tmp_path):
    def gone():
        raise WorkdirError("gone")

    keeper = keeper_in(tmp_path / "under_way", 1, 2, lambda: False, gone)
    with pytest.raises(WorkdirError, match="gone"):
        keeper.save(standing(0), Position(0, 0, 0, 0, 0.0, 0.0))
    assert not (tmp_path / "under_way").exists()


def test_killed_saves_do_not_pile_up(tmp_path, monkeypatch):
    keeper = keeper_in(tmp_path, 1, 2, lambda: False)
    at = Position(0, 0, 0, 0, 0.0, 0.0)
    keeper.save(standing(0), at)

    def killed(path, text):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_atomically", killed)
        for _ in range(4):
            with pytest.raises(KeyboardInterrupt):
                keeper.save(standing(1), at)
            assert sorted(path.name for path in tmp_path.iterdir()) == ["000000", "000001"]
    assert keeper.load(lambda at: standing(0))[0].loss[0, 0] == 0
    keeper.save(standing(2), at)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000", "000001"]


def test_a_save_that_fails_leaves_no_half_tree(tmp_path, monkeypatch):
    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_atomically", full)
    keeper = keeper_in(tmp_path, 1, 2, lambda: False)
    with pytest.raises(CheckpointError, match="No space left"):
        keeper.save(standing(0), Position(0, 0, 0, 0, 0.0, 0.0))
    assert not list((tmp_path / "000000").iterdir())


def test_a_position_of_another_form_is_passed_over(tmp_path, caplog):
    keeper = keeper_in(tmp_path, 1, 2, lambda: False)
    keeper.save(standing(0), Position(0, 0, 0, 0, 0.0, 0.0))
    checkpoint.save(tmp_path / "000001", standing(1), {"epoch": 1, "what": "of a later version"})
    found, _ = keeper.load(lambda at: standing(0))
    assert found.loss[0, 0] == 0 and "going back to the checkpoint before" in caplog.text
