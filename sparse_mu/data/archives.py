"""Reading official archives: their members into memory, never onto the disk."""

import io
import posixpath
import tarfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from sparse_mu.data.types import DataError

if TYPE_CHECKING:
    from PIL import Image


@contextmanager
def reading(archive: Path) -> Iterator[None]:
    """Whatever goes wrong inside is the archive's fault, and is said in one line.

    Raises:
        DataError: in place of any exception; names the archive and the reason.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # parsers of damaged files raise whatever they like
        reason = " ".join(str(error).split())[:200]
        if not isinstance(error, ValueError):
            reason = f"{type(error).__name__} {reason}".strip()
        raise DataError(f"{archive}: is damaged or not the official archive ({reason})") from error


def tar_files(archive: Path | IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    """Walks once through a tar archive, compressed or not, in its order.

    Links, folders and devices are passed over.

    Args:
        archive: its path, or an open file that may lie inside another archive.

    Yields:
        The name of a file and its content, to be read before the next one is asked for.
    """
    path, stream = (archive, None) if isinstance(archive, Path) else (None, archive)
    with tarfile.open(path, fileobj=stream, mode="r|*") as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isreg() else None
            if content is not None:
                yield posixpath.normpath(member.name), content


def members(archive: Path, names: Collection[str]) -> dict[str, bytes]:
    """The contents of files of a tar archive, by their full names.

    Raises:
        ValueError: the archive lacks some of ``names``.
    """
    found = {name: content.read() for name, content in tar_files(archive) if name in names}
    refuse_missing(names, found)
    return found


def refuse_missing(names: Collection[str], found: Collection[str]) -> None:
    """Raises ValueError unless all of ``names`` were found; names the first and counts the rest."""
    missing = sorted(set(names) - set(found))
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"it lacks {missing[0]}{others}")


def refuse_no_image(name: str, encoded: bytes) -> None:
    """Raises ValueError unless ``encoded`` starts as an image file does; decodes no pixels."""
    from PIL import Image

    try:
        Image.open(io.BytesIO(encoded)).close()
    except OSError as error:
        raise ValueError(f"{name} in it is no image") from error


def jpeg(name: str, encoded: bytes, quality: int, most_pixels: int | None = None) -> bytes:
    """Encodes an image of any kind anew as a JPEG of three channels.

    An image that breaks off is filled up with grey: where the archive's sum is right, that is the
    image, and no reason to stop after hours.

    Args:
        name: for the error.
        encoded: JPEG, PNG, GIF or BMP.
        quality: of the JPEG, 1..100.
        most_pixels: a larger image is turned upright, as OpenCV reads it, and made smaller.

    Raises:
        ValueError: it cannot be decoded.
    """
    from PIL import Image

    written = io.BytesIO()
    try:
        with _broken_off_images(), Image.open(io.BytesIO(encoded)) as image:
            image.load()
            if most_pixels is not None:
                image = smaller(_upright(image).convert("RGB"), most_pixels)
            image.convert("RGB").save(written, "JPEG", quality=quality)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{name} in it is no image") from error
    return written.getvalue()


@contextmanager
def _broken_off_images() -> Iterator[None]:
    """Pillow knows no argument for it, only this variable."""
    from PIL import ImageFile

    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = True  # pyrefly: ignore[bad-assignment]
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _upright(image: "Image.Image") -> "Image.Image":
    """Turns an image as its EXIF tag says; one with unreadable tags is upright."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # of a damaged tag, of many kinds
        return image


def smaller(image: "Image.Image", most_pixels: int) -> "Image.Image":
    """Scales both sides by sqrt(most_pixels / pixels) where that is below 1.

    Each pixel is interpolated between the four around its centre, as OpenCV's resize does it;
    Pillow's own resize would average over more of them.
    """
    from PIL import Image

    width, height = image.size
    factor = (most_pixels / (width * height)) ** 0.5
    if factor >= 1:
        return image
    size = (round(width * factor), round(height * factor))
    matrix = (1 / factor, 0, 0, 0, 1 / factor, 0)
    return image.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
