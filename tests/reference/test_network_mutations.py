"""The comparison of logits must fail for a wrong network: PARITY's mistakes in VGG and Swin."""

import functools

import comparisons
import jax
import jax.numpy as jnp
import pytest
import vectors
from flax import linen as nn

from sparse_mu.models import swin, vgg

KIND = vectors.NETWORKS
pytestmark = pytest.mark.slow


def row_major(inputs):
    return inputs.reshape(len(inputs), -1)


def unfold_channel_last(inputs, factor):
    batch, height, width, channels = inputs.shape
    cells = inputs.reshape(batch, height // factor, factor, width // factor, factor, channels)
    return cells.transpose(0, 1, 3, 2, 4, 5).reshape(
        batch, height // factor, width // factor, channels * factor**2
    )


def mirrored(position_bias):
    return lambda table: position_bias(jnp.flip(table))


# network, module, what is spoiled there, the wrong one, PARITY's error in evaluation mode
MISTAKES = [
    ("vgg16_bn", vgg, "channel_major", row_major, 0.67),
    ("swin_t", swin, "position_bias", mirrored(swin.position_bias), 8e-4),
    ("swin_t", swin, "gelu", functools.partial(nn.gelu, approximate=True), 2.5e-4),
    ("swin_t", swin, "unfold", unfold_channel_last, 0.90),
]


@pytest.mark.parametrize(
    ("name", "module", "part", "wrong", "expected"),
    MISTAKES,
    ids=[f"{name} {part}" for name, _, part, *_ in MISTAKES],
)
def test_a_wrong_part_fails(recorded, monkeypatch, request, name, module, part, wrong, expected):
    if name not in vectors.networks_of(recorded):
        pytest.skip(f"{recorded.name} holds no '{name}'")
    monkeypatch.setattr(module, part, wrong)
    with jax.default_matmul_precision("float32"):
        row = comparisons.eval_row(name, comparisons.recorded_network(recorded, name))
    found = [request.node.name, row.key, row.error, row.limit]
    request.node.user_properties.append(("reference_mistake", found))
    # PARITY states one or two digits
    assert not row.passed and row.error == pytest.approx(expected, rel=0.1)
