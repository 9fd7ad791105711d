"""How sparse arms come by their masks, from a config."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_mu import losses, pruning, streaming
from sparse_mu.builders.data import Data
from sparse_mu.builders.network import Network
from sparse_mu.config import ConfigError, Flat
from sparse_mu.epoch import Prepare
from sparse_mu.masks import Scope, Structure
from sparse_mu.pruning_at_init import Form
from sparse_mu.types import Batch, Key, Masks, Model

FindMasks = Callable[[Model, np.ndarray, Key, float], Masks]
_PRUNES = 100  # folded into a trial's key to draw masks and the rows they are scored on


class Pruner(NamedTuple):
    """A way of pruning.

    Attributes:
        when: ``"once"`` after training (OMP), ``"iteratively"`` (IMP), or ``"before"`` training.
        find: masks before training: ``[T]`` fresh models, the rows ``bool[T, N]`` that may be
            looked at, keys and a sparsity to ``[T]`` masks; None for the others.
        data_free: whether the masks depend on no data.
        evaluations: gradients of one row each that such a mask takes of a trial: SNIP one of each
            scored row, GraSP two and a product with the Hessian, counted as two more.
        scope: ranking over all leaves together or within each.
        structure: what goes: entries, filters or channels.
        rate: fraction of what remains that a round of IMP removes.
    """

    when: Literal["once", "iteratively", "before"]
    find: FindMasks | None
    data_free: bool
    evaluations: int
    scope: Scope
    structure: Structure
    rate: float


def build_pruner(flat: Flat, data: Data, network: Network, prepare: Prepare) -> Pruner:
    """The pruning method of the config.

    Args:
        flat: the config.
        data: the images.
        network: the network to prune.
        prepare: bytes to network inputs, un-augmented.
    """
    method = flat["prune.method"]
    when = {"omp": "once", "imp": "iteratively"}.get(method, "before")
    find = _find_before(method, flat, data, network, prepare) if when == "before" else None
    passes = {"snip": 1, "grasp": 4}.get(method.partition("_")[0], 0)
    return Pruner(
        when=when,  # pyrefly: ignore[bad-argument-type]  (a value of the dict above)
        find=find,
        data_free=method in ("synflow", "random"),
        evaluations=passes * flat["prune.per_class"] * len(data.class_names),
        scope=flat["prune.scope"],
        structure=flat["prune.structure"],
        rate=flat["prune.rate"],
    )


def _find_before(
    method: str, flat: Flat, data: Data, network: Network, prepare: Prepare
) -> FindMasks:
    scope, structure = flat["prune.scope"], flat["prune.structure"]
    loss_fn = losses.classification(network.whole_apply_fn, train=True)

    labels = data.labels[: data.train_rows]
    if method.startswith(("snip", "grasp")):
        seen = np.concatenate([data.trained, data.retain])
        _check_rows(flat["prune.per_class"], labels, seen)

    def rows_of(key: Key, members: np.ndarray) -> Batch:
        rows = pruning.score_rows(key, labels, flat["prune.per_class"], members)
        inputs = prepare(jnp.asarray(streaming.rows_of(data.inputs, rows)), key)
        return Batch(inputs, jnp.asarray(data.labels[rows]), jnp.ones(len(rows)))

    def find(model: Model, members: np.ndarray, keys: Key, sparsity: float) -> Masks:
        keys = jax.vmap(lambda key: jax.random.fold_in(key, _PRUNES))(keys)
        if method == "random":
            return pruning.random_masks(
                keys, model, sparsity, scope=scope, structure=structure, batched=True
            )
        if method == "synflow":
            ones = jnp.ones((1, *data.inputs.shape[1:]), jnp.float32)
            try:
                return pruning.synflow_masks(
                    network.whole_apply_fn,
                    model,
                    ones,
                    sparsity,
                    rounds=flat["prune.rounds"],
                    counts=flat["prune.synflow_counts"],
                    scope=scope,
                    structure=structure,
                    batched=True,
                )
            except ValueError as error:
                raise ConfigError(
                    f"config.prune.sparsities holds {sparsity}: must be less for synflow and "
                    f"prune.structure = {structure!r} on this network ({error})"
                ) from error
        batches = [rows_of(key, of_trial) for key, of_trial in zip(keys, members, strict=True)]
        batch: Batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
        name, _, suffix = method.partition("_")
        form: Form = "official" if suffix else "published"
        where = {"scope": scope, "structure": structure}
        if name == "snip":
            return pruning.snip_masks(
                loss_fn, model, batch, keys, sparsity, form=form, batched=True, **where
            )
        return pruning.grasp_masks(
            network.whole_apply_fn, model, batch, keys, sparsity, form=form, batched=True, **where
        )

    return find


def _check_rows(per_class: int, labels: np.ndarray, members: np.ndarray) -> None:
    """Refuses more rows of a class than any of the sets has that it has, before anything runs."""
    for of_set in members:
        counts = np.bincount(labels[of_set])
        least = int(counts[counts > 0].min())
        if per_class > least:
            raise ConfigError(
                f"config.prune.per_class = {per_class}: must be at most {least}, the rows that a "
                "trial's retain set has of its smallest class"
            )
