"""State dicts as files: ``.safetensors``, and PyTorch's ``.pth`` read without PyTorch."""

import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import ArrayLike

from sparse_mu.data.regular import stat_file
from sparse_mu.interop import pickled
from sparse_mu.interop.conversion import state_dict_of
from sparse_mu.interop.errors import StateDictError

_SAFE = ".safetensors"
_TORCH = (".pth", ".pth.tar", ".pt")
# bytes; it names tensors and does not hold them, 100 bytes for each. A hostile one becomes objects
# of sixty times its size
_LARGEST_PICKLE = 2**20
_LONGEST_REASON = 200  # characters


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads a state dict, or the one under ``"state_dict"`` of a checkpoint, as numpy arrays.

    ``.safetensors`` are read by that library. ``.pth``, ``.pth.tar`` and ``.pt`` are read by a
    pickle machine of our own that builds tensors, containers and numbers and refuses every other
    global, whatever it is called with (:mod:`sparse_mu.interop.pickled`); PyTorch is not needed.
    Only uncompressed archives are read, members by their exact name, and never more bytes than the
    file has.

    Args:
        path: the file; its suffix tells the format.

    Returns:
        Arrays by name, possibly read-only views.

    Raises:
        StateDictError: the file is absent, damaged, of another or of PyTorch's older format, holds
            something else than plain data, or something else than a state dict.
    """
    path = Path(path)
    try:
        kind = _format(path)
        stat_file(path)
        match kind:
            case "safetensors":
                found: object = _read_safetensors(path)
            case _:
                found = _read_archive(path)
        if not isinstance(found, Mapping):
            raise StateDictError(f"it holds a {type(found).__name__}, not a state dict")
        found = state_dict_of(found)
        for name, value in found.items():
            if not isinstance(name, str) or not isinstance(value, np.ndarray):
                kind = type(value).__name__
                raise StateDictError(f"entry {name!r} is a {kind}, not a tensor")
        return dict(found)
    except StateDictError as error:
        raise StateDictError(f"{path}: {error}") from error
    # the others: damaged archives, by what zipfile trips over first
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise StateDictError(f"{path} cannot be read: {_reason(error)}") from error


def write_state_dict(path: str | os.PathLike[str], state_dict: Mapping[str, ArrayLike]) -> None:
    """Writes a state dict, whole or not at all.

    Args:
        path: ``.safetensors``, or with PyTorch installed ``.pth``, ``.pth.tar`` or ``.pt``.
        state_dict: arrays by name.

    Raises:
        StateDictError: another suffix, PyTorch is needed and absent, or the disk does not take it.
    """
    path = Path(path)
    arrays = {name: np.asarray(value, order="C") for name, value in state_dict.items()}
    try:
        if _format(path) == "safetensors":
            from safetensors.numpy import save

            _atomically(path, lambda file: file.write(save(arrays)))
        else:
            _write_archive(path, arrays)
    except StateDictError as error:
        raise StateDictError(f"{path}: {error}") from error
    except OSError as error:
        raise StateDictError(f"{path} cannot be written: {_reason(error)}") from error


def _format(path: Path) -> str:
    if path.name.endswith(_SAFE):
        return "safetensors"
    if path.name.endswith(_TORCH):
        return "torch"
    raise StateDictError(f"unknown suffix, want one of {', '.join((_SAFE, *_TORCH))}")


def _reason(error: Exception) -> str:
    """One short line: what the system says, without the path that stands before it."""
    line = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return line.splitlines()[0][:_LONGEST_REASON]


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise StateDictError(f"it is no valid safetensors file: {_reason(error)}") from error


def _read_archive(path: Path) -> object:
    size = path.stat().st_size
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            raise StateDictError(
                "it is no archive; if PyTorch before 1.6 wrote it, convert it where PyTorch is "
                "installed: torch.save(torch.load(path, weights_only=True), new_path)"
            )
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            members = _members(archive, size)
            pickles = [name for name in members if name.endswith("/data.pkl")]
            if len(pickles) != 1 or pickles[0].count("/") != 1:
                raise StateDictError("it is an archive, but not one of PyTorch's: no data.pkl")
            folder = pickles[0].removesuffix("data.pkl")
            order = members.get(f"{folder}byteorder")
            if order is not None and (order.file_size > 16 or archive.read(order) != b"little"):
                raise StateDictError("its numbers are stored with the high byte first")

            def read(key: str, expected: int) -> bytes:
                member = members.get(f"{folder}data/{key}")
                if member is None:
                    raise StateDictError(f"its storage '{key}' is not in the archive")
                if member.file_size != expected:
                    raise StateDictError(
                        f"its storage '{key}' has {member.file_size} bytes, expected {expected}"
                    )
                return archive.read(member)

            if members[pickles[0]].file_size > _LARGEST_PICKLE:
                raise StateDictError(f"its data.pkl is larger than {_LARGEST_PICKLE:,} bytes")
            return pickled.load(archive.read(members[pickles[0]]), read)


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Members by name, once it is clear that reading them takes no more than the file's size."""
    members = {info.filename: info for info in archive.infolist()}
    if len(members) != len(archive.infolist()):
        raise StateDictError("two members of the archive have one name")
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise StateDictError(f"its member '{info.filename}' is compressed or encrypted")
    if sum(info.file_size for info in members.values()) > size:
        raise StateDictError("its members claim more bytes than the file has")
    return members


def _write_archive(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    try:
        import torch  # pyrefly: ignore[missing-import]
    except ImportError as error:
        raise StateDictError(
            "writing it needs PyTorch (pip install 'sparse_mu[torch]'); .safetensors does not"
        ) from error
    tensors = {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}
    _atomically(path, lambda file: torch.save(tensors, file))


def _atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes beside the file, then renames."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
