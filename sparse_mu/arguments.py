"""The command line: absl flags and a locked config, every mistake one line."""

import ast
import os
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_dict import RequiredValueError
from ml_collections.config_flags.tuple_parser import TupleParser

from sparse_mu import config as rules
from sparse_mu.config import ConfigError, Flat

EXAMPLE = "python -m sparse_mu.main --config=configs/digits.py --workdir=runs/digits"


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """Declares the flags of the main command; ``argv`` names the keys that are overridden."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "Config file; --config.a.b=value overrides.",
        flag_values=values,
        sys_argv=list(argv),
    )
    flags.DEFINE_string("workdir", None, "Folder for everything the run makes.", flag_values=values)
    flags.DEFINE_bool(
        "report_only", False, "Rebuild summary and report of a workdir.", flag_values=values
    )
    flags.DEFINE_bool("export", False, "Write the models to the workdir.", flag_values=values)
    flags.DEFINE_bool(
        "help", False, "Show the configs and an example.", short_name="h", flag_values=values
    )


def parse(argv: Sequence[str]) -> flags.FlagValues:
    """Parses a command line: the program and its arguments.

    Raises:
        ConfigError: on any flag, override or config file that cannot be, naming it and what is
            allowed.
    """
    for key, _ in _overrides(argv):
        if key not in rules.RULES:
            raise rules.unknown_key(key)
    values = flags.FlagValues()
    try:
        define(values, argv)
        rest = values(list(argv))
    except (Exception, SystemExit) as error:  # a config file may raise whatever it likes
        raise _explain(argv, error) from error
    if len(rest) > 1:
        raise ConfigError(f"argument {rest[1]!r} is no flag; flags start with --, as in {EXAMPLE}")
    return values


def flat_config(values: flags.FlagValues) -> Flat:
    """The checked, flat config of parsed flags.

    Raises:
        ConfigError: if the config is not one, or any key of it is wrong.
    """
    file = values["config"].config_filename  # pyrefly: ignore[missing-attribute] (ml_collections' flag)
    if not isinstance(values.config, ConfigDict):
        raise _fault(file) or ConfigError(f"--config={file}: get_config() must return a ConfigDict")
    try:
        config = values.config.to_dict()
    except RequiredValueError as error:
        raise ConfigError(f"--config={file}: {_line(error)}") from error
    return rules.check(config)


def _arguments(argv: Sequence[str]) -> list[tuple[str, str | None]]:
    """``(name, value)`` of what looks like a flag; its value may be the next argument."""
    found = []
    for argument, following in zip(argv[1:], [*argv[2:], None], strict=False):
        if argument.startswith("-"):
            name, equals, text = argument.lstrip("-").partition("=")
            found.append((name, text if equals else following))
    return found


def _overrides(argv: Sequence[str]) -> list[tuple[str, str | None]]:
    named = [(name.partition("."), text) for name, text in _arguments(argv)]
    return [(key, text) for (flag, dot, key), text in named if flag == "config" and dot]


def _explain(argv: Sequence[str], error: BaseException) -> ConfigError:
    """Finds the argument that made absl or ml_collections fail."""
    files = [text for name, text in _arguments(argv) if name == "config" and text]
    if files and (fault := _fault(files[-1])):
        return fault
    for key, text in _overrides(argv):
        if not files:
            return ConfigError(f"--config.{key}: overrides need --config=FILE before them")
        if text is None:
            return ConfigError(f"--config.{key}: needs a value, as in --config.{key}=VALUE")
        if not _is_readable(key, text):
            return rules.not_allowed(key, text)
    if isinstance(error, flags.UnrecognizedFlagError):
        hint = rules.nearest(
            error.flagname, ["config", "workdir", "report_only", "export", "help"], "--"
        )
        return ConfigError(f"--{error.flagname}: there is no such flag{hint}")
    return ConfigError(_line(error))


def _is_readable(key: str, text: str) -> bool:
    parsers = {int: flags.IntegerParser(), float: flags.FloatParser(), tuple: TupleParser()}
    try:
        parsers.get(rules.RULES[key].types[0], flags.ArgumentParser()).parse(text)
    except Exception:  # literal_eval raises many kinds
        return False
    return True


def _fault(given: str) -> ConfigError | None:
    """Why a config file cannot be used, with its line: runs it once more, apart from the flags."""
    file, colon, parameter = given.partition(":")
    if not os.path.isfile(file):
        return ConfigError(f"--config={given}: there is no such file; {listing()}")
    try:
        module: dict[str, Any] = {"__name__": "config", "__file__": file}
        exec(compile(Path(file).read_bytes(), file, "exec"), module)
        if "get_config" not in module:
            return ConfigError(f"--config={given}: defines no function get_config()")
        module["get_config"](*[parameter] if colon else [])
    except (Exception, SystemExit) as error:
        trace = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in trace if frame.filename == file]
        lines += [error.lineno] if isinstance(error, SyntaxError) else []
        where = f"line {lines[-1]}: " if lines else ""
        what = f"{type(error).__name__}: {_line(error)}"
        return ConfigError(f"--config={given}: {where}{what}")
    return None


def _line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


def config_files() -> list[Path]:
    """The configs that come with the package: of the checkout, or of the installed wheel."""
    package = Path(__file__).parent
    folders = (package / "configs", package.parent / "configs")
    return [file for folder in folders for file in sorted(folder.glob("*.py"))]


def listing() -> str:
    """One line naming the configs."""
    return "configs: " + ", ".join(_shown(file) for file in config_files())


def overview() -> str:
    """What a user who gave no config should see: every config in a line, and one example."""
    usage = "usage: python -m sparse_mu.main --config=FILE --workdir=DIR [--config.a.b=VALUE]"
    lines = [f"{usage} [--export]", ""]
    width = max((len(_shown(file)) for file in config_files()), default=0)
    for file in config_files():
        described = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        lines.append(f"  {_shown(file):<{width}}  {described.partition(chr(10))[0]}")
    return "\n".join([*lines, "", "for example:", f"  {EXAMPLE}"])


def _shown(file: Path) -> str:
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)
