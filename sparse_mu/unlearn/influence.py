"""Influence unlearning: one Newton-like step that takes the forget set's weight away."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from sparse_mu.curvature import Convergence
from sparse_mu.types import (
    ApplyFn,
    Array,
    Batch,
    Key,
    LossFn,
    Masks,
    Model,
    Params,
    Survey,
    Unlearner,
    UnlearnState,
)
from sparse_mu.unlearn import influence_solvers as solvers
from sparse_mu.unlearn.contract import OneSet, begin

BYTE_BUDGET = 2**30  # bytes that the block of gradients may take unless told otherwise
ROWS = {"woodbury": 256, "cg": 1, "official": 1000}  # unless told otherwise; cg keeps none
CURVATURES = ("gauss_newton", "hessian")
WEIGHTINGS = ("average", "sum")


def influence_unlearning(
    loss_fn: LossFn,
    alpha: float = 1.0,
    *,
    damping: float = 1e-2,
    solver: Literal["woodbury", "cg", "official"] = "woodbury",
    apply_fn: ApplyFn | None = None,
    curvature: Literal["gauss_newton", "hessian"] = "gauss_newton",
    tolerance: float = 1e-4,
    rows: int | None = None,
    byte_budget: int = BYTE_BUDGET,
    weighting: Literal["average", "sum"] = "average",
    axis_name: str | None = None,
) -> Unlearner:
    """Influence unlearning: ``w <- w + alpha * H^-1 grad L(1/N - w_MU)``.

    With N = n_f + n_r and G the mean gradients over Df and Dr, ``grad L(1/N - w_MU)`` is
    ``(n_f / N) (G_f - G_r)`` for ave-ERM (``weighting="average"``, w_MU = 1/n_r on Dr) and
    ``(n_f / N) G_f`` for sum-ERM (``"sum"``, Dr keeps its weights). Pruned entries take no part.
    H and its inverse are the solver's:

    - ``"woodbury"``: the empirical Fisher of M rows of Dr plus ``damping * I``, inverted exactly
      on an M x M system. One pass over both sets.
    - ``"cg"``: the Gauss-Newton matrix (or the Hessian) of *all* of Dr plus ``damping * I``, by
      conjugate gradients, keeping no row. A survey of both sets, then each epoch over Dr is one
      iteration, so the number of epochs is the most iterations. The finished state tells the
      residual, the iterations and whether it converged: :func:`convergence`.
    - ``"official"``: the recursion of the official code over the first ``rows + 2`` rows of Dr in
      the order they are fed, undamped, which only moves along the first row's gradient: see
      :func:`sparse_mu.curvature.official_recursion`. A survey of both sets, then one pass.

    Args:
        loss_fn: weighted-sum loss in *evaluation* mode.
        alpha: step length.
        damping: added to the diagonal of H, > 0; not used by ``"official"``.
        solver: ``"woodbury"``, ``"cg"`` or ``"official"``.
        apply_fn: the network whose softmax cross entropy ``loss_fn`` is; for ``"cg"`` with
            ``"gauss_newton"``.
        curvature: the H of ``"cg"``. The Hessian of a network may be indefinite: then the solve
            stops and says so.
        tolerance: relative residual at which ``"cg"`` has converged.
        rows: M of ``"woodbury"`` (the first of the order; default 256), N_w of ``"official"``
            (default 1000, as there).
        byte_budget: most bytes the M x P block of gradients may take.
        weighting: ``"average"`` or ``"sum"``.
        axis_name: axis over which batches are split, or None.

    Raises:
        ValueError: if ``damping`` or ``rows`` is not positive, ``tolerance`` is negative, a word is
            unknown, ``apply_fn`` is missing, or (at ``init``) the block of gradients is larger
            than ``byte_budget``.

    Source: paper, section 3 (IU), Proposition 1 and appendix A; SPEC sections 4.8 and 11.10.
    """
    if not damping > 0:
        raise ValueError(f"damping = {damping!r}: must be positive")
    if rows is not None and rows < 1:
        raise ValueError(f"rows = {rows!r}: must be at least 1")
    if not tolerance >= 0:
        raise ValueError(f"tolerance = {tolerance!r}: must not be negative")
    for name, value, allowed in (
        ("solver", solver, tuple(ROWS)),
        ("curvature", curvature, CURVATURES),
        ("weighting", weighting, WEIGHTINGS),
    ):
        if value not in allowed:
            raise ValueError(f"{name} = {value!r}: must be one of {', '.join(allowed)}")
    gauss_newton = solver == "cg" and curvature == "gauss_newton"
    if gauss_newton and apply_fn is None:
        raise ValueError(
            "apply_fn = None: solver='cg' with curvature='gauss_newton' needs the network"
        )
    count = ROWS[solver] if rows is None else rows
    hyper = solvers.InfluenceHyper(
        alpha=jnp.float32(alpha),
        damping=jnp.float32(damping),
        average=jnp.float32(weighting == "average"),
        tolerance=jnp.float32(tolerance),
        rows=jnp.float32(count),
    )

    def rows_too(params: Params) -> tuple[solvers.GradientSums, solvers.GradientRows]:
        needed = count * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
        if needed > byte_budget:
            raise ValueError(
                f"influence needs {needed:,} bytes for {count} gradients, more than "
                f"byte_budget = {byte_budget:,}: lower rows or raise byte_budget"
            )
        block = jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), params)
        return solvers.no_sums(params), solvers.GradientRows(block, jnp.zeros((), jnp.int32))

    aux = rows_too if solver == "woodbury" else solvers.no_sums

    def init(model: Model, masks: Masks, key: Key) -> UnlearnState:
        return begin(model, masks, key, hyper=hyper, opt_state=lambda params: (), aux=aux)

    if solver == "woodbury":
        step = solvers.sum_and_keep(loss_fn, axis_name)
        return Unlearner(init, step, solvers.woodbury_finish, "both", "once")
    surveying = solvers.survey_step(loss_fn, axis_name)
    if solver == "cg":
        step = OneSet(
            solvers.cg_step(loss_fn, apply_fn if gauss_newton else None, axis_name), "retain"
        )
        survey = Survey(surveying, solvers.cg_survey_finish, "both")
        return Unlearner(init, step, solvers.cg_finish, "retain", "epochs", survey)
    step = OneSet(solvers.official_step(loss_fn, axis_name), "retain")
    survey = Survey(surveying, solvers.official_survey_finish, "both")
    return Unlearner(init, step, solvers.official_finish, "retain", "once", survey)


def convergence(state: UnlearnState) -> Convergence:
    """How the solve of a *finished* state of ``solver="cg"`` ended.

    Raises:
        ValueError: if the state holds none: another method or solver, or not finished.
    """
    if not isinstance(state.aux, Convergence):
        raise ValueError("the state tells no convergence: only a finished solver='cg' does")
    return state.aux


def influence_direction(
    loss_fn: LossFn,
    model: Model,
    batch: Batch,
    weights: Array,
    key: Key,
    *,
    solve: Callable[[Params], Params],
    kind: Literal["normalised", "boolean"] = "normalised",
) -> Params:
    """Proposition 1 for any data weights: ``Delta(w) = H^-1 grad L(1/N - w)``.

    ``model + Delta(w)`` approximates the minimiser of ``L(w) = sum_i w_i loss_i``. Normalised
    weights sum to one, and the model minimised L(1/N); Boolean weights say which rows stay in the
    *sum* of losses, and the model minimised L(1), so that their difference is divided by N. The
    batch's own weights are the rows' multiplicities (0 for padding), N their sum.

    Args:
        loss_fn: weighted-sum loss in evaluation mode.
        model: the minimiser of the original objective.
        batch: all N rows of D.
        weights: ``float[B]``, w; see :func:`sparse_mu.bounds.average_weights`,
            :func:`sparse_mu.bounds.sum_weights`.
        key: handed to ``loss_fn``.
        solve: ``v -> H^-1 v`` with H the *mean* curvature plus damping or ridge, for example
            :func:`sparse_mu.curvature.conjugate_gradient` over a product.
        kind: ``"normalised"`` or ``"boolean"``.

    Raises:
        ValueError: if ``kind`` is unknown or ``weights`` is not a vector over the rows.

    Source: paper, Proposition 1; SPEC section 10.
    """
    if kind not in ("normalised", "boolean"):
        raise ValueError(f"kind = {kind!r}: must be one of normalised, boolean")
    if jnp.shape(weights) != jnp.shape(batch.weights):
        raise ValueError(
            f"weights has shape {jnp.shape(weights)}: must be {jnp.shape(batch.weights)}, a number "
            "for each row of the batch"
        )
    total = jnp.sum(batch.weights)
    change = 1 / total - weights if kind == "normalised" else (1 - weights) / total
    changed = batch._replace(weights=batch.weights * change)
    vector = jax.grad(lambda p: loss_fn(p, model.net_state, changed, key)[0])(model.params)
    return solve(vector)
