"""The paper's networks: sizes, heads, first values, and the transformations that methods apply.

Their logits are compared with the official ones in tests/reference.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_mu import models
from sparse_mu.models import initialisers, resnet, swin, vgg

FULL = {
    "resnet18": (models.ResNet18(10, "patches"), 32, 11_173_962, 11_159_232),
    "resnet18 of 1000, ImageNet stem": (
        models.ResNet18(1000, "patches", stem="imagenet"), 224, 11_689_512, 11_166_912,
    ),
    "resnet50 of 100": (models.ResNet50(100, "patches"), 32, 23_705_252, 23_447_232),
    "vgg16_bn": (models.VGG16BN(10, "patches"), 32, 15_311_818, 14_710_464),
    "vgg16_bn_lth": (models.VGG16BNLTH(10, "patches"), 32, 14_728_266, 14_710_464),
    "swin_t": (models.SwinT(10), 32, 26_598_646, 0),
}  # fmt: skip

# the same layers, few and narrow, on images just large enough: compiling is what takes time
NARROW = {
    "imagenet stem": (
        resnet.ResNet((1,), resnet.BasicBlock, 3, "patches", stem="imagenet", width=4), 16,
    ),
    "bottleneck": (resnet.ResNet((1,), resnet.Bottleneck, 3, "patches", width=2), 4),
    "vgg": (models.VGG16BN(3, "patches", widths=((4,), (6,))), 8),
    "swin": (models.SwinT(3, width=8, layers=(2,), heads=(1,), merges=(2,)), 16),
}  # fmt: skip


def shapes(module, side):
    return jax.eval_shape(models.init_of(module, (1, side, side, 3)), jax.random.key(0))


@pytest.mark.parametrize("name", FULL)
def test_sizes_and_head(name):
    module, side, total, convolutions = FULL[name]
    params, _ = shapes(module, side)
    leaves = jax.tree.leaves(params)
    assert sum(leaf.size for leaf in leaves) == total
    assert sum(leaf.size for leaf in leaves if leaf.ndim == 4) == convolutions
    assert all(leaf.dtype == jnp.float32 for leaf in leaves)
    marks = models.head_of(params)
    assert jax.tree.structure(marks) == jax.tree.structure(params)
    marked = [leaf.shape for leaf, mark in zip(leaves, jax.tree.leaves(marks), strict=True) if mark]
    classes = module.num_classes
    assert sorted(map(len, marked)) == [1, 2] and all(shape[-1] == classes for shape in marked)
    head = {"bias": marked[0], "kernel": marked[1]}
    assert head == {key: leaf.shape for key, leaf in params["head"].items()}


@functools.cache
def narrow(name, dtype=jnp.float32):
    """A narrow network whose tensors are all random, as after training."""
    module, side = NARROW[name]
    params, net_state = shapes(module, side)
    rng = np.random.default_rng(0)

    def weights(leaf):  # none near 0
        values = rng.uniform(0.2, 0.4, leaf.shape) * rng.choice([-1, 1], leaf.shape)
        return values.astype(np.float32)

    params = jax.tree.map(weights, params)
    net_state = jax.tree.map(
        lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32), net_state
    )
    images = rng.random((2, side, side, 3), np.float32)
    return models.apply_fn_of(module.clone(dtype=dtype)), params, net_state, images


def logits_of(apply_fn, params, net_state, images):
    return apply_fn(params, net_state, images, train=False, key=jax.random.key(0))[0]


def tallest(tree):
    return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def slow(*names):
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.ci
@pytest.mark.parametrize("name", ["vgg", "swin", *slow("imagenet stem", "bottleneck")])
def test_gradients_of_examples_and_trials_side_by_side(name):
    apply_fn, params, net_state, images = narrow(name)

    def loss(params, image):
        logits = logits_of(apply_fn, params, net_state, image[None])
        return -jax.nn.log_softmax(logits)[0, 1]

    trials = jax.tree.map(lambda leaf: np.stack([leaf, 0.9 * leaf]), params)
    of_examples = jax.vmap(jax.grad(loss), (None, 0))
    found = jax.jit(jax.vmap(of_examples, (0, None)))(trials, images)
    alone = jax.jit(jax.grad(loss))
    for trial, row in ((0, 0), (0, 1), (1, 1)):
        expected = alone(jax.tree.map(lambda leaf, t=trial: leaf[t], trials), images[row])
        difference = jax.tree.map(
            lambda many, one, t=trial, r=row: many[t, r] - one, found, expected
        )
        assert tallest(expected) > 1e-3
        # the sums of a batched product are ordered otherwise
        assert tallest(difference) < 1e-4 * tallest(expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imagenet stem", "vgg", "swin"])
def test_a_hessian_is_symmetric(name):
    """Forward over reverse mode, through max-pools, attention and LayerNorm."""
    apply_fn, params, net_state, images = narrow(name)

    def loss(params):
        return jax.nn.logsumexp(logits_of(apply_fn, params, net_state, images), axis=1).sum()

    rng = np.random.default_rng(1)

    def direction():
        return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), params)

    def dot(a, b):
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        return sum(float(np.vdot(x, y)) for x, y in pairs)

    product = jax.jit(lambda v: jax.jvp(jax.grad(loss), (params,), (v,))[1])
    one, other = direction(), direction()
    image = product(one)
    scale = np.sqrt(dot(image, image) * dot(other, other))
    # float32, relative to the largest that the product of the two vectors could be
    assert scale > 0 and abs(dot(image, other) - dot(one, product(other))) < 1e-4 * scale


@pytest.mark.ci
@pytest.mark.parametrize("name", ["swin", *slow("imagenet stem", "bottleneck", "vgg")])
def test_bfloat16_computes_and_float32_keeps(name):
    logits = {}
    for dtype in (jnp.bfloat16, jnp.float32):
        apply_fn, params, net_state, images = narrow(name, dtype)
        train = functools.partial(apply_fn, train=True, key=jax.random.key(0))
        logits[dtype], new_state = jax.jit(train)(params, net_state, images)
        assert logits[dtype].dtype == jnp.float32
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(new_state))
        text = str(jax.make_jaxpr(train)(params, net_state, images))
        products = [line for line in text.splitlines() if "dot_general" in line]
        assert products and all(("bf16" in line) == (dtype == jnp.bfloat16) for line in products)
    half, full = logits[jnp.bfloat16], logits[jnp.float32]
    # 8 bits of mantissa, through some five layers
    assert 0 < np.abs(half - full).max() < 0.1 * np.abs(full).max()
    module, side = NARROW[name]
    drawn = shapes(module.clone(dtype=jnp.bfloat16), side)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(drawn))


@pytest.mark.ci
@pytest.mark.parametrize(
    ("name", "leaf", "spread"),
    [
        ("imagenet stem", "conv1/kernel", np.sqrt(2 / (49 * 64))),
        ("imagenet stem", "head/kernel", 64**-0.5 / np.sqrt(3)),
        ("imagenet stem", "head/bias", 64**-0.5 / np.sqrt(3)),
        ("vgg", "features_0/kernel", np.sqrt(2 / (9 * 64))),
        ("vgg", "features_0/bias", 0),
        ("vgg", "classifier_0/kernel", 0.01),
        ("vgg", "head/kernel", 0.01),
        ("vgg", "head/bias", 0),
        ("swin", "attention_block/fn/fn/pos_embedding", 1),
        ("swin", "attention_block/fn/fn/to_qkv/kernel", 64**-0.5 / np.sqrt(3)),
        ("swin", "mlp_block/fn/fn/net_2/bias", 256**-0.5 / np.sqrt(3)),
    ],
)
def test_first_values_have_the_official_spread(name, leaf, spread):
    params = wide(name)
    for part in leaf.split("/"):
        params = params[part]
    # rel: four standard errors of a deviation; there are 49 values or more
    assert np.std(params) == pytest.approx(spread, rel=4 / np.sqrt(2 * params.size))


@functools.cache
def wide(name):
    if name == "swin":
        block = swin.SwinBlock(heads=2, window=4, shifted=True, dtype=jnp.float32)
        return jax.jit(block.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 64)))["params"]
    module = {
        "imagenet stem": resnet.ResNet((1,), resnet.BasicBlock, 40, "patches", stem="imagenet"),
        "vgg": vgg.VGG(2, (256,), True, 40, "patches", widths=((64,),)),
    }[name]  # fmt: skip
    return jax.tree.map(
        np.asarray, jax.jit(models.init_of(module, (1, 16, 16, 3)))(jax.random.key(0))[0]
    )


def test_a_normal_draw_has_its_deviation():
    drawn = initialisers.normal(0.01)(jax.random.key(0), (100, 100))
    assert np.std(drawn) == pytest.approx(0.01, rel=0.03) and np.abs(drawn).max() > 0.03


def test_channel_major_is_torchs_order():
    images = jnp.arange(24).reshape(1, 2, 3, 4)
    flat = vgg.channel_major(images)[0]
    np.testing.assert_array_equal(flat.reshape(4, 2, 3)[2, 1, 0], images[0, 1, 0, 2])


def test_cells_are_unfolded_channel_first():
    images = jnp.arange(48).reshape(1, 4, 4, 3)
    cells = swin.unfold(images, 2)
    assert cells.shape == (1, 2, 2, 12)
    for channel, row, column in [(0, 0, 0), (2, 1, 0), (1, 0, 1)]:
        place = channel * 4 + row * 2 + column
        np.testing.assert_array_equal(cells[0, :, :, place], images[0, row::2, column::2, channel])


def test_the_table_of_positions_is_read_key_minus_query():
    table = jnp.arange(49.0).reshape(7, 7)
    bias, table = np.asarray(swin.position_bias(table)), np.asarray(table)
    for i in range(16):
        for j in range(16):
            assert bias[i, j] == table[j // 4 - i // 4 + 3, j % 4 - i % 4 + 3]


@pytest.mark.ci
def test_shifted_windows_do_not_reach_round_the_edge():
    module = swin.WindowAttention(heads=1, window=4, shifted=True, dtype=jnp.float32)
    maps = jax.random.normal(jax.random.key(1), (1, 8, 8, 5))
    variables = jax.jit(module.init)(jax.random.key(0), maps)
    apply = jax.jit(module.apply)

    def changed(row, column):
        moved = apply(variables, maps.at[0, row, column].add(1.0)) - apply(variables, maps)
        rows, columns = np.nonzero(np.abs(moved[0]).max(-1))
        return set(zip(rows.tolist(), columns.tolist(), strict=True))

    # windows begin two cells on: rows 2 to 5, and apart from each other 6, 7 and 0, 1
    assert changed(3, 4) == {(r, c) for r in range(2, 6) for c in range(2, 6)}
    assert changed(0, 1) == {(r, c) for r in (0, 1) for c in (0, 1)}
    assert changed(7, 0) == {(r, c) for r in (6, 7) for c in (0, 1)}
    assert changed(4, 7) == {(r, c) for r in range(2, 6) for c in (6, 7)}


def test_images_that_do_not_fit_raise():
    with pytest.raises(ValueError, match=r"of 48x32 do not divide into windows: .* of 32"):
        jax.eval_shape(models.init_of(models.SwinT(10), (1, 48, 32, 3)), jax.random.key(0))
    with pytest.raises(ValueError, match="images of 1x1 are too small for windows of 2"):
        jax.eval_shape(
            models.init_of(models.VGG16BN(10, "patches"), (1, 8, 8, 3)), jax.random.key(0)
        )


@pytest.mark.parametrize("name", ["imagenet stem", "vgg", "swin"])
def test_a_network_may_leave_its_input_as_it_is(name):
    """Without constants one division less, and images of any number of channels."""
    module, side = NARROW[name]
    divisions = []
    for channels, depth in ((models.CIFAR10, 3), (None, 3), (None, 1)):
        built = module.clone(channels=channels)
        init = models.init_of(built, (1, side, side, depth))
        params, net_state = jax.eval_shape(init, jax.random.key(0))
        images = jax.ShapeDtypeStruct((2, side, side, depth), jnp.float32)
        apply_fn = functools.partial(logits_of, models.apply_fn_of(built))
        divisions.append(str(jax.make_jaxpr(apply_fn)(params, net_state, images)).count(" div "))
    assert divisions[0] - 1 == divisions[1] == divisions[2]


@pytest.mark.parametrize("name", NARROW)
def test_the_head_of_the_features_is_the_network(name):
    module, side = NARROW[name]
    params, net_state = models.init_of(module, (1, side, side, 3))(jax.random.key(0))
    inputs = jax.random.uniform(jax.random.key(1), (4, side, side, 3))
    given = {"train": False, "key": jax.random.key(0)}
    features, state = jax.jit(functools.partial(models.features_fn_of(module), **given))(
        params, net_state, inputs
    )
    logits, _ = jax.jit(functools.partial(models.apply_fn_of(module), **given))(
        params, net_state, inputs
    )
    head = params["head"]
    expected = features @ head["kernel"] + head["bias"][None]
    np.testing.assert_allclose(expected, logits, rtol=1e-5, atol=1e-5)
    assert features.shape == (4, head["kernel"].shape[0]) and features.dtype == jnp.float32
    jax.tree.map(np.testing.assert_array_equal, state, net_state)
