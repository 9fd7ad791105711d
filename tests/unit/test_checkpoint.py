"""Stages on disk: whole or not there, and restored only into the tree they were saved from."""

from typing import NamedTuple

import jax
import numpy as np
import pytest

from sparse_mu import checkpoint
from sparse_mu.checkpoint import CheckpointError, DamagedError


class Pair(NamedTuple):
    weights: dict
    masks: dict
    nothing: tuple = ()


@pytest.fixture
def tree():
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    masks = {"Dense_0": {"kernel": kernel > 2}}
    return Pair({"Dense_0": {"kernel": kernel, "bias": np.float32([np.nan, -0.0, 1e-40])}}, masks)


@pytest.fixture
def stage(tmp_path, tree):
    folder = tmp_path / "stage"
    checkpoint.save(folder, tree, {"seconds": 1.5, "diverged": [False, True], "rte": None})
    return folder


def fails(match, folder, like):
    with pytest.raises(CheckpointError, match=match) as info:
        checkpoint.restore(folder, like)
    assert "\n" not in str(info.value) and str(folder) in str(info.value)
    assert "delete that folder" in str(info.value)


def test_round_trip_of_named_tuples_booleans_and_scalars(stage, tree):
    restored, meta = checkpoint.restore(stage, tree)
    assert jax.tree.structure(restored) == jax.tree.structure(tree)
    for leaf, saved in zip(jax.tree.leaves(restored), jax.tree.leaves(tree), strict=True):
        assert type(leaf) is np.ndarray and leaf.dtype == saved.dtype
        assert leaf.tobytes() == saved.tobytes()  # not-a-number, minus zero and denormals too
    assert meta == {"seconds": 1.5, "diverged": [False, True], "rte": None}


def test_restores_into_shapes_alone(stage, tree):
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
    restored, _ = checkpoint.restore(stage, shapes)
    assert np.array_equal(restored.masks["Dense_0"]["kernel"], tree.masks["Dense_0"]["kernel"])


def test_another_tree_is_refused_by_the_name_of_its_leaf(stage, tree):
    kernel, bias = (tree.weights["Dense_0"][name] for name in ("kernel", "bias"))

    def like(**leaves):
        return tree._replace(weights={"Dense_0": leaves})

    fails("'weights.Dense_0.kernel' has shape", stage, like(kernel=kernel.T, bias=bias))
    fails("'weights.Dense_0.bias' has shape", stage, like(kernel=kernel, bias=bias[:2]))
    fails(
        "'weights.Dense_0.kernel' has dtype float32, expected float16",
        stage,
        like(kernel=kernel.astype(np.float16), bias=bias),
    )
    fails("'weights.Dense_0.bias' is not expected", stage, like(kernel=kernel))
    fails("'weights.Dense_0.scale' is missing", stage, like(kernel=kernel, bias=bias, scale=bias))


def test_a_stage_without_its_meta_is_not_finished(stage, tree):
    assert checkpoint.is_finished(stage)
    (stage / "meta.json").unlink()
    assert not checkpoint.is_finished(stage)
    checkpoint.save(stage, tree, {"seconds": 2.0})  # over the leftovers
    assert checkpoint.restore(stage, tree)[1] == {"seconds": 2.0}


def test_the_meta_is_written_last(tmp_path, tree, monkeypatch):
    def killed(path, text):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path / "stage", tree, {})
    assert (tmp_path / "stage" / "tree").is_dir()
    assert not checkpoint.is_finished(tmp_path / "stage")


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "file.json"
    checkpoint.write_atomically(file, "before")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write_atomically(file, "after")
    assert file.read_text() == "before"


@pytest.mark.parametrize(
    "text", ["", "{", '{"seconds": 1', b"\xff", "[]", "[" * 100_000, "{}", '{"digest": 1}']
)
def test_a_meta_of_another_form(stage, tree, text):
    (stage / "meta.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    fails("is damaged", stage, tree)


def test_a_changed_number_of_the_meta_is_seen(stage, tree):
    text = (stage / "meta.json").read_text()
    (stage / "meta.json").write_text(text.replace("1.5", "1.4"))
    fails("meta.json is not what was written", stage, tree)


def test_every_byte_of_every_file_counts(stage, tree):
    random = np.random.default_rng(0)
    files = [path for path in sorted(stage.rglob("*")) if path.is_file()]
    assert len(files) > 3
    for file in files:
        content = file.read_bytes()
        for place in random.integers(len(content), size=4) if content else ():
            changed = bytearray(content)
            changed[place] ^= 1 << random.integers(8)
            file.write_bytes(changed)
            try:
                found, meta = checkpoint.restore(stage, tree)
            except DamagedError as error:
                assert "\n" not in str(error) and str(stage) in str(error)
            else:  # white space of the meta, or one digit of a number for an equal one
                assert file.name == "meta.json" and meta == {
                    "seconds": 1.5,
                    "diverged": [False, True],
                    "rte": None,
                }
                assert jax.tree.structure(found) == jax.tree.structure(tree)
        file.write_bytes(content[:-1])
        with pytest.raises(DamagedError):
            checkpoint.read_arrays(stage)
        file.unlink()
        if file.name != "meta.json":
            with pytest.raises(DamagedError, match="is not what was written"):
                checkpoint.read_arrays(stage)
        file.write_bytes(content)
    (stage / "tree" / "one more").write_text("")
    with pytest.raises(DamagedError, match="one more is not what was written"):
        checkpoint.restore(stage, tree)


def test_arrays_are_read_by_name_without_knowing_the_tree(stage, tree):
    arrays, meta = checkpoint.read_arrays(stage)
    expected = {
        "masks.Dense_0.kernel": tree.masks["Dense_0"]["kernel"],
        "weights.Dense_0.bias": tree.weights["Dense_0"]["bias"],
        "weights.Dense_0.kernel": tree.weights["Dense_0"]["kernel"],
    }
    assert list(arrays) == list(expected)  # sorted
    for name, leaf in arrays.items():
        assert leaf.dtype == expected[name].dtype and leaf.tobytes() == expected[name].tobytes()
    assert meta["seconds"] == 1.5


def test_what_a_killed_save_left_is_taken_away(stage, tree):
    for name in ("tree.orbax-checkpoint-tmp", "tree.orbax-checkpoint-tmp-1"):
        (stage / name).mkdir()
        (stage / name / "part").write_text("half")
    (stage / "meta.json").unlink()
    checkpoint.save(stage, tree, {})
    assert sorted(path.name for path in stage.iterdir()) == ["meta.json", "tree"]


def test_a_disk_that_does_not_take_it(tmp_path, tree):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"cannot be saved: .*Not a directory"):
        checkpoint.save(tmp_path / "file" / "stage", tree, {})
