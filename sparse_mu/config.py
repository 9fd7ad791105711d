"""The rules of a config: every key, its type and what is allowed, checked before anything runs."""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from sparse_mu import membership
from sparse_mu.optimiser import LEARNING_RATE_SCHEDULES
from sparse_mu.proximal import GAMMA_SCHEDULES

METHODS = ("finetune", "gradient_ascent", "fisher", "influence", "l1_sparse")
NETWORKS = ("small_cnn", "resnet20s")
SCENARIOS = ("class", "random", "indices")
AUGMENTATIONS = ("none", "crop_flip")
LARGEST_SEED = 2**31 - 1


class ConfigError(Exception):
    """One line that names a key, its value and what is allowed."""


class Rule(NamedTuple):
    """What one key may hold.

    Attributes:
        types: accepted Python types (bool never counts as int).
        holds: whether a value of that type is allowed.
        allowed: the same in words, ending the sentence "must be ...".
    """

    types: tuple[type, ...]
    holds: Callable[[object], bool]
    allowed: str


def _whole(least: int, most: int = LARGEST_SEED, note: str = "") -> Rule:
    words = f"a whole number of at least {least}{note}"
    return Rule((int,), lambda value: least <= value <= most, words)


def _number(holds: Callable[[float], bool], allowed: str) -> Rule:
    return Rule((float, int), lambda value: math.isfinite(value) and holds(value), allowed)


def _choice(names: Iterable[str]) -> Rule:
    names = tuple(names)
    return Rule((str,), lambda value: value in names, "one of " + ", ".join(names))


_TEXT = Rule((str,), lambda value: True, "a text")
_POSITIVE = _number(lambda value: value > 0, "a finite number above 0")
_NOT_NEGATIVE = _number(lambda value: value >= 0, "a finite number of at least 0")
_FRACTION = _number(lambda value: 0 < value < 1, "a fraction above 0 and below 1")
_MOMENTUM = _number(lambda value: 0 <= value < 1, "a number of at least 0 and below 1")


def _distinct(values: tuple) -> bool:
    return len(set(values)) == len(values)


def _is_sparsity(value: object) -> bool:
    return type(value) in (float, int) and math.isfinite(value) and 0 <= value < 1


_GRADIENT_STEPS = {
    "epochs": _whole(1),
    "batch_size": _whole(2),
    "learning_rate": _POSITIVE,
    "momentum": _MOMENTUM,
    "weight_decay": _NOT_NEGATIVE,
}
_METHOD_RULES = {
    "finetune": _GRADIENT_STEPS,
    "gradient_ascent": _GRADIENT_STEPS,
    "fisher": {
        "alpha": _POSITIVE,
        "head": _choice(("zeroed", "intact")),
        "batch_size": _whole(1),
    },
    "influence": {
        "alpha": _POSITIVE,
        "damping": _POSITIVE,
        "rows": _whole(1),
        "batch_size": _whole(1),
    },
    "l1_sparse": {
        **_GRADIENT_STEPS,
        "gamma": _NOT_NEGATIVE,
        "schedule": _choice(GAMMA_SCHEDULES),
    },
}

RULES: dict[str, Rule] = {
    "seed": _whole(0),
    "trials": _whole(1),
    "dataset.name": Rule((str,), bool, "'digits' or the name of a TFDS dataset"),
    "dataset.data_dir": _TEXT,
    "dataset.limit": _whole(0, note=" (0 = all)"),
    "dataset.split_seed": _whole(0),
    "dataset.validation": _number(lambda v: 0 <= v < 1, "a fraction in [0, 1)"),
    "dataset.pool": _choice(("report", "tuning")),
    "model.name": _choice(NETWORKS),
    "model.dtype": _choice(("float32", "bfloat16")),
    "forget.scenario": _choice(SCENARIOS),
    "forget.classes": Rule(
        (tuple,),
        lambda v: all(type(c) is int and c >= 0 for c in v) and _distinct(v),
        "a tuple of distinct class numbers, such as (0, 3); () = all classes",
    ),
    "forget.fraction": _FRACTION,
    "forget.count": _whole(0, note=" (0 = use forget.fraction)"),
    "forget.file": _TEXT,
    "train.epochs": _whole(1),
    "train.batch_size": _whole(2),
    "train.learning_rate": _POSITIVE,
    "train.momentum": _MOMENTUM,
    "train.weight_decay": _NOT_NEGATIVE,
    "train.schedule": _choice(LEARNING_RATE_SCHEDULES),
    "train.warmup_epochs": _NOT_NEGATIVE,
    "train.augment": _choice(AUGMENTATIONS),
    "prune.method": _choice(("omp",)),
    "prune.sparsities": Rule(
        (tuple,),
        lambda v: all(map(_is_sparsity, v)) and _distinct(v),
        "a tuple of distinct fractions in [0, 1), such as (0.9,)",
    ),
    "prune.rewind_epoch": _whole(-1, note=" (-1 = prune in place)"),
    "unlearn.methods": Rule(
        (tuple,),
        lambda v: all(name in METHODS for name in v) and _distinct(v),
        "a tuple of distinct names out of " + ", ".join(METHODS),
    ),
    **{
        f"unlearn.{method}.{key}": rule
        for method, rules in _METHOD_RULES.items()
        for key, rule in rules.items()
    },
    "evaluate.mia_feature": _choice(membership.FEATURES),
    "evaluate.mia_draws": _whole(1),
    "evaluate.batch_size": _whole(1),
    "evaluate.interval": _FRACTION,
    "evaluate.rte_repeats": _whole(3),
    "execution.mode": _choice(("single",)),
    "execution.trial_mode": _choice(("auto", "serial", "vmap")),
}


def nearest(name: str, names: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the closest of ``names``, or nothing."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""


def flatten(config: Mapping) -> dict[str, object]:
    """``{"train.epochs": 15, ...}`` of a nested config."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": leaf for inner, leaf in flatten(value).items()}
        else:
            flat[key] = tuple(value) if isinstance(value, list | tuple) else value
    return flat


def unknown_key(key: str) -> ConfigError:
    """The error of a key that does not exist, with the nearest that does."""
    known = set(RULES)
    groups = {name.rsplit(".", depth)[0] for name in RULES for depth in range(1, 3)} - known
    if key in groups:
        inner = ", ".join(sorted(n[len(key) + 1 :] for n in known if n.startswith(key + ".")))
        return ConfigError(f"config.{key}: is a group of keys, set one of them: {inner}")
    return ConfigError(f"config.{key}: there is no such key{nearest(key, known)}")


def check_value(key: str, value: object) -> None:
    """Raises :class:`ConfigError` unless ``value`` is allowed for ``key``."""
    if key not in RULES:
        raise unknown_key(key)
    rule = RULES[key]
    fits = isinstance(value, rule.types) and not isinstance(value, bool)
    if fits and rule.holds(value):
        return
    hint = ""
    if key == "unlearn.methods" and isinstance(value, tuple):
        wrong = [name for name in value if name not in METHODS]
        hint = nearest(str(wrong[0]), METHODS) if wrong else ""
    elif isinstance(value, str) and rule.allowed.startswith("one of "):
        hint = nearest(value, rule.allowed.removeprefix("one of ").split(", "))
    raise ConfigError(f"config.{key} = {value!r}: must be {rule.allowed}{hint}")


def check(config: Mapping) -> dict[str, object]:
    """Checks a whole config: every key there, none besides, each value allowed, and together.

    Returns:
        The flat config, ``{"train.epochs": 15, ...}``.

    Raises:
        ConfigError: on the first thing that is wrong.
    """
    flat = flatten(config)
    for key, value in flat.items():
        check_value(key, value)
    for key in RULES:
        if key not in flat:
            raise ConfigError(f"config.{key}: is missing; must be {RULES[key].allowed}")
    _check_together(flat)
    return flat


def _check_together(flat: Mapping[str, object]) -> None:
    def refuse(key: str, allowed: str) -> None:
        raise ConfigError(f"config.{key} = {flat[key]!r}: must be {allowed}")

    if flat["prune.rewind_epoch"] >= flat["train.epochs"]:
        refuse("prune.rewind_epoch", f"below train.epochs = {flat['train.epochs']}, or -1")
    if flat["train.warmup_epochs"] > flat["train.epochs"]:
        refuse("train.warmup_epochs", f"at most train.epochs = {flat['train.epochs']}")
    if flat["forget.scenario"] == "indices" and not flat["forget.file"]:
        refuse("forget.file", "a .txt or .npy of row numbers when forget.scenario is 'indices'")
    if flat["dataset.name"] != "digits" and not flat["dataset.data_dir"]:
        refuse("dataset.data_dir", f"the TFDS directory that holds {flat['dataset.name']}")
    if flat["dataset.pool"] == "tuning" and not flat["dataset.validation"]:
        refuse("dataset.validation", "above 0 when dataset.pool is 'tuning'")
