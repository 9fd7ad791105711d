"""The command line: absl flags and a locked config, every mistake one line."""

import ast
import os
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_dict import RequiredValueError
from ml_collections.config_flags.tuple_parser import TupleParser

from sparse_mu import config as rules
from sparse_mu.config import ConfigError, Flat

FLAGS = ("config", "workdir", "report_only", "export", "verify", "key_file", "help")
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
    # ml_collections' own hides errors, runs a module of that name again, and waits for a pipe
    values["config"].parser = _ConfigFile()
    flags.DEFINE_string("workdir", None, "Folder for everything the run makes.", flag_values=values)
    flags.DEFINE_bool(
        "report_only", False, "Rebuild summary and report of a workdir.", flag_values=values
    )
    flags.DEFINE_bool("export", False, "Write the models to the workdir.", flag_values=values)
    flags.DEFINE_string(
        "verify", None, "Workdir to compare with its manifest; nothing is run.", flag_values=values
    )
    flags.DEFINE_string(
        "key_file", None, "File with the secret that signs the manifest.", flag_values=values
    )
    flags.DEFINE_bool(
        "help", False, "Show the configs and an example.", short_name="h", flag_values=values
    )


def parse(argv: Sequence[str]) -> flags.FlagValues:
    """Parses a command line: the program and its arguments.

    Raises:
        ConfigError: on any flag, override or config file that cannot be, naming it and what is
            allowed.
    """
    for name, _ in _arguments(argv):
        if name in ("flagfile", "undefok"):  # absl's own, which would read flags unseen here
            raise _no_such_flag(name)
    for key, _ in _overrides(argv):
        if key not in rules.RULES:
            raise rules.unknown_key(key)
    if sum(name == "config" for name, _ in _arguments(argv)) > 1:
        raise ConfigError("--config is given twice: give one file")
    values = flags.FlagValues()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="<unknown>")  # of the text of an override
            define(values, argv)
            rest = values(list(argv))
    except ConfigError:
        raise
    except Exception as error:  # absl, ml_collections and literal_eval raise many kinds
        raise _explain(argv, error) from error
    if len(rest) > 1:
        raise ConfigError(f"argument {rest[1]!r} is no flag; flags start with --, as in {EXAMPLE}")
    return values


def to_verify(values: flags.FlagValues) -> Path | None:
    """The workdir of ``--verify``; None where the flags ask for a run.

    Raises:
        ConfigError: if it is empty, or stands beside a flag of a run.
    """
    if values.verify is None:
        return None
    given = {name: values[name].present for name in ("config", "workdir", "report_only", "export")}
    for name in (name for name, present in given.items() if present):
        raise ConfigError(f"--{name}: belongs to a run, and --verify runs nothing; leave it out")
    if not values.verify:
        raise ConfigError("--verify is empty: give the workdir of a finished run")
    return Path(values.verify)


def run_folder(values: flags.FlagValues) -> Path:
    """The workdir of a run.

    Raises:
        ConfigError: if there is none, or flags do not go together.
    """
    if not values.workdir:
        raise ConfigError(f"--workdir is missing: a folder for the run, as in {EXAMPLE}")
    if values.report_only and values.export:
        raise ConfigError("--export: needs the models of a run; leave out --report_only")
    return Path(values.workdir)


def flat_config(values: flags.FlagValues) -> Flat:
    """The checked, flat config of parsed flags.

    Raises:
        ConfigError: if the config is not one, or any key of it is wrong.
    """
    file = values["config"].config_filename  # pyrefly: ignore[missing-attribute] (ml_collections' flag)
    try:
        return rules.check(values.config.to_dict())
    except RequiredValueError as error:
        raise ConfigError(f"--config={file}: {_line(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"--config={file}: its config stands inside itself") from error


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
    overrides = _overrides(argv)
    for key, text in overrides:
        if not files:
            return ConfigError(f"--config.{key}: overrides need --config=FILE before them")
        if text is None:
            return ConfigError(f"--config.{key}: needs a value, as in --config.{key}=VALUE")
        if not _is_readable(key, text):
            return rules.not_allowed(key, text)
    if isinstance(error, flags.UnrecognizedFlagError):
        return _no_such_flag(error.flagname)
    if overrides and isinstance(error, KeyError | AttributeError):  # of what the config lacks
        key = str(error).strip("\"'")
        return ConfigError(f"--config={files[-1]}: its config has no key {key!r} to override")
    return ConfigError(_line(error))


def _no_such_flag(name: str) -> ConfigError:
    hint = rules.nearest(name, FLAGS, "--")
    return ConfigError(f"--{name}: there is no such flag{hint}")


def _is_readable(key: str, text: str) -> bool:
    parsers = {int: flags.IntegerParser(), float: flags.FloatParser(), tuple: TupleParser()}
    try:
        parsers.get(rules.RULES[key].types[0], flags.ArgumentParser()).parse(text)
    except Exception:  # literal_eval raises many kinds
        return False
    return True


class _ConfigFile(flags.ArgumentParser):
    """Runs a config file, once, and takes what its ``get_config`` returns.

    This is the one place of the package that runs code from a file: a config is a program.
    """

    def parse(self, argument: str) -> ConfigDict:  # pyrefly: ignore[bad-override]
        """The locked config of ``FILE`` or ``FILE:ARGUMENT``.

        Raises:
            ConfigError: it has none; with the line of the file that failed.
        """
        file, colon, parameter = argument.partition(":")
        if not os.path.isfile(file):
            raise ConfigError(f"--config={argument}: there is no such file; {listing()}")
        module: dict[str, Any] = {"__name__": "config", "__file__": file}
        try:
            exec(compile(Path(file).read_bytes(), file, "exec"), module)
            if "get_config" not in module:
                raise ConfigError(f"--config={argument}: defines no function get_config()")
            config = module["get_config"](*[parameter] if colon else [])
            if not isinstance(config, ConfigDict):
                raise ConfigError(f"--config={argument}: get_config() must return a ConfigDict")
            return config if config.is_locked else config.lock()
        except (ConfigError, KeyboardInterrupt):
            raise
        except BaseException as error:  # it may raise whatever it likes
            trace = traceback.extract_tb(error.__traceback__)
            lines = [frame.lineno for frame in trace if frame.filename == file]
            lines += [error.lineno] if isinstance(error, SyntaxError) else []
            where = f"line {lines[-1]}: " if lines and lines[-1] else ""
            what = f"{type(error).__name__}: {_line(error)}"
            raise ConfigError(f"--config={argument}: {where}{what}") from error


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


def overview(*, keys: bool = False) -> str:
    """What a user who gave no config should see: every config in a line, and one example.

    Args:
        keys: whether every key of a config is listed too, with what it may hold.
    """
    usage = "usage: python -m sparse_mu.main --config=FILE --workdir=DIR [--config.a.b=VALUE]"
    lines = [f"{usage} [--export] [--key_file=FILE]"]
    lines += ["       python -m sparse_mu.main --verify=DIR [--key_file=FILE]", ""]
    width = max((len(_shown(file)) for file in config_files()), default=0)
    for file in config_files():
        described = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        lines.append(f"  {_shown(file):<{width}}  {described.partition(chr(10))[0]}")
    if keys:
        lines += ["", "--config.KEY=VALUE, where KEY = VALUE is"]
        lines += [f"  {key} = {rule.allowed}" for key, rule in rules.RULES.items()]
    else:
        lines += ["", "every key of a config, and what it may hold: --help"]
    return "\n".join([*lines, "", "for example:", f"  {EXAMPLE}"])


def _shown(file: Path) -> str:
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)
