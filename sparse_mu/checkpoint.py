"""Orbax: finished stages on disk, and models that somebody else saved.

A stage is an orbax tree and a JSON of scalars, complete or not there at all.
"""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from sparse_mu import trees
from sparse_mu.types import Masks, Model, PyTree

_TREE, _META = "tree", "meta.json"
LONGEST_REASON = 200  # characters


class CheckpointError(Exception):
    """A tree on disk that cannot be read or does not fit what is asked of it."""


def write_atomically(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save(folder: Path, tree: PyTree, meta: Mapping[str, object]) -> None:
    """Saves a stage. It counts as finished once its ``meta.json`` is there, written last.

    Args:
        folder: the stage's own folder; leftovers of an unfinished attempt are replaced.
        tree: arrays.
        meta: JSON-able scalars and lists (orbax would change their types).

    Raises:
        CheckpointError: if the disk does not take it.
    """
    import orbax.checkpoint as ocp

    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        with _quiet(), ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((folder / _TREE).absolute(), _plain(tree))
            checkpointer.wait_until_finished()
        write_atomically(folder / _META, json.dumps(dict(meta)))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"stage {folder} cannot be saved: {_reason(error)}") from error


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
    again = "delete that folder, and the same command makes it again"
    try:
        meta = json.loads((folder / _META).read_text(encoding="utf-8"))
        with _quiet(), ocp.StandardCheckpointer() as checkpointer:
            stored = checkpointer.metadata(path).item_metadata
            if stored is None:
                raise FileNotFoundError("its tree is gone or damaged")
            if difference := trees.describe_mismatch(stored.tree, plain):
                raise CheckpointError(f"stage {folder} does not fit: {difference}; {again}")
            restored = checkpointer.restore(path, plain)
    except (OSError, ValueError, KeyError) as error:
        reason = f"stage {folder} cannot be read: {_reason(error)}; {again}"
        raise CheckpointError(reason) from error
    leaves = [np.asarray(restored[name]) for name in plain]  # jax would sort the names
    return jax.tree.unflatten(jax.tree.structure(like), leaves), meta


def read_model(folder: Path, like: Model) -> tuple[Model, Masks | None]:
    """Reads a trained model that another program saved with orbax.

    Understood are ``{"params": ..., "batch_stats": ...}``, a saved :class:`Model`
    (``{"params": ..., "net_state": {...}}``), and either among other entries, as in a training
    state; those others (the optimiser's, a step) are left unread. Structure and shapes are compared
    with the metadata before any array is read.

    Args:
        folder: what orbax wrote, the folder that holds ``_METADATA``.
        like: a model of the network (or ``jax.ShapeDtypeStruct``s).

    Returns:
        The model as numpy arrays, floats of any width cast to the types of ``like``, and the
        entry ``"masks"``, a tree of bools like the parameters, or None where there is none.

    Raises:
        CheckpointError: if it cannot be read, or naming the first leaf that does not fit.
    """
    import orbax.checkpoint as ocp

    try:
        with _quiet(), ocp.PyTreeCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(folder.absolute()).item_metadata
            if metadata is None:
                raise CheckpointError(f"{folder}: is no orbax checkpoint{_nearby(folder)}")
            item = _asked_of(folder, metadata.tree, like)
            as_stored = ocp.args.PyTreeRestore(
                item=item,
                restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item),
                partial_restore=True,
            )
            found = checkpointer.restore(folder.absolute(), args=as_stored)
    # the last two: metadata that are JSON of another form
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{folder} cannot be read: {_reason(error)}") from error
    params, masks = found.pop("params"), found.pop("masks", None)
    state = found.get("net_state", found) if like.net_state else like.net_state
    given = Model(params, state)
    model = jax.tree.map(lambda leaf, wanted: np.asarray(leaf, wanted.dtype), given, like)
    return model, masks


def _nearby(folder: Path) -> str:
    """Where a checkpoint stands below a folder that is none: those of a manager, one per step."""
    below = [*folder.glob("*/_METADATA"), *folder.glob("*/*/_METADATA")]
    if not below:
        return ""
    last = max(below, key=lambda file: (len(str(file)), str(file)))  # steps are numbers
    return f"; give the folder of one step, such as {last.parent}"


def _asked_of(folder: Path, stored: PyTree, like: Model) -> dict:
    """The part of a stored tree that makes a model, once it fits ``like``; leaves as stored."""
    if not isinstance(stored, Mapping) or "params" not in stored:
        entries = f"has {', '.join(map(str, stored))}" if isinstance(stored, Mapping) else "is none"
        raise CheckpointError(f"{folder}: must hold a dict with 'params', and {entries}")
    wanted: dict = {"params": like.params}
    part = {"params": stored["params"]}
    if "net_state" in stored and like.net_state:
        wanted["net_state"], part["net_state"] = like.net_state, stored["net_state"]
    else:
        wanted |= like.net_state
        part |= {name: stored[name] for name in like.net_state if name in stored}
    if "masks" in stored:
        wanted["masks"] = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, bool), like.params
        )
        part["masks"] = stored["masks"]
    if difference := trees.describe_mismatch(part, wanted, dtypes=False):
        raise CheckpointError(f"{folder} does not fit the network: {difference}")
    for name, leaf, expected in zip(
        trees.leaf_names(part), jax.tree.leaves(part), jax.tree.leaves(wanted), strict=True
    ):
        kind = jax.numpy.bool_ if expected.dtype == bool else jax.numpy.floating
        if not jax.numpy.issubdtype(leaf.dtype, kind):
            raise CheckpointError(
                f"{folder} does not fit the network: leaf '{name}' has dtype {leaf.dtype}, "
                f"expected {expected.dtype}"
            )
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), part)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back orbax's log: what fails is our one line, not its tracebacks."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _reason(error: Exception) -> str:
    """One line; of a long one, such as tensorstore's, the end, where the cause stands."""
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    line = line.partition(" [source locations")[0]
    return line if len(line) <= LONGEST_REASON else "..." + line[-LONGEST_REASON:]


def _plain(tree: PyTree) -> dict:
    """The leaves under their path names: one flat dict, whatever containers held them."""
    names = [name.replace("/", ".") for name in trees.leaf_names(tree)]
    return dict(zip(names, jax.tree.leaves(tree), strict=True))
