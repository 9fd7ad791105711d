"""VGG-16 with BatchNorm, in the official code's two variants (SPEC section 2)."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from sparse_mu.models.convolution import Convolution, ConvolutionForm
from sparse_mu.models.head import classifier_head
from sparse_mu.models.initialisers import kaiming_normal_fan_out, normal
from sparse_mu.models.normalisation import CIFAR10, BatchNorm, Channels, normalise
from sparse_mu.models.pooling import adaptive_mean, max_pool

WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
LEAST_SIDE = 2 ** (len(WIDTHS) - 1)  # pixels that the pools between the stages need


def channel_major(inputs: jax.Array) -> jax.Array:
    """Flattens float[B, H, W, C] in the order (C, H, W), which torch's linear layers read."""
    return inputs.transpose(0, 3, 1, 2).reshape(len(inputs), -1)


class VGG(nn.Module):
    """Stages of 3x3 convolutions with BatchNorm, a 2x2 max-pool *between* them, linear layers.

    There is no pool after the last stage. Layers carry the official names with "." written "_":
    ``features.3.weight`` is ``features_3 / kernel``; the last linear layer is ``head``.

    Attributes:
        pool: side of the map that is flattened; other maps are averaged down to it.
        hidden: widths of the linear layers before the last.
        use_bias: whether the convolutions have a bias.
        num_classes: K.
        form: how convolutions are computed.
        dtype: type computed in; parameters are float32.
        axis_name: mapped axis that BatchNorm averages over in training.
        channels: constants that normalise the input, inside the network as in the official code;
            None for a network that does not normalise.
        widths: channels of each convolution, stage by stage.
    """

    pool: int
    hidden: tuple[int, ...]
    use_bias: bool
    num_classes: int
    form: ConvolutionForm
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    channels: Channels | None = CIFAR10
    widths: tuple[tuple[int, ...], ...] = WIDTHS

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """Maps images float32[B, H, W, C] in [0, 1] to logits ``dtype``[B, K]."""
        x = normalise(inputs, self.channels)
        place = 0  # in the official list of layers
        for stage, widths in enumerate(self.widths):
            if stage > 0:
                x = max_pool(x, size=2, stride=2)
                place += 1
            for width in widths:
                x = Convolution(
                    width, 3, 1, 1, self.form, self.dtype, kaiming_normal_fan_out, self.use_bias,
                    name=f"features_{place}",
                )(x)  # fmt: skip
                x = BatchNorm(
                    dtype=self.dtype, axis_name=self.axis_name, name=f"features_{place + 1}"
                )(x, train)
                x = nn.relu(x)
                place += 3
        x = channel_major(adaptive_mean(x, self.pool))
        for index, width in enumerate(self.hidden):
            dense = nn.Dense(
                width, dtype=self.dtype, kernel_init=normal(0.01), name=f"classifier_{2 * index}"
            )
            x = nn.relu(dense(x))
        head = classifier_head(
            self.num_classes, x.shape[-1], self.dtype, kernel_init=normal(0.01),
            bias_init=nn.initializers.zeros,
        )  # fmt: skip
        return head(x)


# For K = 10: 14,710,464 convolution weights, 15,311,818 parameters.
VGG16BN = functools.partial(VGG, 2, (256, 256), False)
# As the lottery-ticket papers have it. For K = 10: 14,710,464 convolution weights, 14,728,266
# parameters.
VGG16BNLTH = functools.partial(VGG, 1, (), True)
