"""The words the whole package speaks: models, batches, unlearners and what they close over.

Nothing here computes. Every type is a ``NamedTuple`` of arrays (so it is a pytree) or a
``Protocol`` of a pure function. A *trial* is one seed and one forget set.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, Protocol

import chex
import jax
import numpy as np
import optax

PyTree = Any
Params = PyTree  # any pytree of float arrays
Masks = PyTree  # a tree of bool arrays with the structure and shapes of Params; True = kept
Scores = PyTree  # a tree of float arrays with the structure and shapes of Params
Array = jax.Array | np.ndarray
Key = chex.PRNGKey

Reads = Literal["retain", "forget", "both", "paired"]
Passes = Literal["epochs", "once"]
Loop = Literal["compiled", "python"]


class Model(NamedTuple):
    """What a network carries between calls.

    Attributes:
        params: any pytree of float arrays.
        net_state: BatchNorm statistics and the like, explicit; ``()`` when there is none.
    """

    params: Params
    net_state: PyTree = ()


class Batch(NamedTuple):
    """Examples of one step.

    Attributes:
        inputs: ``[B, ...]``, whatever the network reads (images, tokens).
        labels: ``int32[B]``.
        weights: ``float32[B]``; a row of weight 0 does not count.
    """

    inputs: Array
    labels: Array
    weights: Array


class UnlearnBatch(NamedTuple):
    """The examples one unlearning step may read; ``None`` where the method reads nothing."""

    forget: Batch | None
    retain: Batch | None


class LossAux(NamedTuple):
    """What a loss returns beside its weighted sum.

    Attributes:
        weight: ``float32[]``, the sum of the weights that entered the loss.
        net_state: the network state after the forward pass.
        correct: ``float32[]``, the weighted count of correct predictions.
    """

    weight: Array
    net_state: PyTree
    correct: Array


class Stats(NamedTuple):
    """Sums over the rows of one step (or of one epoch): divide by ``weight`` for means.

    Attributes:
        loss: ``float32[]``, weighted sum of losses.
        weight: ``float32[]``, sum of weights.
        correct: ``float32[]``, weighted count of correct predictions.
        finite: ``bool[]``, False once a loss or a parameter was not finite.
    """

    loss: Array
    weight: Array
    correct: Array
    finite: Array


class Hyper(NamedTuple):
    """Hyper-parameters of first-order methods, all leaves: changing one never recompiles.

    Attributes:
        learning_rate: peak step size of SGD.
        momentum: ``buf = momentum * buf + d``.
        weight_decay: added to the gradient as ``weight_decay * w`` (torch's rule).
        sign: +1 descends the loss, -1 ascends it.
        gamma: strength of the l1 penalty by its sub-gradient (:mod:`sparse_mu.proximal`).
        gamma_schedule: index into :data:`sparse_mu.proximal.GAMMA_SCHEDULES`.
        lr_schedule: index into :data:`sparse_mu.optimiser.LEARNING_RATE_SCHEDULES`.
        warmup_epochs: length of the linear warm-up, in epochs.
        epochs: planned length of the training, in epochs; the schedules read it.
        steps_per_epoch: steps in an epoch of this trial's own set; the schedules read it.
        loss_ceiling: an ascent step on a batch of larger mean loss has loss gradient 0.
        proximal_gamma: strength of the l1 penalty by its proximal step, same schedule.
        sparsity: fraction that progressive pruning removes of the kept prunable weights.
    """

    learning_rate: Array | float
    momentum: Array | float
    weight_decay: Array | float
    sign: Array | float
    gamma: Array | float
    gamma_schedule: Array | int
    lr_schedule: Array | int
    warmup_epochs: Array | float
    epochs: Array | float
    steps_per_epoch: Array | float
    loss_ceiling: Array | float
    proximal_gamma: Array | float
    sparsity: Array | float


class UnlearnState(NamedTuple):
    """Everything an unlearning step reads and writes.

    Attributes:
        model: the network; its pruned weights are exactly 0.
        masks: boolean tree of the parameters' structure and shapes.
        opt_state: the optimiser's state.
        hyper: hyper-parameters as leaves (a :class:`Hyper` for first-order methods).
        step: ``int32[]``, steps taken; randomness is ``fold_in(key, step)``.
        key: the trial's key; never changed.
        aux: what the method accumulates (Fisher sums, gradients); ``()`` otherwise.
    """

    model: Model
    masks: Masks
    opt_state: optax.OptState
    hyper: PyTree
    step: Array
    key: Key
    aux: PyTree


class ApplyFn(Protocol):
    """A network's forward pass as a pure function."""

    def __call__(
        self, params: Params, net_state: PyTree, inputs: PyTree, *, train: bool, key: Key
    ) -> tuple[Array, PyTree]:
        """Returns ``(logits [B, K], net_state)``; ``net_state`` is unchanged unless ``train``."""
        ...


class LossFn(Protocol):
    """A loss that returns a weighted *sum*, never a mean: sums add over batches and devices."""

    def __call__(
        self, params: Params, net_state: PyTree, batch: Batch, key: Key
    ) -> tuple[Array, LossAux]:
        """Returns ``(sum_i weight_i * loss_i, LossAux)``; the BatchNorm mode is fixed inside."""
        ...


class StepFn(Protocol):
    """One pure unlearning step."""

    def __call__(self, state: UnlearnState, batch: UnlearnBatch) -> tuple[UnlearnState, Stats]:
        """Returns the next state and the sums of this step."""
        ...


class Survey(NamedTuple):
    """A pass over the data before a method's first step (SalUn's saliency, influence's gradients).

    Attributes:
        step: as of an unlearner; changes ``aux`` and ``step`` only. Sees each row once.
        finish: ``UnlearnState -> UnlearnState``, after the pass; sets ``step`` back to 0.
        reads: which set it reads.
    """

    step: StepFn
    finish: Callable[[UnlearnState], UnlearnState]
    reads: Reads


class Unlearner(NamedTuple):
    """A method: three pure functions and two words about what they read.

    ``reads`` is ``"retain"``, ``"forget"``, ``"both"`` (each row of both sets once an epoch, the
    shorter set filled up with rows of weight 0) or ``"paired"`` (the shorter set starts again, so
    that every step sees rows of both).

    Attributes:
        init: ``(Model, Masks, Key) -> UnlearnState``; copies what it keeps. ``fit`` compiles
            it, once per function object.
        step: ``(UnlearnState, UnlearnBatch) -> (UnlearnState, Stats)``.
        finish: ``UnlearnState -> UnlearnState``; the identity for first-order methods, the update
            itself for Fisher and influence. It may empty ``aux``; the model's tree stays the same.
        reads: which set the step reads.
        passes: ``"epochs"`` for methods that iterate, ``"once"`` for one pass over the data.
        survey: a pass before the first step, or None.
    """

    init: Callable[[Model, Masks, Key], UnlearnState]
    step: StepFn
    finish: Callable[[UnlearnState], UnlearnState]
    reads: Reads
    passes: Passes
    survey: Survey | None = None


class Dataset(NamedTuple):
    """Device-resident rows, shared by every trial.

    Attributes:
        inputs: ``[N, ...]``, uint8 for images.
        labels: ``int32[N]``.
    """

    inputs: Array
    labels: Array


class ReadFn(Protocol):
    """Reads rows from where they are kept."""

    def __call__(
        self, rows: np.ndarray, draw: tuple[int, ...] | None, passes: np.ndarray | None = None
    ) -> Iterator[np.ndarray]:
        """``int[S, B]`` row numbers to S arrays ``[B, ...]``, one after another.

        ``draw`` are whole numbers that the augmentation of a row is drawn from, together with the
        row's own and with its pass, ``int[S, B]``: how often the order has started again before
        (None: 0 everywhere). ``draw`` None reads un-augmented. What a row becomes depends on
        nothing else.
        """
        ...


class Streamed(NamedTuple):
    """Rows that memory does not hold, in place of a :class:`Dataset`: read when they are needed.

    Attributes:
        shape: ``(N, ...)``, of the array that all un-augmented rows would make.
        labels: ``int32[N]``.
        read: reads rows, in batches.
        digest: stands for the rows where a result depends on them.
        dtype: of what is read.
    """

    shape: tuple[int, ...]
    labels: np.ndarray
    read: ReadFn
    digest: str
    dtype: type = np.uint8


class Trials(NamedTuple):
    """What differs between the T trials of a phase, apart from their states.

    Attributes:
        forget: ``bool[T, N]``, rows of the forget set.
        retain: ``bool[T, N]``, rows of the retain set.
        order_key: ``key[T]``, draws the order of every epoch.
        at_least: ``int32[T]``, rows that an epoch over one set has at least: its order starts
            again until it has. None: each row once.
    """

    forget: Array
    retain: Array
    order_key: Key
    at_least: Array | None = None


class UnitAxis(NamedTuple):
    """An axis of a leaf whose entries belong to units.

    Attributes:
        leaf: the leaf's name, as :func:`sparse_mu.trees.leaf_names` gives it.
        axis: of that leaf.
        units: ``int32[size]``, the unit of each index along the axis; -1: of none.
        scored: whether these entries count in a unit's norm; a BatchNorm's scale does not.
    """

    leaf: str
    axis: int
    units: np.ndarray
    scored: bool = True


class Units(NamedTuple):
    """What is pruned together, across leaves: hidden units, channels of a residual stream.

    Attributes:
        axes: all axes whose entries belong to units. An entry that lies on two of them belongs to
            a unit of each and is pruned with either.
        layers: ``int32[U]``, the layer that each unit is ranked in; each keeps its own count.
    """

    axes: tuple[UnitAxis, ...]
    layers: np.ndarray


class Program(Protocol):
    """A compiled function over a group of trials; ``lower`` compiles it ahead of its first call."""

    def __call__(self, state: PyTree, own: PyTree, shared: PyTree) -> PyTree:
        """``[G]`` states, what is each trial's own, and what all share, to ``[G]`` results."""
        ...

    def lower(self, state: PyTree, own: PyTree, shared: PyTree) -> jax.stages.Lowered:
        """As of ``jax.jit``."""
        ...


class Lift(Protocol):
    """Lifts a function of one trial over a leading trial axis and compiles it."""

    def __call__(self, function: Callable[..., PyTree], *, donate: bool) -> Program:
        """``function(state, own, shared) -> out`` becomes the same over ``[G]`` states and own."""
        ...


class Execution(NamedTuple):
    """The one seam between pure per-trial functions and the devices they run on.

    Attributes:
        axis_name: the axis over which steps must sum; ``None`` when XLA inserts the collectives.
        compile: lifts a one-trial function over a group of trials and compiles it.
        put_state: places a ``[G, ...]`` tree (states, what is a trial's own).
        put_shared: places what all trials share (the data set).
        put_batch: called *inside* the compiled step on the gathered batch: a sharding constraint,
            or this device's part of it.
        get: brings a ``[G, ...]`` tree back to the host as numpy arrays.
        group: trials per dispatch (one per device, or all of them when they are vmapped).
        parts: devices that one batch is split over; batch sizes must be a multiple of it.
        loop: whether steps loop inside the compiled program or in Python (convolutions on CPU).
        room: bytes that are free on each of its devices now; None where that is not known, and
            then every program is tried.
        fewer: the same with half as many trials in one dispatch, or None where it has one on each
            device.
    """

    axis_name: str | None
    compile: Lift
    put_state: Callable[[PyTree], PyTree]
    put_shared: Callable[[PyTree], PyTree]
    put_batch: Callable[[PyTree], PyTree]
    get: Callable[[PyTree], PyTree]
    group: int
    parts: int
    loop: Loop
    room: Callable[[], int | None] = lambda: None
    fewer: Callable[[], "Execution"] | None = None


class TrainFn(Protocol):
    """Training as procedures (OMP, un-pruning) see it: T models from start to stop epochs."""

    def __call__(self, model: Model, masks: Masks, *, start: int, stop: int) -> Model:
        """Returns the ``[T]`` models trained from epoch ``start`` to epoch ``stop``."""
        ...


class EnoughFn(Protocol):
    """Looks at some trials of a training on its way and says which need no more of it."""

    def __call__(self, seen: dict[int, Model], trials: np.ndarray) -> np.ndarray:
        """``[G]`` models by epoch, all epochs so far, and the trials' numbers, to ``bool[G]``."""
        ...


class PathFn(Protocol):
    """A dense training from theta_0 as un-pruning sees it: T models at several of its epochs."""

    def __call__(self, epochs: tuple[int, ...], enough: EnoughFn | None = None) -> dict[int, Model]:
        """Returns the ``[T]`` models at each of ``epochs``.

        It may end where ``enough``, asked after each of them, is true of all trials that run
        together; the epochs after then hold the models that it ended with, or are left out.
        """
        ...


class GradientFn(Protocol):
    """The gradient of the mean loss over a set, of T models as if nothing were pruned."""

    def __call__(self, model: Model) -> Params:
        """Returns ``[T]`` gradients, trees like the parameters."""
        ...
