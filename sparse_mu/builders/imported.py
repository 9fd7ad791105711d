"""The user's own trained model as the original, from a config."""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from sparse_mu import checkpoint, trees
from sparse_mu import masks as mask_trees
from sparse_mu.builders.network import Network
from sparse_mu.checkpoint import CheckpointError
from sparse_mu.config import ConfigError, Flat
from sparse_mu.interop import StateDictError, from_state_dict, read_state_dict
from sparse_mu.stages import fingerprint
from sparse_mu.types import Masks, Model


class Imported(NamedTuple):
    """A trained model that a run starts from instead of training one.

    Attributes:
        model: of one trial, numpy arrays; every trial gets the same.
        masks: its masks, all True for a dense model.
        sparsity: fraction of the prunable weights that its masks prune, to four decimals, for it
            names the arm; 0.0 for a dense model and no other.
        file: the name of its file or folder, without the way there.
        digest: of its arrays and masks; the same model has the same digest in any format.
    """

    model: Model
    masks: Masks
    sparsity: float
    file: str
    digest: str


def build_imported(flat: Flat, network: Network) -> Imported | None:
    """Reads the model that ``model.checkpoint`` names; None where it names none.

    A folder is read as orbax's (:func:`sparse_mu.checkpoint.read_model`), a file as a PyTorch state
    dict by its suffix (:func:`sparse_mu.interop.read_state_dict`). A model is pruned where masks
    beside its weights say so; weights that are exactly 0 mean nothing by themselves.

    ``normalize.mean`` and ``normalize.std`` of a state dict must be the network's. Where the model
    says nothing of how its inputs were normalised (orbax, torchvision), ``model.channels`` must be
    what it was trained with: a wrong one is not seen here, only in its accuracy.

    The forget set must be rows that the model was trained on. The tuning pool
    (``dataset.validation``) counts as not trained on by the metrics of a run, so a model that was
    trained on every row wants ``dataset.validation=0``.

    Raises:
        ConfigError: if the model is pruned already and the config asks for pruning.
        CheckpointError: if there is nothing there, or a folder cannot be read or does not fit.
        StateDictError: if a file cannot be read or does not fit the network.
    """
    given = flat["model.checkpoint"]
    if not given:
        return None
    path = Path(given)
    like = jax.eval_shape(network.init, jax.random.key(0))
    model, masks = _read(path, like, network)
    _check_numbers(path, model)
    _check_masks(path, masks, model)
    pruned, prunable = mask_trees.pruned(masks)
    sparsity = _named(int(pruned) / int(prunable))
    wanted = tuple(s for s in flat["prune.sparsities"] if s > 0)
    if sparsity and wanted:
        raise ConfigError(
            f"config.prune.sparsities = {wanted}: must be () with this model.checkpoint, which is "
            f"pruned already, to {100 * sparsity:.6g}%"
        )
    digest = fingerprint(*jax.tree.leaves((model, masks)))
    return Imported(model, masks, sparsity, path.name, digest)


def _named(sparsity: float) -> float:
    """``20866 / 23184`` is 90%; what rounds to 0% or 100% and is neither stays as it is."""
    rounded = round(sparsity, 4)
    return rounded if 0 < rounded < 1 else sparsity


def _read(path: Path, like: Model, network: Network) -> tuple[Model, Masks]:
    """Model and masks as numpy arrays, pruned weights exactly 0."""
    if path.is_dir():
        model, masks = checkpoint.read_model(path, like)
        if masks is None:
            masks = mask_trees.ones_like(model.params)
        else:
            model = model._replace(params=mask_trees.apply(masks, model.params))
    elif path.exists():
        state_dict = read_state_dict(path)
        try:
            model, masks = from_state_dict(state_dict, like, channels=network.channels)
        except StateDictError as error:
            raise StateDictError(f"{path}: {error}") from error
    else:
        raise CheckpointError(
            f"config.model.checkpoint = {str(path)!r}: there is no such file or folder"
        )
    return jax.tree.map(np.asarray, (model, masks))


def _check_numbers(path: Path, model: Model) -> None:
    for name, leaf in zip(trees.leaf_names(model), jax.tree.leaves(model), strict=True):
        if not np.isfinite(leaf).all():
            raise CheckpointError(f"{path}: leaf '{name}' holds numbers that are not finite")


def _check_masks(path: Path, masks: Masks, model: Model) -> None:
    """Masks prune what this library prunes: a retrained model of the same mask is its target."""
    flags = jax.tree.leaves(trees.prunable_leaves(model.params))
    for name, mask, prunable in zip(
        trees.leaf_names(masks), jax.tree.leaves(masks), flags, strict=True
    ):
        if not (prunable or mask.all()):
            raise CheckpointError(
                f"{path}: leaf '{name}' is pruned and no convolution's weight; only those are "
                "pruned here"
            )
