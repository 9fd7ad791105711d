"""What a run was made of and with, and the files derived from its rows."""

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from sparse_mu import checkpoint, report, summary
from sparse_mu.builders import Data, Imported
from sparse_mu.config import Flat
from sparse_mu.stages import Workdir, WorkdirError, fingerprint

_PACKAGES = ("sparse_mu", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")


def describe(data: Data, digests: Mapping[str, object], imported: Imported | None = None) -> dict:
    """The manifest of a finished run.

    Args:
        data: the rows, their sets and the copies found among them.
        digests: digests of data, forget sets, weights and masks.
        imported: the model that was the original of every trial, if it was not trained here.
    """
    devices = jax.local_devices()
    described = {
        "data": data.name,
        "unlearning_split": _unlearning_split(data),
        "duplicates": _duplicates(data),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
        "device": f"{len(devices)} x {devices[0].device_kind}",
        "digests": dict(digests),
    }
    if imported is not None:
        _, _, sparsity, file, digest = imported
        described["imported"] = {"file": file, "digest": digest, "sparsity": sparsity}
    return described


def _unlearning_split(data: Data) -> dict | None:
    """How many rows of each trial's sets the original never saw; None where there is one split."""
    if data.trained.all():
        return None
    return {
        "trained_on": int(data.trained.sum()),
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


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that holds this package; None for an installed wheel."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def write_derived(workdir: Workdir, rows: list[dict], flat: Flat, manifest: dict | None) -> dict:
    """Writes manifest, summary and report; returns the summary.

    Args:
        workdir: where.
        rows: the rows of ``results.jsonl``.
        flat: the flat config.
        manifest: of the run, or None to take the one on disk (when only the report is rebuilt).

    Raises:
        WorkdirError: if there are no rows, or there is no manifest to take.
    """
    if not rows:
        raise WorkdirError(f"workdir {workdir.path}: has no results yet; run without --report_only")
    file = workdir.path / "manifest.json"
    if manifest is None:
        if not file.exists():
            raise WorkdirError(
                f"workdir {workdir.path}: the run has not finished; run without --report_only"
            )
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise WorkdirError(
                f"{file}: is damaged ({error}); run without --report_only to write it again"
            ) from error
    else:
        manifest["digests"]["results"] = fingerprint(without_times(rows))
        checkpoint.write_atomically(file, json.dumps(manifest, indent=1))
    made = summary.summarise(
        rows, config=nested(flat), manifest=manifest, level=flat["evaluate.interval"]
    )
    checkpoint.write_atomically(workdir.path / "summary.json", json.dumps(made, indent=1))
    report.write_report(made, rows, workdir.path / "report.html")
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
