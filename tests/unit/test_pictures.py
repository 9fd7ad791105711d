"""Images of every kind become RGB or grey bytes, and one size as the official code does it."""

import io

import numpy as np
import pytest
from PIL import Image
from tfds_sets import encoded, plain

from sparse_mu.data import pictures

COLOUR = (200, 60, 20)


def palette():
    """Two colours as palette indices 0 and 1: read as grey they would be almost black."""
    image = Image.new("P", (8, 8), 0)
    image.putpalette([*COLOUR, 10, 20, 30])
    return image


def sixteen_bit(value):
    return Image.fromarray(np.full((8, 8), value, np.uint16))


KINDS = {
    "rgb png": (encoded(plain(COLOUR)), COLOUR),
    "rgba": (encoded(plain((*COLOUR, 128), mode="RGBA")), COLOUR),
    "grey": (encoded(plain(90, mode="L")), (90, 90, 90)),
    "grey and transparency": (encoded(plain((90, 7), mode="LA")), (90, 90, 90)),
    "palette png": (encoded(palette()), COLOUR),
    "palette with transparency": (encoded(palette(), transparency=b"\x80\x80"), COLOUR),
    "gif": (encoded(palette(), "GIF"), COLOUR),
    "one bit": (encoded(plain(1, mode="1")), (255, 255, 255)),
    "16-bit grey": (encoded(sixteen_bit(0x5A80)), (0x5A, 0x5A, 0x5A)),
    "16-bit tiff": (encoded(sixteen_bit(0x5A80), "TIFF"), (0x5A, 0x5A, 0x5A)),
    "bmp": (encoded(plain(COLOUR), "BMP"), COLOUR),
    "webp": (encoded(plain(COLOUR), "WEBP", lossless=True), COLOUR),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_becomes_rgb(kind):
    stored, expected = KINDS[kind]
    pixels = pictures.decode(stored)
    assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.broadcast_to(expected, (8, 8, 3)))


def test_cmyk_becomes_rgb():
    stored = encoded(plain((0, 255, 255, 0), mode="CMYK"), "JPEG", quality=95)
    # CMYK (0, 1, 1, 0) is red; 4 counts for JPEG's rounding of each of four channels
    np.testing.assert_allclose(pictures.decode(stored)[4, 4], (255, 0, 0), atol=4)


def test_grey_stays_grey_where_asked():
    pixels = pictures.decode(encoded(plain(90, mode="L")), grey=True)
    np.testing.assert_array_equal(pixels, np.full((8, 8, 1), 90))
    assert pictures.decode(encoded(plain(COLOUR)), grey=True, size=4).shape == (4, 4, 1)


def test_a_file_is_read_by_its_path(tmp_path):
    file = tmp_path / "no suffix"
    file.write_bytes(encoded(plain(COLOUR)))
    np.testing.assert_array_equal(pictures.decode(file)[0, 0], COLOUR)


def test_an_image_is_fitted_as_the_official_code_does():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (90, 130, 3), np.uint8))
    found = np.asarray(pictures.fit(image, 112))
    # aspect ratio not kept: 112 * 256 / 224 = 128 both ways, then 8 pixels cut off every side
    resized = np.asarray(image.resize((128, 128), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(found, resized[8:120, 8:120])


def test_a_small_size_is_resized_without_a_crop():
    image = Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3))
    expected = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(np.asarray(pictures.fit(image, 64)), expected)
    assert pictures.fit(image, 65).size == (65, 65)  # 74 x 74, an odd rest to cut off
    np.testing.assert_array_equal(np.asarray(pictures.fit(image, 10)), np.asarray(image))


def test_all_images_of_an_array_are_fitted():
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 6, 3), np.uint8)
    fitted = pictures.fit_all(images, 4)
    for image, found in zip(images, fitted, strict=True):
        np.testing.assert_array_equal(found, np.asarray(pictures.fit(Image.fromarray(image), 4)))
    grey = pictures.fit_all(images[..., :1], 4)
    one = pictures.fit(Image.fromarray(images[2, ..., 0]), 4)
    np.testing.assert_array_equal(grey[2, ..., 0], np.asarray(one))


def cut(stored):
    return stored[: len(stored) // 2]


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
BROKEN = {
    "text": (b"not an image", "it is no image"),
    "nothing": (b"", "it is no image"),
    "half a png": (cut(encoded(NOISE)), "."),
    "half a jpeg": (cut(encoded(NOISE, "JPEG")), "truncated"),
    "fractions": (encoded(plain(0.5, mode="F"), "TIFF"), "fractions"),
    "32 bits": (encoded(Image.new("I", (8, 8), 70000), "TIFF"), "more than 16 bits"),
    "postscript": (encoded(plain(COLOUR), "EPS"), "it is no image"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_image_is_refused_in_one_line(name):
    stored, expected = BROKEN[name]
    with pytest.raises(pictures.PictureError, match=expected) as info:
        pictures.decode(stored)
    assert "\n" not in str(info.value) and str(info.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(pictures.PictureError, match="No such file"):
        pictures.decode(tmp_path / "none.png")


def test_the_stored_bytes_are_not_kept_open(tmp_path):
    file = tmp_path / "one.png"
    file.write_bytes(encoded(plain(COLOUR)))
    pictures.decode(file)  # an unclosed file would be a ResourceWarning, which is an error here
    assert io.BytesIO(file.read_bytes()).getvalue()
