"""The random streams of every trial."""

from typing import NamedTuple

import jax
import numpy as np

from sparse_mu.types import Key

RESEED = 1_000_003  # folded into the trial key of the second retraining
NEW_HEAD = 1_000_033  # folded into the streams, of a head for other classes
BACKBONES = 1_000_037  # of the models that classes are scored by


class Keys(NamedTuple):
    """The streams of every trial: fresh weights, order of rows, randomness of the method."""

    init: Key
    order: Key
    method: Key


def trial_keys(seed: int, trials: int, *, reseed: bool = False) -> Keys:
    """``key[T]`` of each stream; ``reseed`` gives those of the second retraining."""
    base = jax.random.key(seed)
    keys = jax.vmap(lambda t: jax.random.fold_in(base, t))(np.arange(trials))
    if reseed:
        keys = folded(keys, RESEED)
    return Keys(*(folded(keys, n) for n in range(3)))


def folded(keys: Key, number: int) -> Key:
    """``key[T]`` with a number folded into each."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def apart(keys: Keys, number: int) -> Keys:
    """Other streams of the same trials: a number folded into each."""
    return Keys(*(folded(stream, number) for stream in keys))
