"""The network of an experiment as functions, from a config."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from sparse_mu import models
from sparse_mu.config import ConfigError, Flat
from sparse_mu.types import ApplyFn, Key, Model, PyTree, Streamed

_NAMED = {
    "cifar10": models.CIFAR10,
    "cifar100": models.CIFAR100,
    "svhn": models.SVHN,
    "imagenet": models.IMAGENET,
}
_PUBLISHED = {  # TFDS's names of the data sets that the constants are of
    "cifar10": models.CIFAR10,
    "cifar100": models.CIFAR100,
    "svhn_cropped": models.SVHN,
    "imagenet2012": models.IMAGENET,
}


class Images(Protocol):
    """What a network is made for: images of one size and the classes they are of."""

    @property
    def name(self) -> str:
        """Of the data set."""
        ...

    @property
    def inputs(self) -> np.ndarray | Streamed:
        """``uint8[N, H, W, C]``; their shape alone is read."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names."""
        ...


class Network(NamedTuple):
    """A network as functions.

    Attributes:
        apply_fn: its forward pass, on a device's part of a batch where ``axis_name`` says so.
        whole_apply_fn: the same on whole batches.
        features_fn: what its head reads, in evaluation mode.
        init: key to fresh :class:`~sparse_mu.types.Model`.
        head: tree of bools, True at the classifier head (class axis last).
        num_classes: K.
        channels: the constants by which it normalises its inputs, or None.
        axis_name: the axis over which it expects a batch to be split, or None.
    """

    apply_fn: ApplyFn
    whole_apply_fn: ApplyFn
    features_fn: ApplyFn
    init: Callable[[Key], Model]
    head: PyTree
    num_classes: int
    channels: models.Channels | None
    axis_name: str | None


def build_network(flat: Flat, data: Images, axis_name: str | None = None) -> Network:
    """The network for these images, its convolutions in the form that suits the backend.

    Args:
        flat: the config.
        data: the images and their classes.
        axis_name: the axis that batches are split over; BatchNorm averages over it, too, unless
            the config says per device.

    Raises:
        ConfigError: the network, its normalisation and the images do not go together.
    """
    shape = data.inputs.shape[1:]
    _check_size(flat["model.name"], data.name, shape)
    channels = _channels(flat, data.name, shape[-1])
    num_classes = len(data.class_names)
    dtype = jnp.dtype(flat["model.dtype"])
    synchronised = flat["execution.batchnorm"] == "synchronised"
    over = axis_name if synchronised else None
    module = _module(flat, num_classes, dtype, over, channels)
    draw = models.init_of(module, (1, *shape))

    def init(key: Key) -> Model:
        return Model(*draw(key))

    params = jax.eval_shape(init, jax.random.key(0)).params
    alone = module if over is None else _module(flat, num_classes, dtype, None, channels)
    apply_fn = models.apply_fn_of(module)
    return Network(
        apply_fn=apply_fn,
        whole_apply_fn=apply_fn if over is None else models.apply_fn_of(alone),
        features_fn=models.features_fn_of(alone),
        init=init,
        head=models.head_of(params),
        num_classes=num_classes,
        channels=channels,
        axis_name=axis_name,
    )


def _module(
    flat: Flat,
    num_classes: int,
    dtype: DTypeLike,
    axis_name: str | None,
    channels: models.Channels | None,
) -> models.Module:
    form = models.default_form(jax.default_backend())
    stem = flat["model.stem"]
    match flat["model.name"]:
        case "small_cnn":
            return models.SmallCNN(num_classes, form, dtype, axis_name, channels)
        case "resnet20s":
            return models.ResNet20s(num_classes, form, dtype, axis_name, channels)
        case "resnet18":
            return models.ResNet18(num_classes, form, dtype, axis_name, channels, stem)
        case "resnet50":
            return models.ResNet50(num_classes, form, dtype, axis_name, channels, stem)
        case "vgg16_bn":
            return models.VGG16BN(num_classes, form, dtype, axis_name, channels)
        case "vgg16_bn_lth":
            return models.VGG16BNLTH(num_classes, form, dtype, axis_name, channels)
        case _:
            return models.SwinT(num_classes, dtype, channels)


def _check_size(name: str, data_name: str, shape: tuple[int, ...]) -> None:
    """Refuses images that a network cannot take."""
    height, width = shape[:2]
    said = f"config.model.name = '{name}': needs"
    found = f"{data_name} has {height}x{width}; see config.dataset.image_size"
    if name.startswith("vgg16") and min(height, width) < models.VGG_LEAST_SIDE:
        raise ConfigError(f"{said} images of at least {models.VGG_LEAST_SIDE} pixels, {found}")
    unit = models.SWIN_SIDE_UNIT
    if name == "swin_t" and (height % unit or width % unit):
        raise ConfigError(f"{said} images whose sides are multiples of {unit}, {found}")


def _channels(flat: Flat, data_name: str, depth: int) -> models.Channels | None:
    """The constants to normalise by; ``auto`` is the data set's, and none for small_cnn."""
    chosen = flat["model.channels"]
    if chosen == "none" or (chosen == "auto" and flat["model.name"] == "small_cnn"):
        return None
    said = f"config.model.channels = '{chosen}':"
    published = _PUBLISHED.get(flat["dataset.name"].partition(":")[0])  # without the version
    channels = published if chosen == "auto" else _NAMED[chosen]
    if channels is None:
        raise ConfigError(
            f"{said} knows the constants of {', '.join(_PUBLISHED)}, not of {data_name}; name one "
            f"of {', '.join(_NAMED)}, or 'none' for a network that does not normalise"
        )
    if depth != len(channels.mean):
        raise ConfigError(
            f"{said} normalises {len(channels.mean)} channels, the images of {data_name} have "
            f"{depth}; set config.model.channels=none"
        )
    return channels
