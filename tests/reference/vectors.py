"""Files of recorded official behaviour, read by their keys: no seed, size or rate is known here."""

import functools
import json
import re
import zipfile
from typing import NamedTuple

import jax
import numpy as np

from sparse_mu import interop, models
from sparse_mu.data import augment
from sparse_mu.types import Batch, Model, UnlearnBatch

METHODS, NETWORKS = "recorded methods", "recorded networks"

FORM = models.default_form(jax.default_backend())

# How to make each network we ship, (classes, channels) -> module. A network joins the comparisons
# by joining this table.
BUILT = {
    "resnet20s": lambda classes, channels: models.ResNet20s(classes, FORM, channels=channels),
    "resnet18": lambda classes, channels: models.ResNet18(classes, FORM, channels=channels),
    "resnet50": lambda classes, channels: models.ResNet50(classes, FORM, channels=channels),
    "vgg16_bn": lambda classes, channels: models.VGG16BN(classes, FORM, channels=channels),
    "swin_t": lambda classes, channels: models.SwinT(classes, channels=channels),
    "resnet18_imagenet": lambda classes, channels: models.ResNet18(
        classes, FORM, channels=channels, stem="imagenet"
    ),
}


class Row(NamedTuple):
    """One line of the table."""

    key: str
    error: float
    limit: float

    @property
    def passed(self):
        return self.error <= self.limit  # a nan fails


@functools.cache
def kind_of(path):
    if path.is_file() and not zipfile.is_zipfile(path):
        raise ValueError("no .npz file")
    with np.load(path) as file:
        if "settings" in file.files:
            return METHODS
        if any(name.endswith("/info") for name in file.files):
            return NETWORKS
    raise ValueError("neither 'settings' nor 'NAME/info' in it: no file of recorded numbers")


@functools.lru_cache(maxsize=4)
def arrays_of(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def group(path, name):
    """The arrays under ``name/``, without that prefix."""
    prefix = f"{name}/"
    return {
        key.removeprefix(prefix): value
        for key, value in arrays_of(path).items()
        if key.startswith(prefix)
    }


def networks_of(path):
    suffix = "/info"
    return [name.removesuffix(suffix) for name in arrays_of(path) if name.endswith(suffix)]


def settings_of(path):
    return json.loads(str(arrays_of(path)["settings"]))


class Network(NamedTuple):
    """A network of a file: its forward pass, its constants, and how its models look."""

    apply_fn: object
    channels: models.Channels | None
    like: Model

    def load(self, state_dict):
        return interop.from_state_dict(state_dict, self.like, channels=self.channels)

    def dump(self, model, masks=None):
        return interop.to_state_dict(model, masks, channels=self.channels)


def make_network(name, classes, channels, side, dtype=np.float32):
    module = BUILT[name](classes, channels).clone(dtype=np.dtype(dtype))
    like = Model(*jax.eval_shape(models.init_of(module, (1, side, side, 3)), jax.random.key(0)))
    return Network(models.apply_fn_of(module), channels, like)


def classes_of(path):
    return len(group(path, "weights")["fc.bias"])


def network_of(path, dtype=np.float32):
    """The shipped network that a file's weights fit: a new one each call, so nothing is cached.

    Args:
        path: the file.
        dtype: type computed in.
    """
    weights = group(path, "weights")
    constants = (weights.get("normalize.mean"), weights.get("normalize.std"))
    channels = None
    if constants[0] is not None:
        channels = models.Channels(*(tuple(value.tolist()) for value in constants))
    classes = classes_of(path)
    side = group(path, "data")["retain_images"].shape[1]
    reasons = []
    for name in BUILT:
        network = make_network(name, classes, channels, side, dtype)
        try:
            network.load(weights)
        except interop.StateDictError as error:
            reasons.append(f"{name}: {error}")
        else:
            return network
    raise ValueError(f"{path}: no shipped network has these weights ({'; '.join(reasons)})")


def rows_of(path, name):
    """Images in [0, 1] and labels of a set."""
    data = group(path, "data") if name != "score" else group(path, "score_batch")
    prefix = "" if name == "score" else f"{name}_"
    images = np.asarray(augment.to_float(data[f"{prefix}images"]))
    return images, data[f"{prefix}labels"].astype(np.int32)


def whole(path, name):
    images, labels = rows_of(path, name)
    return Batch(images, labels, np.ones(len(labels), np.float32))


def batches(path, name, size):
    """In stored order; the last one may be smaller, as a torch loader's is."""
    rows = whole(path, name)
    starts = range(0, len(rows.labels), size)
    return [jax.tree.map(lambda leaf, at=at: leaf[at : at + size], rows) for at in starts]


def unlearn_batches(path, reads, size):
    """What a step of an unlearner (or of its survey) is given, over one pass."""
    if reads in ("forget", "retain"):
        return [
            UnlearnBatch(None, None)._replace(**{reads: batch})
            for batch in batches(path, reads, size)
        ]
    forget, retain = batches(path, "forget", size), batches(path, "retain", size)

    def padded(some, count):
        inert = some[0]._replace(weights=np.zeros_like(some[0].weights))
        return [*some, *[inert] * (count - len(some))]

    count = max(len(forget), len(retain))
    pairs = zip(padded(forget, count), padded(retain, count), strict=True)
    return [UnlearnBatch(one, other) for one, other in pairs]


def drawn_weights(info):
    """The tensors of ``NAME/info``, drawn by the rule that the file states for each."""
    found = {}
    for tensor in info["parameters"]:
        rng = np.random.default_rng([info["seed"], tensor["index"]])
        shape, rule = tuple(tensor["shape"]), tensor["rule"]
        if match := re.fullmatch(r"uniform\((.+), (.+)\)", rule):
            values = rng.uniform(float(match[1]), float(match[2]), shape)
        elif match := re.fullmatch(r"([0-9.]+) \* (?:standard_)?normal", rule):
            values = float(match[1]) * rng.standard_normal(shape)
        elif re.fullmatch(r"(?:standard_)?normal / sqrt\(fan_in\)", rule):
            values = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        else:
            raise ValueError(f"tensor '{tensor['name']}' has an unknown rule: {rule!r}")
        found[tensor["name"]] = values.astype(np.float32)
    return found
