"""The command line: absl flags and a locked config, every mistake one line."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from sparse_mu import config as rules
from sparse_mu.config import ConfigError

EXAMPLE = "python -m sparse_mu.main --config=configs/digits.py --workdir=runs/digits"


def define(values: flags.FlagValues) -> None:
    """Declares the flags of the main command."""
    config_flags.DEFINE_config_file(
        "config", None, "Config file; --config.a.b=value overrides.", flag_values=values
    )
    flags.DEFINE_string("workdir", None, "Folder for everything the run makes.", flag_values=values)
    flags.DEFINE_bool(
        "report_only", False, "Rebuild summary and report of a workdir.", flag_values=values
    )
    flags.DEFINE_bool("help", False, "Show the configs and an example.", flag_values=values)


def parse(argv: Sequence[str]) -> flags.FlagValues:
    """Parses a command line.

    Args:
        argv: the program and its arguments. ml_collections looks for overrides in ``sys.argv``,
            which must be the same.

    Raises:
        ConfigError: on any flag or override that cannot be, naming it and what is allowed.
    """
    values = flags.FlagValues()
    define(values)
    try:
        rest = values(list(argv))
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise _explain(argv, values, error) from error
    except SyntaxError as error:
        raise ConfigError(f"--config: {error.filename}, line {error.lineno}: {error.msg}") from error
    if len(rest) > 1:
        raise ConfigError(f"argument {rest[1]!r} is not a flag; flags start with --, as in {EXAMPLE}")
    return values


def _explain(
    argv: Sequence[str], values: flags.FlagValues, error: Exception
) -> ConfigError:
    """Finds the argument that made absl or ml_collections fail."""
    files = [a.split("=", 1)[1] for a in argv if a.startswith("--config=")]
    if files and not Path(files[-1]).is_file():
        return ConfigError(f"--config={files[-1]}: there is no such file; {listing()}")
    for argument in argv[1:]:
        name, _, text = argument.lstrip("-").partition("=")
        if not name.startswith("config."):
            continue
        key = name.removeprefix("config.")
        if not files:
            return ConfigError(f"--{name}: overrides need --config=FILE before them")
        if key not in rules.RULES:
            return rules.unknown_key(key)
        if "=" not in argument:
            return ConfigError(f"--{name}: needs a value, as in --{name}=VALUE")
        if f"--{name}={text}" in str(error) or len(_overrides(argv)) == 1:
            return ConfigError(f"config.{key} = {text!r}: must be {rules.RULES[key].allowed}")
    if isinstance(error, flags.UnrecognizedFlagError):
        hint = rules.nearest(error.flagname, ["config", "workdir", "report_only"])
        return ConfigError(f"--{error.flagname}: there is no such flag{hint}")
    if files and not isinstance(error, flags.Error):
        return ConfigError(f"--config={files[-1]}: {type(error).__name__}: {_line(error)}")
    return ConfigError(_line(error))


def _overrides(argv: Sequence[str]) -> list[str]:
    return [argument for argument in argv if argument.startswith("--config.")]


def _line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


def flat_config(values: flags.FlagValues) -> dict[str, object]:
    """The checked, flat config of parsed flags.

    Raises:
        ConfigError: if the config is not one, or any key of it is wrong.
    """
    config = values.config
    if not isinstance(config, ConfigDict):
        raise ConfigError("--config: the file's get_config() must return a ConfigDict")
    return rules.check(config.to_dict())


def config_files() -> list[Path]:
    """The configs that come with the package: of the checkout, or of the installed wheel."""
    package = Path(__file__).parent
    folders = [folder for folder in (package / "configs", package.parent / "configs")]
    return [file for folder in folders for file in sorted(folder.glob("*.py"))]


def listing() -> str:
    """One line naming the configs."""
    return "configs: " + ", ".join(_shown(file) for file in config_files())


def overview() -> str:
    """What a user who gave no config should see: every config in a line, and one example."""
    lines = ["usage: python -m sparse_mu.main --config=FILE --workdir=DIR [--config.a.b=VALUE]", ""]
    for file in config_files():
        spec = importlib.util.spec_from_file_location(file.stem, file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        lines.append(f"  {_shown(file):<34} {(module.__doc__ or '').strip().splitlines()[0]}")
    return "\n".join([*lines, "", "for example:", f"  {EXAMPLE}"])


def _shown(file: Path) -> str:
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)
