"""Training and every unlearning method, from a config."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from sparse_mu import losses, models, optimiser, unlearn
from sparse_mu.builders.network import Network
from sparse_mu.config import ConfigError, Flat
from sparse_mu.training import Adapt
from sparse_mu.types import Hyper, LossFn, PyTree, Unlearner


class Method(NamedTuple):
    """An unlearner and how long it runs.

    Attributes:
        unlearner: the method.
        epochs: passes over the set it reads.
        batch_size: rows per step.
        adapt: sets hyper-parameters that differ between trials, or None.
        in_parts: whether a batch may be taken in parts, equal up to rounding, if memory is short.
        lower: the config key that makes a step need less memory.
    """

    unlearner: Unlearner
    epochs: int
    batch_size: int
    adapt: Adapt | None = None
    in_parts: bool = False
    lower: str = "train.batch_size"


class _Given(NamedTuple):
    """What a method is built from.

    Attributes:
        values: its own keys of the config.
        network: the network it works on.
        class_wise: the classes each trial forgets, or ``()`` in other scenarios.
        training: the loss in training mode.
        frozen: the loss in evaluation mode.
    """

    values: dict[str, Any]
    network: Network
    class_wise: tuple[tuple[int, ...], ...]
    training: LossFn
    frozen: LossFn

    @property
    def axis_name(self) -> str | None:
        return self.network.axis_name

    @property
    def hyper(self) -> Hyper:
        return optimiser.hyper_parameters(**_rates(self.values))


def _rates(values: dict[str, Any]) -> dict[str, Any]:
    return {key: values[key] for key in ("learning_rate", "momentum", "weight_decay")}


def _group(flat: Flat, group: str) -> dict[str, Any]:
    start = f"{group}."
    return {key.removeprefix(start): flat[key] for key in flat if key.startswith(start)}


def build_training(flat: Flat, network: Network) -> Method:
    """The recipe of the original model: fine-tuning from fresh weights, nothing forgotten."""
    values = _group(flat, "train")
    hyper = optimiser.hyper_parameters(
        **_rates(values),
        lr_schedule=optimiser.LEARNING_RATE_SCHEDULES.index(values["schedule"]),
        warmup_epochs=values["warmup_epochs"],
    )
    loss_fn = losses.classification(network.apply_fn, train=True)
    unlearner = unlearn.finetune(loss_fn, hyper=hyper, axis_name=network.axis_name)
    return Method(unlearner, values["epochs"], values["batch_size"])


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
    values = _group(flat, f"unlearn.{name}")
    given = _Given(
        values,
        network,
        class_wise,
        losses.classification(network.apply_fn, train=True),
        losses.classification(network.apply_fn, train=False),
    )
    unlearner = _METHODS[name](given)
    blocks = name == "influence" and values["solver"] == "woodbury"
    return Method(
        unlearner,
        _epochs(name, values, unlearner),
        values["batch_size"],
        adapt=_forgotten_columns(given) if name == "fisher" else None,
        # the official Fisher estimate squares the mean of its batch
        in_parts=name == "influence" or (name == "fisher" and values["estimate"] == "exact"),
        lower=f"unlearn.{name}.{'rows' if blocks else 'batch_size'}",
    )


def _epochs(name: str, values: dict[str, Any], unlearner: Unlearner) -> int:
    """Passes of ``fit``: as configured, but for methods that count otherwise."""
    if unlearner.passes == "once":
        return 1
    if name == "influence":
        return values["iterations"]
    if name == "scrub":
        return unlearn.scrub_passes(values["epochs"], values["max_epochs"])
    return values["epochs"]


def _finetune(given: _Given) -> Unlearner:
    return unlearn.finetune(given.training, hyper=given.hyper, axis_name=given.axis_name)


def _gradient_ascent(given: _Given) -> Unlearner:
    frozen = given.values["batchnorm"] == "frozen"
    return unlearn.gradient_ascent(
        given.frozen if frozen else given.training,
        gamma=given.values["gamma"],
        loss_ceiling=given.values["loss_ceiling"] or None,
        hyper=given.hyper,
        axis_name=given.axis_name,
    )


def _l1_sparse(given: _Given) -> Unlearner:
    return unlearn.l1_sparse(
        given.training,
        gamma=given.values["gamma"],
        schedule=given.values["schedule"],
        penalty=given.values["penalty"],
        hyper=given.hyper,
        axis_name=given.axis_name,
    )


def _finetune_and_prune(given: _Given) -> Unlearner:
    return unlearn.finetune_and_prune(
        given.training,
        sparsity=given.values["sparsity"],
        hyper=given.hyper,
        axis_name=given.axis_name,
    )


def _negative_gradient(given: _Given) -> Unlearner:
    return unlearn.negative_gradient(
        given.training,
        retain_weight=given.values["retain_weight"],
        ceiling=given.values["ceiling"] or math.inf,
        hyper=given.hyper,
        axis_name=given.axis_name,
    )


def _random_label(given: _Given) -> Unlearner:
    return unlearn.random_label(
        given.training,
        num_classes=given.network.num_classes,
        retain_weight=given.values["retain_weight"],
        hyper=given.hyper,
        axis_name=given.axis_name,
    )


def _salun(given: _Given) -> Unlearner:
    return unlearn.salun(
        given.training,
        num_classes=given.network.num_classes,
        saliency=given.values["saliency"],
        saliency_loss_fn=given.frozen,
        retain_weight=given.values["retain_weight"],
        hyper=given.hyper,
        axis_name=given.axis_name,
    )


def _scrub(given: _Given) -> Unlearner:
    return unlearn.scrub(
        given.network.apply_fn,
        alpha=given.values["alpha"],
        gamma=given.values["gamma"],
        temperature=given.values["temperature"],
        max_epochs=given.values["max_epochs"],
        hyper=given.hyper,
        axis_name=given.axis_name,
    )


def _fisher(given: _Given) -> Unlearner:
    return unlearn.fisher_forgetting(
        given.network.apply_fn,
        given.values["alpha"],
        num_classes=given.network.num_classes,
        estimate=given.values["estimate"],
        noise=given.values["noise"],
        head=given.network.head,
        head_treatment=given.values["head"] if given.class_wise else "intact",
        floor=given.values["floor"],
        in_turn=models.default_form(jax.default_backend()) == "patches",
        axis_name=given.axis_name,
    )


def _forgotten_columns(given: _Given) -> Adapt | None:
    """Each trial treats the head's columns of the classes it forgets."""
    if given.values["head"] == "intact" or not given.class_wise:
        return None
    forgotten = np.zeros((len(given.class_wise), given.network.num_classes), bool)
    for trial, classes in enumerate(given.class_wise):
        forgotten[trial, list(classes)] = True

    def adapt(hyper: PyTree, trials: np.ndarray) -> PyTree:
        return hyper._replace(classes=forgotten[trials])

    return adapt


def _influence(given: _Given) -> Unlearner:
    values = given.values
    if values["solver"] == "woodbury":
        _check_influence_memory(values["rows"], given.network)
    return unlearn.influence_unlearning(
        given.frozen,
        values["alpha"],
        damping=values["damping"],
        solver=values["solver"],
        apply_fn=given.network.apply_fn,
        curvature=values["curvature"],
        tolerance=values["tolerance"],
        rows=values["rows"],
        weighting=values["weighting"],
        axis_name=given.axis_name,
    )


def _check_influence_memory(rows: int, network: Network) -> None:
    shapes = jax.eval_shape(network.init, jax.random.key(0)).params
    row_bytes = 4 * sum(leaf.size for leaf in jax.tree.leaves(shapes))
    most = unlearn.influence.BYTE_BUDGET // row_bytes
    if rows > most:
        raise ConfigError(
            f"config.unlearn.influence.rows = {rows}: must be at most "
            f"{most}, as many gradients of this network as fit into 1 GiB"
        )


_METHODS: dict[str, Callable[[_Given], Unlearner]] = {
    "finetune": _finetune,
    "gradient_ascent": _gradient_ascent,
    "fisher": _fisher,
    "influence": _influence,
    "l1_sparse": _l1_sparse,
    "finetune_and_prune": _finetune_and_prune,
    "negative_gradient": _negative_gradient,
    "random_label": _random_label,
    "salun": _salun,
    "scrub": _scrub,
}
