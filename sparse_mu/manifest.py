"""What a run was made of and with, and the files derived from its rows."""

import base64
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from sparse_mu import checkpoint, digests, report, sealing, summary
from sparse_mu.builders import Data, Imported
from sparse_mu.config import Flat
from sparse_mu.transfer import ClassInfluence
from sparse_mu.types import Streamed
from sparse_mu.workdir import Workdir, WorkdirError

RECORD = "a record of a process, not a proof of forgetting"
_PACKAGES = ("sparse_mu", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")


def describe(
    data: Data,
    arms: Mapping[str, Mapping],
    imported: Imported | None = None,
    influence: ClassInfluence | None = None,
) -> dict:
    """What a finished run was made of and with.

    Args:
        data: the rows, their sets and the copies found among them.
        arms: of every arm, by its title, its stage and the digests of its weights and masks.
        imported: the model that was the original of every trial, if it was not trained here.
        influence: of the source classes on the target's loss, if it chose those that are forgotten.
    """
    devices = jax.local_devices()
    described: dict = {
        "format": sealing.FORMAT,
        "what": RECORD,
        "data": data.name,
        "unlearning_split": _unlearning_split(data),
        "duplicates": _duplicates(data),
        "trojan": _trojan(data),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
        "commit": commit(),
        "device": f"{len(devices)} x {devices[0].device_kind}",
        "digests": {"code": of_code(), **of_data(data)},
        "arms": {title: dict(arm) for title, arm in arms.items()},
    }
    if influence is not None:
        columns = (data.class_names, influence.value.tolist(), influence.error.tolist())
        described["class_influence"] = [
            {"class": name, "value": value, "error": error}
            for name, value, error in zip(*columns, strict=True)
        ]
    if imported is not None:
        _, _, sparsity, file, digest = imported
        described["imported"] = {"file": file, "digest": digest, "sparsity": sparsity}
    return described


def influence_of(recorded: Mapping) -> list[float]:
    """The influence of the source classes that a manifest holds.

    Raises:
        WorkdirError: if it holds none.
    """
    try:
        return [float(of_class["value"]) for of_class in recorded["class_influence"]]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise WorkdirError("the manifest does not say which classes were harmful") from error


def of_data(data: Data) -> dict[str, str]:
    """Digests of the rows and of the trials' sets.

    Rows that are streamed stand in their digest for the files they are in, their order and size.
    """
    rows = {"labels": data.labels}
    if isinstance(data.inputs, Streamed):
        inputs = digests.of_json([data.inputs.digest, digests.of_arrays(rows)])
    else:
        inputs = digests.of_arrays({"inputs": data.inputs, **rows})
    sets = {"forget": data.forget, "retain": data.retain, "trained": data.trained}
    return {"data": inputs, "forget_sets": digests.of_arrays(sets)}


def of_code() -> str:
    """The digest of every Python file of the package by its path; not of the configs beside it."""
    package = Path(__file__).parent
    names = (file.relative_to(package).as_posix() for file in package.rglob("*.py"))
    # an installed wheel holds the configs, too; what they say is in config.json
    found = {name: digests.of_file(package / name) for name in names if "configs/" not in name}
    return digests.of_json(found)


def of_rows(rows: list[dict]) -> str:
    """The digest of the rows without measured seconds, in whichever order they stand."""
    return digests.of_json(sorted(map(digests.of_json, without_times(rows))))


def _unlearning_split(data: Data) -> dict | None:
    """How many rows of each trial's sets the original never saw; None where there is one split."""
    if np.array_equal(data.trained, data.forget | data.retain):
        return None
    return {
        "trained_on": int(data.trained[0].sum()),
        "forget": _counts(data.forget),
        "forget_never_trained_on": _counts(data.forget & ~data.trained),
        "retain_never_trained_on": _counts(data.retain & ~data.trained),
    }


def _counts(sets: np.ndarray) -> list[int]:
    return [int(count) for count in sets.sum(axis=1)]


def _duplicates(data: Data) -> dict | None:
    if data.copies is None:
        return None
    trials = [
        {**of_trial._asdict(), "first": [pair._asdict() for pair in of_trial.first]}
        for of_trial in data.copies.trials
    ]
    return {**data.copies._asdict(), "trials": trials}


def _trojan(data: Data) -> dict | None:
    """The trigger in words, and a few pictures of it for the report; None where there is none."""
    if data.triggered is None:
        return None
    pairs = [
        [base64.b64encode(image).decode() for image in pair] for pair in data.triggered.pictures
    ]
    return {
        "trigger": data.triggered.name,
        "wanted": [data.class_names[label] for label in np.unique(data.triggered.wanted)],
        "pictures": pairs,
    }


def version(name: str) -> str | None:
    """The version of an installed package; None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of the checkout that holds this package; None for an installed wheel."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def write_derived(
    workdir: Workdir,
    rows: list[dict],
    flat: Flat,
    described: dict | None,
    key: bytes | None = None,
) -> dict:
    """Writes summary, report and, last, the manifest; returns the summary.

    Summary and report show the manifest without its seal, for that holds their digests.

    Args:
        workdir: where.
        rows: the rows of ``results.jsonl``.
        flat: the flat config.
        described: the run (:func:`describe`), or None to take the manifest on disk (when only the
            report is rebuilt).
        key: signs the manifest; None leaves it unsigned.

    Raises:
        WorkdirError: if there are no rows, there is no manifest to take, or it tells of other rows.
    """
    if not rows:
        raise WorkdirError(f"workdir {workdir.path}: has no results yet; run without --report_only")
    file = workdir.path / "manifest.json"
    if described is not None:
        made_of = described["digests"] | {"config": digests.of_json(flat), "metrics": of_rows(rows)}
        content = described | {"digests": made_of}
    elif file.exists():
        content = sealing.read_whole(file, key)
        content.pop("files")
        if content["digests"]["metrics"] != of_rows(rows):  # such as: the last arm's are torn
            raise WorkdirError(
                f"{workdir.results}: holds other rows than {file.name} tells of; run without "
                "--report_only"
            )
    else:
        raise WorkdirError(
            f"workdir {workdir.path}: the run has not finished; run without --report_only"
        )
    workdir.check_is_there()
    try:
        made = summary.summarise(
            rows, config=nested(flat), manifest=content, level=flat["evaluate.interval"]
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        if described is not None:
            raise
        what = f"{file} or {workdir.results.name}: is damaged ({type(error).__name__}: {error})"
        raise WorkdirError(f"{what}; run without --report_only to write it again") from error
    checkpoint.write_atomically(workdir.path / "summary.json", json.dumps(made, indent=1))
    report.write_report(made, rows, workdir.path / "report.html")
    files = {name: digests.of_file(workdir.path / name) for name in sealing.FILES}
    sealed = sealing.sealed(content | {"files": files}, key)
    checkpoint.write_atomically(file, json.dumps(sealed, indent=1))
    return made


def without_times(rows: list[dict]) -> list[dict]:
    """The rows without measured seconds: what two runs of one command have in common."""
    return [{k: v for k, v in row.items() if not k.endswith("_seconds")} for row in rows]


def nested(flat: Flat) -> dict:
    """``{"train.epochs": 15}`` as ``{"train": {"epochs": 15}}``."""
    out: dict = {}
    for key, value in flat.items():
        *groups, last = key.split(".")
        inner = out
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    return out
