"""Which channels of a bundled network are one: tied by residual sums, they are pruned together.

A block adds its output to the stream that it reads, so all convolutions that write to a stream and
all that read it share their channels, and so do the BatchNorms between.
"""

import itertools
from collections.abc import Iterator

import jax
import numpy as np
from flax import linen as nn

from sparse_mu.models import small
from sparse_mu.models.resnet import Bottleneck, ResNet
from sparse_mu.models.resnet20s import WIDTHS, ResNet20s
from sparse_mu.trees import leaf_names
from sparse_mu.types import Params, UnitAxis, Units


class _Table:
    """Collects the axes of streams of channels, each with units and layers of its own."""

    def __init__(self, params: Params) -> None:
        self.ranks = {
            name: leaf.ndim
            for name, leaf in zip(leaf_names(params), jax.tree.leaves(params), strict=True)
        }
        self.axes: list[UnitAxis] = []
        self.layers: list[int] = []

    def stream(self, *widths: int) -> np.ndarray:
        """The units of a new stream; each width is ranked by itself."""
        first, layer = len(self.layers), max(self.layers, default=-1) + 1
        for number, width in enumerate(widths):
            self.layers += [layer + number] * width
        return np.arange(first, len(self.layers), dtype=np.int32)

    def written(self, convolution: str, norm: str, units: np.ndarray) -> None:
        """A convolution's outputs and the BatchNorm after it, which goes with them."""
        kernel = f"{convolution}/kernel"
        self.axes.append(UnitAxis(kernel, self.ranks[kernel] - 1, units))
        for leaf in (f"{norm}/scale", f"{norm}/bias"):
            self.axes.append(UnitAxis(leaf, 0, units, scored=False))

    def read(self, kernel: str, units: np.ndarray) -> None:
        """The inputs of a convolution or of the head."""
        self.axes.append(UnitAxis(kernel, self.ranks[kernel] - 2, units))

    def done(self) -> Units:
        return Units(tuple(self.axes), np.asarray(self.layers, np.int32))


def channel_units(network: nn.Module, params: Params) -> Units:
    """The channels of a bundled network that must be pruned together, for :mod:`sparse_mu.units`.

    Inside a block each channel is a unit; the channels of a residual stream are tied over all
    blocks of its stage. In ResNet-20s, whose shortcuts pad the stream with channels between
    stages, a channel is one from the stage where it begins to the end; those that begin in
    different stages are ranked apart. Outputs are always scored with the inputs that read them.

    Args:
        network: :class:`~sparse_mu.models.ResNet20s`, ``ResNet18``, ``ResNet50`` or ``SmallCNN``.
        params: its parameters, or their shapes.

    Raises:
        ValueError: for another network.

    Source: UNPRUNING section 2.7; the networks, SPEC section 2.
    """
    table = _Table(params)
    if isinstance(network, ResNet20s):
        _resnet20s(table)
    elif isinstance(network, ResNet):
        _resnet(table, network)
    elif isinstance(network, small.SmallCNN):
        _small_cnn(table)
    else:
        raise ValueError(f"{type(network).__name__}: its channels are not known here")
    return table.done()


def _blocks(counts: tuple[int, ...]) -> Iterator[tuple[int, str]]:
    """Number of the stage, from 0, and name of every block."""
    for stage, count in enumerate(counts):
        for index in range(count):
            yield stage, f"layer{stage + 1}_{index}"


def _resnet20s(table: _Table) -> None:
    # the stream of the last stage; a stage before uses its middle, the rest begins later
    begin = [WIDTHS[0], *(late - early for early, late in itertools.pairwise(WIDTHS))]
    units = table.stream(*begin)
    streams = [units[: WIDTHS[0]]]
    for stage in range(1, len(WIDTHS)):
        half = begin[stage] // 2
        new = units[WIDTHS[stage - 1] : WIDTHS[stage]]
        streams.append(np.concatenate([new[:half], streams[-1], new[half:]]))
    table.written("conv1", "bn1", streams[0])
    before = streams[0]
    for stage, name in _blocks((3, 3, 3)):
        table.read(f"{name}/conv1/kernel", before)
        inside = table.stream(WIDTHS[stage])
        table.written(f"{name}/conv1", f"{name}/bn1", inside)
        table.read(f"{name}/conv2/kernel", inside)
        before = streams[stage]
        table.written(f"{name}/conv2", f"{name}/bn2", before)
    table.read("head/kernel", before)


def _resnet(table: _Table, network: ResNet) -> None:
    inner = ("conv1", "conv2") if network.block is Bottleneck else ("conv1",)
    last = f"conv{len(inner) + 1}"
    stream = table.stream(network.width)
    table.written("conv1", "bn1", stream)
    for stage, name in _blocks(network.blocks):
        width, before = network.width * 2**stage, stream
        if f"{name}/downsample_0/kernel" in table.ranks:
            stream = table.stream(width * (4 if network.block is Bottleneck else 1))
            table.read(f"{name}/downsample_0/kernel", before)
            table.written(f"{name}/downsample_0", f"{name}/downsample_1", stream)
        read = before
        for layer in inner:
            table.read(f"{name}/{layer}/kernel", read)
            read = table.stream(width)
            table.written(f"{name}/{layer}", f"{name}/bn{layer[-1]}", read)
        table.read(f"{name}/{last}/kernel", read)
        table.written(f"{name}/{last}", f"{name}/bn{last[-1]}", stream)
    table.read("head/kernel", stream)


def _small_cnn(table: _Table) -> None:
    units = table.stream(small.WIDTHS[0])
    table.written("conv1", "bn1", units)
    for index, width in enumerate(small.WIDTHS[1:], start=2):
        table.read(f"conv{index}/kernel", units)
        units = table.stream(width)
        table.written(f"conv{index}", f"bn{index}", units)
    table.read("head/kernel", units)
