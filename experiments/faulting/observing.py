"""Which act a run is in, seen from outside: by its workdir, and by the libraries it has loaded.

A run is past the act ``data`` once it holds the lock of its workdir (its process id stands in it)
and either has written ``config.json`` itself, which a new workdir gets when the data are there, or
has loaded tensorstore, which the package does at the first array that it saves or restores; a run
that continues restores right after its data. From there on its stages are made in one order, that
of a reference run: the first that is not finished is the one that is being made (or continued, the
finished ones before it restored), and says the act. When all are finished, the run evaluates.
"""

import os
from pathlib import Path
from typing import NamedTuple

ACTS = ("data", "train", "prune", "unlearn", "evaluate")


class Timeline(NamedTuple):
    """When an uninterrupted run had done what, in seconds from its start.

    Attributes:
        opened: the data were there and the workdir held.
        stages: when each stage was finished, by the name of its folder, in order.
        whole: the process had ended.
    """

    opened: float
    stages: dict[str, float]
    whole: float

    def started(self, stage: str | None) -> float:
        """When a stage was begun; the evaluation for None."""
        before = self.opened
        for name, finished in self.stages.items():
            if name == stage:
                return before
            before = finished
        return before

    def span(self, stage: str | None) -> float:
        """Seconds that a stage took; the evaluation for None."""
        end = self.whole if stage is None else self.stages[stage]
        return max(end - self.started(stage), 0.0)

    def spans(self) -> dict[str, float]:
        """Seconds of each act."""
        found = dict.fromkeys(ACTS, 0.0)
        found["data"], found["evaluate"] = self.opened, self.span(None)
        for stage in self.stages:
            found[act_of(stage)] += self.span(stage)
        return found


def timeline(workdir: Path, began: float, seconds: float) -> Timeline:
    """The timeline of a finished run.

    Args:
        workdir: of the run, made in one go.
        began: ``time.time()`` at its start.
        seconds: that it took.
    """
    ends = {
        meta.parent.name: meta.stat().st_mtime - began
        for meta in workdir.glob("stages/*/meta.json")
    }
    opened = (workdir / "config.json").stat().st_mtime - began
    return Timeline(opened, dict(sorted(ends.items(), key=lambda item: item[1])), seconds)


def act_of(stage: str) -> str:
    """The act that makes a stage, by the name of its folder."""
    arm = stage.rpartition("-")[0]
    if arm == "original-0":
        return "train"
    is_pruned = arm.startswith(("original-", "original_round", "retrain_repruned"))
    return "prune" if is_pruned else "unlearn"


def next_stage(workdir: Path, known: Timeline) -> str | None:
    """The first stage that is not finished; None when all are."""
    for stage in known.stages:
        if not (workdir / "stages" / stage / "meta.json").exists():
            return stage
    return None


def act_at(workdir: Path, process: int, began: float, known: Timeline) -> str:
    """The act that a process is in, running or stopped.

    Args:
        workdir: that it was started on.
        process: its id.
        began: ``time.time()`` before it was started.
        known: the timeline of the reference.
    """
    try:
        owner = (workdir / "lock").read_text(encoding="utf-8")
        is_new = (workdir / "config.json").stat().st_mtime >= began
        loaded = Path(f"/proc/{process}/maps").read_text(encoding="utf-8")
    except OSError:
        return "data"
    if str(process) not in owner.split() or not (is_new or "tensorstore" in loaded):
        return "data"
    stage = next_stage(workdir, known)
    return "evaluate" if stage is None else act_of(stage)


def acts_ahead(workdir: Path, known: Timeline) -> set[str]:
    """The acts that a run in this workdir would come through."""
    ahead = {"data", "evaluate"}
    for stage in known.stages:
        if not (workdir / "stages" / stage / "meta.json").exists():
            ahead.add(act_of(stage))
    return ahead


def has_checkpoint(workdir: Path, known: Timeline) -> bool:
    """Whether the stage that is not finished has a checkpoint to continue from."""
    stage = next_stage(workdir, known)
    if stage is None:
        return False
    return any((workdir / "stages" / stage / "under_way").glob("*/meta.json"))


def files_below(folder: Path) -> tuple[int, int]:
    """How many files lie below a folder, and their bytes; a moving target while somebody writes."""
    count = total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
                count += 1
            except FileNotFoundError:
                continue
    return count, total
