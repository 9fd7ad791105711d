"""Importance scores: trees of floats shaped like the parameters; the lowest are pruned.

Every score is a pure function of one model and is taken of the *sparse* network: with ``masks``
the pruned weights are 0 in the forward pass, and their own score is exactly 0. That alone does not
keep them pruned (a score may be negative): :func:`sparse_mu.masks.prune_further` does.
"""

import jax
import jax.numpy as jnp
import optax

from sparse_mu.types import (
    ApplyFn,
    Array,
    Batch,
    Key,
    LossFn,
    Masks,
    Model,
    Params,
    PyTree,
    Scores,
)


def magnitude(params: Params, *, masks: Masks | None = None) -> Scores:
    """``|w|`` of every weight (one-shot magnitude pruning, SPEC section 3)."""
    return _masked(masks, jax.tree.map(jnp.abs, params))


def random(key: Key, params: Params, *, masks: Masks | None = None) -> Scores:
    """Uniform numbers in [0, 1), independent of the weights: leaf i draws from ``fold_in(key, i)``.

    Source: SPEC section 3 (Random).
    """
    leaves, treedef = jax.tree.flatten(params)
    draws = [
        jax.random.uniform(jax.random.fold_in(key, index), jnp.shape(leaf))
        for index, leaf in enumerate(leaves)
    ]
    return _masked(masks, jax.tree.unflatten(treedef, draws))


def snip(
    loss_fn: LossFn, model: Model, batch: Batch, key: Key, *, masks: Masks | None = None
) -> Scores:
    """``|w * dL/dw|``: how much the loss feels the weight being switched off, to first order.

    L is the mean loss of the batch. As published; the paper's division by the sum of all scores
    does not change their order and is left out. For the official code's form see
    :func:`snip_official`.

    Args:
        loss_fn: a weighted sum; it fixes the mode of BatchNorm (train mode in the official code).
        model: usually at initialisation.
        batch: rows, for example 25 of each class (:func:`sparse_mu.pruning.score_rows`).
        key: handed to ``loss_fn``.
        masks: score the network pruned by these.

    Source: Lee et al., "SNIP: single-shot network pruning based on connection sensitivity", ICLR
    2019, section 4; SPEC section 3.
    """
    params, gradients = _gradients(loss_fn, model, batch, key, masks)
    return _masked(masks, jax.tree.map(lambda w, g: jnp.abs(w * g), params, gradients))


def snip_official(
    loss_fn: LossFn, model: Model, batch: Batch, key: Key, *, masks: Masks | None = None
) -> Scores:
    """``|dL/dw|``, the official code's SNIP: the factor w of :func:`snip` is missing.

    Arguments as in :func:`snip`. On ResNet-20s at 90% the two masks share 91.1% of their entries,
    where 82% is chance.

    Source: SPEC section 3 (SNIP).
    """
    _, gradients = _gradients(loss_fn, model, batch, key, masks)
    return _masked(masks, jax.tree.map(jnp.abs, gradients))


def grasp(
    apply_fn: ApplyFn,
    model: Model,
    batch: Batch,
    key: Key,
    *,
    temperature: float = 200.0,
    masks: Masks | None = None,
) -> Scores:
    """``w * (H g)``: removing the weights of lowest score keeps the most gradient flow.

    To first order, removing w changes the gradient norm ``g^T g`` by twice ``-w * (H g)``; the
    paper calls ``-w * (H g)`` the score and removes the *highest*, so its negative is returned
    here. g and H are of the mean cross entropy with logits divided by the temperature, BatchNorm in
    train mode. As in the authors' code g runs over kernels only (leaves of rank 2 or more), not
    over biases and BatchNorm; unlike it, the batch is taken whole, not in two halves, and the head
    is not drawn anew. ``H g`` is a directional derivative of the gradient (forward over reverse),
    so nothing is P x P.

    Args:
        apply_fn: the network.
        model: usually at initialisation.
        batch: rows, for example 25 of each class (:func:`sparse_mu.pruning.score_rows`).
        key: handed to ``apply_fn``.
        temperature: > 0, divides the logits.
        masks: score the network pruned by these.

    Raises:
        ValueError: if a Python ``temperature`` is not positive.

    Source: Wang, Zhang and Grosse, "Picking winning tickets before training by preserving gradient
    flow", ICLR 2020, section 4; SPEC section 3.
    """
    params, product = _flow_product(apply_fn, model, batch, key, temperature, masks, rank=2)
    return _masked(masks, jax.tree.map(jnp.multiply, params, product))


def grasp_official(
    apply_fn: ApplyFn,
    model: Model,
    batch: Batch,
    key: Key,
    *,
    temperature: float = 200.0,
    masks: Masks | None = None,
) -> Scores:
    """``|w * (H g)|`` with g over *all* parameters: the official code's GraSP, its sign lost.

    It keeps weights whose removal would change the gradient flow much in either direction.
    Arguments as in :func:`grasp`.

    Source: SPEC section 3 (GraSP).
    """
    params, product = _flow_product(apply_fn, model, batch, key, temperature, masks, rank=0)
    return _masked(masks, jax.tree.map(lambda w, h: jnp.abs(w * h), params, product))


def synflow(
    apply_fn: ApplyFn, model: Model, inputs: Array, *, masks: Masks | None = None
) -> Scores:
    """``|dR/dw * w|`` with R the sum of logits of the network of absolute values: one round.

    Every parameter and every entry of ``net_state`` is replaced by its absolute value, BatchNorm
    runs in evaluation mode, and no data are read: the inputs are ones.

    R grows like the product over layers of their mean sums of absolute weights: 3e25 for ResNet-20s
    at initialisation, and beyond float32 for a network deep enough. Scores are then infinite or
    NaN; compute in float64 (a float64 model under ``jax_enable_x64``, and a network that computes
    in it). Too small a flow underflows to 0 in the same way. The procedure
    :func:`sparse_mu.pruning.synflow_masks` raises on both.

    Args:
        apply_fn: the network, its own normalisation of the inputs included (as official).
        model: usually at initialisation.
        inputs: ones of one example, such as ``jnp.ones((1, 32, 32, 3))``.
        masks: score the network pruned by these.

    Source: Tanaka et al., "Pruning neural networks without any data by iteratively conserving
    synaptic flow", NeurIPS 2020, algorithm 1; SPEC section 3.
    """
    positive = Model(*jax.tree.map(_absolute, (_masked(masks, model.params), model.net_state)))

    def flow(params: Params) -> Array:
        # evaluation mode draws nothing: any key will do
        key = jax.random.key(0)
        return jnp.sum(apply_fn(params, positive.net_state, inputs, train=False, key=key)[0])

    gradients = jax.grad(flow)(positive.params)
    scores = jax.tree.map(lambda w, g: jnp.abs(w * g), positive.params, gradients)
    return _masked(masks, scores)


def _masked(masks: Masks | None, tree: PyTree) -> PyTree:
    if masks is None:
        return tree
    return jax.tree.map(lambda mask, leaf: jnp.where(mask, leaf, 0), masks, tree)


def _absolute(leaf: Array) -> Array:
    return jnp.abs(leaf) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf


def _gradients(
    loss_fn: LossFn, model: Model, batch: Batch, key: Key, masks: Masks | None
) -> tuple[Params, Params]:
    """The (sparse) parameters and the gradient of the batch's mean loss at them."""
    params = _masked(masks, model.params)

    def mean_loss(params: Params) -> Array:
        loss, aux = loss_fn(params, model.net_state, batch, key)
        return loss / jnp.maximum(aux.weight, 1e-12)

    return params, jax.grad(mean_loss)(params)


def _flow_product(
    apply_fn: ApplyFn,
    model: Model,
    batch: Batch,
    key: Key,
    temperature: float,
    masks: Masks | None,
    rank: int,
) -> tuple[Params, Params]:
    """The (sparse) parameters and ``H g``, g being taken over kept entries of leaves >= rank."""
    if isinstance(temperature, float | int) and not temperature > 0:
        raise ValueError(f"temperature = {temperature!r}: must be positive")
    params = _masked(masks, model.params)

    def mean_loss(params: Params) -> Array:
        logits, _ = apply_fn(params, model.net_state, batch.inputs, train=True, key=key)
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(
            logits / temperature, batch.labels
        )
        total = jnp.sum(jnp.where(batch.weights != 0, batch.weights * losses, 0.0))
        return total / jnp.maximum(jnp.sum(batch.weights), 1e-12)

    gradient = jax.grad(mean_loss)
    direction = jax.tree.map(
        lambda g: g if jnp.ndim(g) >= rank else jnp.zeros_like(g),
        _masked(masks, gradient(params)),
    )
    _, product = jax.jvp(gradient, (params,), (direction,))
    return params, product
