"""Swin-T, the official code's variant for images of 32 x 32 pixels (SPEC section 2)."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from sparse_mu.models.head import classifier_head
from sparse_mu.models.initialisers import linear_bias, linear_kernel, normal
from sparse_mu.models.normalisation import CIFAR10, Channels, normalise

HEAD_DIM = 32  # numbers per attention head
MLP_RATIO = 4
WINDOW = 4  # side of a window, in cells
MERGES = (2, 2, 2, 1)
SIDE_UNIT = WINDOW * math.prod(MERGES)  # pixels; both sides of an image are multiples of it

gelu = functools.partial(nn.gelu, approximate=False)


def unfold(inputs: jax.Array, factor: int) -> jax.Array:
    """Cuts an image into cells of ``factor`` x ``factor`` pixels.

    Args:
        inputs: float[B, H, W, C].
        factor: side of a cell, a divisor of H and W.

    Returns:
        float[B, H / factor, W / factor, C * factor^2], each cell in the order (channel, row,
        column), which is torch's.
    """
    batch, height, width, channels = inputs.shape
    cells = inputs.reshape(batch, height // factor, factor, width // factor, factor, channels)
    cells = cells.transpose(0, 1, 3, 5, 2, 4)
    return cells.reshape(batch, height // factor, width // factor, channels * factor**2)


def position_bias(table: jax.Array) -> jax.Array:
    """What a table of relative positions adds to the attention of a window.

    Args:
        table: float[2 w - 1, 2 w - 1], shared by all heads.

    Returns:
        float[w^2, w^2]; of query i and key j, cells of the window in reading order, the entry
        [row_j - row_i + w - 1, column_j - column_i + w - 1].
    """
    window = (len(table) + 1) // 2
    rows, columns = np.divmod(np.arange(window**2), window)
    down = rows[None, :] - rows[:, None] + window - 1
    right = columns[None, :] - columns[:, None] + window - 1
    return table[down, right]


def shift_masks(window: int) -> tuple[np.ndarray, np.ndarray]:
    """What keeps cells apart that are neighbours only because the map was rolled round.

    After a roll by half a window the last row of windows holds cells of both ends of the map, above
    and below its middle; so does the last column, left and right of it.

    Args:
        window: w, even.

    Returns:
        Two float32[w^2, w^2], 0 where query and key lie on one side and minus infinity elsewhere:
        for the last row of windows and for the last column.
    """
    rows, columns = np.divmod(np.arange(window**2), window)

    def mask(places: np.ndarray) -> np.ndarray:
        far = places >= window - window // 2
        return np.where(far[:, None] == far[None, :], 0.0, -np.inf).astype(np.float32)

    return mask(rows), mask(columns)


class WindowAttention(nn.Module):
    """Attention inside windows; of a shifted block, inside windows rolled by half their side.

    Attributes:
        heads: number of heads of 32 numbers.
        window: side of a window in cells.
        shifted: whether windows are shifted.
        dtype: type computed in; parameters are float32, and so is the softmax.
    """

    heads: int
    window: int
    shifted: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps float[B, H, W, D] to float[B, H, W, D]; windows must divide H and W."""
        batch, height, width, dim = inputs.shape
        side, shift = self.window, self.window // 2
        down, across = height // side, width // side
        x = jnp.roll(inputs, (-shift, -shift), (1, 2)) if self.shifted else inputs
        inner = self.heads * HEAD_DIM
        x = nn.Dense(
            3 * inner, use_bias=False, dtype=self.dtype, kernel_init=linear_kernel, name="to_qkv"
        )(x)
        # [B, rows of windows, rows in one, columns of windows, columns in one, qkv, head, number]
        x = x.reshape(batch, down, side, across, side, 3, self.heads, HEAD_DIM)
        x = x.transpose(5, 0, 1, 3, 6, 2, 4, 7)
        query, key, value = x.reshape(3, batch, down, across, self.heads, side**2, HEAD_DIM)

        table = self.param("pos_embedding", normal(1.0), (2 * side - 1, 2 * side - 1), jnp.float32)
        logits = jnp.einsum("...id,...jd->...ij", query, key).astype(jnp.float32)
        logits = logits * HEAD_DIM**-0.5 + position_bias(table)[None, None, None, None]
        if self.shifted:
            apart = np.zeros((down, across, side**2, side**2), np.float32)
            last_row, last_column = shift_masks(side)
            apart[-1] += last_row
            apart[:, -1] += last_column
            logits = logits + jnp.asarray(apart)[None, :, :, None]
        weights = nn.softmax(logits).astype(self.dtype)
        x = jnp.einsum("...ij,...jd->...id", weights, value)
        x = x.reshape(batch, down, across, self.heads, side, side, HEAD_DIM)
        x = x.transpose(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, inner)
        x = _linear(dim, inner, self.dtype, "to_out")(x)
        return jnp.roll(x, (shift, shift), (1, 2)) if self.shifted else x


class FeedForward(nn.Module):
    """Two linear layers with the exact GELU between them, four times wider inside.

    Attributes:
        dtype: type computed in; parameters are float32.
    """

    dtype: DTypeLike

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps float[..., D] to float[..., D]."""
        dim = inputs.shape[-1]
        x = gelu(_linear(MLP_RATIO * dim, dim, self.dtype, "net_0")(inputs))
        return _linear(dim, MLP_RATIO * dim, self.dtype, "net_2")(x)


class Normed(nn.Module):
    """``fn(LayerNorm(x))``, under the official names ``norm`` and ``fn``."""

    fn: nn.Module
    dtype: DTypeLike

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps float[..., D] to what ``fn`` makes of it."""
        return self.fn(_layer_norm(self.dtype, "norm")(inputs))


class Residual(nn.Module):
    """``x + fn(LayerNorm(x))``, under the official name ``fn`` of a :class:`Normed`."""

    fn: nn.Module

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps float[..., D] to float[..., D]."""
        return inputs + self.fn(inputs)


class SwinBlock(nn.Module):
    """Window attention and a feed-forward network, each behind a LayerNorm and added.

    Attributes:
        heads: of the attention.
        window: side of a window in cells.
        shifted: whether windows are shifted.
        dtype: type computed in; parameters are float32.
    """

    heads: int
    window: int
    shifted: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps float[B, H, W, D] to float[B, H, W, D]."""
        attention = WindowAttention(self.heads, self.window, self.shifted, self.dtype, parent=None)
        feed = FeedForward(self.dtype, parent=None)
        x = inputs
        for name, fn in (("attention_block", attention), ("mlp_block", feed)):
            x = Residual(Normed(fn, self.dtype, parent=None), name=name)(x)
        return x


class Stage(nn.Module):
    """Merges cells, then pairs of a plain and a shifted block.

    Attributes:
        width: D, numbers per cell.
        factor: cells merged in each direction.
        layers: number of blocks, even.
        heads: of the attention.
        window: side of a window in cells.
        dtype: type computed in; parameters are float32.
    """

    width: int
    factor: int
    layers: int
    heads: int
    window: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps float[B, H, W, C] to float[B, H / factor, W / factor, D]."""
        x = PatchMerging(self.width, self.factor, self.dtype, name="patch_partition")(inputs)
        for pair in range(self.layers // 2):
            for shifted in (False, True):
                name = f"layers_{pair}_{int(shifted)}"
                x = SwinBlock(self.heads, self.window, shifted, self.dtype, name=name)(x)
        return x


class PatchMerging(nn.Module):
    """A linear layer on each cell of ``factor`` x ``factor``.

    Attributes:
        width: D, numbers per merged cell.
        factor: side of a cell.
        dtype: type computed in; parameters are float32.
    """

    width: int
    factor: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps float[B, H, W, C] to float[B, H / factor, W / factor, D]."""
        cells = unfold(inputs, self.factor)
        return _linear(self.width, cells.shape[-1], self.dtype, "linear")(cells)


class SwinT(nn.Module):
    """Four stages of attention in 4x4 windows, a mean, a LayerNorm, a head.

    For K = 10: 26,598,646 parameters, none of them in a convolution. Layers carry the official
    names with "." written "_"; ``mlp_head.1`` is ``head``. The official network never normalises
    its input, whatever constants its state dict carries: that is ``channels=None`` here.

    Attributes:
        num_classes: K.
        dtype: type computed in; parameters are float32.
        channels: constants that normalise the input; None for a network that does not normalise.
        width: of the first stage; each stage doubles it.
        layers: blocks of each stage, even numbers.
        heads: of each stage, 32 numbers each.
        merges: cells (at first pixels) merged in each direction before each stage.
        window: side of a window in cells.
    """

    num_classes: int
    dtype: DTypeLike = jnp.float32
    channels: Channels | None = CIFAR10
    width: int = 96
    layers: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    merges: tuple[int, ...] = MERGES
    window: int = WINDOW

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """Maps images float32[B, H, W, C] in [0, 1] to logits ``dtype``[B, K].

        Raises:
            ValueError: whole windows do not fit the image at every stage.
        """
        del train
        unit = self.window * math.prod(self.merges)
        if inputs.shape[1] % unit or inputs.shape[2] % unit:
            raise ValueError(
                f"images of {inputs.shape[1]}x{inputs.shape[2]} do not divide into windows: both "
                f"sides must be multiples of {unit}"
            )
        x = normalise(inputs, self.channels)
        stages = zip(self.layers, self.heads, self.merges, strict=True)
        for stage, (layers, heads, factor) in enumerate(stages):
            x = Stage(
                self.width * 2**stage, factor, layers, heads, self.window, self.dtype,
                name=f"stage{stage + 1}",
            )(x)  # fmt: skip
        x = _layer_norm(self.dtype, "mlp_head_0")(x.mean((1, 2)))
        head = classifier_head(self.num_classes, x.shape[-1], self.dtype, kernel_init=linear_kernel)
        return head(x)


def _linear(features: int, fan_in: int, dtype: DTypeLike, name: str) -> nn.Dense:
    """A linear layer that starts as torch's do."""
    return nn.Dense(
        features, dtype=dtype, kernel_init=linear_kernel, bias_init=linear_bias(fan_in), name=name
    )


def _layer_norm(dtype: DTypeLike, name: str) -> nn.LayerNorm:
    """Torch's LayerNorm: the variance is of centred values."""
    return nn.LayerNorm(epsilon=1e-5, dtype=dtype, use_fast_variance=False, name=name)
