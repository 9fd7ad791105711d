"""Rows with a trigger, from a config: poisoned training rows, and test rows that call it up."""

from typing import NamedTuple

import numpy as np

from sparse_mu.config import ConfigError, Flat
from sparse_mu.data import forget_sets, pictures, triggers
from sparse_mu.data.triggers import Trigger, TriggerError

SHOWN = 4  # images of the test set that the report shows with and without the trigger


class Triggered(NamedTuple):
    """The test rows once more, with the trigger.

    Attributes:
        name: of the trigger, in words.
        inputs: ``uint8[M, H, W, C]``.
        wanted: ``int32[M]``, what the attacker wants each to be called.
        counted: ``bool[M]``, whether that is not what it shows anyway.
        pictures: a few test images before and after, as PNG.
    """

    name: str
    inputs: np.ndarray
    wanted: np.ndarray
    counted: np.ndarray
    pictures: tuple[tuple[bytes, bytes], ...]


class Copies(NamedTuple):
    """Poisoned copies of training rows: one of each row that any trial poisons.

    Attributes:
        origin: ``int64[P]``, whose copies they are.
        inputs: ``uint8[P, H, W, C]``.
        labels: ``int32[P]``.
        chosen: ``bool[T, P]``, which of them each trial trains on, in the place of their origin.
    """

    origin: np.ndarray
    inputs: np.ndarray
    labels: np.ndarray
    chosen: np.ndarray


def build_trigger(flat: Flat, images: np.ndarray) -> Trigger | None:
    """The trigger of the config; None where there is none.

    Raises:
        ConfigError: if it does not fit the images, or cannot be seen on them.
    """
    kind, size, offset = (flat[f"trojan.{key}"] for key in ("trigger", "size", "offset"))
    if kind == "none":
        return None
    shape = images.shape[1:]
    try:
        if kind == "blended":
            found = triggers.blended(shape, flat["trojan.strength"], seed=flat["seed"])
        else:
            value = 0 if kind == "black_square" else 255
            found = triggers.square(shape, size, value=value, offset=offset)
        triggers.check_visible(images, found, words(flat))
    except TriggerError as error:
        raise ConfigError(f"config.trojan.trigger = {kind!r}: {error}") from error
    return found


def words(flat: Flat) -> str:
    """The trigger in words."""
    if flat["trojan.trigger"] == "blended":
        return f"a pattern blended in at {flat['trojan.strength']:g}"
    colour = flat["trojan.trigger"].removesuffix("_square")
    return (
        f"a {colour} square of {flat['trojan.size']} pixels, {flat['trojan.offset']} off the "
        "bottom-right corner"
    )


def target_of(flat: Flat, class_names: tuple[str, ...]) -> int:
    """The class that triggered images are to be called.

    Raises:
        ConfigError: if there is no such class.
    """
    given = flat["trojan.target"]
    try:
        classes = forget_sets.class_entries((given,), class_names)[0]
    except forget_sets.ForgetSetError as error:
        said = str(error).removeprefix("forget ")
        raise ConfigError(f"config.trojan.target = {given!r}: {said}") from error
    if len(classes) != 1 or classes[0] >= len(class_names):
        raise ConfigError(
            f"config.trojan.target = {given!r}: must be one class, from 0 to "
            f"{len(class_names) - 1} or one of {', '.join(class_names[:10])}"
        )
    return classes[0]


def poisoned_copies(
    flat: Flat,
    trigger: Trigger,
    inputs: np.ndarray,
    labels: np.ndarray,
    class_names: tuple[str, ...],
    seeds: list[int],
) -> Copies:
    """The rows that each trial poisons.

    Args:
        flat: the config.
        trigger: what is stamped.
        inputs: ``uint8[N, H, W, C]`` of the training rows.
        labels: ``int32[N]``.
        class_names: K names.
        seeds: one per trial, of the draw.

    Raises:
        ConfigError: if so many rows cannot be poisoned.
    """
    target = target_of(flat, class_names)
    given = {"ratio": flat["trojan.ratio"], "target": target, "classes": len(class_names)}
    try:
        drawn = [
            triggers.poison(labels, **given, variant=flat["trojan.variant"], seed=seed)
            for seed in seeds
        ]
    except TriggerError as error:
        raise ConfigError(f"config.trojan.{error}") from error
    origin = np.unique(np.concatenate([of_trial.rows for of_trial in drawn]))
    wanted = triggers.wanted_labels(labels, target, len(class_names), flat["trojan.variant"])
    return Copies(
        origin=origin,
        inputs=triggers.stamp(inputs[origin], trigger),
        labels=wanted[origin],
        chosen=np.stack([np.isin(origin, of_trial.rows) for of_trial in drawn]),
    )


def triggered_test(
    flat: Flat,
    trigger: Trigger,
    inputs: np.ndarray,
    labels: np.ndarray,
    class_names: tuple[str, ...],
) -> Triggered:
    """The test rows with the trigger, and what they are to be called."""
    target = target_of(flat, class_names)
    wanted = triggers.wanted_labels(labels, target, len(class_names), flat["trojan.variant"])
    stamped = triggers.stamp(inputs, trigger)
    counted = wanted != labels
    chosen = np.flatnonzero(counted)[:SHOWN]
    return Triggered(
        name=words(flat),
        inputs=stamped,
        wanted=wanted,
        counted=counted,
        pictures=tuple((pictures.png(inputs[i]), pictures.png(stamped[i])) for i in chosen),
    )
