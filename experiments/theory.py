"""The theory, measured in float64: the tables kept in ``experiments/results/theory.md``.

    python -m experiments.theory            # both
    python -m experiments.theory slope      # influence against retraining, forget sets shrinking
    python -m experiments.theory bounds     # unrolled SGD: its error beside what was promised

``slope`` unlearns rows of a ridge-regularised logistic regression by influence (conjugate gradients
to 1e-10) and retrains without them (Newton to 1e-12), for average and for sum risks, each against
its own and against the other's retraining. ``bounds`` compares a run of masked SGD with its
first-order unrolling: the error, the theorem, the paper's formula, and how far gradient ascent is
from retraining. The tests of both import the problems and the fits from here, so that what is
printed is what is asserted.
"""

import argparse
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_mu import bounds, masks
from sparse_mu.losses import classification
from sparse_mu.types import Array, Batch, Key, Masks, Model, Params, PyTree, UnlearnBatch
from sparse_mu.unlearn import convergence, influence_unlearning

Risk = Literal["average", "sum"]
RISKS: tuple[Risk, ...] = ("average", "sum")
Matrix = Literal["gauss_newton", "hessian"]
RESULTS = Path(__file__).parent / "results" / "theory.md"

# ---- influence against retraining ------------------------------------------------------------

ROWS, WIDTH, RIDGE = 512, 4, 2.0**-4  # a ridge that float32 holds exactly
FORGOTTEN = (64, 32, 16, 8, 4)
ITERATIONS = 20  # more than the five of five weights
COMPOSED = np.arange(ROWS)  # forgets the first rows of logistic_rows, alike at every size
DRAWS = 20
ROUNDING = 1 + 1e-12  # float64 sums of some hundred terms


def logistic(
    params: Params, net_state: PyTree, inputs: Array, *, train: bool, key: Key | None
) -> tuple[Array, PyTree]:
    """Logistic regression as two logits, 0 and z; five weights, no direction without curvature."""
    z = inputs @ params["w"] + params["b"]
    return jnp.stack([jnp.zeros_like(z), z], axis=1), net_state


LOGISTIC_LOSS = classification(logistic, train=False)


@functools.cache
def logistic_rows() -> tuple[np.ndarray, np.ndarray]:
    """Labels that no plane separates; the first 64 rows are four, of one class, 16 times over.

    So the first k rows have the same mean gradient and Hessian at every k. (The gradients of rows
    drawn at random nearly cancel: their sum is not in proportion to their number.)
    """
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((ROWS, WIDTH))
    labels = (inputs[:, 0] + 1.5 * rng.standard_normal(ROWS) > 0).astype(int)
    order = np.argsort(labels, stable=True)
    order[:64] = np.tile(order[:4], 16)
    return inputs[order], labels[order]


def optimum(weights: np.ndarray, ridge: float) -> np.ndarray:
    """The minimiser of ``sum_i weights_i loss_i + ridge / 2 |w|^2``, by Newton to 1e-12."""
    inputs, labels = logistic_rows()
    design = np.c_[inputs, np.ones(ROWS)]
    w = np.zeros(WIDTH + 1)
    for _ in range(50):
        p = 1 / (1 + np.exp(-design @ w))
        gradient = design.T @ (weights * (p - labels)) + ridge * w
        if np.abs(gradient).max() < 1e-12:
            return w
        hessian = (design.T * (weights * p * (1 - p))) @ design + ridge * np.eye(WIDTH + 1)
        w -= np.linalg.solve(hessian, gradient)
    raise AssertionError("Newton did not converge")


def original() -> np.ndarray:
    """The model trained on all rows; the mean loss, so that both risks start from it."""
    return optimum(np.full(ROWS, 1 / ROWS), RIDGE)


def retrained(risk: Risk, retain: np.ndarray) -> np.ndarray:
    """The optimum without Df: weights ``1 / n_r`` (average) or ``1 / N`` (sum), the same ridge."""
    return optimum(retain / (retain.sum() if risk == "average" else ROWS), RIDGE)


def model_of(flat: np.ndarray) -> Model:
    """The model of five numbers, the bias last."""
    return Model({"b": jnp.asarray(flat[-1]), "w": jnp.asarray(flat[:-1])})


def flat_of(params: Params) -> np.ndarray:
    """The five numbers of a model."""
    return np.r_[params["w"], params["b"]]


def sets_of(retain: np.ndarray) -> UnlearnBatch:
    """Both sets as batches of all rows, the other's at weight 0: one shape for every size."""
    inputs, labels = map(jnp.asarray, logistic_rows())
    parts = (Batch(inputs, labels, jnp.asarray(w, jnp.float32)) for w in (~retain, retain))
    return UnlearnBatch(*parts)


@functools.cache
def jitted_cg(risk: Risk, curvature: Matrix) -> tuple:
    """The unlearner and its two compiled steps."""
    unlearner = influence_unlearning(
        LOGISTIC_LOSS, damping=RIDGE, solver="cg", apply_fn=logistic, curvature=curvature,
        tolerance=1e-10, weighting=risk,
    )  # fmt: skip
    return unlearner, jax.jit(unlearner.survey.step), jax.jit(unlearner.step)


def unlearned(risk: Risk, retain: np.ndarray, curvature: Matrix = "gauss_newton") -> np.ndarray:
    """What the influence unlearner makes of the original model."""
    unlearner, survey, step = jitted_cg(risk, curvature)
    model = model_of(original())
    state = unlearner.init(model, masks.ones_like(model.params), jax.random.key(0))
    batch = sets_of(retain)
    state = unlearner.survey.finish(survey(state, batch)[0])
    for _ in range(ITERATIONS):
        state, _ = step(state, batch)
    state = unlearner.finish(state)
    if not convergence(state).converged:
        raise AssertionError("conjugate gradients did not converge")
    return flat_of(state.model.params)


def errors(order: np.ndarray) -> dict[tuple[str, Risk], np.ndarray]:
    """``|found - retrained|`` by (what was found, whose retraining), one for each forget set.

    ``order`` is a permutation, ``int[ROWS]``: the forget set of k rows is ``order < k``. Found are
    the influence of either risk and the original model, nothing done.
    """
    retains = [order >= count for count in FORGOTTEN]
    found: dict[str, list] = {name: [unlearned(name, one) for one in retains] for name in RISKS}
    found["original"] = [original()] * len(FORGOTTEN)
    truth = {name: [retrained(name, retain) for retain in retains] for name in RISKS}
    return {
        (name, risk): np.linalg.norm(np.subtract(found[name], truth[risk]), axis=1)
        for name, risk in itertools.product(found, RISKS)
    }


class Slope(NamedTuple):
    """A least-squares slope and its standard error."""

    value: float
    standard_error: float

    def __str__(self) -> str:
        """How it is printed."""
        return f"{self.value:.2f} ± {self.standard_error:.2f}"


def log_slope(x: np.ndarray | tuple[int, ...], y: np.ndarray) -> Slope:
    """The slope of log y over log x: ``sqrt(sum r^2 / (n - 2) / sum (x - mean)^2)`` beside it."""
    x, y = np.log(x), np.log(y)
    x, y = x - x.mean(), y - y.mean()
    value = x @ y / (x @ x)
    rest = y - value * x
    return Slope(float(value), float(np.sqrt(rest @ rest / (len(x) - 2) / (x @ x))))


def over_draws(slopes: list[Slope]) -> Slope:
    """The mean of the draws' slopes and the standard error of that mean, from their spread."""
    values = np.array([slope.value for slope in slopes])
    return Slope(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))


def digits(x: Array | float) -> str:
    """Three of them, final zeros too."""
    return f"{float(x):#.3g}".rstrip(".")


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> list[str]:
    """A table in Markdown."""
    ruler = "|".join("---" for _ in head)
    return [f"| {' | '.join(head)} |", f"|{ruler}|", *(f"| {' | '.join(row)} |" for row in rows)]


def slope_rows(draws: list[dict[tuple[str, Risk], np.ndarray]]) -> Iterator[tuple[str, ...]]:
    """A row for each pair: errors (geometric means over draws) and their two slopes."""
    for name, risk in draws[0]:
        each = [draw[name, risk] for draw in draws]
        moved = [draw["original", risk] for draw in draws]
        in_rows = [log_slope(FORGOTTEN, one) for one in each]
        in_moved = [log_slope(far, one) for far, one in zip(moved, each, strict=True)]
        shown = (one[0] if len(draws) == 1 else over_draws(one) for one in (in_rows, in_moved))
        by_rows, by_moved = map(str, shown)
        what = "original, nothing done" if name == "original" else f"{name} influence"
        means = (f"{error:.2e}" for error in np.exp(np.mean(np.log(each), axis=0)))
        by_moved = "1 by definition" if name == "original" else by_moved
        yield what, f"{risk} retraining", *means, by_rows, by_moved


def drawn(one_class: bool) -> Iterator[np.ndarray]:
    """Orders at random: of all rows, or with the rows of class 0 before the others."""
    labels = logistic_rows()[1]
    for seed in range(DRAWS):
        shuffled = np.random.default_rng(seed).permutation(ROWS)
        if one_class:
            shuffled = shuffled[np.argsort(labels[shuffled], stable=True)]
        yield np.argsort(shuffled)  # a row's place


def slope_tables() -> Iterator[str]:
    """Lines: forget sets of one composition, of one class at random, of all rows at random."""
    head = ("found", "against", *(f"error, {k} rows" for k in FORGOTTEN))
    head += "slope in rows", "slope in distance moved"
    draws = f"at random (n = {DRAWS} draws of {len(FORGOTTEN)} nested sizes)"
    yield f"{ROWS} rows, {WIDTH + 1} weights, ridge {RIDGE}, float64."
    for title, orders in (
        (f"Forget sets of one composition (n = {len(FORGOTTEN)} sizes)", [COMPOSED]),
        (f"Forget sets drawn from one class {draws}", drawn(one_class=True)),
        (f"Forget sets drawn from all rows {draws}", drawn(one_class=False)),
    ):
        yield from ("", f"{title}:", "")
        yield from table(head, slope_rows([errors(order) for order in orders]))


# ---- how far unrolled SGD errs ---------------------------------------------------------------

SIZE, STEPS, BATCH = 6, 20, 12
FORGOTTEN_STEPS = np.arange(STEPS) % 5 == 2


def tree(flat: np.ndarray | Array) -> Params:
    """Two leaves of the six numbers, so that nothing relies on one array."""
    return {"a": jnp.asarray(flat[:4]).reshape(2, 2), "b": jnp.asarray(flat[4:])}


def flat(params: Params) -> Array:
    """The six numbers of two leaves."""
    return jnp.concatenate([params["a"].ravel(), params["b"]])


def norm_within(matrix: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The operator norm of ``diag(m) H diag(m)``, ``[..., 6, 6] -> float[...]``."""
    return np.linalg.norm(matrix * np.outer(mask, mask), 2, axis=(-2, -1))


class Unrolled(NamedTuple):
    """sigma(m) of a run, and what :func:`sparse_mu.bounds.unrolling_error` found."""

    sigma: float
    found: bounds.UnrollingError


@functools.cache
def quadratic() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A positive matrix of eigenvalues 0.1 to 4, where the runs start, and each step's target."""
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.standard_normal((SIZE, SIZE)))
    matrix = turn @ np.diag(np.linspace(0.1, 4, SIZE)) @ turn.T
    start = rng.standard_normal(SIZE)
    return matrix, start, np.random.default_rng(1).standard_normal((STEPS, SIZE))


@functools.cache
def jitted_quadratic() -> Callable[..., bounds.UnrollingError]:
    """``(mask, rate, sigma) -> UnrollingError`` on the quadratic, compiled."""
    matrix, start, targets = map(jnp.asarray, quadratic())

    def gradient(params: Params, target: Array) -> Params:
        return tree(matrix @ (flat(params) - target))

    @jax.jit
    def run(mask: Masks, rate: Array, sigma: Array) -> bounds.UnrollingError:
        return bounds.unrolling_error(
            gradient, tree(start), targets, jnp.asarray(FORGOTTEN_STEPS), mask,
            learning_rate=rate, sigma=sigma,
        )  # fmt: skip

    return run


def on_quadratic(mask: np.ndarray, rate: float) -> Unrolled:
    """``1/2 (theta - target_i)^T H (theta - target_i)``, a target a step; a rate < 0 ascends."""
    sigma = norm_within(quadratic()[0], mask)
    return Unrolled(float(sigma), jitted_quadratic()(tree(mask), rate, sigma))


@functools.cache
def sgd_rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs and coin-toss labels, a batch a step, and where the runs start."""
    rng = np.random.default_rng(2)
    inputs = rng.standard_normal((STEPS, BATCH, SIZE))
    labels = (rng.random((STEPS, BATCH)) < 0.5).astype(float)
    return inputs, labels, rng.standard_normal(SIZE)


@functools.cache
def jitted_logistic() -> tuple[Callable[..., Params], Callable[..., bounds.UnrollingError]]:
    """``(mask, rate) -> path`` and ``(mask, rate, sigma) -> UnrollingError``, compiled."""
    inputs, labels, start = map(jnp.asarray, sgd_rows())

    def loss(params: Params, batch: tuple[Array, Array]) -> Array:
        z = batch[0] @ flat(params)
        return jnp.mean(jnp.logaddexp(0, z) - batch[1] * z)

    @jax.jit
    def path_of(mask: Masks, rate: Array) -> Params:
        used = jnp.ones(STEPS, bool)
        return bounds.sgd_path(jax.grad(loss), tree(start), (inputs, labels), used, mask, rate)

    @jax.jit
    def error_of(mask: Masks, rate: Array, sigma: Array) -> bounds.UnrollingError:
        return bounds.unrolling_error(
            jax.grad(loss), tree(start), (inputs, labels), jnp.asarray(FORGOTTEN_STEPS), mask,
            learning_rate=rate, sigma=sigma,
        )  # fmt: skip

    return path_of, error_of


def on_logistic(mask: np.ndarray, rate: float) -> Unrolled:
    """SGD on logistic regression without ridge, a batch of rows a step.

    sigma is at least every step's, anywhere on the segments from theta_0 to the path's points: a
    row's ``p (1 - p)`` is largest where its z is nearest to 0, and z is linear on a segment.
    """
    path_of, error_of = jitted_logistic()
    inputs = sgd_rows()[0]
    points = np.asarray(jax.vmap(flat)(path_of(tree(mask), rate)))[:-1]
    first, last = inputs @ points[0], np.einsum("tri,ti->tr", inputs, points)
    nearest = np.where(first * last < 0, 0, np.minimum(np.abs(first), np.abs(last)))
    p = 1 / (1 + np.exp(-nearest))
    hessians = np.einsum("tr,tri,trj->tij", p * (1 - p), inputs, inputs) / BATCH
    sigma = norm_within(hessians, mask).max()
    return Unrolled(float(sigma), error_of(tree(mask), rate, sigma))


SETTINGS = (
    ("quadratic, descent", on_quadratic, 0.01),
    ("quadratic, ascent", on_quadratic, -0.01),
    ("quadratic, descent", on_quadratic, 0.1),
    ("logistic SGD", on_logistic, 0.001),
    ("logistic SGD", on_logistic, 0.1),
)
NESTED = tuple(np.arange(SIZE) < kept for kept in (SIZE, 4, 2))
EVERY_MASK = tuple(map(np.array, itertools.product((False, True), repeat=SIZE)))[1:]


def bound_rows() -> Iterator[tuple[str, ...]]:
    """A row for each setting and nested mask."""
    for name, run, rate in SETTINGS:
        for mask in NESTED:
            sigma, e = run(mask, rate)
            numbers = (e.distance, sigma, e.error, e.bound, e.paper, e.gap)
            kept = "".join(map(str, mask.astype(int)))
            yield name, f"{rate:g}", kept, *map(digits, numbers)


def every_mask_rows() -> Iterator[tuple[str, ...]]:
    """A row for each setting: the ratios over all masks that keep anything."""
    for name, run, rate in SETTINGS:
        each = [run(mask, rate).found for mask in EVERY_MASK]
        error, bound, paper, gap = np.array([(e.error, e.bound, e.paper, e.gap) for e in each]).T
        spans = (f"{digits(x.min())} to {digits(x.max())}" for x in (error / bound, error / paper))
        ratios = error / bound, error / paper, gap / paper
        held = (f"{(ratio <= ROUNDING).sum()} of {len(each)}" for ratio in ratios)
        yield name, f"{rate:g}", *spans, *held


def bound_tables() -> Iterator[str]:
    """Lines of the nested masks, and of all masks together."""
    yield f"{STEPS} steps, {FORGOTTEN_STEPS.sum()} of them forgotten; {SIZE} weights, float64."
    yield ""
    head = ("problem", "rate", "mask", "d", "sigma", "e", "proved bound", "paper's formula")
    yield from table((*head, "GA to Retrain"), bound_rows())
    yield from ("", f"Over all masks that keep a weight (n = {len(EVERY_MASK)}):", "")
    held = ("e within the bound", "e within the paper's", "GA to Retrain within the paper's")
    yield from table(("problem", "rate", "e / bound", "e / paper's", *held), every_mask_rows())


def main() -> None:
    """Prints the tables asked for."""
    tables = {"slope": slope_tables, "bounds": bound_tables}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=tuple(tables), help="both if absent")
    chosen = parser.parse_args().what
    with jax.enable_x64(True):
        parts = [list(tables[name]()) for name in ([chosen] if chosen else tables)]
    print("\n\n".join("\n".join(lines) for lines in parts))


if __name__ == "__main__":
    main()
