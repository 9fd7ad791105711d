"""Whether a finished workdir is what its manifest records: digests made again, line by line.

Nothing is trained and nothing is written. What holds says that files were not changed since the run
wrote them (and, signed, that who wrote them had the key); that a model forgot is not said by it.
"""

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sparse_mu import checkpoint, config, digests, manifest, results, sealing
from sparse_mu.builders import build_choice, build_data
from sparse_mu.checkpoint import CheckpointError
from sparse_mu.config import ConfigError
from sparse_mu.data.types import DataError
from sparse_mu.workdir import WorkdirError

OK, FAILS, NOT_CHECKED = "ok", "FAILS", "not checked"
SHOWN = 12  # characters of a digest
LISTED = 5  # failing lines that the conclusion names


class Line(NamedTuple):
    """One thing that was recorded: whether it holds, what it is, and why it fails."""

    status: str
    what: str
    why: str = ""


def check(folder: Path, key: bytes | None) -> list[Line]:
    """Recomputes all that a manifest records and compares.

    Args:
        folder: the workdir of a finished run.
        key: of the signature; None leaves it unchecked.

    Returns:
        The lines, in the order of the run: manifest, code, config, data, arms, rows, files.

    Raises:
        WorkdirError: if the run has not finished, or its manifest cannot be read.
    """
    if not folder.is_dir():
        raise WorkdirError(f"workdir {folder}: there is no such folder")
    file, running = folder / "manifest.json", _running(folder)
    if not os.path.lexists(file):
        now = f"; {running} holds it now" if running else ""
        raise WorkdirError(
            f"workdir {folder}: the run has not finished, there is no {file.name}{now}"
        )
    recorded = sealing.read(file)
    lines = []
    if running:
        why = f"{running} holds this workdir: what it writes meanwhile may fail here"
        lines.append(Line(NOT_CHECKED, "a run in progress", why))
    lines.append(_compared("manifest", recorded["digest"], sealing.own_digest(recorded)))
    lines.append(_signature(recorded, key))
    lines.append(_code(recorded))
    about_config, flat = _config(folder, recorded)
    lines += [about_config, *_data(recorded, flat), *_arms(folder, recorded)]
    lines.append(_metrics(folder, recorded, flat))
    return [*lines, *_files(folder, recorded)]


def conclusion(lines: list[Line]) -> str:
    """One sentence: what fails, if anything does, and what that means."""
    failing = [line.what for line in lines if line.status == FAILS]
    result = "every line that could be checked holds"
    if failing:
        more = f" and {len(failing) - LISTED} more" if len(failing) > LISTED else ""
        fail = "line fails" if len(failing) == 1 else "lines fail"
        result = f"{len(failing)} {fail}: {'; '.join(failing[:LISTED])}{more}"
    return f"{result}; this is {manifest.RECORD}"


def _compared(what: str, recorded: str, found: str) -> Line:
    if recorded == found:
        return Line(OK, what)
    return Line(FAILS, what, f"recorded {recorded[:SHOWN]}..., found {found[:SHOWN]}...")


def _signature(recorded: dict, key: bytes | None) -> Line:
    is_signed = "signature" in recorded
    if key is None:
        why = "give --key_file" if is_signed else "the run was not signed"
        return Line(NOT_CHECKED, "signature", why)
    if sealing.is_signed(recorded, key):
        return Line(OK, "signature")
    why = "the manifest was changed, or signed with another key"
    return Line(FAILS, "signature", why if is_signed else "the manifest is not signed")


def _code(recorded: dict) -> Line:
    line = _compared("code", recorded["digests"]["code"], manifest.of_code())
    if line.status == OK:
        return line
    versions = recorded.get("versions")
    version = versions.get("sparse_mu") if isinstance(versions, dict) else None
    made_by = f"recorded with sparse_mu {version}, commit {recorded.get('commit')}"
    return line._replace(
        why=f"{made_by}; this is {manifest.version('sparse_mu')}, commit {manifest.commit()}"
    )


def _config(folder: Path, recorded: dict) -> tuple[Line, dict | None]:
    """The line of the config, and the config where it is the recorded one."""
    try:
        found = sealing.read_json(folder / "config.json")
    except (OSError, ValueError) as error:
        return Line(FAILS, "config", f"config.json cannot be read ({_reason(error)})"), None
    line = _compared("config", recorded["digests"]["config"], digests.of_json(found))
    return line, found if line.status == OK and isinstance(found, dict) else None


def _data(recorded: dict, flat: dict | None) -> Iterator[Line]:
    """The lines of rows and forget sets, which are read and drawn again."""
    why, found = "config.json is not the recorded one", {}
    if flat is not None:
        try:
            checked = config.check(flat) | {"forget.duplicates": "skip"}  # no digest is of copies
            if (choice := build_choice(checked)) is not None:
                checked = choice.forgetting(manifest.influence_of(recorded))
            found = manifest.of_data(build_data(checked))
        except (ConfigError, DataError, WorkdirError, OSError) as error:
            why = _reason(error)
    for name in ("data", "forget_sets"):
        what = name.replace("_", " ")
        if found:
            yield _compared(what, recorded["digests"][name], found[name])
        else:
            yield Line(NOT_CHECKED, what, why)


def _arms(folder: Path, recorded: dict) -> Iterator[Line]:
    """The lines of weights and masks of every arm; a stage of several arms is read once."""
    known: dict[str, dict[str, str]] = {}
    for title, arm in recorded["arms"].items():
        stage = arm["stage"]
        try:
            if stage not in known:
                known[stage] = _stage(folder / "stages" / stage)
        except (CheckpointError, OSError, ValueError) as error:
            yield Line(FAILS, f"weights and masks: {title}", _reason(error))
            continue
        for name in ("weights", "masks"):
            yield _compared(f"{name}: {title}", arm[name], known[stage][name])


def _stage(folder: Path) -> dict[str, str]:
    """Digests of a stage's arrays, of which only those stay in memory."""
    if not checkpoint.is_finished(folder):
        raise CheckpointError(f"there is no finished stage {folder}")
    arrays, _ = checkpoint.read_arrays(folder)
    return {
        what: digests.of_arrays({k: v for k, v in arrays.items() if k.startswith(start)})
        for what, start in (("weights", "model."), ("masks", "masks."))
    }


def _metrics(folder: Path, recorded: dict, flat: dict | None) -> Line:
    if flat is None or not isinstance(flat.get("trials"), int):
        return Line(NOT_CHECKED, "metrics", "config.json is not the recorded one")
    try:
        rows = results.read_whole(folder / "results.jsonl", flat["trials"])
        found = manifest.of_rows(rows)
    except (WorkdirError, OSError, ValueError, RecursionError) as error:
        return Line(FAILS, "metrics", _reason(error))
    return _compared("metrics", recorded["digests"]["metrics"], found)


def _files(folder: Path, recorded: dict) -> Iterator[Line]:
    for name in sealing.FILES:
        try:
            _check_is_file(folder / name)
            yield _compared(name, recorded["files"][name], digests.of_file(folder / name))
        except OSError as error:
            yield Line(FAILS, name, _reason(error))


def _check_is_file(file: Path) -> None:
    """Before it is opened: a pipe in its place would be waited for."""
    if not file.is_file():
        raise FileNotFoundError(None, f"{file.name} is not there")


def _running(folder: Path) -> str | None:
    """The live process of this machine that the lock of a workdir names, without touching it."""
    lock = folder / "lock"
    try:
        held = lock.read_bytes()[:200].decode(errors="replace") if lock.is_file() else ""
    except OSError:
        return None
    found = re.match(r"process (\d{1,9}) on (\S+)", held)
    if found is None or found[2] != socket.gethostname():
        return None
    try:
        os.kill(int(found[1]), 0)  # no signal, a question
    except ProcessLookupError:
        return None
    except OSError:
        pass  # alive, and another user's
    return found[0]


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
