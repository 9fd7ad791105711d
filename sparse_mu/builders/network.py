"""The network of an experiment as functions, from a config."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sparse_mu import models
from sparse_mu.builders.data import Data
from sparse_mu.config import ConfigError, Flat
from sparse_mu.types import ApplyFn, Key, Model, PyTree

_CHANNELS = {
    "cifar10": models.CIFAR10,
    "cifar100": models.CIFAR100,
    "svhn_cropped": models.SVHN,
}


class Network(NamedTuple):
    """A network as functions.

    Attributes:
        apply_fn: its forward pass, on a device's part of a batch where ``axis_name`` says so.
        whole_apply_fn: the same on whole batches.
        init: key to fresh :class:`~sparse_mu.types.Model`.
        head: tree of bools, True at the classifier head (class axis last).
        num_classes: K.
        channels: the constants by which it normalises its inputs, or None.
        axis_name: the axis over which it expects a batch to be split, or None.
    """

    apply_fn: ApplyFn
    whole_apply_fn: ApplyFn
    init: Callable[[Key], Model]
    head: PyTree
    num_classes: int
    channels: models.Channels | None
    axis_name: str | None


def build_network(flat: Flat, data: Data, axis_name: str | None = None) -> Network:
    """The network for these images, its convolutions in the form that suits the backend.

    Args:
        flat: the config.
        data: the images and their classes.
        axis_name: the axis that batches are split over; BatchNorm averages over it, too, unless
            the config says per device.
    """
    synchronised = flat["execution.batchnorm"] == "synchronised"
    over = axis_name if synchronised else None
    form = models.default_form(jax.default_backend())
    dtype = jnp.dtype(flat["model.dtype"])
    num_classes = len(data.class_names)
    shape = data.inputs.shape[1:]
    channels = None
    if flat["model.name"] == "small_cnn":
        module = models.SmallCNN(num_classes, form=form, dtype=dtype, axis_name=over)
    else:
        channels = _CHANNELS.get(flat["dataset.name"])
        if channels is None:
            raise ConfigError(
                "config.model.name = 'resnet20s': normalises its input and knows the channels of "
                f"{', '.join(_CHANNELS)}, not of {data.name}"
            )
        module = models.ResNet20s(
            num_classes, form=form, dtype=dtype, channels=channels, axis_name=over
        )
    draw = models.init_of(module, (1, *shape))

    def init(key: Key) -> Model:
        return Model(*draw(key))

    params = jax.eval_shape(init, jax.random.key(0)).params
    apply_fn = models.apply_fn_of(module)
    whole = apply_fn if over is None else models.apply_fn_of(module.clone(axis_name=None))
    head = models.head_of(params)
    return Network(apply_fn, whole, init, head, num_classes, channels, axis_name)
