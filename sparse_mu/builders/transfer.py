"""The data set that models are judged on as backbones, and how, from a config."""

from typing import NamedTuple

import numpy as np

from sparse_mu import losses, optimiser, transfer, unlearn
from sparse_mu.builders.data import Data
from sparse_mu.builders.methods import Method
from sparse_mu.builders.network import Network, build_network
from sparse_mu.builders.sources import gathered, of_kept_classes, read_source
from sparse_mu.builders.streams import build_stream, open_files
from sparse_mu.config import ConfigError, Flat
from sparse_mu.stages import fingerprint
from sparse_mu.types import Streamed


class Transfer(NamedTuple):
    """A target data set, training rows first, then test rows, and what is done on it.

    Attributes:
        inputs: ``uint8[N + M, H, W, C]``, or a stream of them.
        labels: ``int32[N + M]``.
        train_rows: N.
        digest: stands for the rows, wherever they are stored.
        network: the source's network with a head for the target's classes.
        finetune: trains all its weights; None where that is not asked for.
        validation: fraction of each class of the training rows that the probe's C is chosen on.
        probe_seeds: draws of these.
    """

    inputs: np.ndarray | Streamed
    labels: np.ndarray
    train_rows: int
    digest: str
    network: Network
    finetune: Method | None
    validation: float
    probe_seeds: int


def build_transfer(flat: Flat, data: Data, axis_name: str | None) -> Transfer | None:
    """The transfer of the config; None where no target is named. Reads the target.

    Raises:
        ConfigError: if its images are not of the source's shape, or a class is too small.
        sparse_mu.data.types.DataError: if it is missing or cannot be read.
    """
    if not flat["transfer.dataset"]:
        return None
    own = {
        f"dataset.{key.removeprefix('transfer.')}": value
        for key, value in flat.items()
        if key in ("transfer.data_dir", "transfer.limit", "transfer.classes")
    }
    # how it is read (image size, cache, stream) is as the source is
    read = {**flat, **own, "dataset.name": flat["transfer.dataset"]}
    files = open_files(read) if read["dataset.reading"] == "stream" else None
    source = files.source if files else read_source(read)
    source = of_kept_classes(flat, source, "transfer")
    labels = np.concatenate([source.train_labels, source.test_labels]).astype(np.int32)
    count = len(source.train_labels)
    if files:
        numbers = np.concatenate([source.train_inputs, source.test_inputs])
        inputs = build_stream(read, files, numbers, labels)
    else:
        shapes = (source.train_inputs.shape[1:], data.inputs.shape[1:])
        _check_shapes(flat, source.name, data.name, *shapes)
        inputs = gathered(source.train_inputs, np.arange(count), [source.test_inputs])
    try:
        transfer.split_off(labels[:count], flat["transfer.validation"], 0)
    except ValueError as error:
        raise ConfigError(f"config.transfer.{error}") from error
    target = _Target(source.name, inputs, source.class_names)
    network = build_network(flat, target, axis_name)
    return Transfer(
        inputs=inputs,
        labels=labels,
        train_rows=count,
        digest=fingerprint(inputs, labels, count),
        network=network,
        finetune=_finetune(flat, network) if flat["transfer.finetune_epochs"] else None,
        validation=flat["transfer.validation"],
        probe_seeds=flat["transfer.probe_seeds"],
    )


class _Target(NamedTuple):
    """What a network is made for."""

    name: str
    inputs: np.ndarray | Streamed
    class_names: tuple[str, ...]


def _check_shapes(
    flat: Flat, target: str, source: str, its: tuple[int, ...], others: tuple[int, ...]
) -> None:
    if its == others:
        return
    of_target, of_source = ("x".join(map(str, shape)) for shape in (its, others))
    depth = its[-1] != others[-1]
    fix = "take sets of the same channels" if depth else "set config.dataset.image_size for both"
    raise ConfigError(
        f"config.transfer.dataset = '{flat['transfer.dataset']}': images of {target} are "
        f"{of_target}, those of {source} {of_source}, and a backbone takes one shape; {fix}"
    )


def _finetune(flat: Flat, network: Network) -> Method:
    names = ("learning_rate", "momentum", "weight_decay")
    rates = {name: flat[f"transfer.finetune_{name}"] for name in names}
    unlearner = unlearn.finetune(
        losses.classification(network.apply_fn, train=True),
        hyper=optimiser.hyper_parameters(**rates),
        axis_name=network.axis_name,
    )
    return Method(
        unlearner,
        flat["transfer.finetune_epochs"],
        flat["transfer.finetune_batch_size"],
        lower="transfer.finetune_batch_size",
    )
