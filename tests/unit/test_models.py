"""Bundled networks against numpy, XLA's convolution and the official recorded logits."""

import json
import os
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from sparse_mu import models
from sparse_mu.models.initialisers import kaiming_normal, linear_bias

SHARED = Path(os.environ.get("SPARSE_MU_SHARED", Path(__file__).parents[3] / "shared"))
REFERENCE = SHARED / "reference"


def slow_convolution(inputs, kernel, stride, padding):
    padded = np.pad(inputs, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    size = kernel.shape[0]
    height = (padded.shape[1] - size) // stride + 1
    width = (padded.shape[2] - size) // stride + 1
    out = np.zeros((len(inputs), height, width, kernel.shape[3]))
    for y in range(height):
        for x in range(width):
            window = padded[:, y * stride : y * stride + size, x * stride : x * stride + size]
            out[:, y, x] = np.einsum("bijc,ijcd->bd", window, kernel)
    return out


@pytest.mark.ci
@pytest.mark.parametrize("form", ["xla", "patches"])
@pytest.mark.parametrize(
    ("size", "stride", "padding", "side"),
    [(3, 1, 1, 7), (3, 2, 1, 8), (3, 2, 1, 7), (1, 1, 0, 5), (1, 2, 0, 8), (5, 3, 2, 9)],
)
def test_both_forms_equal_a_loop(form, size, stride, padding, side):
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((2, side, side + 1, 3)).astype(np.float32)
    kernel = rng.standard_normal((size, size, 3, 4)).astype(np.float32)
    out = models.convolve(
        jnp.asarray(inputs), jnp.asarray(kernel), stride=stride, padding=padding, form=form
    )
    expected = slow_convolution(inputs.astype(np.float64), kernel, stride, padding)
    assert out.shape == expected.shape
    np.testing.assert_allclose(out, expected, atol=3e-5)  # sums of up to 75 float32 products


@pytest.mark.ci
def test_both_forms_have_the_same_gradients():
    rng = np.random.default_rng(1)
    inputs = jnp.asarray(rng.standard_normal((2, 8, 8, 3)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 3, 3, 4)), jnp.float32)

    def loss(form, inputs, kernel):
        return jnp.sin(models.convolve(inputs, kernel, stride=2, padding=1, form=form)).sum()

    gradients = {
        form: jax.grad(partial(loss, form), argnums=(0, 1))(inputs, kernel)
        for form in ("xla", "patches")
    }
    for ours, xla in zip(gradients["patches"], gradients["xla"], strict=True):
        np.testing.assert_allclose(ours, xla, atol=2e-5)


@pytest.mark.parametrize(
    "rows",  # chunks and a rest; below a chunk; whole chunks
    [
        pytest.param(7, marks=pytest.mark.ci),
        pytest.param(1, marks=pytest.mark.slow),
        pytest.param(8, marks=pytest.mark.slow),
    ],
)
def test_patches_made_a_few_images_at_a_time_give_the_same_numbers(rows, monkeypatch):
    monkeypatch.setattr(models.convolution, "_PATCH_BYTES", 2 * 8 * 8 * 27 * 4)  # two images
    rng = np.random.default_rng(3)
    inputs = jnp.asarray(rng.standard_normal((rows, 8, 8, 3)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 3, 3, 4)), jnp.float32)

    def loss(form, inputs, kernel):
        return jnp.sin(models.convolve(inputs, kernel, stride=1, padding=1, form=form)).sum()

    for derivative in (jax.grad, jax.jacfwd):  # curvature needs forward mode too
        ours, xla = (
            derivative(partial(loss, form), argnums=(0, 1))(inputs, kernel)
            for form in ("patches", "xla")
        )
        for a, b in zip(ours, xla, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)  # sums of up to 512 float32 products
    both = jnp.stack([kernel, 2 * kernel])
    over = jax.vmap(jax.grad(partial(loss, "patches")), in_axes=(None, 0))(inputs, both)
    np.testing.assert_allclose(
        over[0], jax.grad(partial(loss, "patches"))(inputs, kernel), atol=1e-4
    )
    jaxpr = str(jax.make_jaxpr(partial(loss, "patches"))(inputs, kernel))
    assert ("scan" in jaxpr) == (rows > 2)


@pytest.mark.parametrize("shape", [(0, 4, 4, 2), (2, 4, 4, 0)])
def test_both_forms_take_no_rows_and_no_channels(shape):
    kernel = jnp.ones((3, 3, shape[-1], 2))
    ours, xla = (
        models.convolve(jnp.ones(shape), kernel, stride=1, padding=1, form=form)
        for form in ("patches", "xla")
    )
    np.testing.assert_array_equal(ours, xla)


def test_patches_form_leaves_no_convolution():
    fn = partial(models.convolve, stride=1, padding=1, form="patches")
    jaxpr = str(jax.make_jaxpr(fn)(jnp.zeros((1, 4, 4, 2)), jnp.zeros((3, 3, 2, 2))))
    assert "conv_general" not in jaxpr


@pytest.mark.parametrize(("platform", "form"), [("cpu", "patches"), ("gpu", "xla"), ("tpu", "xla")])
def test_default_form(platform, form):
    assert models.default_form(platform) == form


def test_an_unknown_form_raises():
    with pytest.raises(AssertionError, match="im2col"):
        models.convolve(
            jnp.zeros((1, 4, 4, 1)), jnp.zeros((3, 3, 1, 1)), stride=1, padding=1, form="im2col"
        )


def test_batch_norm_against_numpy():
    rng = np.random.default_rng(2)
    x = (5 + 2 * rng.standard_normal((4, 3, 3, 2))).astype(np.float32)
    scale, bias = np.array([1.5, -0.5], np.float32), np.array([0.1, 2.0], np.float32)
    old_mean, old_var = np.array([1.0, -1.0], np.float32), np.array([0.5, 3.0], np.float32)
    variables = {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": {"mean": old_mean, "var": old_var},
    }
    norm = models.BatchNorm()
    y, state = norm.apply(variables, x, True, mutable=["batch_stats"])
    mean = x.mean((0, 1, 2), dtype=np.float64)
    var = x.var((0, 1, 2), dtype=np.float64)
    count = 36
    np.testing.assert_allclose(y, scale * (x - mean) / np.sqrt(var + 1e-5) + bias, atol=1e-5)
    stats = state["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.9 * old_mean + 0.1 * mean, rtol=1e-6)
    unbiased = var * count / (count - 1)
    np.testing.assert_allclose(stats["var"], 0.9 * old_var + 0.1 * unbiased, rtol=1e-6)

    y = norm.apply(variables, x, False)
    expected = scale * (x - old_mean) / np.sqrt(old_var + 1e-5) + bias
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_batch_norm_of_one_value_raises():
    norm = models.BatchNorm()
    variables = norm.init(jax.random.key(0), jnp.zeros((2, 3)), False)
    with pytest.raises(ValueError, match="more than one value"):
        norm.apply(variables, jnp.zeros((1, 3)), True, mutable=["batch_stats"])


@pytest.mark.ci
def test_batch_norm_does_not_cancel():
    x = 1e4 + np.random.default_rng(3).standard_normal((64, 1)).astype(np.float32)
    norm = models.BatchNorm()
    variables = norm.init(jax.random.key(0), x, False)
    y = norm.apply(variables, x, True, mutable=["batch_stats"])[0]
    np.testing.assert_allclose(np.std(y), 1, atol=1e-2)


@pytest.mark.ci
def test_synchronised_batch_norm_equals_the_whole_batch():
    x = jnp.asarray(np.random.default_rng(4).standard_normal((8, 2, 2, 3)), jnp.float32)
    variables = models.BatchNorm().init(jax.random.key(0), x, False)
    whole, whole_state = models.BatchNorm().apply(variables, x, True, mutable=["batch_stats"])
    norm = models.BatchNorm(axis_name="data")
    split, split_state = jax.vmap(
        lambda part: norm.apply(variables, part, True, mutable=["batch_stats"]), axis_name="data"
    )(x.reshape(4, 2, 2, 2, 3))
    np.testing.assert_allclose(split.reshape(whole.shape), whole, atol=1e-6)
    for name in ("mean", "var"):
        for part in split_state["batch_stats"][name]:
            # values of order 1 are summed in another order: a mean near 0 keeps their rounding
            np.testing.assert_allclose(part, whole_state["batch_stats"][name], rtol=1e-6, atol=1e-7)


def test_synchronised_batch_norm_needs_no_axis_in_evaluation():
    x = jnp.ones((2, 3))
    norm = models.BatchNorm(axis_name="data")
    variables = norm.init(jax.random.key(0), x, False)
    assert norm.apply(variables, x, False).shape == (2, 3)


def test_normalise_has_no_parameters():
    module = models.Normalise(*models.CIFAR10)
    x = jnp.full((1, 2, 2, 3), 0.5)
    assert module.init(jax.random.key(0), x) == {}
    expected = (0.5 - np.array(models.CIFAR10.mean)) / np.array(models.CIFAR10.std)
    np.testing.assert_allclose(module.apply({}, x)[0, 0, 0], expected, rtol=1e-5)


def conv_count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim == 4)


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def network(name, num_classes=10, **fields):
    if name == "small":
        return models.SmallCNN(num_classes, "patches", **fields), (2, 8, 8, 1)
    return models.ResNet20s(num_classes, "patches", **fields), (2, 32, 32, 3)


@pytest.mark.parametrize(
    ("name", "total", "convolutions"), [("small", 24_058, 23_184), ("resnet", 269_722, 267_696)]
)
def test_parameter_counts(name, total, convolutions):
    module, shape = network(name)
    params, _ = jax.eval_shape(models.init_of(module, shape), jax.random.key(0))
    assert (count(params), conv_count(params)) == (total, convolutions)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", ["small", "resnet"])
def test_head_is_named(name):
    module, shape = network(name, num_classes=16)  # 16 outputs: as many as the stem has
    params, _ = jax.eval_shape(models.init_of(module, shape), jax.random.key(0))
    marks = models.head_of(params)
    assert jax.tree.structure(marks) == jax.tree.structure(params)
    marked = [
        (path, leaf.shape)
        for (path, leaf), mark in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(marks), strict=True
        )
        if mark
    ]
    assert [jax.tree_util.keystr(path) for path, _ in marked] == [
        "['head']['bias']",
        "['head']['kernel']",
    ]
    assert all(shape[-1] == 16 for _, shape in marked)


def test_head_of_a_foreign_tree_raises():
    with pytest.raises(ValueError, match="no layer is called 'head'; the layers are a, b"):
        models.head_of({"a": jnp.zeros(2), "b": jnp.zeros(2)})


@pytest.mark.ci
def test_init_under_vmap_equals_init_alone():
    module, shape = network("small")
    init = models.init_of(module, shape)
    keys = jax.random.split(jax.random.key(0), 3)
    batched = jax.jit(jax.vmap(init))(keys)
    alone = jax.jit(init)(keys[1])
    assert jax.tree.structure(batched) == jax.tree.structure(alone)
    for many, one in zip(jax.tree.leaves(batched), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(many[1], one, rtol=1e-6)


def test_initial_values_have_the_stated_spread():
    kernel = kaiming_normal(jax.random.key(0), (3, 3, 16, 64))
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / 144), rel=0.03)
    assert np.abs(kernel).max() > 3 * np.std(kernel)  # not truncated
    bias = linear_bias(64)(jax.random.key(1), (1000,))
    assert np.abs(bias).max() <= 0.125
    assert np.std(bias) == pytest.approx(0.125 / np.sqrt(3), rel=0.1)


def test_apply_fn_types():
    module, shape = network("small", dtype=jnp.bfloat16)
    params, net_state = jax.eval_shape(models.init_of(module, shape), jax.random.key(0))

    def apply(params, net_state, inputs, train):
        logits, new = models.apply_fn_of(module)(
            params, net_state, inputs, train=train, key=jax.random.key(0)
        )
        assert train or new is net_state
        return logits, new

    inputs = jax.ShapeDtypeStruct(shape, jnp.float32)
    for train in (False, True):
        logits, new = jax.eval_shape(partial(apply, train=train), params, net_state, inputs)
        assert (logits.shape, logits.dtype) == ((2, 10), jnp.float32)
        assert list(new) == ["batch_stats"]
        shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (new, net_state))
        assert shapes[0] == shapes[1]


def test_training_mode_moves_every_statistic():
    module, shape = network("small")
    params, net_state = jax.jit(models.init_of(module, shape))(jax.random.key(0))
    x = jax.random.uniform(jax.random.key(1), shape)
    apply_fn = jax.jit(partial(models.apply_fn_of(module), train=True))
    _, new = apply_fn(params, net_state, x, key=jax.random.key(0))
    for before, after in zip(jax.tree.leaves(net_state), jax.tree.leaves(new), strict=True):
        assert not np.any(np.asarray(before) == np.asarray(after))


@pytest.mark.ci
def test_small_network_trains_inside_a_scan():
    module, _ = network("small", num_classes=2)
    params, net_state = jax.jit(models.init_of(module, (1, 8, 8, 1)))(jax.random.key(0))
    apply_fn = models.apply_fn_of(module)
    labels = jnp.arange(16) % 2
    x = jax.random.uniform(jax.random.key(1), (16, 8, 8, 1)) * 0.5
    x = x + 0.5 * labels[:, None, None, None]

    def loss(params, net_state):
        logits, net_state = apply_fn(params, net_state, x, train=True, key=jax.random.key(0))
        log_p = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(log_p, labels[:, None], axis=1).mean(), net_state

    def step(carry, _):
        (value, net_state), grads = jax.value_and_grad(loss, has_aux=True)(*carry)
        return (jax.tree.map(lambda p, g: p - 0.1 * g, carry[0], grads), net_state), value

    _, values = jax.jit(lambda carry: lax.scan(step, carry, length=20))((params, net_state))
    assert values[-1] < 0.1 * values[0]


def from_torch(arrays):
    """Official ResNet-20s state dict to (params, net_state): OIHW to HWIO, [out, in] to [in, out].

    "layer2.0.conv1.weight" becomes layer2_0 / conv1 / kernel.
    """
    params, stats = {}, {}
    for name, value in arrays.items():
        path = re.sub(r"^(layer\d)\.", r"\1_", name).replace("fc.", "head.").split(".")
        leaf = path.pop()
        if path[0] == "normalize" or leaf == "num_batches_tracked":
            continue
        running = leaf.startswith("running_")
        if running:
            leaf = leaf.removeprefix("running_")
        elif leaf == "weight":
            leaf = "kernel" if value.ndim > 1 else "scale"
        tree = stats if running else params
        for part in path:
            tree = tree.setdefault(part, {})
        tree[leaf] = jnp.asarray(value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T)
    return params, {"batch_stats": stats}


def reference(name):
    if not (REFERENCE / name).is_file():
        pytest.skip(f"{REFERENCE / name} is absent; set SPARSE_MU_SHARED")
    return np.load(REFERENCE / name)


@pytest.mark.ci
def test_resnet20s_with_xlas_convolutions_against_official_logits():
    # in the form of this machine tests/reference compares them
    recorded = reference("resnet20s.npz")
    params, net_state = from_torch(
        {
            key.removeprefix("weights/"): recorded[key]
            for key in recorded.files
            if key.startswith("weights/")
        }
    )
    module = models.ResNet20s(10, "xla")
    expected = jax.eval_shape(models.init_of(module, (1, 32, 32, 3)), jax.random.key(0))
    assert jax.tree.structure((params, net_state)) == jax.tree.structure(expected)
    apply_fn = jax.jit(models.apply_fn_of(module), static_argnames="train")
    batch = json.loads(str(recorded["settings"]))["batch"]
    test = recorded["data/test_images"] / np.float32(255)
    retain = recorded["data/retain_images"][:batch] / np.float32(255)

    def worst(logits, wanted):
        return np.abs(logits - wanted).max() / np.abs(wanted).max()

    key = jax.random.key(0)
    logits, _ = apply_fn(params, net_state, test, train=False, key=key)
    assert worst(logits, recorded["forward/test_logits"]) < 1e-5
    logits, _ = apply_fn(params, net_state, retain, train=True, key=key)
    assert worst(logits, recorded["forward/retain_logits_train_mode"]) < 1e-5
