"""ResNet-18 and ResNet-50, for small images and for ImageNet's (SPEC section 2)."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from sparse_mu.models.convolution import Convolution, ConvolutionForm
from sparse_mu.models.head import classifier_head
from sparse_mu.models.initialisers import kaiming_normal_fan_out, linear_kernel
from sparse_mu.models.normalisation import CIFAR10, BatchNorm, Channels, normalise
from sparse_mu.models.pooling import max_pool

Stem = Literal["cifar", "imagenet"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm around a shortcut.

    Where the shape changes, the shortcut is a 1x1 convolution with BatchNorm, else the input.

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
        conv, norm = _layers(self.form, self.dtype, self.axis_name)
        x = conv(self.width, 3, self.stride, 1, name="conv1")(inputs)
        x = nn.relu(norm(name="bn1")(x, train))
        x = conv(self.width, 3, 1, 1, name="conv2")(x)
        x = norm(name="bn2")(x, train)
        if inputs.shape != x.shape:
            inputs = conv(self.width, 1, self.stride, 0, name="downsample_0")(inputs)
            inputs = norm(name="downsample_1")(inputs, train)
        return nn.relu(x + inputs)


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a widening 1x1 convolution with BatchNorm around a shortcut.

    Where the shape changes, the shortcut is a 1x1 convolution with BatchNorm, else the input.

    Attributes:
        width: number of channels inside; four times as many come out.
        stride: of the 3x3 convolution and of the shortcut.
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
        """Maps float[B, H, W, C] to float[B, ceil(H / stride), ceil(W / stride), 4 width]."""
        conv, norm = _layers(self.form, self.dtype, self.axis_name)
        x = conv(self.width, 1, 1, 0, name="conv1")(inputs)
        x = nn.relu(norm(name="bn1")(x, train))
        x = conv(self.width, 3, self.stride, 1, name="conv2")(x)
        x = nn.relu(norm(name="bn2")(x, train))
        x = conv(4 * self.width, 1, 1, 0, name="conv3")(x)
        x = norm(name="bn3")(x, train)
        if inputs.shape != x.shape:
            inputs = conv(4 * self.width, 1, self.stride, 0, name="downsample_0")(inputs)
            inputs = norm(name="downsample_1")(inputs, train)
        return nn.relu(x + inputs)


class ResNet(nn.Module):
    """Four stages of residual blocks, each twice as wide as the one before, strides 1, 2, 2, 2.

    Layers carry the official names (torchvision's, too) with "." written "_":
    ``layer2.0.downsample.1.weight`` is ``layer2_0 / downsample_1 / scale``; ``fc`` is ``head``.

    Attributes:
        blocks: number of blocks of each stage.
        block: what they are.
        num_classes: K.
        form: how convolutions are computed.
        dtype: type computed in; parameters are float32.
        axis_name: mapped axis that BatchNorm averages over in training.
        channels: constants that normalise the input, inside the network as in the official code;
            None for a network that does not normalise.
        stem: "cifar" is one 3x3 convolution, "imagenet" a 7x7 one of stride 2 and a 3x3 max-pool of
            stride 2: a map of 1/4 of the image's side.
        width: of the stem and of the first stage.
    """

    blocks: tuple[int, ...]
    block: type[BasicBlock] | type[Bottleneck]
    num_classes: int
    form: ConvolutionForm
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    channels: Channels | None = CIFAR10
    stem: Stem = "cifar"
    width: int = 64

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """Maps images float32[B, H, W, C] in [0, 1] to logits ``dtype``[B, K]."""
        conv, norm = _layers(self.form, self.dtype, self.axis_name)
        x = normalise(inputs, self.channels)
        size, stride, padding = (7, 2, 3) if self.stem == "imagenet" else (3, 1, 1)
        x = conv(self.width, size, stride, padding, name="conv1")(x)
        x = nn.relu(norm(name="bn1")(x, train))
        if self.stem == "imagenet":
            x = max_pool(x, size=3, stride=2, padding=1)
        for stage, count in enumerate(self.blocks):
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                x = self.block(
                    self.width * 2**stage,
                    stride,
                    self.form,
                    self.dtype,
                    self.axis_name,
                    name=f"layer{stage + 1}_{index}",
                )(x, train)
        x = x.mean((1, 2))
        head = classifier_head(self.num_classes, x.shape[-1], self.dtype, kernel_init=linear_kernel)
        return head(x)


# For K = 10 and a 3x3 stem: 11,159,232 convolution weights, 11,173,962 parameters.
ResNet18 = functools.partial(ResNet, (2, 2, 2, 2), BasicBlock)
# For K = 100 and a 3x3 stem: 23,705,252 parameters.
ResNet50 = functools.partial(ResNet, (3, 4, 6, 3), Bottleneck)


def _layers(
    form: ConvolutionForm, dtype: DTypeLike, axis_name: str | None
) -> tuple[functools.partial[Convolution], functools.partial[BatchNorm]]:
    conv = functools.partial(
        Convolution, form=form, dtype=dtype, kernel_init=kaiming_normal_fan_out
    )
    return conv, functools.partial(BatchNorm, dtype=dtype, axis_name=axis_name)
