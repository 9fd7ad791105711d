"""Convolutions in two forms that give the same numbers.

On CPU, XLA runs the backward pass of its own convolution on a slow path whenever it stands
inside a compiled loop (28 times slower, measured). Written as a matrix product of patches no
convolution is left, so loops are safe and per-trial kernels become batched matrix products. One
product over all kernel offsets also keeps per-example gradients whole: against one product per
offset the exact Fisher of the digits network took 0.06 of the time, a gradient of it 0.36, a
gradient of ResNet-20s 0.62 (one CPU core, jax 0.10.2). Where a batch's patches would take more
than 4 MiB they are made for a few images at a time, and made again on the way back rather than
kept: a gradient of ResNet-20s (128 images, two cores) took 0.95 s instead of 1.47 s, its forward
pass 0.27 s instead of 0.44 s. :func:`default_form` is the only place where the form is chosen.
"""

import functools
from typing import Literal, assert_never

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike

from sparse_mu.models.initialisers import Initialiser, kaiming_normal

ConvolutionForm = Literal["xla", "patches"]

_PATCH_BYTES = 4 * 2**20  # of patches held at once


def default_form(platform: str) -> ConvolutionForm:
    """Chooses the form for a platform.

    Args:
        platform: as returned by ``jax.default_backend()``: "cpu", "gpu" or "tpu".

    Returns:
        "patches" on CPU, else "xla".
    """
    return "patches" if platform == "cpu" else "xla"


def convolve(
    inputs: jax.Array, kernel: jax.Array, *, stride: int, padding: int, form: ConvolutionForm
) -> jax.Array:
    """Convolves (cross-correlates, as in every network library) images with a kernel.

    ``out[b, y, x] = sum_{i, j} padded[b, stride * y + i, stride * x + j] @ kernel[i, j]``

    Args:
        inputs: float[B, H, W, C].
        kernel: float[I, J, C, D].
        stride: step in pixels, the same in both directions.
        padding: zeros added on *each* of the four sides, in pixels, also at stride 2 (XLA's "SAME"
          pads one side only there and gives other numbers).
        form: "xla" for XLA's convolution, "patches" for one product of the I * J * C patch entries.

    Returns:
        float[B, (H + 2 padding - I) // stride + 1, (W + 2 padding - J) // stride + 1, D].
    """
    match form:
        case "xla":
            return lax.conv_general_dilated(
                inputs,
                kernel,
                window_strides=(stride, stride),
                padding=((padding, padding), (padding, padding)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        case "patches":
            return _from_patches(inputs, kernel, stride, padding)
        case _:
            assert_never(form)


def _from_patches(inputs: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    height_k, width_k, channels, _ = kernel.shape
    height = (inputs.shape[1] + 2 * padding - height_k) // stride + 1
    width = (inputs.shape[2] + 2 * padding - width_k) // stride + 1

    def product(kernel: jax.Array, inputs: jax.Array) -> jax.Array:
        return _product_of_patches(inputs, kernel, height, width, stride, padding)

    patch_bytes = height * width * height_k * width_k * channels * inputs.dtype.itemsize
    # a power of two, so that common batches leave no remainder, which would compile once more
    images = 2 ** (max(1, _PATCH_BYTES // max(1, patch_bytes)).bit_length() - 1)
    # a chunk of a kernel's gradient is summed in the type computed in, too coarse below float32
    coarse = inputs.dtype.itemsize < 4
    if images >= len(inputs) or coarse or (height_k, width_k) == (1, 1):
        return product(kernel, inputs)
    of_image = jax.checkpoint(lambda kernel, image: product(kernel, image[None])[0])
    return lax.map(functools.partial(of_image, kernel), inputs, batch_size=images)


def _product_of_patches(
    inputs: jax.Array, kernel: jax.Array, height: int, width: int, stride: int, padding: int
) -> jax.Array:
    height_k, width_k, channels, features = kernel.shape
    sides = (padding, padding)
    padded = jnp.pad(inputs, ((0, 0), sides, sides, (0, 0)))
    rows = stride * (height - 1) + 1  # extent of one strided slice
    columns = stride * (width - 1) + 1
    windows = [
        padded[:, i : i + rows : stride, j : j + columns : stride, :]
        for i in range(height_k)
        for j in range(width_k)
    ]
    patches = jnp.concatenate(windows, axis=-1) if len(windows) > 1 else windows[0]
    return patches @ kernel.reshape(height_k * width_k * channels, features)


class Convolution(nn.Module):
    """A square convolution: ``kernel`` float32[S, S, C, D] and, if asked for, ``bias`` float32[D].

    Attributes:
        features: D, the number of output channels.
        size: S, the side of the kernel in pixels.
        stride: step in pixels.
        padding: zeros on each side in pixels.
        form: see :func:`convolve`.
        dtype: type computed in; parameters are float32.
        kernel_init: draws the kernel.
        use_bias: whether a bias is added; it starts at zero.
    """

    features: int
    size: int
    stride: int
    padding: int
    form: ConvolutionForm
    dtype: DTypeLike = jnp.float32
    kernel_init: Initialiser = kaiming_normal
    use_bias: bool = False

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps float[B, H, W, C] to float[B, H', W', D]."""
        shape = (self.size, self.size, inputs.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        outputs = convolve(
            inputs.astype(self.dtype),
            kernel.astype(self.dtype),
            stride=self.stride,
            padding=self.padding,
            form=self.form,
        )
        if not self.use_bias:
            return outputs
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return outputs + bias.astype(self.dtype)[None, None, None]
