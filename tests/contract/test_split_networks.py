"""A network with BatchNorm, its batches split over devices: synchronised by default."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparing import assert_close

from sparse_mu import models, unlearn
from sparse_mu.execution import ROWS, mapped, sharded, single
from sparse_mu.losses import classification
from sparse_mu.models.resnet import BasicBlock, ResNet
from sparse_mu.optimiser import hyper_parameters
from sparse_mu.training import fit
from sparse_mu.types import Dataset, Model, Trials

ROWS_OF_DATA = 20
NETWORKS = {
    "small_cnn": models.SmallCNN(3, form="patches"),
    "resnet": ResNet((1, 1), BasicBlock, 3, form="patches", channels=None, width=2),
}


@functools.lru_cache(maxsize=8)
def trained(mode, batchnorm_axis=None, network="small_cnn"):
    """One epoch of three steps; the last batch is filled up with rows of weight 0."""
    execution = {"single": single, "sharded": sharded, "mapped": mapped}[mode]
    execution = execution() if mode == "single" else execution(jax.devices())
    module = NETWORKS[network].clone(axis_name=batchnorm_axis)
    model = Model(*jax.jit(models.init_of(module, (1, 8, 8, 1)))(jax.random.key(0)))
    batched = jax.tree.map(lambda leaf: np.asarray(leaf)[None], model)
    dense = jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), batched.params)
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.random((ROWS_OF_DATA, 8, 8, 1), np.float32))
    data = Dataset(inputs, jnp.asarray(rng.integers(0, 3, ROWS_OF_DATA), jnp.int32))
    everyone = np.ones((1, ROWS_OF_DATA), bool)
    keys = jax.random.split(jax.random.key(1), 1)
    unlearner = unlearn.finetune(
        classification(models.apply_fn_of(module)),
        hyper=hyper_parameters(learning_rate=0.05, momentum=0.9),
        axis_name=execution.axis_name,
    )
    return fit(
        unlearner, batched, dense, keys, Trials(~everyone, everyone, keys),
        execution.put_shared(data), batch_size=8, epochs=1, execution=execution,
    ).model  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "axis"),
    [
        pytest.param("sharded", None, marks=pytest.mark.slow),
        pytest.param("mapped", ROWS, marks=pytest.mark.ci),
    ],
)
def test_batchnorm_sees_the_whole_batch(mode, axis):
    # three steps; statistics of 8 rows summed in another order
    assert_close(trained(mode, axis), trained("single"), {"rtol": 1e-4, "atol": 1e-5})


@pytest.mark.slow
def test_batchnorm_of_residual_blocks_sees_the_whole_batch():
    # as above, through six layers of statistics: their rounding adds up
    found, expected = trained("mapped", ROWS, "resnet"), trained("single", None, "resnet")
    assert_close(found, expected, {"rtol": 1e-3, "atol": 1e-4})


@pytest.mark.slow
def test_batchnorm_per_device_is_another_algorithm_whose_devices_agree():
    whole, apart = trained("single"), trained("mapped")  # a disagreement would raise
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), apart.params, whole.params)
    assert max(jax.tree.leaves(moved)) > 1e-3
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(apart))
