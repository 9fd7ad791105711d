"""The checks of a config, before anything runs: its keys, their values, and what fits together."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from sparse_mu.agreement import objections
from sparse_mu.rules import RULES

LONGEST_SHOWN = 200  # characters of a wrong value
LONGEST_LINE = 2000  # characters of an error, of which paths may be most

Flat = dict[str, Any]  # {"train.epochs": 15}; the values' types are what RULES checks


class ConfigError(Exception):
    """One line that names a key, its value and what is allowed."""


def printable(text: str) -> str:
    """Characters that would move a terminal's cursor or colour it are shown as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def one_line(error: BaseException) -> str:
    """What an error says, printable and on one line; of a very long one the ends."""
    line = printable(" ".join(str(error).split()))
    half = LONGEST_LINE // 2
    return line if len(line) <= LONGEST_LINE else f"{line[:half]} ... {line[-half:]}"


def nearest(name: str, names: Iterable[str], prefix: str = "") -> str:
    """`` (did you mean 'x'?)`` for the closest of ``names``, or nothing."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f" (did you mean '{prefix}{found[0]}'?)" if found else ""


def flatten(config: Mapping) -> Flat:
    """``{"train.epochs": 15, ...}`` of a nested config."""
    flat = {}
    for key, value in config.items():
        if not isinstance(key, str):
            raise ConfigError(f"config: the key {_shown(key)} is no text")
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
    wrong = (v for v in given if isinstance(v, str) and v not in rule.names)
    hint = nearest(next(wrong, ""), rule.names)
    return ConfigError(f"config.{key} = {_shown(value)}: must be {rule.allowed}{hint}")


def _shown(value: object) -> str:
    try:
        shown = repr(value)
    except Exception:  # of a class that a config file made up, or a number of too many digits
        shown = f"a {type(value).__name__}"
    return shown if len(shown) <= LONGEST_SHOWN else shown[:LONGEST_SHOWN] + "..."


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
    for key, allowed in objections(flat):
        raise ConfigError(f"config.{key} = {flat[key]!r}: must be {allowed}")
    return {
        key: float(flat[key]) if float in rule.types else flat[key] for key, rule in RULES.items()
    }
