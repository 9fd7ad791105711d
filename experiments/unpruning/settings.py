"""The settings that un-pruning is measured on: digits with an MLP and with a CNN, and CIFAR-10."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from experiments.unpruning.lab import Setting
from sparse_mu import masks, models, units
from sparse_mu.data import augment
from sparse_mu.types import Array, Key, Model, Params, PyTree

WIDTHS = (64, 100, 50, 10)
KERNELS = tuple(f"dense{i}/kernel" for i in range(1, len(WIDTHS)))


def mlp_init(key: Key) -> Model:
    """64-100-50-10, Glorot normal, biases zero."""
    params = {}
    for i, (inputs, outputs) in enumerate(itertools.pairwise(WIDTHS), start=1):
        drawn = jax.random.normal(jax.random.fold_in(key, i), (inputs, outputs))
        kernel = drawn * np.float32(np.sqrt(2 / (inputs + outputs)))
        params[f"dense{i}"] = {"kernel": kernel, "bias": jnp.zeros(outputs, kernel.dtype)}
    return Model(params)


def mlp(
    params: Params, net_state: PyTree, inputs: Array, *, train: bool, key: Key
) -> tuple[Array, PyTree]:
    """ReLU between dense layers."""
    del train, key
    x = inputs
    for i in range(1, len(WIDTHS)):
        layer = params[f"dense{i}"]
        x = x @ layer["kernel"] + layer["bias"][None]
        x = jax.nn.relu(x) if i < len(WIDTHS) - 1 else x
    return x, net_state


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """1,347 training and 450 test rows of 64 pixels in [0, 1], stratified, split seed 0."""
    pixels, labels = load_digits(return_X_y=True)
    parts = train_test_split(pixels / 16, labels, train_size=1347, stratify=labels, random_state=0)
    train_x, test_x, train_y, test_y = parts
    inputs = np.concatenate([train_x, test_x]).astype(np.float32)
    return inputs, np.concatenate([train_y, test_y]).astype(np.int32)


def digits_mlp(*, batch_size: int = 1347, epochs: int = 400, sparsity: float = 0.9) -> Setting:
    """Pixels centred by their means; full-batch gradient descent unless told otherwise."""
    whole = batch_size == 1347
    inputs, labels = _digits()
    return Setting(
        name="digits MLP" if whole else "digits MLP, minibatches",
        inputs=inputs - inputs[:1347].mean(axis=0),
        labels=labels,
        train_rows=1347,
        classes=10,
        init=mlp_init,
        apply_fn=mlp,
        prunable=masks.matrices,
        sparsity=sparsity,
        epochs=epochs,
        batch_size=batch_size,
    )


def digits_units(sparsity: float = 0.5) -> Setting:
    """The MLP with hidden units pruned whole, incoming and outgoing weights together."""
    params = jax.eval_shape(mlp_init, jax.random.key(0)).params
    tied = units.chain(params, KERNELS)
    return digits_mlp(sparsity=sparsity)._replace(name="digits MLP, units", tied=tied)


def digits_cnn(
    *,
    structure: masks.Structure = "entries",
    scope: masks.Scope = "global",
    sparsity: float = 0.9,
    epochs: int = 15,
) -> Setting:
    """The command's digits network: three convolutions with BatchNorm, batches of 64."""
    kind = "" if structure == "entries" else f", {structure}"
    inputs, labels = _digits()
    form = models.default_form(jax.default_backend())
    network = models.SmallCNN(10, form)
    return Setting(
        name=f"digits CNN{kind}{' of each leaf' if scope == 'leaf' else ''}",
        inputs=inputs.reshape(-1, 8, 8, 1),
        labels=labels,
        train_rows=1347,
        classes=10,
        init=lambda key: Model(*models.init_of(network, (1, 8, 8, 1))(key)),
        apply_fn=models.apply_fn_of(network),
        structure=structure,
        scope=scope,
        sparsity=sparsity,
        epochs=epochs,
        batch_size=64,
    )


def cifar10(
    inputs: np.ndarray, labels: np.ndarray, train_rows: int, network: str, epochs: int
) -> Setting:
    """CIFAR-10 (bytes) with ResNet-20s or ResNet-18; not augmented, so that orders alone differ."""
    form = models.default_form(jax.default_backend())
    made = {"resnet20s": models.ResNet20s, "resnet18": models.ResNet18}[network](10, form)
    return Setting(
        name=f"CIFAR-10 {network}",
        inputs=inputs,
        labels=labels,
        train_rows=train_rows,
        classes=10,
        init=lambda key: Model(*models.init_of(made, (1, 32, 32, 3))(key)),
        apply_fn=models.apply_fn_of(made),
        prepare=lambda batch, key: augment.to_float(batch),
        epochs=epochs,
        batch_size=128,
    )
