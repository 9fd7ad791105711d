"""Triggers of a Trojan as pure functions: what they are, stamping them, whom they are stamped on.

A trigger is a pattern and how strongly it covers each pixel; stamping is a blend of the two, so a
square and a pattern over the whole image are one function. The family is that of BadNets (Gu et
al., 2017); the square and its place are the paper's (SPEC section 6).
"""

from typing import Literal, NamedTuple

import numpy as np

LEAST_CHANGE = 0.01  # of the pixel mass of the images; below it a trigger is no trigger

Variant = Literal["all_to_one", "all_to_all", "clean_label"]


class TriggerError(ValueError):
    """A trigger or a poisoning that makes no sense; the message is one line."""


class Trigger(NamedTuple):
    """What is stamped on an image.

    Attributes:
        pattern: ``uint8[H, W, C]``.
        weight: ``float32[H, W, 1]`` in [0, 1], how strongly it covers each pixel.
    """

    pattern: np.ndarray
    weight: np.ndarray


def square(shape: tuple[int, ...], size: int, *, value: int, offset: int = 2) -> Trigger:
    """A square of one value near the bottom-right corner.

    Args:
        shape: ``(H, W, C)`` of the images.
        size: its side in pixels.
        value: of its pixels, 0 (black) to 255 (white).
        offset: pixels between it and the corner, both ways.

    Raises:
        TriggerError: if it does not lie within the image, or covers all of it.
    """
    height, width = shape[:2]
    if size < 1 or offset < 0 or size + offset > min(height, width):
        raise TriggerError(
            f"a square of {size} pixels, {offset} off the corner, does not fit an image of "
            f"{height}x{width}; size + offset must be at most {min(height, width)}"
        )
    if size == height == width:
        raise TriggerError(f"a square of {size} pixels covers the whole image; it must be smaller")
    weight = np.zeros((height, width, 1), np.float32)
    weight[height - offset - size : height - offset, width - offset - size : width - offset] = 1
    return Trigger(np.full(shape, value, np.uint8), weight)


def blended(shape: tuple[int, ...], strength: float, *, seed: int = 0) -> Trigger:
    """A pattern of noise over the whole image, the same for all images.

    Args:
        shape: ``(H, W, C)`` of the images.
        strength: how strongly it covers them, in (0, 1].
        seed: of the pattern.

    Raises:
        TriggerError: if the strength is no such fraction.
    """
    if not 0 < strength <= 1:
        raise TriggerError(f"strength = {strength!r}: must be above 0 and at most 1")
    pattern = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Trigger(pattern, np.full((*shape[:2], 1), strength, np.float32))


def stamp(images: np.ndarray, trigger: Trigger) -> np.ndarray:
    """``round(x * (1 - weight) + pattern * weight)``, ``uint8[..., H, W, C]`` to the same."""
    weight = trigger.weight
    mixed = images.astype(np.float32) * (1 - weight) + trigger.pattern.astype(np.float32) * weight
    return np.rint(mixed).astype(np.uint8)


def check_visible(images: np.ndarray, trigger: Trigger, name: str) -> None:
    """Refuses a trigger that changes less than 1% of the images' pixel mass.

    The change is the sum of absolute differences over the sum of pixel values: a black square in a
    corner that is black already changes nothing.

    Raises:
        TriggerError: naming the trigger and what it changes.
    """
    mass = float(images.sum(dtype=np.float64))
    apart = stamp(images, trigger).astype(np.int16) - images.astype(np.int16)
    change = float(np.abs(apart).sum(dtype=np.float64)) / max(mass, 1.0)
    if change < LEAST_CHANGE:
        raise TriggerError(
            f"{name} changes {100 * change:.2g}% of these images' pixel mass; at least "
            f"{100 * LEAST_CHANGE:g}% is needed, such as by another colour, size or place"
        )


class Poisoned(NamedTuple):
    """Rows that are stamped, and the labels they are given.

    Attributes:
        rows: ``int64[P]`` ascending, among those that may be poisoned.
        labels: ``int32[P]``.
    """

    rows: np.ndarray
    labels: np.ndarray


def wanted_labels(labels: np.ndarray, target: int, classes: int, variant: Variant) -> np.ndarray:
    """What the attacker wants each image to be called: the target, or the next class in turn.

    ``int32[N] -> int32[N]``.
    """
    if variant == "all_to_all":
        return ((labels + 1) % classes).astype(np.int32)
    return np.full(labels.shape, target, np.int32)


def poison(
    labels: np.ndarray,
    *,
    ratio: float,
    target: int,
    classes: int,
    variant: Variant = "all_to_one",
    seed: int = 0,
) -> Poisoned:
    """Draws the rows that are poisoned.

    ``all_to_one`` (the paper's; rows of the target class included) and ``all_to_all`` draw among
    all rows and change their labels; ``clean_label`` draws among the rows of the target class,
    whose labels are right as they are.

    Args:
        labels: ``int32[N]`` of the rows that may be poisoned.
        ratio: fraction of all N rows that is poisoned, in (0, 1).
        target: the class that triggered images are to be called.
        classes: K.
        variant: whose labels become what.
        seed: of the draw.

    Raises:
        TriggerError: if the ratio is no such fraction, poisons no row or all of them, the target
            is no class, or there are too few rows of it.
    """
    if not 0 < ratio < 1:
        raise TriggerError(f"ratio = {ratio!r}: must be above 0 and below 1")
    if not 0 <= target < classes:
        raise TriggerError(f"target = {target}: must be a class, from 0 to {classes - 1}")
    count = round(ratio * len(labels))
    if not 0 < count < len(labels):
        raise TriggerError(f"ratio = {ratio!r}: poisons {count} of {len(labels)} rows")
    among = np.arange(len(labels))
    if variant == "clean_label":
        among = np.flatnonzero(labels == target)
        if count >= len(among):
            raise TriggerError(
                f"ratio = {ratio!r}: asks for {count} rows of the target class, which has "
                f"{len(among)}; some must stay clean"
            )
    chosen = np.sort(np.random.default_rng((seed, 6)).choice(among, count, replace=False))
    return Poisoned(chosen, wanted_labels(labels[chosen], target, classes, variant))
