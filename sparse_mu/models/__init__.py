"""Bundled networks, and how a linen module becomes plain functions."""

from flax.linen import Module

from sparse_mu.models.channels import channel_units
from sparse_mu.models.convolution import Convolution, ConvolutionForm, convolve, default_form
from sparse_mu.models.head import HEAD, head_of
from sparse_mu.models.linen import apply_fn_of, features_fn_of, init_of
from sparse_mu.models.normalisation import (
    CIFAR10,
    CIFAR100,
    IMAGENET,
    SVHN,
    BatchNorm,
    Channels,
    Normalise,
)
from sparse_mu.models.resnet import ResNet18, ResNet50, Stem
from sparse_mu.models.resnet20s import ResNet20s
from sparse_mu.models.small import SmallCNN
from sparse_mu.models.swin import SIDE_UNIT as SWIN_SIDE_UNIT
from sparse_mu.models.swin import SwinT
from sparse_mu.models.vgg import LEAST_SIDE as VGG_LEAST_SIDE
from sparse_mu.models.vgg import VGG16BN, VGG16BNLTH

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "HEAD",
    "IMAGENET",
    "SVHN",
    "SWIN_SIDE_UNIT",
    "VGG16BN",
    "VGG16BNLTH",
    "VGG_LEAST_SIDE",
    "BatchNorm",
    "Channels",
    "Convolution",
    "ConvolutionForm",
    "Module",
    "Normalise",
    "ResNet18",
    "ResNet20s",
    "ResNet50",
    "SmallCNN",
    "Stem",
    "SwinT",
    "apply_fn_of",
    "channel_units",
    "convolve",
    "default_form",
    "features_fn_of",
    "head_of",
    "init_of",
]
