"""Image files to uint8 arrays, whatever colours they are stored in."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

# what is looked for in a file, whatever its suffix; formats that run other programs are not
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
LARGEST_PLAIN = 64  # pixels; sides up to here are resized without a crop


class PictureError(ValueError):
    """An image that cannot be decoded; the message is one line and does not name the image."""


def decode(stored: bytes | Path, *, grey: bool = False, size: int = 0) -> np.ndarray:
    """Decodes an image to RGB or grey.

    Palettes, CMYK, grey and 16-bit grey become RGB, transparency is dropped (the colour beneath it
    stays), of an animation the first image is taken. A rotation noted in EXIF is not applied, as in
    torchvision.

    Args:
        stored: the bytes of an image file, or its path.
        grey: one channel instead of three.
        size: side S that the image is brought to by :func:`fit`; 0 leaves it as stored.

    Returns:
        uint8[H, W, 3], or uint8[H, W, 1] where ``grey``; H = W = S where ``size`` is given.

    Raises:
        PictureError: it is no image, or a damaged one.
    """
    with opened(stored) as image:
        image.load()
        picture = converted(image, "L" if grey else "RGB")
        pixels = np.asarray(fit(picture, size) if size else picture)
    return pixels[..., None] if grey else pixels


def png(pixels: np.ndarray) -> bytes:
    """An image as the bytes of a PNG file, ``uint8[H, W, 1 or 3]``."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return file.getvalue()


@contextmanager
def opened(stored: bytes | Path) -> "Iterator[Image.Image]":
    """Opens an image; whatever Pillow trips over meanwhile is a :class:`PictureError`."""
    from PIL import Image

    try:
        with Image.open(
            io.BytesIO(stored) if isinstance(stored, bytes) else stored, formats=FORMATS
        ) as image:
            yield image
    except PictureError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever they trip over
        reason = (getattr(error, "strerror", None) or str(error)).partition("\n")[0]
        if isinstance(error, Image.UnidentifiedImageError):
            reason = f"it is no image ({', '.join(FORMATS)})"
        raise PictureError(reason or type(error).__name__) from error


def converted(image: "Image.Image", mode: str) -> "Image.Image":
    """An image whose pixels are loaded, in mode "RGB" or "L"."""
    from PIL import Image

    if image.mode == mode:
        return image
    if image.mode.startswith("I"):  # Pillow would clip 16 bits to 255, not shift them
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 2**16 - 1:
            raise PictureError("it has more than 16 bits per pixel")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise PictureError("its pixels are fractions, not bytes")
    elif "transparency" in image.info:  # a transparent colour of a palette or of grey
        image = image.convert("RGBA")
    return image.convert(mode)


def fit(image: "Image.Image", size: int) -> "Image.Image":
    """Brings an image to S x S as the official code does in evaluation (SPEC section 1.4).

    Above 64 pixels: resized to a square of ``round(S * 256 / 224)``, the aspect ratio *not* kept,
    and its centre of S x S cut out. Up to 64: resized to S x S. Both bilinear with antialiasing.

    Args:
        image: RGB or grey.
        size: S.

    Returns:
        The image, S x S.
    """
    from PIL import Image

    side = size if size <= LARGEST_PLAIN else round(size * 256 / 224)
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BILINEAR)
    start = round((side - size) / 2)
    return image.crop((start, start, start + size, start + size)) if side != size else image


def fit_all(images: np.ndarray, size: int) -> np.ndarray:
    """:func:`fit` of every image of uint8[N, H, W, C], C = 1 or 3, to uint8[N, S, S, C]."""
    from PIL import Image

    fitted = np.empty((len(images), size, size, images.shape[3]), np.uint8)
    for row, pixels in enumerate(images):
        image = Image.fromarray(pixels[..., 0] if images.shape[3] == 1 else pixels)
        fitted[row] = np.asarray(fit(image, size)).reshape(fitted.shape[1:])
    return fitted
