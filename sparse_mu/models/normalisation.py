"""Batch normalisation with torch's statistics, and the normalisation of input channels."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike


class Channels(NamedTuple):
    """Mean and standard deviation of each input channel, for images in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


# SPEC section 1.4.
CIFAR10 = Channels(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
CIFAR100 = Channels(mean=(0.5071, 0.4866, 0.4409), std=(0.2673, 0.2564, 0.2762))
SVHN = Channels(mean=(0.4377, 0.4438, 0.4728), std=(0.1980, 0.2010, 0.1970))
IMAGENET = Channels(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def _on_last_axis(vector: jax.Array, ndim: int) -> jax.Array:
    return vector.reshape((1,) * (ndim - 1) + (-1,))


class Normalise(nn.Module):
    """Normalises input channels, ``(x - mean) / std``, by constants that are not trained.

    Attributes:
        mean: one number per channel.
        std: one number per channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps float[B, H, W, C] in [0, 1] to float[B, H, W, C]."""
        mean = _on_last_axis(jnp.asarray(self.mean, inputs.dtype), inputs.ndim)
        std = _on_last_axis(jnp.asarray(self.std, inputs.dtype), inputs.ndim)
        return (inputs - mean) / std


def normalise(inputs: jax.Array, channels: Channels | None) -> jax.Array:
    """Normalises inside a network's compact ``__call__``; None leaves the images as they are."""
    return inputs if channels is None else Normalise(channels.mean, channels.std)(inputs)


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, with the statistics torch keeps.

    With c the number of values per channel (over all devices when ``axis_name`` is set), training
    normalises by the biased variance but feeds the *unbiased* one to the running statistics
    (SPEC section 2; flax's own layer stores the biased one):

    ``y = scale * (x - mean) / sqrt(var + epsilon) + bias``
    ``running_mean <- (1 - momentum) * running_mean + momentum * mean``
    ``running_var <- (1 - momentum) * running_var + momentum * var * c / (c - 1)``

    Parameters ``scale`` (ones) and ``bias`` (zeros), collection ``batch_stats`` with ``mean``
    (zeros) and ``var`` (ones), all float32[C]. Statistics are computed in at least float32.

    Attributes:
        momentum: weight of the new batch (torch's convention: one minus flax's).
        epsilon: added to the variance.
        dtype: type of the output.
        axis_name: mapped axis over which statistics are averaged in training; None: this device.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """Normalises float[..., C].

        Args:
            inputs: float[..., C].
            train: True uses and records the statistics of the batch, False the running ones.

        Returns:
            ``dtype``[..., C].

        Raises:
            ValueError: in training, a channel has only one value (its variance is undefined).
        """
        channels = (inputs.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)

        values = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
        if train and not self.is_initializing():
            mean, var, count = self._batch_statistics(values)
            unbiased = var * (count / (count - 1))
            keep = 1 - self.momentum
            running_mean.value = keep * running_mean.value + self.momentum * mean
            running_var.value = keep * running_var.value + self.momentum * unbiased
        else:
            mean, var = running_mean.value, running_var.value

        factor = scale * lax.rsqrt(var + self.epsilon)
        centred = values - _on_last_axis(mean, values.ndim)
        outputs = centred * _on_last_axis(factor, values.ndim) + _on_last_axis(bias, values.ndim)
        return outputs.astype(self.dtype)

    def _batch_statistics(self, values: jax.Array) -> tuple[jax.Array, jax.Array, int]:
        """Returns mean float[C], biased variance float[C] and the count of values per channel."""
        axes = tuple(range(values.ndim - 1))
        count = values.size // values.shape[-1]
        mean = values.mean(axes)
        if self.axis_name is not None:
            count *= lax.axis_size(self.axis_name)
            mean = lax.pmean(mean, self.axis_name)
        if count < 2:
            raise ValueError("BatchNorm needs more than one value per channel in training")
        # Centred first: E[x^2] - mean^2 would cancel in float32.
        var = jnp.square(values - _on_last_axis(mean, values.ndim)).mean(axes)
        if self.axis_name is not None:
            var = lax.pmean(var, self.axis_name)
        return mean, var, count
