"""One way over the data: its compiled pieces, which set it reads, and how long it is."""

from typing import NamedTuple

import numpy as np

from sparse_mu.epoch import Prepare, Programs, epoch_programs
from sparse_mu.types import Execution, Reads, StepFn, Trials, Unlearner
from sparse_mu.unlearn.contract import OneSet


class Pass(NamedTuple):
    """One way over the data: its compiled pieces and what it reads."""

    programs: Programs
    reads: Reads


def pass_of(
    step: StepFn, reads: Reads, batch_size: int, prepare: Prepare, execution: Execution
) -> Pass:
    """The pass of a step.

    A step that reads one set is handed that set alone, in the retain slot of its trial, so that
    fine-tuning and ascent are one program.
    """
    body, slot = (step.on_batch, None) if isinstance(step, OneSet) else (step, reads)
    return Pass(epoch_programs(body, slot, batch_size, prepare, execution), reads)


def rows_of_epoch(reads: Reads, sets: Trials) -> np.ndarray:
    """``int[T]``, the rows of an epoch of each trial."""
    sizes = {"forget": np.sum(sets.forget, axis=1), "retain": np.sum(sets.retain, axis=1)}
    if reads not in sizes:
        return np.maximum(*sizes.values())
    least = sizes[reads] if sets.at_least is None else sets.at_least
    return np.where(sizes[reads] > 0, np.maximum(sizes[reads], least), 0)


def stretched(rows: np.ndarray, whole: np.ndarray | int, batch_size: int) -> np.ndarray:
    """``int32[T]``, :attr:`sparse_mu.types.Trials.at_least` of epochs as long as those over D.

    A set of fewer batches than D's starts its order again until it has as many rows as D.

    Args:
        rows: ``int[T]``, of each trial's set.
        whole: ``int[T]``, of its D.
        batch_size: of a step.
    """
    fewer = -(-rows // batch_size) < -(-np.asarray(whole) // batch_size)
    return np.where(fewer, whole, 0).astype(np.int32)


def check(
    unlearner: Unlearner,
    execution: Execution,
    batch_size: int,
    start: int,
    epochs: int,
    snapshot_epochs: tuple[int, ...],
) -> None:
    """Raises ``ValueError`` on what :func:`sparse_mu.training.fit` cannot run."""
    if not 0 <= start < epochs:
        raise ValueError(f"start = {start}, epochs = {epochs}: there is no epoch to run")
    if not all(start <= epoch <= epochs for epoch in snapshot_epochs):
        raise ValueError(f"snapshot_epochs = {snapshot_epochs}: must be in [{start}, {epochs}]")
    if unlearner.survey is not None and start:
        raise ValueError(f"start = {start}: a method that surveys its data first starts at epoch 0")
    if batch_size % execution.parts:
        raise ValueError(
            f"batch_size = {batch_size}: must be a multiple of {execution.parts}, the devices that "
            "a batch is split over"
        )
