"""The augmentation of ImageNet (SPEC 1.4), while images are decoded: random resized crops, flipped.

Un-augmented they are what ``pictures.decode`` makes of them.
"""

import math

import numpy as np

from sparse_mu.data import pictures

AREAS = (0.08, 1.0)  # fraction of the image that a random crop covers
RATIOS = (3 / 4, 4 / 3)  # its width over its height
TRIES = 10  # boxes drawn before the largest central one is taken

Box = tuple[int, int, int, int]  # left, top, width, height


def random_box(width: int, height: int, rng: np.random.Generator) -> Box:
    """Draws the box of a random resized crop by torchvision's rule.

    Area uniform in ``AREAS``, aspect ratio log-uniform in ``RATIOS``, position uniform; after
    ``TRIES`` boxes that do not fit, the largest central box whose ratio is in ``RATIOS``.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        rng: what it is drawn from.
    """
    for _ in range(TRIES):
        area = width * height * rng.uniform(*AREAS)
        ratio = math.exp(rng.uniform(math.log(RATIOS[0]), math.log(RATIOS[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            return int(left), int(top), w, h
    ratio = min(max(width / height, RATIOS[0]), RATIOS[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    return (width - w) // 2, (height - h) // 2, w, h


def training_crop(encoded: bytes, size: int, rng: np.random.Generator) -> np.ndarray:
    """Random resized crop and, with probability 1/2, a mirror image.

    A JPEG is decoded at a half, a quarter or an eighth of its size where the crop still has twice
    ``size`` pixels on each side then. That is faster and changes neither box nor mirroring, only
    how pixels are averaged on the way to ``size`` (blocks by libjpeg first, then bilinear): by 1 to
    2 of 255 on average. Decoded at full size, the result is torchvision's for the same box, bit for
    bit.

    Args:
        encoded: a file of any format Pillow reads; converted to RGB.
        size: S, the side of the result in pixels.
        rng: what box and mirroring are drawn from.

    Returns:
        uint8[S, S, 3].

    Raises:
        PictureError: it is no image, or a damaged one.
    """
    from PIL import Image

    with pictures.opened(encoded) as image:
        width, height = image.size
        left, top, w, h = random_box(width, height, rng)
        mirrored = rng.random() < 0.5
        least = (math.ceil(2 * size * width / w), math.ceil(2 * size * height / h))
        drafted = image.draft(None, least)  # None for other formats than JPEG
        scale = drafted[1][2] / width if drafted else 1.0  # what rounding up the size is not
        image.load()
        colour = pictures.converted(image, "RGB")
        square = (size, size)
        if scale == 1:
            crop = colour.crop((left, top, left + w, top + h))
            crop = crop.resize(square, Image.Resampling.BILINEAR)
        else:
            box = (left * scale, top * scale, (left + w) * scale, (top + h) * scale)
            crop = colour.resize(square, Image.Resampling.BILINEAR, box)
        pixels = np.asarray(crop)
    return pixels[:, ::-1] if mirrored else pixels
