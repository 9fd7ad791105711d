"""ResNet-20s, the CIFAR residual network of the official code (SPEC section 2)."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from sparse_mu.models.convolution import Convolution, ConvolutionForm
from sparse_mu.models.head import classifier_head
from sparse_mu.models.normalisation import CIFAR10, BatchNorm, Channels, normalise

WIDTHS = (16, 32, 64)
BLOCKS_PER_STAGE = 3


def _shortcut(inputs: jax.Array, width: int, stride: int) -> jax.Array:
    """Option A: every ``stride``-th pixel, and zero channels on both sides; no parameters."""
    extra = (width - inputs.shape[-1]) // 2
    return jnp.pad(inputs[:, ::stride, ::stride, :], ((0, 0), (0, 0), (0, 0), (extra, extra)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm around an option-A shortcut.

    Attributes:
        width: number of output channels.
        stride: of the first convolution and of the shortcut.
        form: how convolutions are computed.
        dtype: type computed in; parameters are float32.
        axis_name: mapped axis that BatchNorm averages over in training.
    """

    width: int
    stride: int
    form: ConvolutionForm
    dtype: DTypeLike
    axis_name: str | None

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """Maps float[B, H, W, C] to float[B, ceil(H / stride), ceil(W / stride), width]."""
        x = Convolution(self.width, 3, self.stride, 1, self.form, self.dtype, name="conv1")(inputs)
        x = nn.relu(BatchNorm(dtype=self.dtype, axis_name=self.axis_name, name="bn1")(x, train))
        x = Convolution(self.width, 3, 1, 1, self.form, self.dtype, name="conv2")(x)
        x = BatchNorm(dtype=self.dtype, axis_name=self.axis_name, name="bn2")(x, train)
        return nn.relu(x + _shortcut(inputs, self.width, self.stride))


class ResNet20s(nn.Module):
    """Three stages of three basic blocks, widths 16, 32, 64, strides 1, 2, 2; input normalised.

    For K = 10: 267,696 convolution weights, 269,722 parameters. Layers carry the official names
    with "." written "_": ``layer2.0.conv1.weight`` is ``layer2_0 / conv1 / kernel``; ``fc`` is
    ``head``.

    Attributes:
        num_classes: K.
        form: how convolutions are computed.
        dtype: type computed in; parameters are float32.
        axis_name: mapped axis that BatchNorm averages over in training.
        channels: constants that normalise the input, inside the network as in the official code;
            None for a network that does not normalise.
    """

    num_classes: int
    form: ConvolutionForm
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    channels: Channels | None = CIFAR10

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """Maps images float32[B, H, W, C] in [0, 1] to logits ``dtype``[B, K]."""
        x = normalise(inputs, self.channels)
        x = Convolution(WIDTHS[0], 3, 1, 1, self.form, self.dtype, name="conv1")(x)
        x = nn.relu(BatchNorm(dtype=self.dtype, axis_name=self.axis_name, name="bn1")(x, train))
        for stage, width in enumerate(WIDTHS, start=1):
            for block in range(BLOCKS_PER_STAGE):
                stride = 2 if stage > 1 and block == 0 else 1
                name = f"layer{stage}_{block}"
                x = BasicBlock(width, stride, self.form, self.dtype, self.axis_name, name=name)(
                    x, train
                )
        x = x.mean((1, 2))
        return classifier_head(self.num_classes, x.shape[-1], self.dtype)(x)
