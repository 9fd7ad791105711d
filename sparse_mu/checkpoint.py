"""Orbax: stages on disk, and models that somebody else saved.

A saved folder holds an orbax tree and a ``meta.json``, written last: it is complete or not there at
all. The meta carries a digest of every file of the tree and one of itself, so what a disk or a
stranger changed is refused, never read.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from sparse_mu import digests, trees
from sparse_mu.quiet import quiet
from sparse_mu.types import Masks, Model, PyTree

_TREE, _META = "tree", "meta.json"
LONGEST_REASON = 200  # characters
AGAIN = "delete that folder, and the same command makes it again"


class CheckpointError(Exception):
    """A tree on disk that cannot be read or does not fit what is asked of it."""


class DamagedError(CheckpointError):
    """A saved folder whose content is not what was written."""


def write_atomically(path: Path, text: str) -> None:
    """Writes a file whole or not at all.

    Raises:
        OSError: naming the file and the cause (of itself, a full disk names no file).
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise


def save(folder: Path, tree: PyTree, meta: Mapping[str, object]) -> None:
    """Saves a tree. It counts as finished once its ``meta.json`` is there, written last.

    Args:
        folder: its own folder; a tree that is there already, whole or not, is replaced.
        tree: arrays.
        meta: JSON-able scalars and lists (orbax would change their types).

    Raises:
        CheckpointError: if the disk does not take it.
    """
    import orbax.checkpoint as ocp

    try:
        (folder / _META).unlink(missing_ok=True)  # from here on it is not finished
        _clear(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with quiet(), ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((folder / _TREE).absolute(), trees.flat(tree))
            checkpointer.wait_until_finished()
        content = {"meta": dict(meta), "files": _digests(folder / _TREE)}
        text = json.dumps(content | {"digest": _digest_of(content)}, indent=1)
        write_atomically(folder / _META, text)
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError):
            _clear(folder)  # half a tree would keep a full disk full
        raise CheckpointError(f"{folder} cannot be saved: {_reason(error)}") from error


def _clear(folder: Path) -> None:
    """Takes away a tree, and what an attempt that was killed has left of one."""
    for leftover in folder.glob(f"{_TREE}*"):
        shutil.rmtree(leftover)


def is_finished(folder: Path) -> bool:
    """Whether a tree was saved completely."""
    return (folder / _META).is_file()


def restore(folder: Path, like: PyTree) -> tuple[PyTree, dict]:
    """Restores a saved tree into the structure of ``like``.

    Digests are checked, and structure, shapes and types compared, before anything is read: orbax
    casts silently.

    Args:
        folder: a finished one.
        like: tree of arrays or ``jax.ShapeDtypeStruct``.

    Raises:
        DamagedError: if it cannot be read, or is not what was saved.
        CheckpointError: if its tree is another one (the leaf is named).
    """
    meta = read_meta(folder)
    return read_tree(folder, like), meta


def read_tree(folder: Path, like: PyTree) -> PyTree:
    """The tree of a folder whose digests hold, as :func:`read_meta` has found.

    Raises:
        DamagedError, CheckpointError: as :func:`restore`.
    """
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), like)
    plain = trees.flat(target)
    restored = _read(folder, plain)
    leaves = [np.asarray(restored[name]) for name in plain]  # jax would sort the names
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def read_arrays(folder: Path) -> tuple[dict[str, np.ndarray], dict]:
    """All leaves of a saved tree by their names, such as ``model.params.Conv_0.kernel``, and meta.

    Raises:
        DamagedError: if it cannot be read, or is not what was saved.
    """
    meta = read_meta(folder)
    restored = _read(folder, None)
    return {name: np.asarray(leaf) for name, leaf in sorted(restored.items())}, meta


def read_meta(folder: Path) -> dict:
    """The scalars that were saved with a tree, once all digests hold.

    Raises:
        DamagedError: if a file is missing, cannot be read or is not what was saved.
    """
    try:
        found = json.loads((folder / _META).read_text(encoding="utf-8"))
        digest = found.pop("digest")
        if digest != _digest_of(found):
            raise ValueError(f"{_META} is not what was written")
        if found["files"] != (now := _digests(folder / _TREE)):
            differing = {name for name, _ in found["files"].items() ^ now.items()}
            raise ValueError(f"{min(differing)} is not what was written")
        return found["meta"]
    # the last four: JSON of another form
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise DamagedError(f"{folder} is damaged: {_reason(error)}; {AGAIN}") from error


def _read(folder: Path, plain: dict | None) -> dict:
    """The flat tree of a folder whose digests hold; compared with ``plain`` first, if given."""
    import orbax.checkpoint as ocp

    path = (folder / _TREE).absolute()
    try:
        with quiet(), ocp.StandardCheckpointer() as checkpointer:
            stored = checkpointer.metadata(path).item_metadata
            if stored is None:
                raise FileNotFoundError("its tree is gone or damaged")
            if plain is not None and (difference := trees.describe_mismatch(stored.tree, plain)):
                raise CheckpointError(f"{folder} does not fit: {difference}; {AGAIN}")
            if plain is None:
                plain = jax.tree.map(
                    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), stored.tree
                )
            return checkpointer.restore(path, plain)
    # the last two: metadata of another form, under digests that fit them
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedError(f"{folder} cannot be read: {_reason(error)}; {AGAIN}") from error


def _digests(folder: Path) -> dict[str, str]:
    """The sha256 of every file below a folder, by its path from there."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = digests.of_file(path)
    return found


def _digest_of(content: object) -> str:
    """The sha256 of something JSON-able, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
        with quiet(), ocp.PyTreeCheckpointer() as checkpointer:
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
    with np.errstate(over="ignore", invalid="ignore"):  # inf and NaN are for the caller to refuse
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


def _reason(error: Exception) -> str:
    """One line; of a long one, such as tensorstore's, the end, where the cause stands."""
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    line = line.partition(" [source locations")[0]
    return line if len(line) <= LONGEST_REASON else "..." + line[-LONGEST_REASON:]
