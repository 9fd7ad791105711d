"""SalUn: random labels, but only the weights that the forget set's gradient singles out move."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparse_mu import masks as mask_trees
from sparse_mu import scores, trees
from sparse_mu.types import (
    Array,
    Batch,
    Hyper,
    Key,
    LossFn,
    Masks,
    Model,
    Params,
    Stats,
    Survey,
    Unlearner,
    UnlearnState,
)
from sparse_mu.unlearn.contract import OneSet, begin, unchanged
from sparse_mu.unlearn.descent import Transformation, set_sums, settings
from sparse_mu.unlearn.random_label import check_numbers, random_label_step


class SalunHyper(NamedTuple):
    """Leaves of SalUn: those of :class:`RandomLabelHyper` and the fraction that may move.

    Attributes:
        descent: learning rate and the like; its ``sign`` is not read.
        retain_weight: weight of the retain loss beside the forget loss.
        num_classes: K.
        saliency: fraction of the kept weights that may move.
    """

    descent: Hyper
    retain_weight: Array | float
    num_classes: Array | int
    saliency: Array | float


class Saliency(NamedTuple):
    """What the survey accumulates and what it decides.

    Attributes:
        gradients: sum over the rows of Df seen so far; zeros before and after the survey.
        salient: boolean tree of the weights that may move; all that is kept before the survey.
    """

    gradients: Params
    salient: Masks


def most_salient(gradients: Params, masks: Masks, fraction: Array | float) -> Masks:
    """The ``round(fraction * kept)`` kept entries of largest |gradient|, ranked over all leaves.

    The count is exact; of equal magnitudes the later in ``jax.tree.leaves``'s order wins. Pruned
    entries are neither counted nor chosen.
    """
    kept = jnp.sum(jnp.stack([jnp.sum(leaf, dtype=jnp.int32) for leaf in jax.tree.leaves(masks)]))
    staying = jnp.round(fraction * kept).astype(jnp.int32)
    return mask_trees.prune_lowest(
        masks, scores.magnitude(gradients), kept - staying, lambda name, leaf: True
    )


@functools.lru_cache(maxsize=64)
def _accumulate(
    loss_fn: LossFn, axis_name: str | None
) -> Callable[[UnlearnState, Batch], tuple[UnlearnState, Stats]]:
    def step(state: UnlearnState, batch: Batch) -> tuple[UnlearnState, Stats]:
        key = jax.random.fold_in(state.key, state.step)
        sums = set_sums(loss_fn, state.model, batch, key, axis_name)
        gradients = jax.tree.map(jnp.add, state.aux.gradients, sums.gradients)
        finite = jnp.isfinite(sums.loss) & trees.all_finite(sums.gradients)
        state = state._replace(aux=state.aux._replace(gradients=gradients), step=state.step + 1)
        return state, Stats(sums.loss, sums.weight, sums.correct, finite)

    return step


def _choose(state: UnlearnState) -> UnlearnState:
    salient = most_salient(state.aux.gradients, state.masks, state.hyper.saliency)
    aux = Saliency(optax.tree.zeros_like(state.aux.gradients), salient)
    return state._replace(aux=aux, step=jnp.zeros_like(state.step))


def _salient(state: UnlearnState) -> Masks:
    return state.aux.salient


def salun(
    loss_fn: LossFn,
    tx: Transformation | None = None,
    *,
    num_classes: int,
    saliency: float = 0.5,
    saliency_loss_fn: LossFn | None = None,
    retain_weight: float = 1.0,
    hyper: Hyper | None = None,
    axis_name: str | None = None,
) -> Unlearner:
    """SalUn: :func:`sparse_mu.unlearn.random_label` on the salient weights only.

    ``m_S = |grad_w L(w; Df)| >= threshold at w = w_o``, then
    ``w <- m_S * (w + dw) + (1 - m_S) * w_o`` with dw of random labelling. The threshold is met as
    an exact count over all leaves (biases and BatchNorm's too), among kept weights: the default 0.5
    is the paper's median. A survey of Df finds ``m_S`` before the first step; w_o stays fixed
    meanwhile. Weights outside ``m_S`` keep their bits: no decay, and momentum exactly 0.

    Args:
        loss_fn: weighted-sum loss of a batch, as in :func:`sparse_mu.unlearn.random_label`.
        tx: as in :func:`sparse_mu.unlearn.finetune`.
        num_classes: K, at least 2.
        saliency: fraction of the kept weights that may move, in (0, 1].
        saliency_loss_fn: the loss that the survey differentiates. The official code surveys in
            *evaluation* mode: ``classification(apply_fn, train=False)``. Default: ``loss_fn``,
            which is the same where nothing depends on the mode.
        retain_weight: weight of the retain loss.
        hyper: learning rate and the like, as leaves; its ``sign`` is not read.
        axis_name: axis over which batches are split, or None.

    Raises:
        ValueError: if ``saliency`` is outside (0, 1], ``num_classes`` below 2 or ``retain_weight``
            negative.

    Source: Fan et al., "SalUn", ICLR 2024, section 4. The official code sums means over batches, so
    that rows of a short last batch count more; here every row counts once. At its release it masked
    gradients only, so weight decay moved the rest; later it put the rest back to w_o, as here.
    """
    check_numbers(num_classes, retain_weight)
    if not 0 < saliency <= 1:
        raise ValueError(f"saliency = {saliency!r}: must be a fraction in (0, 1]")
    tx, descent = settings(tx, hyper)
    leaves = SalunHyper(
        descent,
        jnp.float32(retain_weight),
        jnp.int32(num_classes),
        jnp.float32(saliency),
    )

    def init(model: Model, masks: Masks, key: Key) -> UnlearnState:
        state = begin(model, masks, key, hyper=leaves, opt_state=tx.init)
        salient = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), state.masks)
        gradients = mask_trees.apply(state.masks, optax.tree.zeros_like(state.model.params))
        return state._replace(aux=Saliency(gradients, salient))

    survey = OneSet(_accumulate(saliency_loss_fn or loss_fn, axis_name), "forget")
    return Unlearner(
        init,
        random_label_step(loss_fn, tx, axis_name, _salient),
        unchanged,
        "paired",
        "epochs",
        Survey(survey, _choose, "forget"),
    )
