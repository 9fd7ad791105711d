"""SHA-256, whole and in hex, of what a run is made of: arrays by name, JSON-able values, files."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sparse_mu import trees
from sparse_mu.types import PyTree


def of_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """The digest of named arrays: name, type, shape and bytes of each, in the order of the names.

    Leaves of a checkpoint that were read back (``checkpoint.read_arrays``) have the digest of the
    tree that was saved (:func:`of_tree`).
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        # a line of JSON ends where it ends: no name can pass for the bytes of another array
        digest.update(canonical([name, str(array.dtype), np.shape(arrays[name])]) + b"\n")
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def of_tree(tree: PyTree) -> str:
    """The digest of a tree's leaves under the names by which a checkpoint stores them."""
    return of_arrays({name: np.asarray(leaf) for name, leaf in trees.flat(tree).items()})


def of_json(value: object) -> str:
    """The digest of a JSON-able value, whatever white space or order of keys it was written in."""
    return hashlib.sha256(canonical(value)).hexdigest()


def of_file(path: Path) -> str:
    """The digest of a file's bytes.

    Raises:
        OSError: if it cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical(value: object) -> bytes:
    """The one way to write a JSON-able value: keys sorted, no white space, ASCII.

    Raises:
        ValueError: if it holds a number that is not finite, which JSON has no word for.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
