"""The calls of a library user, on their own network and data: ``forget`` and ``evaluate``.

And ``training_path``, which un-pruning is given.
"""

import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sparse_mu import masks as mask_trees
from sparse_mu.curvature import Convergence
from sparse_mu.evaluation import predict
from sparse_mu.execution import for_library
from sparse_mu.passes import stretched
from sparse_mu.training import fit
from sparse_mu.types import (
    ApplyFn,
    Array,
    Dataset,
    EnoughFn,
    Key,
    Masks,
    Model,
    PathFn,
    Trials,
    Unlearner,
)

Examples = tuple[Array, Array]  # inputs [N, ...] and integer labels [N]


class DivergedWarning(UserWarning):
    """Training produced a value that is not finite; the last finite model was returned."""


class NotConvergedWarning(UserWarning):
    """A linear solver stopped before its tolerance; the model took the step it had found."""


def _checked(name: str, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    inputs, labels = np.asarray(examples[0]), np.asarray(examples[1])
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{name}: labels must be a vector of integers, got {labels.dtype}{list(labels.shape)}"
        )
    if labels.size and labels.min() < 0:
        raise ValueError(f"{name}: label {labels.min()} is no class")
    if len(inputs) != len(labels):
        raise ValueError(f"{name}: {len(inputs)} inputs but {len(labels)} labels")
    if not len(labels):
        raise ValueError(f"{name}: the set is empty")
    if np.issubdtype(inputs.dtype, np.floating) and not np.isfinite(inputs).all():
        first = int(np.argmin(np.isfinite(inputs).reshape(len(inputs), -1).all(axis=1)))
        raise ValueError(f"{name}: the inputs of row {first} are not finite")
    return inputs, labels.astype(np.int32)


def _checked_model(name: str, model: Model) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        if not np.isfinite(np.asarray(leaf)).all():
            leaf_name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"{name}: leaf '{leaf_name}' holds values that are not finite")


def forget(
    unlearner: Unlearner,
    model: Model,
    masks: Masks | None = None,
    *,
    retain: Examples | None = None,
    forget: Examples | None = None,
    batch_size: int = 128,
    epochs: int = 1,
    key: Key,
) -> Model:
    """Unlearns the forget set from one model.

    Args:
        unlearner: the method, for example ``sparse_mu.finetune(loss_fn, optax.sgd(0.01))``.
        model: the original model; left untouched. Un-learning twice is calling this twice.
        masks: the model's mask, True = kept; default: dense. Pruned weights stay exactly 0.
        retain: ``(inputs, labels)`` of the retain set Dr; needed by methods that read it.
        forget: ``(inputs, labels)`` of the forget set Df; likewise.
        batch_size: rows per step.
        epochs: passes over the set that the method reads (one for Fisher and influence).
        key: draws the order of the rows and the method's own randomness.

    Returns:
        The unlearned model, with the tree of the given one.

    Raises:
        ValueError: if a set the method reads is missing or malformed, the mask does not fit, the
            model holds non-finite values, or a number is out of range.

    Warns:
        DivergedWarning: if the method diverged.
        NotConvergedWarning: if its linear solver stopped early (influence by ``cg``).
    """
    if batch_size < 1 or epochs < 1:
        raise ValueError(f"batch_size = {batch_size}, epochs = {epochs}: both must be at least 1")
    sets = {"retain": retain, "forget": forget}
    reads = {unlearner.reads} | ({unlearner.survey.reads} if unlearner.survey else set())
    needed = [name for name in sets if reads & {name, "both", "paired"}]
    for name in needed:
        if sets[name] is None:
            raise ValueError(f"{name}: this unlearner reads the {name} set; pass {name}=")
    _checked_model("model", model)
    read = [_checked(name, examples) for name in needed if (examples := sets[name]) is not None]
    owner = np.repeat(np.arange(len(read)), [len(labels) for _, labels in read])
    member = {name: owner == number for number, name in enumerate(needed)}
    none = np.zeros(len(owner), bool)
    masks = mask_trees.ones_like(model.params) if masks is None else masks
    mask_trees.check(masks, model.params)
    execution = for_library()
    one = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], (model, masks))
    inputs, labels = (np.concatenate(parts) for parts in zip(*read, strict=True))
    result = fit(
        unlearner,
        one[0],
        one[1],
        key[None],
        Trials(
            member.get("forget", none)[None],
            member.get("retain", none)[None],
            jax.random.fold_in(key, 1)[None],
        ),
        execution.put_shared(Dataset(jnp.asarray(inputs), jnp.asarray(labels))),
        batch_size=batch_size,
        epochs=epochs,
        execution=execution,
    )
    if not result.finite[0]:
        warnings.warn(
            "unlearning diverged; the last finite model is returned (lower the learning rate)",
            DivergedWarning,
            stacklevel=2,
        )
    elif isinstance(result.told, Convergence) and not result.told.converged[0]:
        told = jax.tree.map(lambda leaf: leaf[0].item(), result.told)
        warnings.warn(
            f"the solver did not converge in {told.iterations} iterations (relative residual "
            f"{told.relative_residual:.1g}); raise epochs or damping",
            NotConvergedWarning,
            stacklevel=2,
        )
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), result.model)


def training_path(
    unlearner: Unlearner,
    model: Model,
    *,
    examples: Examples,
    members: Array | None = None,
    epochs: int,
    batch_size: int = 128,
    key: Key,
) -> PathFn:
    """A dense training of one model as :func:`sparse_mu.unprune` reads it.

    The order of an epoch is drawn for all examples and the members keep theirs, so that under one
    key the training on Dr differs from that on D by the forget set alone. Where members make fewer
    batches than all examples, their order starts again: an epoch has as many steps on Dr as on D.

    Args:
        unlearner: the recipe, such as ``sparse_mu.finetune(loss_fn, optimiser)``.
        model: theta_0.
        examples: ``(inputs, labels)`` of D, all rows.
        members: ``bool[N]``, the rows to train on; default: all.
        epochs: T, the length of the original's training, over which the recipe's schedules are
            laid however early a path ends.
        batch_size: rows per step.
        key: draws the orders.

    Returns:
        A function of the epochs that are asked for to models by epoch.

    Raises:
        ValueError: as :func:`forget`, or if ``members`` does not fit.
    """
    _checked_model("model", model)
    inputs, labels = _checked("examples", examples)
    chosen = np.ones(len(labels), bool) if members is None else np.asarray(members)
    if chosen.shape != labels.shape or chosen.dtype != bool or not chosen.any():
        raise ValueError(
            f"members: must be bool[{len(labels)}] with a True in it, got "
            f"{chosen.dtype}{list(chosen.shape)}"
        )
    execution = for_library()
    rows = execution.put_shared(Dataset(jnp.asarray(inputs), jnp.asarray(labels)))
    start, dense = jax.tree.map(
        lambda leaf: jnp.asarray(leaf)[None], (model, mask_trees.ones_like(model.params))
    )
    at_least = stretched(np.array([chosen.sum()]), len(labels), batch_size)
    order_key = jax.random.fold_in(key, 1)[None]

    def first(models: Model) -> Model:
        return jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), models)

    whole = epochs

    def path(epochs: tuple[int, ...], enough: EnoughFn | None = None) -> dict[int, Model]:
        if max(epochs) > whole:
            raise ValueError(f"epoch {max(epochs)} is asked for: the training has {whole}")

        def enough_of_one(seen: dict[int, Model], trials: np.ndarray) -> np.ndarray:
            assert enough is not None
            return enough({epoch: first(models) for epoch, models in seen.items()}, trials)

        found = fit(
            unlearner,
            start,
            dense,
            key[None],
            Trials(~chosen[None], chosen[None], order_key, at_least),
            rows,
            batch_size=batch_size,
            epochs=max(epochs),
            horizon=whole,
            execution=execution,
            snapshot_epochs=tuple(epochs),
            enough=None if enough is None else enough_of_one,
        )
        return {epoch: first(models) for epoch, models in found.snapshots.items()}

    return path


def evaluate(
    apply_fn: ApplyFn,
    model: Model,
    *,
    retain: Examples,
    forget: Examples,
    test: Examples,
    reference: Model | None = None,
    forgotten_classes: Sequence[int] = (),
    batch_size: int = 512,
    seed: int = 0,
) -> dict[str, float]:
    """UA, RA, TA and the membership attack of one model, and its gaps to a reference.

    Args:
        apply_fn: the network; used in evaluation mode.
        model: the model to judge.
        retain: ``(inputs, labels)`` of Dr, as they are fed to the network.
        forget: likewise Df.
        test: likewise held-out examples; the attack's non-members.
        reference: a retrained model; adds ``gap_retrain_<metric>``, signed, model - reference.
        forgotten_classes: in a class-wise scenario the forgotten classes: ``ta`` then leaves them
            out, and ``ua_test`` and ``mia_class`` are added.
        batch_size: rows per forward pass.
        seed: draws the attack's pools.

    Returns:
        Fractions by metric key (see DESIGN's words: ua, ra, ta, mia_efficacy, ...).

    Raises:
        ValueError: on malformed sets or non-finite logits.
    """
    from sparse_mu import membership, metrics  # scikit-learn is slow to import

    sets = {"retain": retain, "forget": forget, "test": test}
    read = [_checked(name, examples) for name, examples in sets.items()]
    owner = np.repeat(np.arange(3), [len(labels) for _, labels in read])
    member = {name: owner == number for number, name in enumerate(sets)}
    inputs, labels = (np.concatenate(parts) for parts in zip(*read, strict=True))
    forgotten = tuple(int(c) for c in forgotten_classes)
    execution = for_library()

    def judge(one: Model) -> dict[str, float]:
        batched = jax.tree.map(lambda leaf: np.asarray(leaf)[None], one)
        logits = predict(apply_fn, batched, inputs, batch_size=batch_size, execution=execution)[0]
        return metrics.row_metrics(
            logits, labels, **member, forgotten_classes=forgotten
        ) | membership.membership_metrics(
            logits, labels, **member, forgotten_classes=forgotten, seed=seed
        )

    values = judge(model)
    if reference is not None:
        names = ("ua", "ra", "ta", "mia_efficacy")
        gaps = metrics.signed_gaps(values, judge(reference), names)
        values |= {f"gap_retrain_{name}": gap for name, gap in gaps.items()}
    return values
