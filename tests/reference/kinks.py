"""ReLU decisions at inputs that are zero within rounding, and what they do to a Fisher estimate.

Of ResNet-20s' 18 million ReLU inputs over 96 images a few lie within 1e-6 of zero. Which side they
fall on is decided by the order of float32 sums, and one of them moves the recorded Fisher of the
layers below by up to 3e-4; our own float32 and float64 disagree in four. No arithmetic of ours can
know what the recording's decided. So the comparison turns such decisions over, nearest to zero
first, keeps a turn that brings the estimate nearer, and reports how many it took.
"""

from typing import NamedTuple
from unittest import mock

import jax
import numpy as np
from flax import linen as nn

NEAR = 2e-6  # rounding of a ReLU input of order 1: root mean square 4e-7 against float64
LARGEST_SHARE = 1e-6  # of all decisions that may be turned


class Decision(NamedTuple):
    """One ReLU input: in which batch, of which ReLU, where, and its value."""

    batch: int
    relu: int
    place: tuple[int, ...]
    value: float


def nudged(apply_fn):
    """``apply_fn`` that adds ``net_state["nudges"][i]`` to the input of its i-th ReLU."""

    def forward(params, net_state, inputs, *, train, key):
        nudges, relu = iter(net_state["nudges"]), nn.relu
        plain = {name: value for name, value in net_state.items() if name != "nudges"}
        with mock.patch.object(nn, "relu", lambda x: relu(x + next(nudges))):
            logits, _ = apply_fn(params, plain, inputs, train=train, key=key)
        return logits, net_state

    return forward


def relu_inputs(apply_fn):
    """``(model, inputs) -> [x of every ReLU]`` in evaluation mode, in the order of the network."""

    def inputs_of(model, inputs):
        seen, relu = [], nn.relu

        def watched(x):
            seen.append(x)
            return relu(x)

        with mock.patch.object(nn, "relu", watched):
            apply_fn(model.params, model.net_state, inputs, train=False, key=jax.random.key(0))
        return seen

    return jax.jit(inputs_of)


def undecided(inputs_by_batch):
    """The decisions within :data:`NEAR` of zero, nearest first, and how many there are in all."""
    found, count = [], 0
    for batch, inputs in enumerate(inputs_by_batch):
        for relu, x in enumerate(inputs):
            x = np.asarray(x)
            count += x.size
            found += [
                Decision(batch, relu, tuple(place), float(x[tuple(place)]))
                for place in np.argwhere(np.abs(x) < NEAR)
            ]
    return sorted(found, key=lambda decision: abs(decision.value)), count


def turn(nudges, decision):
    """Moves one input to the other side of zero; arrays are changed in place."""
    value = decision.value
    nudges[decision.relu][decision.place] = -2 * value if value else 1e-7


def turn_back(nudges, decision):
    nudges[decision.relu][decision.place] = 0
