"""The seal of a manifest: its format, its own digest, and the signature with the user's key."""

import hmac
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from sparse_mu.config import ConfigError
from sparse_mu.digests import canonical, of_json
from sparse_mu.workdir import WorkdirError

FORMAT = 1  # raise when an entry's meaning changes: a manifest of another format is not read
ALGORITHM = "HMAC-SHA256"
DIGESTS = ("config", "code", "data", "forget_sets", "metrics")
ARM = ("stage", "weights", "masks")
FILES = ("results.jsonl", "summary.json", "report.html")
SHORTEST_KEY, LONGEST_KEY = 16, 1 << 20  # bytes
LARGEST = 1 << 26  # bytes of a manifest or a config that is read back
AGAIN = "run without --report_only or --verify to write it again"
_SEAL = ("digest", "signature")


def read_key(path: str | None) -> bytes | None:
    """The secret of ``--key_file``: every byte of the file; None where none is given.

    Raises:
        ConfigError: if there is no such file, or it is no key.
    """
    if path is None:
        return None
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(None, "it is no file")
        if not SHORTEST_KEY <= found.st_size <= LONGEST_KEY:
            raise OSError(None, f"it holds {found.st_size} bytes")
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"--key_file={path}: {reason}; give a file of {SHORTEST_KEY} or more secret bytes, as "
            f"'head -c 32 /dev/urandom > FILE' makes it"
        ) from error


def key_for(folder: Path, path: str | None) -> bytes | None:
    """The key of a run in ``folder``: a workdir that was signed once is not left unsigned.

    Raises:
        ConfigError: if the key is no key, or is missing where the manifest on disk is signed.
    """
    key, file = read_key(path), folder / "manifest.json"
    try:
        found = read_json(file)
    except (OSError, ValueError):  # the run writes it again
        found = None
    if key is None and isinstance(found, dict) and "signature" in found:
        raise ConfigError(
            f"--key_file is missing: {file} is signed and is written again; give its key, or delete"
            " that file for a run that is not signed"
        )
    return key


def sealed(content: Mapping, key: bytes | None) -> dict:
    """A manifest's content with its digest and, where there is a key, its signature.

    What is sealed is what a reader of the file will find: texts as keys, lists for tuples.
    """
    as_read = json.loads(json.dumps(unsealed(content)))
    out = {**as_read, "digest": of_json(as_read)}
    if key is not None:
        out["signature"] = {"algorithm": ALGORITHM, "value": _signature(as_read, key)}
    return out


def unsealed(manifest: Mapping) -> dict:
    """What the digest and the signature of a manifest are of: all its other entries."""
    return {name: value for name, value in manifest.items() if name not in _SEAL}


def own_digest(manifest: Mapping) -> str:
    """The digest that a manifest must record."""
    return of_json(unsealed(manifest))


def is_signed(manifest: Mapping, key: bytes) -> bool:
    """Whether a manifest carries the signature that this key gives it."""
    signature = manifest.get("signature", {"algorithm": None, "value": ""})
    value = signature["value"].encode("ascii", "backslashreplace")
    expected = _signature(unsealed(manifest), key)
    return (
        hmac.compare_digest(value, expected.encode("ascii")) and signature["algorithm"] == ALGORITHM
    )


def read_whole(file: Path, key: bytes | None) -> dict:
    """The content of a manifest whose seal holds, to be sealed again.

    Raises:
        WorkdirError: as :func:`read`; and if it is not what was written, or not with this key.
    """
    manifest = read(file)
    if manifest["digest"] != own_digest(manifest):
        raise WorkdirError(f"{file}: is damaged (its digest does not hold); {AGAIN}")
    # an unsigned one is not signed here: nobody knows who wrote what it says
    if ("signature" in manifest or key) and not (key and is_signed(manifest, key)):
        raise WorkdirError(f"{file}: is not signed with the key that was given; {AGAIN}")
    return unsealed(manifest)


def read(file: Path) -> dict:
    """The manifest of a file; its entries are there and of their types, its seal is not checked.

    Raises:
        WorkdirError: if it cannot be read, is damaged, or is of another format.
    """
    try:
        manifest = read_json(file)
    except OSError as error:
        raise WorkdirError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise WorkdirError(f"{file}: is damaged ({error}); {AGAIN}") from error
    if not isinstance(manifest, dict):
        raise WorkdirError(f"{file}: is damaged (it holds no manifest); {AGAIN}")
    found = manifest.get("format")
    if type(found) is not int or found != FORMAT:
        shown = f"format {str(found)[:20]}" if type(found) is int else "no known format"
        raise WorkdirError(f"{file}: is of {shown}, and this version reads {FORMAT}; {AGAIN}")
    if fault := _fault(manifest):
        raise WorkdirError(f"{file}: is damaged ({fault}); {AGAIN}")
    return manifest


def read_json(file: Path) -> object:
    """What a file of JSON holds, bounded in size and in depth.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no JSON.
    """
    found = os.stat(file)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no file")
    if found.st_size > LARGEST:
        raise ValueError(f"it holds {found.st_size:,} bytes")
    try:
        value = json.loads(file.read_bytes().decode("utf-8"))
        canonical(value)  # refuses what JSON has no word for and Python reads: NaN, 1e999
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    return value


def _fault(manifest: dict) -> str | None:
    """The first entry that is missing or of another type; None for a manifest as one is written."""
    digests, arms = manifest.get("digests"), manifest.get("arms")
    parts = [("its digests", digests, DIGESTS), ("its files", manifest.get("files"), FILES)]
    if not isinstance(arms, dict) or not arms:
        return "its arms are missing or of another type"
    parts += [(f"its arm {name[:60]!r}", arm, ARM) for name, arm in arms.items()]
    parts += [("its digest", manifest, ("digest",))]
    if "signature" in manifest:
        parts += [("its signature", manifest["signature"], ("algorithm", "value"))]
    for what, part, names in parts:
        if not isinstance(part, dict) or not all(isinstance(part.get(n), str) for n in names):
            return f"{what}: an entry is missing or of another type"
    stages = [arm["stage"] for arm in arms.values()]
    outside = [name for name in stages if name in ("", ".", "..") or "/" in name or "\0" in name]
    return f"{outside[0][:60]!r} is no stage" if outside else None


def _signature(content: dict, key: bytes) -> str:
    return hmac.new(key, canonical(content), "sha256").hexdigest()
