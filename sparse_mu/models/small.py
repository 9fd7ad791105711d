"""The network of the embedded default: 8x8 digits, trained in seconds on a CPU."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from sparse_mu.models.convolution import Convolution, ConvolutionForm
from sparse_mu.models.head import classifier_head
from sparse_mu.models.normalisation import BatchNorm, Channels, normalise

WIDTHS = (16, 32, 64)
STRIDES = (1, 2, 2)


class SmallCNN(nn.Module):
    """Three 3x3 convolutions with BatchNorm and ReLU, a global mean, a dense head.

    For K = 10 and one input channel: 23,184 convolution weights, 24,058 parameters.

    Attributes:
        num_classes: K.
        form: how convolutions are computed.
        dtype: type computed in; parameters are float32.
        axis_name: mapped axis that BatchNorm averages over in training.
        channels: constants that normalise the input; None for a network that does not normalise.
    """

    num_classes: int
    form: ConvolutionForm
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    channels: Channels | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """Maps images float32[B, H, W, C] in [0, 1] to logits ``dtype``[B, K]."""
        x = normalise(inputs, self.channels)
        for i, (width, stride) in enumerate(zip(WIDTHS, STRIDES, strict=True), start=1):
            x = Convolution(width, 3, stride, 1, self.form, self.dtype, name=f"conv{i}")(x)
            x = BatchNorm(dtype=self.dtype, axis_name=self.axis_name, name=f"bn{i}")(x, train)
            x = nn.relu(x)
        x = x.mean((1, 2))
        return classifier_head(self.num_classes, x.shape[-1], self.dtype)(x)
