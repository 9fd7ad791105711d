"""Between a bundled network's model and PyTorch's state dict of the same network.

Pure renaming and transposing, so a round trip is exact to the bit. With L a layer's path, "/" and
the "_" before a number written ".", and the layer ``head`` called ``fc`` (``classifier.4`` or
``classifier`` in a VGG, ``mlp_head.1`` in a Swin):

=============================  ===========================================================
ours                           PyTorch's
=============================  ===========================================================
``L/kernel [kh, kw, in, out]``  ``L.weight [out, in, kh, kw]`` of a convolution
``L/kernel [in, out]``          ``L.weight [out, in]`` of a linear layer
``L/scale``, ``L/bias``         ``L.weight``, ``L.bias``
``batch_stats/L/mean, var``     ``L.running_mean``, ``L.running_var``
a pruned leaf and its mask      ``L.weight_orig``, ``L.weight_mask`` (torch.nn.utils.prune)
constants of the network        ``normalize.mean``, ``normalize.std`` (the official code's)
nothing                         ``L.num_batches_tracked``
nothing                         ``L.upper_lower_mask``, ``L.left_right_mask`` (shifted Swin)
=============================  ===========================================================

``num_batches_tracked`` is not read and is written as 0: PyTorch uses it only for BatchNorm without
a momentum, which no bundled network has. The masks of shifted windows are written, and need not be
there to be read.

The official Swin carries ``normalize.mean`` and ``normalize.std`` and never applies them. So a
Swin's state dict with them is read as a network that does not normalise, and refused by one that
does; ours are written without.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_mu import masks as mask_trees
from sparse_mu import trees
from sparse_mu.interop.errors import StateDictError
from sparse_mu.models.head import HEAD
from sparse_mu.models.normalisation import Channels
from sparse_mu.models.swin import shift_masks
from sparse_mu.types import Array, Masks, Model, PyTree

_STATISTICS = "batch_stats/"
_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_COUNTER = "num_batches_tracked"
_TO_TORCH = {2: (1, 0), 4: (3, 2, 0, 1)}  # axes of a kernel, by rank
_FROM_TORCH = {2: (1, 0), 4: (2, 3, 1, 0)}
# what the official code calls the head, by a layer that only such a network has
_HEADS = {"mlp_head_0": "mlp_head.1", "classifier_2": "classifier.4", "features_0": "classifier"}
_SHIFTED_TABLE = re.compile(r".*/layers_\d+_1/.*pos_embedding")


class _Tensor(NamedTuple):
    """One leaf of a model and where PyTorch keeps it."""

    leaf: str
    name: str
    kernel: bool

    def to_torch(self, value: Array) -> np.ndarray:
        axes = _TO_TORCH.get(np.ndim(value)) if self.kernel else None
        return np.asarray(np.transpose(np.asarray(value), axes) if axes else value, order="C")

    def from_torch(self, value: np.ndarray) -> np.ndarray:
        axes = _FROM_TORCH.get(value.ndim) if self.kernel else None
        return np.transpose(value, axes) if axes else value


def _tensor(leaf: str, head: str) -> _Tensor:
    *layers, last = leaf.removeprefix(_STATISTICS).split("/")
    layers = [head if layer == HEAD else re.sub(r"_(?=\d)", ".", layer) for layer in layers]
    return _Tensor(leaf, ".".join([*layers, _LEAVES.get(last, last)]), last == "kernel")


def _tensors(tree: PyTree) -> list[_Tensor]:
    leaves = trees.leaf_names(tree)
    tops = {leaf.split("/")[0] for leaf in leaves}
    head = next((name for layer, name in _HEADS.items() if layer in tops), "fc")
    return [_tensor(leaf, head) for leaf in leaves]


def _is_swin(params: PyTree) -> bool:
    return any(_SHIFTED_TABLE.fullmatch(leaf) for leaf in trees.leaf_names(params))


def _window_masks(params: PyTree) -> dict[str, np.ndarray]:
    """The constants that PyTorch keeps beside the parameters of every shifted Swin block."""
    found = {}
    for tensor, table in zip(_tensors(params), jax.tree.leaves(params), strict=True):
        if _SHIFTED_TABLE.fullmatch(tensor.leaf):
            layer = tensor.name.rpartition(".")[0]
            last_row, last_column = shift_masks((table.shape[0] + 1) // 2)
            found[f"{layer}.upper_lower_mask"] = last_row
            found[f"{layer}.left_right_mask"] = last_column
    return found


def to_state_dict(
    model: Model, masks: Masks | None = None, *, channels: Channels | None = None
) -> dict[str, np.ndarray]:
    """Writes a model as the official code's (and torchvision's) state dict.

    Where any weight is pruned, every convolution is written as ``weight_orig`` and ``weight_mask``
    (the official code attaches masks to all of them), and so is every other leaf with a pruned
    entry. A mask that prunes nothing is not written.

    Args:
        model: of one trial; plain dicts as the bundled networks have them.
        masks: boolean tree like ``model.params``; default: dense.
        channels: the constants by which the network normalises its inputs; with them
            ``normalize.mean`` and ``normalize.std`` are written, which the official code's strict
            ``load_state_dict`` asks for. None for a network that does not normalise.

    Returns:
        Contiguous arrays by name, ``float32`` but for the ``int64`` counters.

    Raises:
        ValueError: the masks do not fit the parameters.
    """
    if masks is None:
        masks = mask_trees.ones_like(model.params)
    mask_trees.check(masks, model.params)
    kept = [np.asarray(mask) for mask in jax.tree.leaves(masks)]
    sparse = not all(mask.all() for mask in kept)
    found: dict[str, np.ndarray] = {}
    if channels is not None and not _is_swin(model.params):
        found |= _constants(channels)
    for tensor, value, mask in zip(
        _tensors(model.params), jax.tree.leaves(model.params), kept, strict=True
    ):
        if sparse and (np.ndim(value) == 4 or not mask.all()):
            found[f"{tensor.name}_orig"] = tensor.to_torch(value)
            found[f"{tensor.name}_mask"] = tensor.to_torch(mask.astype(np.float32))
        else:
            found[tensor.name] = tensor.to_torch(value)
    for tensor, value in zip(
        _tensors(model.net_state), jax.tree.leaves(model.net_state), strict=True
    ):
        found[tensor.name] = tensor.to_torch(value)
    found |= _window_masks(model.params)
    found |= {name: np.zeros((), np.int64) for name in _counters(model.net_state)}
    return found


def from_state_dict(
    state_dict: Mapping[str, Array | Mapping], like: Model, *, channels: Channels | None = None
) -> tuple[Model, Masks]:
    """Reads a state dict of the official code, of torchvision or of :func:`to_state_dict`.

    A checkpoint with the state dict under ``"state_dict"`` and names that all start with
    ``module.`` (DataParallel) are understood. Pruned weights come out exactly 0, whatever stands
    in ``weight_orig`` there.

    Args:
        state_dict: arrays by PyTorch name; floats of any width are cast to the leaf's type.
        like: a model of the network (or ``jax.ShapeDtypeStruct``s); only shapes and types are read.
        channels: the constants by which the network normalises its inputs, compared with
            ``normalize.mean`` and ``normalize.std`` where the state dict has them (torchvision's
            has not: it normalises outside). None for a network that does not normalise: then a
            state dict that has them is refused, as its weights expect normalised inputs.

    Returns:
        The model and the masks, all True where the state dict has none.

    Raises:
        StateDictError: naming the first tensor that is missing, unexpected, of another shape, or
            no float; a mask without its weights or with entries other than 0 and 1; or constants
            that differ from ``channels``.
    """
    source = _flat(state_dict)
    if _is_swin(like.params):
        _check_swin(source, channels, _window_masks(like.params))
    else:
        _check_constants(source, channels)
    left = set(source) - set(_CONSTANTS) - _counters(like.net_state)
    left -= set(_window_masks(like.params))
    params, masks, statistics = [], [], []
    for tensor, leaf in zip(_tensors(like.params), jax.tree.leaves(like.params), strict=True):
        value, mask = _take_parameter(source, left, tensor, leaf)
        params.append(jnp.asarray(np.where(mask, value, np.zeros_like(value))))
        masks.append(jnp.asarray(mask))
    for tensor, leaf in zip(_tensors(like.net_state), jax.tree.leaves(like.net_state), strict=True):
        statistics.append(jnp.asarray(_take(source, left, tensor, tensor.name, leaf)))
    unexpected = [name for name in source if name in left]
    if unexpected:
        raise StateDictError(f"tensor '{unexpected[0]}' is not expected: the network has no such")
    structure = jax.tree.structure(like.params)
    model = Model(
        jax.tree.unflatten(structure, params),
        jax.tree.unflatten(jax.tree.structure(like.net_state), statistics),
    )
    return model, jax.tree.unflatten(structure, masks)


def state_dict_of(checkpoint: Mapping) -> Mapping:
    """The state dict inside a checkpoint: what stands under ``"state_dict"``, else all of it."""
    inner = checkpoint.get("state_dict")
    return inner if isinstance(inner, Mapping) else checkpoint


def _flat(checkpoint: Mapping) -> dict[str, np.ndarray]:
    source = state_dict_of(checkpoint)
    if source and all(str(name).startswith("module.") for name in source):
        source = {name.removeprefix("module."): value for name, value in source.items()}
    for name, value in source.items():
        if not isinstance(name, str) or not hasattr(value, "dtype"):
            raise StateDictError(f"entry {name!r} is a {type(value).__name__}, not a tensor")
    return {name: np.asarray(value) for name, value in source.items()}


_CONSTANTS = ("normalize.mean", "normalize.std")


def _constants(channels: Channels) -> dict[str, np.ndarray]:
    values = (channels.mean, channels.std)
    return {
        name: np.asarray(value, np.float32) for name, value in zip(_CONSTANTS, values, strict=True)
    }


def _check_constants(source: Mapping[str, np.ndarray], channels: Channels | None) -> None:
    for name in _CONSTANTS:
        if name not in source:
            continue
        found = source[name]
        if channels is None:
            raise StateDictError(
                f"tensor '{name}' says that the network normalises its inputs: pass channels=, "
                "its constants, or remove the tensor"
            )
        expected = _constants(channels)[name]
        # rtol: the same decimals, rounded to float32 on both sides
        if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-6, atol=0):
            raise StateDictError(
                f"tensor '{name}' is {found.tolist()}, the network normalises by "
                f"{expected.tolist()}"
            )


def _check_swin(
    source: Mapping[str, np.ndarray], channels: Channels | None, masks: Mapping[str, np.ndarray]
) -> None:
    for name in _CONSTANTS:
        if name in source and channels is not None:
            raise StateDictError(
                f"tensor '{name}' stands in a Swin of the official code, which never normalises: "
                "load it into a network that does not either (channels=None, model.channels='none')"
            )
    for name, expected in masks.items():
        if name in source and not np.array_equal(source[name], expected):
            raise StateDictError(
                f"tensor '{name}' is not the mask of windows shifted by half their side"
            )


def _counters(net_state: PyTree) -> set[str]:
    return set(_counter_names(net_state))


def _counter_names(net_state: PyTree) -> Iterator[str]:
    for tensor in _tensors(net_state):
        layer, _, last = tensor.name.rpartition(".")
        if last == "running_mean":
            yield f"{layer}.{_COUNTER}"


def _take_parameter(
    source: Mapping[str, np.ndarray], left: set[str], tensor: _Tensor, leaf: Array
) -> tuple[np.ndarray, np.ndarray]:
    """The value and the mask of one leaf, in our layout; crosses their names off ``left``."""
    orig, mask_name = f"{tensor.name}_orig", f"{tensor.name}_mask"
    if mask_name not in source and orig not in source:
        return _take(source, left, tensor, tensor.name, leaf), np.ones(leaf.shape, bool)
    for name, other in ((orig, mask_name), (mask_name, orig)):
        if name not in source:
            raise StateDictError(f"tensor '{other}' (leaf '{tensor.leaf}') stands without '{name}'")
    value = _take(source, left, tensor, orig, leaf)
    found = _take(source, left, tensor, mask_name, np.broadcast_to(np.ones((), bool), leaf.shape))
    return value, found


def _take(
    source: Mapping[str, np.ndarray], left: set[str], tensor: _Tensor, name: str, leaf: Array
) -> np.ndarray:
    if name not in source:
        raise StateDictError(f"tensor '{name}' (leaf '{tensor.leaf}') is missing")
    left.discard(name)
    value = tensor.from_torch(source[name])
    if value.shape != tuple(leaf.shape):
        expected = tensor.to_torch(np.broadcast_to(np.zeros((), bool), leaf.shape)).shape
        raise StateDictError(
            f"tensor '{name}' (leaf '{tensor.leaf}') has shape {source[name].shape}, "
            f"expected {expected}"
        )
    if leaf.dtype == bool:
        if not np.isin(value, (0, 1)).all():
            raise StateDictError(f"tensor '{name}' (leaf '{tensor.leaf}') holds other than 0 and 1")
    elif not jnp.issubdtype(value.dtype, jnp.floating):
        raise StateDictError(f"tensor '{name}' (leaf '{tensor.leaf}') is {value.dtype}, no float")
    with np.errstate(over="ignore", invalid="ignore"):  # inf and NaN are for the caller to refuse
        return value.astype(leaf.dtype)
