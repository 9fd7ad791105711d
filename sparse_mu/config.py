"""The rules of a config: every key, its type and what is allowed, checked before anything runs."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from sparse_mu import membership
from sparse_mu.optimiser import LEARNING_RATE_SCHEDULES
from sparse_mu.proximal import GAMMA_SCHEDULES

METHODS = ("finetune", "gradient_ascent", "fisher", "influence", "l1_sparse")
NETWORKS = ("small_cnn", "resnet20s")
SCENARIOS = ("class", "random", "indices")
AUGMENTATIONS = ("none", "crop_flip")
LARGEST_WHOLE = 2**31 - 1
LARGEST_NUMBER = 3.4e38  # in float32, the type that all are computed in
LARGEST_BATCH = 2**16  # rows; far below where a row's position would overflow int32
LARGEST_TRIALS = 10_000
LONGEST_SHOWN = 200  # characters of a wrong value


Flat = dict[str, Any]  # {"train.epochs": 15}; the values' types are what RULES checks


class ConfigError(Exception):
    """One line that names a key, its value and what is allowed."""


class Rule(NamedTuple):
    """What one key may hold.

    Attributes:
        types: accepted Python types (bool never counts as int).
        holds: whether a value of that type is allowed.
        allowed: the same in words, ending the sentence "must be ...".
        names: the names it chooses from, if it does; the nearest is offered for a wrong one.
    """

    types: tuple[type, ...]
    holds: Callable[[Any], bool]
    allowed: str
    names: tuple[str, ...] = ()


def _whole(least: int, most: int = LARGEST_WHOLE, note: str = "") -> Rule:
    words = f"a whole number from {least} to {most}{note}"
    return Rule((int,), lambda value: least <= value <= most, words)


def _number(holds: Callable[[float], bool], allowed: str) -> Rule:
    return Rule(
        (float, int),
        lambda value: abs(value) <= LARGEST_NUMBER and holds(value),  # NaN compares False
        allowed,
    )


def _choice(names: Iterable[str]) -> Rule:
    names = tuple(names)
    return Rule((str,), lambda value: value in names, "one of " + ", ".join(names), names)


_TEXT = Rule((str,), str.isprintable, "a text on one line")
_POSITIVE = _number(lambda value: value > 0, "a finite number above 0 (float32)")
_NOT_NEGATIVE = _number(lambda value: value >= 0, "a finite number of at least 0 (float32)")
_FRACTION = _number(lambda value: 0 < value < 1, "a fraction above 0 and below 1")
_MOMENTUM = _number(lambda value: 0 <= value < 1, "a number of at least 0 and below 1")


def _distinct(values: tuple) -> bool:
    return len(set(values)) == len(values)


def _is_sparsity(value: object) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and 0 <= value < 1


def _is_method(value: object) -> bool:
    return type(value) is str and value in METHODS


_GRADIENT_STEPS = {
    "epochs": _whole(1),
    "batch_size": _whole(2, LARGEST_BATCH),
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
        "batch_size": _whole(1, LARGEST_BATCH),
    },
    "influence": {
        "alpha": _POSITIVE,
        "damping": _POSITIVE,
        "rows": _whole(1),
        "batch_size": _whole(1, LARGEST_BATCH),
    },
    "l1_sparse": {
        **_GRADIENT_STEPS,
        "gamma": _NOT_NEGATIVE,
        "schedule": _choice(GAMMA_SCHEDULES),
    },
}

RULES: dict[str, Rule] = {
    "seed": _whole(0),
    "trials": _whole(1, LARGEST_TRIALS),
    "dataset.name": Rule(
        (str,),
        lambda v: v != "" and v.isprintable(),
        "'digits' or the name of a TFDS dataset",
    ),
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
        lambda v: all(type(c) is int and 0 <= c <= LARGEST_WHOLE for c in v) and _distinct(v),
        "a tuple of distinct class numbers, such as (0, 3); () = all classes",
    ),
    "forget.fraction": _FRACTION,
    "forget.count": _whole(0, note=" (0 = use forget.fraction)"),
    "forget.file": _TEXT,
    "train.epochs": _whole(1),
    "train.batch_size": _whole(2, LARGEST_BATCH),
    "train.learning_rate": _POSITIVE,
    "train.momentum": _MOMENTUM,
    "train.weight_decay": _NOT_NEGATIVE,
    "train.schedule": _choice(LEARNING_RATE_SCHEDULES),
    "train.warmup_epochs": _NOT_NEGATIVE,
    "train.augment": _choice(AUGMENTATIONS),
    "prune.method": _choice(("omp",)),
    "prune.sparsities": Rule(
        (tuple,),
        # six digits, as in the names of stages and columns
        lambda v: all(map(_is_sparsity, v)) and _distinct(tuple(f"{s:g}" for s in v)),
        "a tuple of distinct fractions in [0, 1), such as (0.9,)",
    ),
    "prune.rewind_epoch": _whole(-1, note=" (-1 = prune in place)"),
    "unlearn.methods": Rule(
        (tuple,),
        lambda v: all(map(_is_method, v)) and _distinct(v),
        "a tuple of distinct names out of " + ", ".join(METHODS),
        METHODS,
    ),
    **{
        f"unlearn.{method}.{key}": rule
        for method, rules in _METHOD_RULES.items()
        for key, rule in rules.items()
    },
    "evaluate.mia_feature": _choice(membership.FEATURES),
    "evaluate.mia_draws": _whole(1),
    "evaluate.batch_size": _whole(1, LARGEST_BATCH),
    "evaluate.interval": _FRACTION,
    "evaluate.rte_repeats": Rule(
        (int,),
        lambda value: value == 0 or 3 <= value <= LARGEST_WHOLE,
        "a whole number from 3, or 0 to measure no RTE",
    ),
    "execution.mode": _choice(("single",)),
    "execution.trial_mode": _choice(("auto", "serial", "vmap")),
}


def nearest(name: str, names: Iterable[str], prefix: str = "") -> str:
    """`` (did you mean 'x'?)`` for the closest of ``names``, or nothing."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f" (did you mean '{prefix}{found[0]}'?)" if found else ""


def flatten(config: Mapping) -> Flat:
    """``{"train.epochs": 15, ...}`` of a nested config."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": leaf for inner, leaf in flatten(value).items()}
        else:
            flat[key] = _as_tuple(value) if isinstance(value, list | tuple) else value
    return flat


def _as_tuple(values: list | tuple) -> tuple:
    """A tuple; ``("a,b",)``, which is what an override ``=a,b`` arrives as, is ``("a", "b")``."""
    if len(values) == 1 and isinstance(values[0], str):
        return tuple(name.strip() for name in values[0].split(",") if name.strip())
    return tuple(values)


def unknown_key(key: str) -> ConfigError:
    """The error of a key that does not exist, with the nearest that does."""
    if inner := _inside(key):
        return ConfigError(f"config.{key}: is a group of keys, set one of them: {', '.join(inner)}")
    group, dot, last = key.rpartition(".")
    hint = nearest(last, _inside(group), group + dot)
    if not hint and dot and _inside(group):
        hint = f"; config.{group} has {', '.join(_inside(group))}"
    hint = hint or nearest(key, RULES)
    return ConfigError(f"config.{key}: there is no such key{hint}")


def _inside(group: str) -> list[str]:
    """The names directly inside a group, keys and groups; of the whole config for ``""``."""
    start = f"{group}." if group else ""
    found = [key[len(start) :].split(".")[0] for key in RULES if key.startswith(start)]
    return list(dict.fromkeys(found))


def check_value(key: str, value: object) -> None:
    """Raises :class:`ConfigError` unless ``value`` is allowed for ``key``."""
    if key not in RULES:
        raise unknown_key(key)
    rule = RULES[key]
    fits = isinstance(value, rule.types) and not isinstance(value, bool)
    if not (fits and rule.holds(value)):
        raise not_allowed(key, value)


def not_allowed(key: str, value: object) -> ConfigError:
    """The error of a value that a key may not hold, with the nearest name where it is a name."""
    rule = RULES[key]
    given = value if isinstance(value, tuple) else (value,)
    hints = [nearest(v, rule.names) for v in given if isinstance(v, str) and v not in rule.names]
    shown = repr(value)
    shown = shown if len(shown) <= LONGEST_SHOWN else shown[:LONGEST_SHOWN] + "..."
    return ConfigError(f"config.{key} = {shown}: must be {rule.allowed}{''.join(hints[:1])}")


def check(config: Mapping) -> Flat:
    """Checks a whole config: every key there, none besides, each value allowed, and together.

    Returns:
        The flat config, ``{"train.epochs": 15, ...}``, in the order of the rules.

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
    return {
        key: float(flat[key]) if float in rule.types else flat[key] for key, rule in RULES.items()
    }


_FORGET_KEYS = {"forget.classes": "class", "forget.count": "random", "forget.file": "indices"}


def _check_together(flat: Flat) -> None:
    def refuse(key: str, allowed: str) -> None:
        raise ConfigError(f"config.{key} = {flat[key]!r}: must be {allowed}")

    if flat["prune.rewind_epoch"] >= flat["train.epochs"]:
        refuse("prune.rewind_epoch", f"below train.epochs = {flat['train.epochs']}, or -1")
    if flat["train.warmup_epochs"] > flat["train.epochs"]:
        refuse("train.warmup_epochs", f"at most train.epochs = {flat['train.epochs']}")
    for key, scenario in _FORGET_KEYS.items():
        if flat[key] and flat["forget.scenario"] != scenario:
            what = f"config.{key} = {flat[key]!r}: counts only when forget.scenario is"
            raise ConfigError(f"{what} '{scenario}', here it is '{flat['forget.scenario']}'")
    if flat["forget.scenario"] == "indices" and not flat["forget.file"]:
        refuse("forget.file", "a .txt or .npy of row numbers when forget.scenario is 'indices'")
    if flat["dataset.name"] != "digits" and not flat["dataset.data_dir"]:
        refuse("dataset.data_dir", f"the TFDS directory that holds {flat['dataset.name']}")
    if flat["dataset.pool"] == "tuning" and not flat["dataset.validation"]:
        refuse("dataset.validation", "above 0 when dataset.pool is 'tuning'")
