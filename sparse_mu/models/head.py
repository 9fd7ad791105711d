"""The classifier head: one dense layer that every bundled network calls by the same name.

Methods that treat the head apart (Fisher forgetting, random relabelling) ask :func:`head_of`,
so nothing is guessed from a shape.
"""

from collections.abc import Mapping

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from sparse_mu.models.initialisers import Initialiser, kaiming_normal, linear_bias
from sparse_mu.types import PyTree

HEAD = "head"


def classifier_head(
    num_classes: int,
    width: int,
    dtype: DTypeLike,
    *,
    kernel_init: Initialiser = kaiming_normal,
    bias_init: Initialiser | None = None,
) -> nn.Dense:
    """Makes the head; call it inside a compact ``__call__``.

    Args:
        num_classes: K, the number of logits.
        width: F, the number of features read.
        dtype: type computed in; parameters are float32.
        kernel_init: draws the kernel.
        bias_init: draws the bias; by default torch's uniform one.

    Returns:
        A dense layer with ``kernel`` float32[F, K] and ``bias`` float32[K]: the class axis is the
        last of both.
    """
    return nn.Dense(
        num_classes,
        dtype=dtype,
        kernel_init=kernel_init,
        bias_init=linear_bias(width) if bias_init is None else bias_init,
        name=HEAD,
    )


def head_of(params: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Marks the leaves of the classifier head of a bundled network.

    Args:
        params: parameters of a bundled network.

    Returns:
        A tree like ``params`` with True at the head's kernel and bias, False elsewhere. The class
        axis of a marked leaf is its last.

    Raises:
        ValueError: ``params`` has no entry called "head".
    """
    if HEAD not in params:
        raise ValueError(f"no layer is called {HEAD!r}; the layers are {', '.join(params)}")
    return {
        name: jax.tree.map(lambda _, marked=name == HEAD: marked, layer)
        for name, layer in params.items()
    }
