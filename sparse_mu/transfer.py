"""What a backbone is worth on another data set, and which source classes cost it (host side).

A linear probe is a logistic regression on frozen features; the influence of a source class is a
coefficient of a regression of the target's loss on which classes a backbone was trained on. Source:
paper, section 5 (Table 4); the choice of harmful classes follows Jain et al., "A data-based
perspective on transfer learning", CVPR 2023, in its cheapest form.
"""

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

REGULARISERS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C of the probe: inverse strengths that are tried
MOST_STEPS = 5000
FEWEST_CLASSES = 5  # of a source that harmful ones are looked for in
FLAT = 1e-3  # largest entry of the gradient of a fitted probe's mean loss; the solver aims at 1e-4


class Probe(NamedTuple):
    """A linear probe of one draw of the validation split.

    Attributes:
        accuracy: on the test rows, in [0, 1].
        regulariser: the C that the validation rows chose.
        validation_loss: mean cross entropy there, in nats.
        converged: whether every head that was fitted ended where the loss is flat.
    """

    accuracy: float
    regulariser: float
    validation_loss: float
    converged: bool


class Tried(NamedTuple):
    """Probes of one draw of the validation split.

    Attributes:
        losses: of each regulariser the mean cross entropy on the validation rows, in nats.
        converged: whether every head ended where the loss it was fitted by is flat.
    """

    losses: list[float]
    converged: bool


class ClassInfluence(NamedTuple):
    """How much each source class raises the target's loss by being trained on.

    Attributes:
        value: ``float64[K]``; above 0 the class is harmful.
        error: ``float64[K]``, standard errors of the regression.
    """

    value: NDArray[np.float64]
    error: NDArray[np.float64]


def split_off(
    labels: NDArray[np.integer], fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train the probe on and rows to choose its regulariser on: of each class its share.

    Raises:
        ValueError: if the fraction leaves a class without rows on either side.
    """
    rng, chosen = np.random.default_rng((seed, 4)), np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = round(fraction * len(rows))
        if not 0 < count < len(rows):
            raise ValueError(
                f"validation = {fraction!r}: leaves class {label} with {len(rows)} rows none on "
                "one side"
            )
        chosen[rng.choice(rows, count, replace=False)] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def linear_probe(
    train: NDArray[np.floating],
    train_labels: NDArray[np.integer],
    test: NDArray[np.floating],
    test_labels: NDArray[np.integer],
    *,
    validation: float = 0.2,
    seed: int = 0,
    regularisers: Sequence[float] = REGULARISERS,
) -> Probe:
    """Logistic regression on frozen features, its regulariser chosen on held-out training rows.

    ``min_W sum_i CE(W f_i, y_i) + |W|^2 / (2 C)`` with features f standardised by the training
    rows', to convergence. Every C is fitted on the rest of the training rows; the one of least loss
    on the validation rows is fitted again on all of them and judged on the test rows, which nothing
    else looks at. That fit is convex and of the same rows for every draw, so that draws of one C
    agree.

    Args:
        train: ``float[N, F]`` features of the target's training rows.
        train_labels: ``int[N]``.
        test: ``float[M, F]``.
        test_labels: ``int[M]``.
        validation: share of each class of the training rows that C is chosen on.
        seed: draws these.
        regularisers: the C that are tried.

    Raises:
        ValueError: if features are not finite, or a class is too small to be split.
    """
    tried = validation_losses(
        train, train_labels, validation=validation, seed=seed, regularisers=regularisers
    )
    best = int(np.argmin(tried.losses))
    head = _fit(train, train_labels, regularisers[best])
    accuracy = float(np.mean(head.called(_finite("test", test)) == test_labels))
    converged = tried.converged and head.converged
    return Probe(accuracy, regularisers[best], tried.losses[best], converged)


def validation_losses(
    train: NDArray[np.floating],
    train_labels: NDArray[np.integer],
    *,
    validation: float = 0.2,
    seed: int = 0,
    regularisers: Sequence[float] = REGULARISERS,
) -> Tried:
    """Fits the probe of each regulariser and judges it on held-out training rows.

    Arguments and errors are those of :func:`linear_probe`.
    """
    train = _finite("train", train)
    fitted, held = split_off(train_labels, validation, seed)
    heads = [_fit(train[fitted], train_labels[fitted], c) for c in regularisers]
    losses = [head.loss(train[held], train_labels[held]) for head in heads]
    return Tried(losses, all(head.converged for head in heads))


def _finite(name: str, features: NDArray[np.floating]) -> NDArray[np.floating]:
    if not np.isfinite(features).all():
        raise ValueError(f"{name}: the features hold values that are not finite")
    return features


class _Head(NamedTuple):
    """A fitted probe, and the mean and scale of the features it was fitted on."""

    classifier: Any  # sklearn's
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    converged: bool = False

    def _standardised(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        return (features.astype(np.float64) - self.mean) / self.scale

    def called(self, features: NDArray[np.floating]) -> NDArray[np.integer]:
        return self.classifier.predict(self._standardised(features))

    def loss(self, features: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
        told = self._log_probabilities(features)
        return float(-np.mean(told[self._places(labels)]))

    def slope(self, features: NDArray[np.floating], labels: NDArray[np.integer], c: float) -> float:
        """Largest entry of the gradient of the mean loss on the rows it was fitted on."""
        weights, count = self.classifier.coef_, len(labels)
        residual = np.exp(self._log_probabilities(features))
        residual[self._places(labels)] -= 1
        residual = residual[:, -len(weights) :]  # of two classes the second alone has weights
        gradient = (residual.T @ self._standardised(features) + weights / c) / count
        return float(max(np.abs(gradient).max(), np.abs(residual.mean(axis=0)).max()))

    def _log_probabilities(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        logits = self.classifier.decision_function(self._standardised(features))
        if logits.ndim == 1:  # of two classes: how far the second is ahead
            logits = np.column_stack([np.zeros_like(logits), logits])
        # its own predict_log_proba takes the log of a probability that may have become 0
        return special.log_softmax(logits, axis=1)

    def _places(self, labels: NDArray[np.integer]) -> tuple[NDArray, NDArray]:
        return np.arange(len(labels)), np.searchsorted(self.classifier.classes_, labels)


def _fit(features: NDArray[np.floating], labels: NDArray[np.integer], c: float) -> _Head:
    from sklearn.linear_model import LogisticRegression

    wide = features.astype(np.float64)
    mean, scale = wide.mean(axis=0), wide.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    classifier = LogisticRegression(C=c, max_iter=MOST_STEPS)
    classifier.fit((wide - mean) / scale, labels)
    head = _Head(classifier, mean, scale)
    return head._replace(converged=head.slope(features, labels, c) <= FLAT)


def of_each(call: Callable[[int, int], Any], trials: int, draws: int) -> list[list[Any]]:
    """``call(trial, draw)`` of all, two at a time: the solver frees the interpreter.

    That a head did not converge is told by what fits it: the solver's warning is held back.
    """
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(), ThreadPoolExecutor(max_workers=2) as pool:
        warnings.simplefilter("ignore", ConvergenceWarning)  # once, for filters are the process's
        found = list(pool.map(lambda place: call(*place), np.ndindex(trials, draws)))
    return [found[trial * draws : (trial + 1) * draws] for trial in range(trials)]


def class_influence(trained_on: NDArray[np.bool_], losses: NDArray[np.floating]) -> ClassInfluence:
    """The regression ``loss_m = b_0 + sum_k b_k [class k is in subset m]`` by least squares.

    Args:
        trained_on: ``bool[M, K]``, which source classes each of M backbones was trained on, such as
            :func:`random_subsets`.
        losses: ``float[M]``, the target's validation loss of each backbone's probe. Test rows of
            the target have no part in it.

    Returns:
        The coefficients ``b_k`` and their standard errors.

    Raises:
        ValueError: if the losses are not one per subset and finite, or the subsets do not tell the
            classes apart: fewer than K + 2, a class in all or none, or columns that depend on each
            other.
    """
    count, classes = trained_on.shape
    if losses.shape != (count,) or not np.isfinite(losses).all():
        raise ValueError(f"losses: must be {count} finite numbers, one per subset")
    left = count - classes - 1
    design = np.column_stack([np.ones(count), trained_on]).astype(np.float64)
    wide = np.asarray(losses, np.float64)
    if left < 1 or np.linalg.matrix_rank(design) <= classes:
        raise ValueError(
            f"{count} subsets do not tell {classes} classes apart; take more, {2 * classes} or so"
        )
    found = np.linalg.lstsq(design, wide, rcond=None)[0]
    rest = wide - design @ found
    spread = np.linalg.inv(design.T @ design).diagonal()
    errors = np.sqrt(spread * float(rest @ rest) / left)
    return ClassInfluence(np.asarray(found[1:], np.float64), errors[1:])


def random_subsets(classes: int, subsets: int, seed: int) -> NDArray[np.bool_]:
    """Subsets of the classes, ``bool[M, K]``: each class in each by a coin, in opposite pairs.

    Every class is in half of them, each subset has at least two, and together they tell the classes
    apart: drawn again until they do.

    Raises:
        ValueError: if there are fewer than five classes, or an odd number of subsets or too few.
    """
    if classes < FEWEST_CLASSES or subsets % 2 or subsets < 2 * classes:
        raise ValueError(
            f"{classes} classes, {subsets} subsets: must be at least 5 classes, and an even number "
            f"of subsets from {2 * classes}, twice the classes"
        )
    rng = np.random.default_rng((seed, 44))
    while True:
        found: list[NDArray[np.bool_]] = []
        while len(found) < subsets:
            inside = rng.random(classes) < 0.5
            if 2 <= inside.sum() <= classes - 2:
                found += [inside, ~inside]
        design = np.column_stack([np.ones(subsets), np.stack(found)])
        if np.linalg.matrix_rank(design) > classes:
            return np.stack(found)
