"""Calling TFDS quietly and without TensorFlow, its errors in one line."""

import contextlib
import errno
import io
import logging
import os
import urllib.parse
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from sparse_mu.data.catalogue import Recipe
from sparse_mu.data.types import DataError

RETRIES = 2  # of a download; TFDS's own 10 take 200 seconds where there is no network
OPEN_FILES = 4096  # TFDS sorts a split above 1 GB in a thousand files
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def quiet(progress: bool) -> Iterator[None]:
    """Holds back what TFDS, Pillow and urllib3 say: our one line is enough."""
    import tensorflow_datasets as tfds
    from absl import logging as absl_logging

    urllib3 = logging.getLogger("urllib3")
    levels = absl_logging.get_verbosity(), urllib3.level
    absl_logging.set_verbosity(absl_logging.FATAL)
    urllib3.setLevel(logging.CRITICAL)
    tfds.display_progress_bar(progress)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")
            yield
    finally:
        tfds.enable_progress_bar()
        absl_logging.set_verbosity(levels[0])
        urllib3.setLevel(levels[1])


@contextlib.contextmanager
def without_tensorflow() -> Iterator[None]:
    """Gives TFDS plain files where it wants TensorFlow's, and fewer attempts to download.

    A split above 1 GB (SUN397, ImageNet) is sorted on the disk, for which TFDS calls
    ``tf.io.gfile`` and keeps a thousand files open.
    """
    import resource

    from tensorflow_datasets.core import shuffle
    from tensorflow_datasets.core.download import downloader

    opened = contextlib.ExitStack()
    gfile = SimpleNamespace(
        GFile=lambda path, mode: opened.enter_context(open(path, mode)),
        exists=os.path.exists,
        remove=os.remove,
    )
    files = SimpleNamespace(
        io=SimpleNamespace(gfile=gfile), errors=SimpleNamespace(ResourceExhaustedError=())
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    more = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    before = shuffle.tf, downloader.MAX_RETRIES
    if soft != resource.RLIM_INFINITY and soft < more:
        resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
    shuffle.tf = files  # pyrefly: ignore[bad-assignment]
    downloader.MAX_RETRIES = RETRIES  # pyrefly: ignore[bad-assignment]
    try:
        with opened:
            yield
    finally:
        shuffle.tf, downloader.MAX_RETRIES = before
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def explained(name: str, recipe: Recipe, data_dir: Path, manual: Path) -> Iterator[None]:
    """Turns what is expected to go wrong into one line; the rest goes on as it is."""
    from requests.exceptions import ConnectionError, RequestException
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.util import DownloadError

    try:
        yield
    except DownloadError as error:
        raise _not_downloaded(recipe, str(error).partition("\n")[0]) from error  # a status: 404
    except RequestException as error:
        request = error.request if isinstance(error, ConnectionError) else None
        host = urllib.parse.urlsplit(request.url or "").hostname if request else None
        reason = f"No connection to {host}." if host else f"{type(error).__name__} midway."
        raise _not_downloaded(recipe, reason) from error
    except NonMatchingChecksumError as error:
        wrong = next((a for a in recipe.archives if f"{a.url}," in str(error)), None)
        if wrong is None:
            reason = str(error).partition("\n")[0]
            raise DataError(f"{name}: an archive is not the official one: {reason}") from error
        given = manual / wrong.file
        raise DataError(
            f"{given if given.is_file() else wrong.url}: has another SHA-256 sum than the official "
            f"archive; get it again from {wrong.page or wrong.url}"
        ) from error
    except (OSError, RuntimeError) as error:
        causes = [error, error.__cause__, error.__context__]
        failed = next((c for c in causes if isinstance(c, OSError) and c.errno), None)
        said = str(error)  # array_record tells the system's error in words only
        if (failed and failed.errno in _FULL) or any(os.strerror(n) in said for n in _FULL):
            raise DataError(f"{data_dir}: the disk is full; {name} was not prepared") from error
        if failed:
            where = failed.filename or data_dir
            raise DataError(f"{where}: {os.strerror(failed.errno or 0)}") from error
        if "() failed: " in said:  # as array_record says it: write() failed: ...
            raise DataError(f"{data_dir}: cannot be written ({said[:200]})") from error
        raise


def _not_downloaded(recipe: Recipe, reason: str) -> DataError:
    wanted = " and ".join(a.url for a in recipe.archives)
    return DataError(f"{reason} Get {wanted} elsewhere and give the folder as --manual_dir")
