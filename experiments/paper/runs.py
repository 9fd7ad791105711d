"""Runs of the command by an experiment: each in a folder of its own, continued where it stopped."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from sparse_mu import config, results, session
from sparse_mu.config import Flat
from sparse_mu.signals import Signals


class Planned(NamedTuple):
    """A run: its name, which is its folder's, and its checked config."""

    name: str
    flat: Flat


class Done(NamedTuple):
    """A run that has finished: its rows and its summary."""

    flat: Flat
    rows: list[dict]
    summary: dict

    def by_trial(self, method: str, sparsity: float, key: str) -> dict[int, float]:
        """A metric of one arm by trial; trials without a value are left out."""
        return {
            row["trial"]: row[key]
            for row in sorted(self.rows, key=lambda row: row["trial"])
            if (row["method"], row["sparsity"]) == (method, sparsity) and row[key] is not None
        }

    def values(self, method: str, sparsity: float, key: str) -> list[float]:
        """The same, in the order of trials."""
        return list(self.by_trial(method, sparsity, key).values())


def planned(name: str, start: ConfigDict, changes: Mapping[str, Any]) -> Planned:
    """A run of a config with keys replaced.

    Raises:
        sparse_mu.config.ConfigError: if that is no config.
    """
    return Planned(name, config.check(config.flatten(start.to_dict()) | dict(changes)))


def perform(run: Planned, workdir: Path, signals: Signals) -> Done:
    """Runs what is left of a run in ``workdir/NAME``."""
    folder = workdir / run.name
    print(f"{run.name}: {folder}", flush=True)
    summary = session.perform(folder, run.flat, signals, None, export=False)
    signals.patient = False
    return Done(run.flat, results.read_whole(folder / "results.jsonl", run.flat["trials"]), summary)
