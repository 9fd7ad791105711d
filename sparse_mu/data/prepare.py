"""Prepares a data set as an ordinary TFDS directory of array_record files, without TensorFlow.

TFDS downloads, checks sums, orders, writes and describes; only the rows come from our own recipes
(:mod:`sparse_mu.data.recipes`), for TFDS's own code reads archives and images with TensorFlow. All
is written to a folder of its own, ``DATA_DIR/incomplete.NAME``, read back and renamed at the end:
a preparation that is killed leaves nothing that is taken for a data set, and the next one of the
same data set in the same place removes what it left.
"""

import contextlib
import dataclasses
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sparse_mu.data import catalogue, plain_tfds, records
from sparse_mu.data.catalogue import Recipe
from sparse_mu.data.recipes import Rows
from sparse_mu.data.types import DataError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


class Prepared(NamedTuple):
    """A data set that is ready to be read.

    Attributes:
        name: of the data set and its config, as in "sun397/tfds".
        version: of TFDS.
        folder: where its files are.
        rows: {split: number of rows}.
        is_new: False where it was there before.
        others: folders of other versions of it, which were left alone.
    """

    name: str
    version: str
    folder: Path
    rows: dict[str, int]
    is_new: bool
    others: tuple[Path, ...]


def prepare(
    name: str,
    data_dir: str | Path,
    manual_dir: str | Path | None = None,
    *,
    checksums: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Prepared:
    """Makes a data set that ``tfds.data_source(name, data_dir=data_dir)`` reads.

    Args:
        name: a key of :data:`sparse_mu.data.catalogue.RECIPES`; of "svhn_cropped" the split
            "extra" is left out (1.3 GB), of "imagenet2012" "test", which has no labels.
        data_dir: directory of TFDS data sets; made where it is missing.
        manual_dir: folder that holds the official archives; None downloads them, to
            ``data_dir/downloads``, but for those that stand in ``data_dir/downloads/manual``.
        checksums: ``{url: UrlInfo}``, the sizes and SHA-256 sums of archives; TFDS's own if None.
        progress: shows TFDS's progress bars.

    Returns:
        What is there now; nothing is done where it was there before.

    Raises:
        DataError: archives are missing or wrong, or the data set cannot be written.
        ValueError: there is no such data set; names those there are.
    """
    recipe = catalogue.find(name)
    data_dir = Path(os.path.expanduser(data_dir))
    manual = Path(os.path.expanduser(manual_dir or data_dir / "downloads" / "manual"))
    if data_dir.exists() and not data_dir.is_dir():
        raise DataError(f"{data_dir}: is no folder; give another --data_dir")
    with plain_tfds.quiet(progress), plain_tfds.explained(name, recipe, data_dir, manual):
        if found := _existing(name, data_dir):
            return found
        known = _url_infos(name, recipe, checksums)
        _examine(recipe, known, manual, is_given=manual_dir is not None)
        data_dir.mkdir(parents=True, exist_ok=True)
        _refuse_little_space(name, recipe, known, data_dir, manual)
        with _held(name, data_dir) as staging:
            if found := _existing(name, data_dir):  # another process has just made it
                return found
            with plain_tfds.without_tensorflow():
                _generate(name, recipe, known, staging, data_dir, manual)
            made = _existing(name, staging)
            assert made is not None
            folder = data_dir / made.folder.relative_to(staging)
            _install(staging, made.folder, folder)
        others = _other_versions(folder)
    return made._replace(folder=folder, is_new=True, others=others)


def _url_infos(name: str, recipe: Recipe, checksums: Mapping[str, Any] | None) -> dict[str, Any]:
    """``{url: UrlInfo}`` of the archives; with file names, so that TFDS looks for those first."""
    import tensorflow_datasets as tfds

    stock: Any = tfds.builder_cls(name.partition("/")[0])
    known = stock.url_infos if checksums is None else checksums
    return {
        archive.url: dataclasses.replace(known[archive.url], filename=archive.file)
        for archive in recipe.archives
    }


def _examine(recipe: Recipe, known: Mapping[str, Any], manual: Path, *, is_given: bool) -> None:
    """Refuses what is missing or of wrong size in the folder of archives, before any work."""
    if is_given and not manual.is_dir():
        raise DataError(f"--manual_dir={manual}: there is no such folder")
    for archive in recipe.archives:
        path, source = manual / archive.file, archive.page or archive.url
        if path.is_file():
            size, right = path.stat().st_size, int(known[archive.url].size)
            if size < right:
                raise DataError(
                    f"{path}: holds {size:,} of {right:,} bytes, so it was downloaded in part; "
                    f"get it again from {source}"
                )
            if size > right:
                raise DataError(
                    f"{path}: holds {size:,} bytes, the official archive {right:,}; "
                    f"get it again from {source}"
                )
        elif archive.page:
            raise DataError(
                f"{path}: is missing; register at {source}, download {archive.file} and give its "
                "folder as --manual_dir"
            )
        elif is_given:
            raise DataError(
                f"{path}: is missing; get it from {source}, or leave out --manual_dir to "
                "download it"
            )


def _refuse_little_space(
    name: str, recipe: Recipe, known: Mapping[str, Any], data_dir: Path, manual: Path
) -> None:
    archives = sum(int(info.size) for info in known.values())
    cached = data_dir / "downloads" / name.partition("/")[0]  # with a .INFO beside each file
    is_here = any(cached.glob("*.INFO")) or (manual / recipe.archives[0].file).is_file()
    needed = archives * (recipe.growth + (not is_here))
    free = shutil.disk_usage(data_dir).free
    if free < needed:
        raise DataError(
            f"{data_dir}: has {free / 1e9:.1f} GB free, {name} needs about {needed / 1e9:.1f} GB"
        )


def _existing(name: str, data_dir: Path) -> Prepared | None:
    """The data set in ``data_dir``, its first and last rows read; None where it is not there.

    Raises:
        DataError: it is there and cannot be read so.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # whatever the parsers of damaged descriptions raise
        reason = str(error).partition("\n")[0]
        where = data_dir / name.partition("/")[0]
        raise DataError(f"{where}: is damaged ({reason}); delete or move it") from error
    folder = Path(os.fspath(builder.data_path))
    if not folder.exists():
        return None
    if not builder.is_prepared():
        raise DataError(f"{folder}: is there, but is no complete data set; delete or move it")
    if builder.info.file_format.value != "array_record":
        raise DataError(
            f"{folder}: holds {name} as {builder.info.file_format.value}, which only TensorFlow "
            "reads; give another --data_dir, or move it away"
        )
    try:
        rows = {split: _count(builder, split) for split in builder.info.splits}
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{folder}: is damaged ({reason}); delete or move it") from error
    return Prepared(
        name, str(builder.version), folder, rows, is_new=False, others=_other_versions(folder)
    )


def _count(builder: "tfds.core.DatasetBuilder", split: str) -> int:
    """The number of rows of a split, once the first and the last of each file were read."""
    import tensorflow_datasets as tfds

    images = (tfds.features.Image, tfds.features.LabeledImage)
    skip = {
        feature: tfds.decode.SkipDecoding()
        for feature, kind in builder.info.features.items()
        if isinstance(kind, images)
    }
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    source = builder.as_data_source(split=split, deserialize_method=raw)
    start = 0
    for length in builder.info.splits[split].shard_lengths:
        for record in records.whole_records(source, [start, start + length - 1]):
            builder.info.features.deserialize_example_np(record, decoders=skip)
        start += length
    return start


def _other_versions(folder: Path) -> tuple[Path, ...]:
    beside = sorted(folder.parent.glob("[0-9]*.*.*"))
    return tuple(path for path in beside if path.name != folder.name)


def _generate(
    name: str,
    recipe: Recipe,
    known: dict[str, Any],
    staging: Path,
    data_dir: Path,
    manual: Path,
) -> None:
    """Lets TFDS prepare the data set in ``staging`` from the rows of our recipe."""
    import tensorflow_datasets as tfds

    dataset, _, config = name.partition("/")
    stock: Any = tfds.builder_cls(dataset)

    class WithoutTensorFlow(stock, skip_registration=True):
        name = dataset
        url_infos = known

        def _split_generators(self, dl_manager: "tfds.download.DownloadManager") -> dict[str, Rows]:
            paths: Any = dl_manager.download({a.file: a.url for a in recipe.archives})
            files = {file: Path(os.fspath(path)) for file, path in paths.items()}
            splits = recipe.splits(files, self.info.features)
            return {split: _checked(name, split, rows) for split, rows in splits.items()}

    options = {"config": config} if config else {}
    builder = WithoutTensorFlow(data_dir=staging, file_format="array_record", **options)
    builder.download_and_prepare(
        download_dir=data_dir / "downloads",
        download_config=tfds.download.DownloadConfig(
            manual_dir=manual, extract_dir=staging / "extracted", try_download_gcs=False
        ),
    )


def _checked(name: str, split: str, rows: Rows) -> Rows:
    """The same rows; refuses a split of none, and two rows of one key."""
    keys = set()
    for key, row in rows:
        if key in keys:
            raise DataError(f"{name}: its archives hold {key} twice")
        keys.add(key)
        yield key, row
    if not keys:
        raise DataError(f"{name}: its archives hold no image of the split {split!r}")


@contextlib.contextmanager
def _held(name: str, data_dir: Path) -> Iterator[Path]:
    """An empty folder for one process, which is removed afterwards; nobody else prepares ``name``.

    Raises:
        DataError: another process prepares it in the same place.
    """
    dataset = name.partition("/")[0]
    staging, downloads = data_dir / f"incomplete.{dataset}", data_dir / "downloads"
    downloads.mkdir(exist_ok=True)
    with open(downloads / f"{dataset}.lock", "a", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"{data_dir}: another process prepares {dataset} there; wait until it has ended"
            ) from error
        _sweep(staging, downloads / dataset)  # what a killed process left
        staging.mkdir()
        try:
            yield staging
        finally:
            _sweep(staging, downloads / dataset)


def _sweep(staging: Path, downloads: Path) -> None:
    for leftover in (staging, *downloads.glob("*.tmp.*")):
        shutil.rmtree(leftover, ignore_errors=True)


def _install(staging: Path, made: Path, folder: Path) -> None:
    """Moves the finished data set to its place, once it is on the disk."""
    for path in [*staging.rglob("*"), staging]:
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for config in staging.glob("*/.config"):  # names the default config, where there are several
        beside = folder.parent.parent / config.name
        if not beside.exists():
            config.rename(beside)
    made.rename(folder)
