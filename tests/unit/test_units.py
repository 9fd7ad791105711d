"""Units across leaves: hidden units by hand, channels by what their removal must not change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_mu import masks, models, units, unlearn
from sparse_mu.models.resnet import BasicBlock, Bottleneck, ResNet
from sparse_mu.types import Model

RNG = np.random.default_rng(0)
MLP = {
    "first": RNG.standard_normal((4, 3)).astype(np.float32),
    "second": RNG.standard_normal((3, 6)).astype(np.float32),
    "third": RNG.standard_normal((6, 2)).astype(np.float32),
    "bias": np.zeros(3, np.float32),
}
CHAIN = units.chain(MLP, ("first", "second", "third"))


def test_norms_of_hidden_units():
    expected = [
        *np.sqrt((MLP["first"] ** 2).sum(0) + (MLP["second"] ** 2).sum(1)),
        *np.sqrt((MLP["second"] ** 2).sum(0) + (MLP["third"] ** 2).sum(1)),
    ]
    np.testing.assert_allclose(units.norms(MLP, CHAIN), expected, rtol=1e-6)
    assert CHAIN.layers.tolist() == [0] * 3 + [1] * 6


def test_a_pruned_unit_takes_its_column_and_its_row():
    stay = np.ones(9, bool)
    stay[[1, 5]] = False  # unit 1 of the first hidden layer, unit 2 of the second
    found = units.keep(stay, MLP, CHAIN)
    assert not found["first"][:, 1].any() and found["first"][:, [0, 2]].all()
    assert not found["second"][1].any() and not found["second"][:, 2].any()
    assert found["second"][np.ix_([0, 2], [0, 1, 3, 4, 5])].all()
    assert not found["third"][2].any() and found["bias"].all()
    masks.check(found, MLP)


def test_every_layer_keeps_its_own_count_and_ties_go_by_number():
    found = np.array([3.0, 3, 3, 1, 1, 1, 1, 1, 9])
    stay = units.highest(found, 0.5, CHAIN)
    # round(1.5) = 2 of the first layer's three (half to even), 3 of the second's six
    assert stay.tolist() == [False, False, True, False, False, False, True, True, True]
    assert units.highest(found, 0.0, CHAIN).all()


def test_a_mask_tells_which_units_it_keeps():
    stay = np.array([True, False, True, False, True, True, False, True, False])
    found = units.keep(stay, MLP, CHAIN)
    assert units.stays(found, CHAIN).tolist() == stay.tolist()
    # nothing of the second layer stays, so nothing reads the units of the first: they do stay
    alone = units.keep(np.arange(9) < 3, MLP, CHAIN)
    assert units.stays(alone, CHAIN).tolist() == [True] * 3 + [False] * 6


def test_units_are_projected_to_the_counts_of_another_mask():
    other = jax.tree.map(lambda leaf: RNG.standard_normal(leaf.shape).astype(np.float32), MLP)
    old = units.keep(np.array([1, 1, 0, 1, 0, 0, 0, 0, 0], bool), MLP, CHAIN)
    found = units.stays(unlearn.by_norm(CHAIN)(other, old), CHAIN)
    norms = units.norms(other, CHAIN)
    assert found[:3].sum() == 2 and found[3:].sum() == 1
    assert norms[:3][found[:3]].min() > norms[:3][~found[:3]].max()
    assert norms[3:].argmax() == found[3:].argmax()


@pytest.mark.parametrize("name", ["resnet18", "small_cnn"])
def test_channels_of_a_network_are_unpruned_by_their_norms(name):
    """The pipeline's own masks of Dr come back from the dense weights of Dr."""
    params = [jax.tree.map(np.asarray, made(name)[1]) for _ in range(2)]
    params[1] = jax.tree.map(
        lambda leaf: leaf + 0.2 * RNG.standard_normal(leaf.shape).astype(np.float32), params[1]
    )
    tied = models.channel_units(NETWORKS[name](), params[0])
    before, after = (units.norm_masks(of, 0.5, tied) for of in params)
    on_dr, theta_0 = (Model(jax.tree.map(lambda leaf: leaf[None], of)) for of in params[::-1])
    found = unlearn.unprune(
        lambda epochs, enough=None: dict.fromkeys(epochs, on_dr),
        None,
        theta_0=theta_0,
        original=theta_0,
        masks=jax.tree.map(lambda leaf: leaf[None], before),
        mode=unlearn.Rewind(),
        epochs=1,
        project=unlearn.by_norm(tied),
        batched=True,
    )
    for ours, theirs in zip(jax.tree.leaves(found.masks), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(ours[0], theirs)
    assert any(
        (a != b).any() for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    )


def test_bad_chains_and_norms_are_refused():
    with pytest.raises(ValueError, match="two or more"):
        units.chain(MLP, ("first",))
    with pytest.raises(ValueError, match="'bias'"):
        units.chain(MLP, ("first", "bias"))
    with pytest.raises(ValueError, match="reads 6 inputs, but 'first' has 3 outputs"):
        units.chain(MLP, ("first", "third"))
    with pytest.raises(ValueError, match="sparsity"):
        units.highest(np.zeros(9), 1.0, CHAIN)
    for call in (units.norms, units.stays):
        with pytest.raises(ValueError, match="units names the leaf 'first'"):
            call({"second": MLP["second"]}, CHAIN)
    with pytest.raises(ValueError, match="units names the leaf 'first'"):
        units.keep(np.ones(9, bool), {"second": MLP["second"]}, CHAIN)
    with pytest.raises(ValueError, match="not finite"):
        units.highest(np.full(9, np.nan), 0.5, CHAIN)


NETWORKS = {
    "resnet20s": lambda: models.ResNet20s(10, form="patches"),
    "resnet18": lambda: ResNet((2, 1), BasicBlock, 10, "patches", width=8),
    "resnet50": lambda: ResNet((2, 1), Bottleneck, 10, "patches", width=8),
    "small_cnn": lambda: models.SmallCNN(10, "patches"),
}


def made(name):
    network = NETWORKS[name]()
    side = 8
    channels = 1 if name == "small_cnn" else 3
    params, net_state = models.init_of(network, (1, side, side, channels))(jax.random.key(0))
    # BatchNorms that are not the identity, or removing one could not be seen
    params = jax.tree.map(
        lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(1), leaf.shape), params
    )
    inputs = jax.random.uniform(jax.random.key(2), (5, side, side, channels))
    return network, params, net_state, inputs


@pytest.mark.parametrize("name", NETWORKS)
def test_every_channel_of_every_kernel_is_in_one_unit(name):
    network, params, _, _ = made(name)
    found = models.channel_units(network, params)
    axes = {(axis.leaf, axis.axis): axis for axis in found.axes}
    assert len(axes) == len(found.axes)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        leaf_name = jax.tree_util.keystr(path, simple=True, separator="/")
        if leaf.ndim == 4:
            assert (leaf_name, 3) in axes
            assert ((leaf_name, 2) in axes) == (leaf_name != "conv1/kernel")  # the image's channels
        elif leaf.ndim == 1 and leaf_name != "head/bias":
            assert not axes[leaf_name, 0].scored
    for axis in found.axes:
        sizes = np.shape(dict(leaves(params))[axis.leaf])
        assert len(axis.units) == sizes[axis.axis]
        assert len(set(axis.units.tolist())) == len(axis.units)
    used = np.concatenate([axis.units for axis in found.axes])
    assert set(used.tolist()) == set(range(len(found.layers)))


def leaves(params):
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


@pytest.mark.parametrize("name", NETWORKS)
def test_a_pruned_channel_is_dead_whatever_its_weights_are(name):
    """Logits of the masked network do not change if pruned units' *readers* are put back.

    If a unit were tied too loosely, its stream would carry something into them.
    """
    network, params, net_state, inputs = made(name)
    found = models.channel_units(network, params)
    rng = np.random.default_rng(3)
    stay = rng.random(len(found.layers)) < 0.6
    apply_fn = models.apply_fn_of(network)

    def logits(mask):
        pruned = masks.apply(mask, params)
        return apply_fn(pruned, net_state, inputs, train=False, key=jax.random.key(0))[0]

    whole = units.keep(stay, params, found)
    # only what writes a stream is pruned: outputs of kernels, and the BatchNorms behind them
    writers = found._replace(
        axes=tuple(a for a in found.axes if a.axis != np.ndim(dict(leaves(params))[a.leaf]) - 2)
    )
    loose = units.keep(stay, params, writers)
    np.testing.assert_allclose(logits(loose), logits(whole), rtol=1e-4, atol=1e-4)
    assert any(
        bool(jnp.any(a != b))
        for a, b in zip(jax.tree.leaves(loose), jax.tree.leaves(whole), strict=True)
    )
    dense = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)
    assert not np.allclose(logits(whole), logits(dense), atol=1e-2)


def test_another_network_is_refused():
    with pytest.raises(ValueError, match="channels are not known"):
        models.channel_units(models.VGG16BN(10, form="patches"), {"a": np.zeros(3)})


def test_norm_masks_prune_whole_units():
    found = units.norm_masks(MLP, 0.5, CHAIN)
    assert found["first"].any(0).sum() == 1 and found["third"].any(1).sum() == 3
