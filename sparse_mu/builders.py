"""From a checked config to typed objects: the only place where a config string is compared.

Nothing below this module sees a config.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_mu import execution as executions
from sparse_mu import losses, models, optimiser, unlearn
from sparse_mu.config import ConfigError, Flat
from sparse_mu.data import augment, sources, splits
from sparse_mu.epoch import Prepare
from sparse_mu.training import Adapt
from sparse_mu.types import ApplyFn, Execution, Hyper, Key, Model, PyTree, Unlearner

_CHANNELS = {
    "cifar10": models.CIFAR10,
    "cifar100": models.CIFAR100,
    "svhn_cropped": models.SVHN,
}


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


class Network(NamedTuple):
    """A network as functions.

    Attributes:
        apply_fn: its forward pass.
        init: key to fresh :class:`~sparse_mu.types.Model`.
        head: tree of bools, True at the classifier head (class axis last).
        num_classes: K.
    """

    apply_fn: ApplyFn
    init: Callable[[Key], Model]
    head: PyTree
    num_classes: int


class Method(NamedTuple):
    """An unlearner and how long it runs.

    Attributes:
        unlearner: the method.
        epochs: passes over the set it reads.
        batch_size: rows per step.
        adapt: sets hyper-parameters that differ between trials, or None.
    """

    unlearner: Unlearner
    epochs: int
    batch_size: int
    adapt: Adapt | None = None


class Experiment(NamedTuple):
    """Everything a run needs, no config strings left to interpret.

    Attributes:
        data: rows and forget sets.
        network: the network.
        training: the recipe of the original and of every retrained model.
        methods: the unlearning methods by name, in the order of the config.
        sparsities: sparse arms beside the dense one, ascending.
        rewind_epoch: epoch that pruning goes back to, None for pruning in place.
        prepare_train: bytes to network inputs in training (crop, flip).
        prepare_eval: the same in evaluation, un-augmented.
        execution: how trials run together.
        alone: how one trial is timed alone.
        config: the flat config, for fingerprints and seeds.
    """

    data: Data
    network: Network
    training: Method
    methods: dict[str, Method]
    sparsities: tuple[float, ...]
    rewind_epoch: int | None
    prepare_train: Prepare
    prepare_eval: Prepare
    execution: Execution
    alone: Execution
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
        sparse_mu.data.sources.DataError: if the data set is missing or cannot be read.
    """
    data = build_data(flat)
    network = build_network(flat, data)
    execution, alone = build_executions(flat)
    class_wise = data.forgotten_classes if any(data.forgotten_classes) else ()
    cropped = flat["train.augment"] == "crop_flip"
    rewind = flat["prune.rewind_epoch"]
    return Experiment(
        data=data,
        network=network,
        training=build_training(flat, network),
        methods={
            name: build_method(name, flat, network, class_wise) for name in flat["unlearn.methods"]
        },
        sparsities=tuple(sorted(s for s in flat["prune.sparsities"] if s > 0)),
        rewind_epoch=None if rewind < 0 else rewind,
        prepare_train=cropped_images if cropped else plain_images,
        prepare_eval=plain_images,
        execution=execution,
        alone=alone,
        config=dict(flat),
    )


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


def build_network(flat: Flat, data: Data) -> Network:
    """The network for these images, its convolutions in the form that suits the backend."""
    form = models.default_form(jax.default_backend())
    dtype = jnp.dtype(flat["model.dtype"])
    num_classes = len(data.class_names)
    shape = data.inputs.shape[1:]
    if flat["model.name"] == "small_cnn":
        module = models.SmallCNN(num_classes, form=form, dtype=dtype)
    else:
        channels = _CHANNELS.get(flat["dataset.name"])
        if channels is None:
            raise ConfigError(
                "config.model.name = 'resnet20s': normalises its input and knows the channels of "
                f"{', '.join(_CHANNELS)}, not of {data.name}"
            )
        module = models.ResNet20s(num_classes, form=form, dtype=dtype, channels=channels)
    draw = models.init_of(module, (1, *shape))

    def init(key: Key) -> Model:
        return Model(*draw(key))

    params = jax.eval_shape(init, jax.random.key(0)).params
    return Network(models.apply_fn_of(module), init, models.head_of(params), num_classes)


def _steps_of(flat: Flat, group: str) -> dict[str, Any]:
    keys = ("learning_rate", "momentum", "weight_decay")
    return {key: flat[f"{group}.{key}"] for key in keys}


def build_training(flat: Flat, network: Network) -> Method:
    """The recipe of the original model: fine-tuning from fresh weights, nothing forgotten."""
    schedules = optimiser.LEARNING_RATE_SCHEDULES
    hyper = optimiser.hyper_parameters(
        **_steps_of(flat, "train"),
        lr_schedule=schedules.index(flat["train.schedule"]),
        warmup_epochs=flat["train.warmup_epochs"],
    )
    loss_fn = losses.classification(network.apply_fn, train=True)
    return Method(
        unlearn.finetune(loss_fn, hyper=hyper), flat["train.epochs"], flat["train.batch_size"]
    )


def build_method(
    name: str, flat: Flat, network: Network, class_wise: tuple[tuple[int, ...], ...]
) -> Method:
    """One unlearning method.

    Args:
        name: the method.
        flat: the config.
        network: the network it works on.
        class_wise: the classes each trial forgets, or ``()`` in other scenarios.
    """
    group = f"unlearn.{name}"
    training_loss = losses.classification(network.apply_fn, train=True)
    frozen_loss = losses.classification(network.apply_fn, train=False)

    def first_order() -> Hyper:
        return optimiser.hyper_parameters(**_steps_of(flat, group))

    adapt = None
    match name:
        case "finetune":
            unlearner = unlearn.finetune(training_loss, hyper=first_order())
        case "gradient_ascent":
            unlearner = unlearn.gradient_ascent(training_loss, hyper=first_order())
        case "l1_sparse":
            unlearner = unlearn.l1_sparse(
                training_loss,
                gamma=flat[f"{group}.gamma"],
                schedule=flat[f"{group}.schedule"],
                hyper=first_order(),
            )
        case "fisher":
            zeroed = flat[f"{group}.head"] == "zeroed" and bool(class_wise)
            unlearner = unlearn.fisher_forgetting(
                network.apply_fn,
                flat[f"{group}.alpha"],
                num_classes=network.num_classes,
                head=network.head,
                head_treatment="zeroed" if zeroed else "intact",
            )
            if zeroed:
                forgotten = np.zeros((len(class_wise), network.num_classes), bool)
                for trial, classes in enumerate(class_wise):
                    forgotten[trial, list(classes)] = True

                def adapt(hyper: PyTree, trials: np.ndarray) -> PyTree:
                    return hyper._replace(classes=forgotten[trials])

        case "influence":
            _check_influence_memory(flat, network)
            unlearner = unlearn.influence_unlearning(
                frozen_loss,
                flat[f"{group}.alpha"],
                damping=flat[f"{group}.damping"],
                rows=flat[f"{group}.rows"],
            )
        case _:
            raise ConfigError(f"config.unlearn.methods: {name!r} cannot be built")
    once = unlearner.passes == "once"
    epochs = 1 if once else flat[f"{group}.epochs"]
    return Method(unlearner, epochs, flat[f"{group}.batch_size"], adapt)


def _check_influence_memory(flat: Flat, network: Network) -> None:
    shapes = jax.eval_shape(network.init, jax.random.key(0)).params
    row_bytes = 4 * sum(leaf.size for leaf in jax.tree.leaves(shapes))
    most = unlearn.influence.BYTE_BUDGET // row_bytes
    if flat["unlearn.influence.rows"] > most:
        raise ConfigError(
            f"config.unlearn.influence.rows = {flat['unlearn.influence.rows']}: must be at most "
            f"{most}, as many gradients of this network as fit into 1 GiB"
        )


def build_executions(flat: Flat) -> tuple[Execution, Execution]:
    """How all trials run together, and how one trial alone is timed."""
    devices = jax.local_devices()
    mode = flat["execution.trial_mode"]
    if mode == "auto":
        mode = "serial" if jax.default_backend() == "cpu" else "vmap"
    alone = executions.over_trials(devices)
    if mode == "serial":
        return alone, alone
    if jax.default_backend() == "cpu":
        # vmapped Cholesky solves on several CPU devices never return, and vmap is slower there
        raise ConfigError("config.execution.trial_mode = 'vmap': needs an accelerator; use 'auto'")
    per_device = -(-flat["trials"] // len(devices))
    return executions.over_trials(devices, per_device=per_device), alone
