"""NegGrad+: descend on the retain set and, up to a ceiling, ascend on the forget set."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sparse_mu.types import (
    Array,
    Hyper,
    Key,
    LossFn,
    Masks,
    Model,
    Stats,
    StepFn,
    UnlearnBatch,
    Unlearner,
    UnlearnState,
)
from sparse_mu.unlearn.contract import begin, unchanged
from sparse_mu.unlearn.descent import (
    Transformation,
    both_sets,
    descend,
    mean_loss,
    mix,
    set_sums,
    settings,
)


class NegativeGradientHyper(NamedTuple):
    """Leaves of NegGrad+.

    Attributes:
        descent: learning rate and the like; its ``sign`` is not read.
        retain_weight: beta, the weight of the retain loss; the forget loss has ``1 - beta``.
        ceiling: mean forget loss of a batch from which on it is not raised further.
    """

    descent: Hyper
    retain_weight: Array | float
    ceiling: Array | float


@functools.lru_cache(maxsize=64)
def _negative_gradient_step(loss_fn: LossFn, tx: Transformation, axis_name: str | None) -> StepFn:
    def step(state: UnlearnState, batch: UnlearnBatch) -> tuple[UnlearnState, Stats]:
        hyper: NegativeGradientHyper = state.hyper
        forget_batch, retain_batch = both_sets(batch)
        key = jax.random.fold_in(state.key, state.step)
        retain = set_sums(loss_fn, state.model, retain_batch, key, axis_name)
        model = state.model._replace(net_state=retain.net_state)
        forget = set_sums(loss_fn, model, forget_batch, key, axis_name)
        kept, given_up = hyper.retain_weight, 1 - hyper.retain_weight
        below = mean_loss(forget) < hyper.ceiling
        gradients = mix([(kept, retain), (jnp.where(below, -given_up, 0.0), forget)])
        capped = jnp.minimum(mean_loss(forget), hyper.ceiling)
        # given_up may be 0 where capped is infinite
        objective = kept * mean_loss(retain) - jnp.where(given_up > 0, given_up * capped, 0.0)
        told = retain._replace(loss=objective * retain.weight, net_state=forget.net_state)
        return descend(state, tx, hyper.descent, gradients, told)

    return step


def negative_gradient(
    loss_fn: LossFn,
    tx: Transformation | None = None,
    *,
    retain_weight: float = 0.95,
    ceiling: float = 10.0,
    hyper: Hyper | None = None,
    axis_name: str | None = None,
) -> Unlearner:
    """NegGrad+: ``w <- tx(grad(beta * L_r - (1 - beta) * min(L_f, ceiling)))``.

    L_r and L_f are the mean losses of a batch of Dr and a batch of Df; each step sees one of both,
    the shorter set starts again. With ``retain_weight=1`` it is fine-tuning.

    Args:
        loss_fn: weighted-sum loss of a batch; it fixes the BatchNorm mode. Running statistics see
            the retain batch, then the forget batch, as in the official code.
        tx: as in :func:`sparse_mu.unlearn.finetune`.
        retain_weight: beta, in [0, 1].
        ceiling: a batch of Df whose mean loss reached it is left alone, so that ascent cannot run
            away; at 10 the true label has a probability of about 5e-5. The official code has none:
            ``math.inf``.
        hyper: learning rate and the like, as leaves; its ``sign`` is not read.
        axis_name: axis over which batches are split, or None.

    The sums that a step reports are ``objective * n_r``, n_r and the correct rows of Dr.

    Raises:
        ValueError: if ``retain_weight`` is outside [0, 1] or ``ceiling`` is not positive.

    Source: Kurmanji et al., "Towards Unbounded Machine Unlearning", NeurIPS 2023 (NegGrad+ among
    the baselines); their code calls beta ``alpha``.
    """
    if not 0 <= retain_weight <= 1:
        raise ValueError(f"retain_weight = {retain_weight!r}: must be in [0, 1]")
    if not ceiling > 0:
        raise ValueError(f"ceiling = {ceiling!r}: must be positive (math.inf for none)")
    tx, descent = settings(tx, hyper)
    leaves = NegativeGradientHyper(descent, jnp.float32(retain_weight), jnp.float32(ceiling))

    def init(model: Model, masks: Masks, key: Key) -> UnlearnState:
        return begin(model, masks, key, hyper=leaves, opt_state=tx.init)

    step = _negative_gradient_step(loss_fn, tx, axis_name)
    return Unlearner(init, step, unchanged, "paired", "epochs")
