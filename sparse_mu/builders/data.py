"""The rows of an experiment and each trial's forget set, from a config."""

from typing import NamedTuple

import numpy as np

from sparse_mu.config import ConfigError, Flat
from sparse_mu.data import sources, splits


class Data(NamedTuple):
    """The rows of an experiment: training rows first, then test rows.

    Attributes:
        name: what the data are called in the report.
        inputs: ``uint8[N + M, H, W, C]``.
        labels: ``int32[N + M]``.
        train_rows: N.
        class_names: K names.
        forget: ``bool[T, N]``, the forget set of each trial.
        forgotten_classes: the classes each trial forgets as a whole; empty tuples otherwise.
    """

    name: str
    inputs: np.ndarray
    labels: np.ndarray
    train_rows: int
    class_names: tuple[str, ...]
    forget: np.ndarray
    forgotten_classes: tuple[tuple[int, ...], ...]


def build_data(flat: Flat) -> Data:
    """Reads the source, sets the tuning pool apart and draws each trial's forget set."""
    name = flat["dataset.name"]
    limit = flat["dataset.limit"] or None
    if name == "digits":
        source = _limited(sources.digits(), limit)
    else:
        source = sources.tfds_images(name, flat["dataset.data_dir"], limit)
    train, pool = splits.hold_out(
        source.train_labels, flat["dataset.validation"], flat["dataset.split_seed"]
    )
    if flat["dataset.pool"] == "tuning":
        # a third of the pool is its test part; neither meets a reported row
        kept, tested = splits.hold_out(
            source.train_labels[pool], 1 / 3, flat["dataset.split_seed"] + 1
        )
        train, test = pool[kept], pool[tested]
        test_inputs, test_labels = source.train_inputs[test], source.train_labels[test]
    else:
        test_inputs, test_labels = source.test_inputs, source.test_labels
    labels = source.train_labels[train]
    forget, classes = _forget_sets(
        flat, labels, train, len(source.train_labels), len(source.class_names)
    )
    if len(np.unique(test_labels)) < len(source.class_names):
        raise ConfigError(
            f"config.dataset.limit = {flat['dataset.limit']}: must leave test rows of every class"
        )
    return Data(
        name=source.name,
        inputs=np.concatenate([source.train_inputs[train], test_inputs]),
        labels=np.concatenate([labels, test_labels]).astype(np.int32),
        train_rows=len(train),
        class_names=source.class_names,
        forget=forget,
        forgotten_classes=classes,
    )


def _limited(source: sources.Source, limit: int | None) -> sources.Source:
    if limit is None:
        return source
    tests = max(limit // 5, 1)
    return source._replace(
        train_inputs=source.train_inputs[:limit],
        train_labels=source.train_labels[:limit],
        test_inputs=source.test_inputs[:tests],
        test_labels=source.test_labels[:tests],
    )


def _forget_sets(
    flat: Flat, labels: np.ndarray, rows: np.ndarray, stored: int, num_classes: int
) -> tuple[np.ndarray, tuple[tuple[int, ...], ...]]:
    trials, scenario = flat["trials"], flat["forget.scenario"]
    try:
        if scenario == "class":
            rotation = flat["forget.classes"] or tuple(range(num_classes))
            chosen = [rotation[t % len(rotation)] for t in range(trials)]
            sets = [splits.forget_class(labels, [c]) for c in chosen]
            return np.stack(sets), tuple((int(c),) for c in chosen)
        if scenario == "random":
            count = flat["forget.count"] or None
            fraction = None if count else flat["forget.fraction"]
            seeds = np.random.SeedSequence(flat["seed"]).generate_state(trials)
            sets = [
                splits.forget_random(len(labels), count=count, fraction=fraction, seed=int(seed))
                for seed in seeds
            ]
            return np.stack(sets), ((),) * trials
        listed = splits.read_rows(flat["forget.file"])
        wanted = np.flatnonzero(splits.forget_indices(listed, stored))
        outside = wanted[~np.isin(wanted, rows)]
        if len(outside):
            raise ConfigError(
                f"config.forget.file: {len(outside)} of {len(wanted)} rows, the first is row "
                f"{outside[0]}, are not trained on here, they belong to the tuning pool; set "
                "config.dataset.validation=0 to train on every row"
            )
        one = splits.forget_indices(np.searchsorted(rows, wanted), len(labels))
        return np.tile(one, (trials, 1)), ((),) * trials
    except splits.ForgetSetError as error:
        key = {"class": "classes", "random": "count or config.forget.fraction"}
        raise ConfigError(f"config.forget.{key.get(scenario, 'file')}: {error}") from error
