"""Bundled networks, and how a linen module becomes plain functions."""

from sparse_mu.models.convolution import Convolution, ConvolutionForm, convolve, default_form
from sparse_mu.models.head import HEAD, head_of
from sparse_mu.models.linen import apply_fn_of, init_of
from sparse_mu.models.normalisation import (
    CIFAR10,
    CIFAR100,
    SVHN,
    BatchNorm,
    Channels,
    Normalise,
)
from sparse_mu.models.resnet import ResNet20s
from sparse_mu.models.small import SmallCNN

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "HEAD",
    "SVHN",
    "BatchNorm",
    "Channels",
    "Convolution",
    "ConvolutionForm",
    "Normalise",
    "ResNet20s",
    "SmallCNN",
    "apply_fn_of",
    "convolve",
    "default_form",
    "head_of",
    "init_of",
]
