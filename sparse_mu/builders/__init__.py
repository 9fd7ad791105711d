"""From a checked config to typed objects: the only place where a config string is compared.

Nothing below this folder sees a config.
"""

from typing import NamedTuple

import jax

from sparse_mu.builders.choice import Choice, build_choice
from sparse_mu.builders.data import Data, build_data
from sparse_mu.builders.executions import build_executions, start_backend, stay_on_cpu
from sparse_mu.builders.imported import Imported, build_imported
from sparse_mu.builders.methods import Method, build_method, build_training
from sparse_mu.builders.network import Network, build_network
from sparse_mu.builders.pruner import Pruner, build_pruner
from sparse_mu.builders.transfer import Transfer, build_transfer
from sparse_mu.builders.unpruner import Unpruner, build_unpruner
from sparse_mu.config import Flat
from sparse_mu.data import augment
from sparse_mu.epoch import Prepare
from sparse_mu.types import Execution, Key

__all__ = [
    "Choice",
    "Data",
    "Experiment",
    "Imported",
    "Method",
    "Network",
    "Pruner",
    "Transfer",
    "Unpruner",
    "build",
    "build_choice",
    "build_data",
    "build_executions",
    "build_imported",
    "build_method",
    "build_network",
    "build_pruner",
    "build_training",
    "build_transfer",
    "build_unpruner",
    "cropped_images",
    "plain_images",
    "start_backend",
    "stay_on_cpu",
]


class Experiment(NamedTuple):
    """Everything a run needs, no config strings left to interpret.

    Attributes:
        data: rows and forget sets.
        network: the network.
        imported: the user's own model, the original of every trial; None to train one.
        training: the recipe of the original and of every retrained model.
        methods: the unlearning methods by name, in the order of the config.
        pruner: how sparse arms come by their masks.
        unpruner: how their masks forget; None where they are not made to.
        transfer: what every model is judged by on another data set; None where that is not asked.
        sparsities: sparse arms beside the dense one, ascending; of an imported model that is
            pruned already its own.
        rewind_epoch: epoch that pruning goes back to, None for pruning in place.
        same_steps: whether an epoch of a retrained model has as many steps as one of the original.
        prepare_train: bytes to network inputs in training (crop, flip).
        prepare_eval: the same in evaluation, un-augmented.
        execution: how trials run together.
        alone: how one trial is timed alone.
        judging: how forward passes over all rows run.
        config: the flat config, for fingerprints and seeds.
    """

    data: Data
    network: Network
    imported: Imported | None
    training: Method
    methods: dict[str, Method]
    pruner: Pruner
    unpruner: Unpruner | None
    transfer: Transfer | None
    sparsities: tuple[float, ...]
    rewind_epoch: int | None
    same_steps: bool
    prepare_train: Prepare
    prepare_eval: Prepare
    execution: Execution
    alone: Execution
    judging: Execution
    config: Flat


def plain_images(inputs: jax.Array, key: Key) -> jax.Array:
    """Bytes to floats in [0, 1]."""
    del key
    return augment.to_float(inputs)


def cropped_images(inputs: jax.Array, key: Key) -> jax.Array:
    """Random crop and flip, then bytes to floats in [0, 1]."""
    return augment.to_float(augment.crop_flip(key, inputs))


def build(flat: Flat) -> Experiment:
    """Builds an experiment; reads the data set.

    Raises:
        ConfigError: if the forget set, the network or the data do not fit each other.
        sparse_mu.checkpoint.CheckpointError, sparse_mu.interop.StateDictError: if the model to
            import cannot be read or is not the network's.
        sparse_mu.data.types.DataError: if the data set is missing or cannot be read.
    """
    data = build_data(flat)
    execution, alone, judging = build_executions(flat)
    network = build_network(flat, data, execution.axis_name)
    imported = build_imported(flat, network)
    sparsities = tuple(sorted(s for s in flat["prune.sparsities"] if s > 0))
    class_wise = data.forgotten_classes if any(data.forgotten_classes) else ()
    cropped = flat["train.augment"] == "crop_flip"
    rewind = flat["prune.rewind_epoch"]
    pruner = build_pruner(flat, data, network, plain_images)
    return Experiment(
        data=data,
        network=network,
        imported=imported,
        training=build_training(flat, network),
        methods={
            name: build_method(name, flat, network, class_wise) for name in flat["unlearn.methods"]
        },
        pruner=pruner,
        unpruner=build_unpruner(flat, network, pruner),
        transfer=build_transfer(flat, data, execution.axis_name),
        sparsities=(imported.sparsity,) if imported and imported.sparsity else sparsities,
        rewind_epoch=None if rewind < 0 else rewind,
        same_steps=flat["train.budget"] == "steps",
        prepare_train=cropped_images if cropped else plain_images,
        prepare_eval=plain_images,
        execution=execution,
        alone=alone,
        judging=judging,
        config=dict(flat),
    )
