"""ResNet-20s in torch: what the official code's network computes, under the official names."""

import torch
from torch import nn
from torch.nn import functional

from sparse_mu.models import CIFAR10

WIDTHS = (16, 32, 64)
BLOCKS_PER_STAGE = 3


def convolution(channels: int, width: int, stride: int) -> nn.Conv2d:
    """A 3x3 convolution without a bias that keeps the size at stride 1."""
    return nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)


class Normalise(nn.Module):
    """``(x - mean) / std`` per channel, constants kept as buffers."""

    def __init__(self) -> None:
        """Keeps the constants."""
        super().__init__()
        self.register_buffer("mean", torch.tensor(CIFAR10.mean))
        self.register_buffer("std", torch.tensor(CIFAR10.std))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Maps float32[B, 3, H, W] to the same shape."""
        return (images - self.mean[:, None, None]) / self.std[:, None, None]


class Block(nn.Module):
    """Two convolutions around an option-A shortcut: every other pixel, zero channels around."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        """Makes the layers."""
        super().__init__()
        self.conv1, self.bn1 = convolution(channels, width, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = convolution(width, width, 1), nn.BatchNorm2d(width)
        self.stride, self.extra = stride, (width - channels) // 2

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Maps float32[B, C, H, W] to float32[B, width, H / stride, W / stride]."""
        outputs = functional.relu(self.bn1(self.conv1(inputs)))
        outputs = self.bn2(self.conv2(outputs))
        if self.extra or self.stride > 1:
            thinned = inputs[:, :, :: self.stride, :: self.stride]
            inputs = functional.pad(thinned, (0, 0, 0, 0, self.extra, self.extra))
        return functional.relu(outputs + inputs)


class ResNet20s(nn.Module):
    """Three stages of three blocks; the state dict has the names of the official code."""

    def __init__(self, num_classes: int) -> None:
        """Makes the layers, weights drawn by torch."""
        super().__init__()
        self.normalize = Normalise()
        self.conv1, self.bn1 = convolution(3, WIDTHS[0], 1), nn.BatchNorm2d(WIDTHS[0])
        channels = WIDTHS[0]
        for stage, width in enumerate(WIDTHS, start=1):
            blocks = []
            for block in range(BLOCKS_PER_STAGE):
                stride = 2 if stage > 1 and block == 0 else 1
                blocks.append(Block(channels, width, stride))
                channels = width
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Maps images float32[B, 3, H, W] in [0, 1] to logits float32[B, K]."""
        x = functional.relu(self.bn1(self.conv1(self.normalize(images))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))
