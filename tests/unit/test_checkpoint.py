"""Stages on disk: whole or not there, and restored only into the tree they were saved from."""

from typing import NamedTuple

import jax
import numpy as np
import pytest

from sparse_mu import checkpoint
from sparse_mu.checkpoint import CheckpointError


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


@pytest.mark.parametrize("text", ["", "{", '{"seconds": 1', b"\xff"])
def test_a_truncated_meta(stage, tree, text):
    (stage / "meta.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    fails("cannot be read", stage, tree)


# orbax reads leaves concurrently and drops the errors of all but the first, whenever they come
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_file_of_the_tree_counts(stage, tree):
    for file in sorted(stage.glob("tree/**/*")):
        if not file.is_file() or file.stat().st_size == 0:
            continue
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        try:
            restored, _ = checkpoint.restore(stage, tree)
        except CheckpointError as error:
            assert "\n" not in str(error)
        else:  # orbax did not need that file
            for leaf, saved in zip(jax.tree.leaves(restored), jax.tree.leaves(tree), strict=True):
                assert leaf.tobytes() == saved.tobytes(), file
        file.write_bytes(content)


def test_a_disk_that_does_not_take_it(tmp_path, tree):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"cannot be saved: .*Not a directory"):
        checkpoint.save(tmp_path / "file" / "stage", tree, {})
