"""Where a prepared TFDS data set lies, found by its folders and JSON files alone.

Importing TFDS takes a second and its own messages mislead; here it is asked only for the names it
knows, once something is missing.
"""

import difflib
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from sparse_mu.data.catalogue import RECIPES
from sparse_mu.data.types import DataError

_NAME = re.compile(r"([A-Za-z]\w*)(?:/([\w+.\-]+))?(?::(\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_FORMAT = "array_record"


class Located(NamedTuple):
    """A prepared data set, and where it lies.

    Attributes:
        name: without config and version, such as ``sun397``.
        full_name: with both, such as ``sun397/tfds:4.0.0``.
        data_dir: the folder that holds data sets.
        folder: its files.
        splits: rows of each split.
        test_split: the split that stands for the test set.
        files: name, size in bytes and time of change (ns) of every file: what a cache of it
            depends on.
    """

    name: str
    full_name: str
    data_dir: Path
    folder: Path
    splits: dict[str, int]
    test_split: str
    files: list[tuple[str, int, int]]


def locate(name: str, data_dir: str | Path) -> Located:
    """Finds a data set prepared as array_record; the newest such version unless one is named.

    The test set is ``test``; of ``imagenet2012``, and where there is no ``test``, ``validation``.

    Args:
        name: ``name[/config][:version]``, such as ``cifar10`` or ``sun397/tfds:4.0.0``.
        data_dir: the folder that TFDS calls by the same name.

    Raises:
        DataError: the name is unknown, or the data set is not there, half-prepared, of another
            version, in another file format, without a training or a test split, or its folders
            cannot be read.
    """
    try:
        return _located(name, data_dir)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{name} in {data_dir} cannot be read: {reason}") from error


def _located(name: str, data_dir: str | Path) -> Located:
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise DataError(
            f"TFDS knows no data set {name!r}: a name is name[/config][:version], such as "
            "cifar10 or cifar10:3.0.2"
        )
    base, config, version = parts.groups()
    top = Path(data_dir) / base
    if not top.is_dir():
        raise _absent(base, name, data_dir)
    folder = _config_folder(top, config)
    versions = _versions(folder)
    if not versions:
        raise _absent(base, name, data_dir, "is empty or half-prepared: no dataset_info.json")
    if version is not None and version not in versions:
        here = ", ".join(versions)
        raise DataError(
            f"{name} is not prepared in {data_dir}, which holds version {here}; set "
            f"dataset.name={folder.relative_to(data_dir)}:{list(versions)[-1]}"
        )
    formats = {v: _formats(folder / v, info) for v, info in versions.items()}
    usable = [v for v in versions if _FORMAT in formats[v]]
    chosen = version or (usable or list(versions))[-1]
    if chosen not in usable:
        raise DataError(
            f"{folder / chosen} holds {base} as {', '.join(formats[chosen])}, "
            f"{_FORMAT} is needed; prepare it in another folder: {command(base, 'OTHER_DIR')}"
        )
    splits = _splits(folder / chosen, versions[chosen])
    test = "validation" if base == "imagenet2012" or "test" not in splits else "test"
    for split in ("train", test):
        if not splits.get(split):
            raise DataError(f"{name} has no rows of split {split!r}; it has {', '.join(splits)}")
    files = _files(folder / chosen)
    if sum(splits.values()) > sum(size for _, size, _ in files):  # a row takes many bytes
        raise _damaged(folder / chosen, "it tells of more rows than its files have bytes")
    return Located(
        name=base,
        full_name=f"{folder.relative_to(data_dir)}:{chosen}",
        data_dir=Path(data_dir),
        folder=folder / chosen,
        splits=splits,
        test_split=test,
        files=files,
    )


def command(name: str, data_dir: str | Path) -> str:
    """How ``name`` is prepared in ``data_dir``; the end of a message."""
    if name in RECIPES:
        return f"python -m sparse_mu.prepare --dataset={name} --data_dir={data_dir}"
    return (
        "where TensorFlow is installed, "
        f"tfds build {name} --file_format={_FORMAT} --data_dir={data_dir}"
    )


def _absent(base: str, name: str, data_dir: str | Path, why: str = "") -> DataError:
    """The error of a data set that is not there: unknown, or not prepared."""
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    if not why and base not in known:
        near = [offered for offered in RECIPES if base in offered]
        near += difflib.get_close_matches(base, known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        return DataError(f"TFDS knows no data set {name!r}{hint}, and {data_dir} holds none")
    place = Path(data_dir)
    if not why:
        why = f"there is no folder {base} in it" if place.is_dir() else "there is no such folder"
    else:
        why = f"{place / base} {why}"
    return DataError(
        f"{name} is not prepared as {_FORMAT} in {data_dir}: {why}; run: {command(base, data_dir)}"
    )


def _config_folder(top: Path, config: str | None) -> Path:
    """The folder above the versions: of the config, where the data set has configs."""
    configs = sorted(
        path.name
        for path in top.iterdir()
        if path.is_dir() and not path.name.startswith(".") and _versions(path)
    )
    if config is None and configs and not _versions(top):
        config = _default_config(top, configs)
        if config is None:
            offered = ", ".join(f"{top.name}/{name}" for name in configs)
            raise DataError(f"{top} holds several configs; set dataset.name to one of {offered}")
    if config is not None and config not in configs:
        here = ", ".join(f"{top.name}/{name}" for name in configs) or "none"
        raise DataError(f"{top.name}/{config} is not prepared in {top.parent}; there is {here}")
    return top / config if config else top


def _default_config(top: Path, configs: list[str]) -> str | None:
    try:
        metadata = json.loads((top / ".config" / "metadata.json").read_text())
        default = metadata["defaultConfigName"]
    except (OSError, ValueError, KeyError, TypeError):
        default = None
    if default in configs:
        return default
    return configs[0] if len(configs) == 1 else None


def _versions(folder: Path) -> dict[str, dict]:
    """The ``dataset_info.json`` of every version below, oldest first."""
    found = {}
    for path in folder.iterdir():
        info = path / "dataset_info.json"
        if _VERSION.fullmatch(path.name) and info.is_file():
            try:
                found[path.name] = dict(json.loads(info.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError) as error:
                reason = str(error).partition("\n")[0]
                raise DataError(f"{info} cannot be read: {reason}") from error
    return {name: found[name] for name in sorted(found, key=_numbers)}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _formats(folder: Path, info: dict) -> list[str]:
    others = info.get("alternativeFileFormats", [])
    if not isinstance(others, list):
        raise _damaged(folder, "its alternativeFileFormats are no list")
    return [str(name) for name in (info.get("fileFormat", "tfrecord"), *others)]


def _splits(folder: Path, info: dict) -> dict[str, int]:
    try:
        shards = {
            str(split["name"]): [int(rows) for rows in split.get("shardLengths", [])]
            for split in info.get("splits", [])
        }
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise _damaged(folder, "its splits") from error
    if any(rows < 0 for lengths in shards.values() for rows in lengths):
        raise _damaged(folder, "a shard of fewer than 0 rows")
    return {name: sum(lengths) for name, lengths in shards.items()}


def _files(folder: Path) -> list[tuple[str, int, int]]:
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.stat()) for entry in entries if entry.is_file()]
    return sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)


def _damaged(folder: Path, what: str) -> DataError:
    return DataError(f"{folder / 'dataset_info.json'} is damaged: {what}")
