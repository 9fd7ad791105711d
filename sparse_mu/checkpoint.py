"""Finished stages on disk: an orbax tree and a JSON of scalars, complete or not there at all."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from sparse_mu import trees
from sparse_mu.types import PyTree

_TREE, _META = "tree", "meta.json"


class CheckpointError(Exception):
    """A stage on disk that cannot be read or does not fit what is asked of it."""


def write_atomically(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def save(folder: Path, tree: PyTree, meta: Mapping[str, object]) -> None:
    """Saves a stage. It counts as finished once its ``meta.json`` is there, written last.

    Args:
        folder: the stage's own folder; leftovers of an unfinished attempt are replaced.
        tree: arrays.
        meta: JSON-able scalars and lists (orbax would change their types).
    """
    import orbax.checkpoint as ocp

    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((folder / _TREE).absolute(), _plain(tree))
        checkpointer.wait_until_finished()
    write_atomically(folder / _META, json.dumps(dict(meta)))


def is_finished(folder: Path) -> bool:
    """Whether a stage was saved completely."""
    return (folder / _META).is_file()


def restore(folder: Path, like: PyTree) -> tuple[PyTree, dict]:
    """Restores a stage into the structure of ``like``.

    Structure, shapes and types are compared before anything is read: orbax casts silently.

    Args:
        folder: a finished stage.
        like: tree of arrays or ``jax.ShapeDtypeStruct``.

    Raises:
        CheckpointError: if it cannot be read, or its tree is another one (the leaf is named).
    """
    import orbax.checkpoint as ocp

    path = (folder / _TREE).absolute()
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), like)
    plain = _plain(target)
    try:
        meta = json.loads((folder / _META).read_text(encoding="utf-8"))
        with ocp.StandardCheckpointer() as checkpointer:
            stored = checkpointer.metadata(path).item_metadata.tree
            if difference := trees.describe_mismatch(stored, plain):
                raise CheckpointError(f"stage {folder.name} does not fit: {difference}")
            restored = checkpointer.restore(path, plain)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"stage {folder.name} cannot be read: {reason}") from error
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(restored)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), meta


def _plain(tree: PyTree) -> dict:
    """The leaves under their path names: one flat dict, whatever containers held them."""
    names = [name.replace("/", ".") for name in trees.leaf_names(tree)]
    return dict(zip(names, jax.tree.leaves(tree), strict=True))
