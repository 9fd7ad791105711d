"""The rows of an experiment and each trial's forget set, from a config."""

from typing import NamedTuple

import numpy as np

from sparse_mu.builders.choice import check_count, random_classes
from sparse_mu.builders.sources import gathered, of_kept_classes, read_source
from sparse_mu.builders.streams import build_stream, open_files, stream_hashes
from sparse_mu.builders.trojan import Triggered, build_trigger, poisoned_copies, triggered_test
from sparse_mu.config import ConfigError, Flat
from sparse_mu.data import duplicates, forget_files, forget_sets, splits
from sparse_mu.data.splits import Split
from sparse_mu.data.triggers import Trigger
from sparse_mu.data.types import Source
from sparse_mu.types import Streamed


class Data(NamedTuple):
    """The rows of an experiment: training rows first, then test rows, then triggered test rows.

    Attributes:
        name: what the data are called in the report.
        inputs: ``uint8[N + M, H, W, C]``, or a stream of them; of a Trojan, ``N + 2 M``.
        labels: ``int32``, as many; of triggered rows what the attacker wants.
        train_rows: N; of a Trojan, poisoned copies stand behind the clean rows.
        test_rows: M.
        class_names: K names.
        trained: ``bool[T, N]``, rows that each original model trains on; all but under
            ``dataset.unlearn_split_seed``, where N counts the rows of both splits, and of a Trojan,
            where each trial has poisoned copies in the place of some clean rows.
        forget: ``bool[T, N]``, the forget set of each trial.
        retain: ``bool[T, N]``, the retain set of each trial: the rest of its split.
        forgotten_classes: the classes each trial forgets as a whole; empty tuples otherwise.
        copies: copies of forget images left among the others; None where they were not counted.
        triggered: the test rows with a Trojan's trigger; None where there is none.
    """

    name: str
    inputs: np.ndarray | Streamed
    labels: np.ndarray
    train_rows: int
    test_rows: int
    class_names: tuple[str, ...]
    trained: np.ndarray
    forget: np.ndarray
    retain: np.ndarray
    forgotten_classes: tuple[tuple[int, ...], ...]
    copies: duplicates.Report | None
    triggered: Triggered | None

    @property
    def is_test(self) -> np.ndarray:
        """``bool``, of all rows: which are clean test rows."""
        rows = np.arange(len(self.labels))
        return (rows >= self.train_rows) & (rows < self.train_rows + self.test_rows)


class _Sets(NamedTuple):
    """The training rows, and who each trial trains on, forgets and retains.

    Attributes:
        rows: ``int64[N]``, the stored row that each is, or is a copy of.
        copied: what stands behind the stored rows.
        labels: ``int32[N]``.
        trained: ``bool[T, N]``.
        forget: ``bool[T, N]``.
        retain: ``bool[T, N]``.
        classes: of each trial, the classes that it forgets as a whole.
    """

    rows: np.ndarray
    copied: np.ndarray
    labels: np.ndarray
    trained: np.ndarray
    forget: np.ndarray
    retain: np.ndarray
    classes: tuple[tuple[int, ...], ...]


def build_data(flat: Flat) -> Data:
    """Reads the source, sets the tuning pool apart and draws each trial's forget set."""
    files = open_files(flat) if flat["dataset.reading"] == "stream" else None
    source = of_kept_classes(flat, files.source if files else read_source(flat))
    if flat["transfer.count"]:
        check_count(flat, len(source.class_names))
    split, test_inputs, test_labels = _parts(flat, source)
    trigger = None if files else build_trigger(flat, test_inputs)
    sets = _sets(flat, source, split, trigger)
    if len(np.unique(test_labels)) < len(source.class_names):
        raise ConfigError(
            f"config.dataset.limit = {flat['dataset.limit']}: must leave test rows of every class"
        )
    triggered = None
    if trigger is not None:
        given = (test_inputs, test_labels, source.class_names)
        triggered = triggered_test(flat, trigger, *given)
    labels = np.concatenate([sets.labels, test_labels]).astype(np.int32)
    if files:  # then inputs are the numbers of image files
        stored = np.concatenate([source.train_inputs[split.rows], test_inputs])
        inputs = build_stream(flat, files, stored, labels)
    else:
        more = [sets.copied, test_inputs, *([triggered.inputs] if triggered else [])]
        inputs = gathered(source.train_inputs, split.rows, more)
    copies = None
    if flat["forget.duplicates"] == "count":
        clean = inputs if isinstance(inputs, Streamed) else inputs[: len(labels)]
        copies = duplicates.find_copies(_hashes(flat, clean), sets.forget, sets.retain)
        copies = _named(copies, sets.rows, source)
    return Data(
        name=source.name,
        inputs=inputs,
        labels=np.concatenate([labels, triggered.wanted]) if triggered else labels,
        train_rows=len(sets.rows),
        test_rows=len(test_labels),
        class_names=source.class_names,
        trained=sets.trained,
        forget=sets.forget,
        retain=sets.retain,
        forgotten_classes=sets.classes,
        copies=copies,
        triggered=triggered,
    )


def _sets(flat: Flat, source: Source, split: Split, trigger: Trigger | None) -> _Sets:
    labels, count = source.train_labels[split.rows], flat["trials"]
    if flat["forget.scenario"] != "trojan":
        forget, classes = _forget_sets(flat, source, split)
        trained, unlearned = (np.tile(of, (count, 1)) for of in (split.trained, split.unlearned))
        nothing = source.train_inputs[:0]
        return _Sets(split.rows, nothing, labels, trained, forget, unlearned & ~forget, classes)
    assert trigger is not None  # as the config's checks say
    clean = source.train_inputs[split.rows]
    made = poisoned_copies(flat, trigger, clean, labels, source.class_names, _seeds(flat))
    stays = np.stack([~np.isin(np.arange(len(labels)), made.origin[of]) for of in made.chosen])
    forget = np.concatenate([np.zeros_like(stays), made.chosen], axis=1)
    retain = np.concatenate([stays, np.zeros_like(made.chosen)], axis=1)
    return _Sets(
        rows=np.concatenate([split.rows, split.rows[made.origin]]),
        copied=made.inputs,
        labels=np.concatenate([labels, made.labels]),
        trained=forget | retain,
        forget=forget,
        retain=retain,
        classes=((),) * count,
    )


def _seeds(flat: Flat) -> list[int]:
    """One per trial, for whatever its forget set is drawn by."""
    return [int(s) for s in np.random.SeedSequence(flat["seed"]).generate_state(flat["trials"])]


def _hashes(flat: Flat, inputs: np.ndarray | Streamed) -> duplicates.Hashes:
    """Of all images."""
    if isinstance(inputs, Streamed):
        return stream_hashes(flat, inputs)
    return duplicates.hashes(inputs)


def _parts(flat: Flat, source: Source) -> tuple[Split, np.ndarray, np.ndarray]:
    """The training rows, and inputs and labels of the test part."""
    labels, seed = source.train_labels, flat["dataset.split_seed"]
    fraction, unlearn_seed = flat["dataset.validation"], flat["dataset.unlearn_split_seed"]
    train, pool = splits.hold_out(labels, fraction, seed)
    if flat["dataset.pool"] == "tuning":
        # a third of the pool is its test part; neither meets a reported row
        kept, tested = splits.hold_out(labels[pool], 1 / 3, seed + 1)
        test = pool[tested]
        return splits.one_split(pool[kept]), source.train_inputs[test], labels[test]
    split = splits.one_split(train)
    if unlearn_seed >= 0:
        split = splits.two_splits(labels, fraction, seed, unlearn_seed)
    return split, source.test_inputs, source.test_labels


def _forget_sets(
    flat: Flat, source: Source, split: Split
) -> tuple[np.ndarray, tuple[tuple[int, ...], ...]]:
    """Each trial's forget set ``bool[T, N]``, and the classes it forgets as a whole."""
    trials, scenario = flat["trials"], flat["forget.scenario"]
    rows = split.rows[split.unlearned]
    labels = source.train_labels[rows]
    seeds = _seeds(flat)
    classes: tuple[tuple[int, ...], ...] = ((),) * trials
    try:
        if scenario == "class":
            sets, classes = _class_sets(flat, labels, source.class_names, seeds)
        elif scenario == "random":
            count = flat["forget.count"] or None
            fraction = None if count else flat["forget.fraction"]
            sets = [
                forget_sets.forget_random(len(rows), count=count, fraction=fraction, seed=seed)
                for seed in seeds
            ]
        else:
            sets = [_listed_set(flat, source, rows)] * trials
    except forget_sets.ForgetSetError as error:
        key = {"class": "classes", "random": "count or config.forget.fraction"}
        wrong = key.get(scenario, "file")
        if scenario == "class" and flat["forget.count"]:
            wrong += " or config.forget.count"
        raise ConfigError(f"config.forget.{wrong}: {error}") from error
    forget = np.zeros((trials, len(split.rows)), bool)
    forget[:, split.unlearned] = np.stack(sets)
    return forget, classes


def _class_sets(
    flat: Flat, labels: np.ndarray, class_names: tuple[str, ...], seeds: list[int]
) -> tuple[list[np.ndarray], tuple[tuple[int, ...], ...]]:
    """Whole classes, in turn, or ``forget.count`` rows of them; as many is the whole, too."""
    entries = flat["forget.classes"] or tuple(range(len(class_names)))
    if flat["transfer.choose"] == "random":
        entries = random_classes(flat, len(class_names), seeds)
    meant = entries  # numbers together, where they were chosen here
    if not isinstance(entries[0], tuple):
        meant = forget_sets.class_entries(entries, class_names)
    chosen = [meant[trial % len(meant)] for trial in range(len(seeds))]
    count = flat["forget.count"]
    if not count:
        return [forget_sets.forget_class(labels, of_trial) for of_trial in chosen], tuple(chosen)
    sets = [
        forget_sets.forget_within_classes(labels, of_trial, count=count, seed=seed)
        for of_trial, seed in zip(chosen, seeds, strict=True)
    ]
    return sets, tuple(c if np.isin(labels, c).sum() == count else () for c in chosen)


def _listed_set(flat: Flat, source: Source, rows: np.ndarray) -> np.ndarray:
    """The rows of a file, as a membership of ``rows``."""
    stored = len(source.train_labels)
    listed = forget_files.read_listed(flat["forget.file"])
    meant = forget_files.training_rows(listed, source.train_ids, source.train_rows, source.name)
    wanted = np.flatnonzero(forget_sets.forget_indices(meant, stored))
    outside = wanted[~np.isin(wanted, rows)]
    if len(outside):
        raise ConfigError(
            f"config.forget.file: {len(outside)} of {len(wanted)} rows, the first is row "
            f"{_number(source, outside[0])}, are not trained on here, they belong to the tuning "
            "pool; set config.dataset.validation=0 to train on every row"
        )
    return forget_sets.forget_indices(np.searchsorted(rows, wanted), len(rows))


def _number(source: Source, row: int) -> int:
    """What number the user knows a training row by."""
    return int(row if source.train_rows is None else source.train_rows[row])


def _named(found: duplicates.Report, rows: np.ndarray, source: Source) -> duplicates.Report:
    """The same with ids, or else numbers, of the training rows."""
    ids = source.train_ids

    def name(row: int | str) -> int | str:
        stored = int(rows[int(row)])
        return _number(source, stored) if ids is None else ids[stored]

    def of_pair(pair: duplicates.Pair) -> duplicates.Pair:
        copy = name(pair.copy) if pair.where == "retain" else pair.copy
        return pair._replace(forget=name(pair.forget), copy=copy)

    return found._replace(
        trials=tuple(t._replace(first=tuple(map(of_pair, t.first))) for t in found.trials)
    )
