"""Networks from configs: names, stems, constants, and what does not go together."""

import functools
import types

import jax
import numpy as np
import pytest

from configs import digits
from sparse_mu import config, models, rules
from sparse_mu.builders.network import build_network
from sparse_mu.config import ConfigError


def flat(**changes):
    """The config of digits with keys replaced; "__" stands for "."."""
    found = config.check(digits.get_config().to_dict())
    return found | {key.replace("__", "."): value for key, value in changes.items()}


def images(name="cifar10", shape=(32, 32, 3)):
    inputs = np.zeros((1, *shape), np.uint8)
    return types.SimpleNamespace(name=name, inputs=inputs, class_names=tuple("abcdefg"))


def built(data=None, **changes):
    data = data or images()
    changes = {"dataset__name": data.name, **changes}
    return build_network(flat(**changes), data)


def size(network):
    params = jax.eval_shape(network.init, jax.random.key(0)).params
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("name", "stem", "total"),  # of 10 classes, less 3 rows of the head
    [
        ("small_cnn", "cifar", 24_058 + 2 * 9 * 16 - 3 * 65),
        ("resnet20s", "cifar", 269_722 - 3 * 65),
        ("resnet18", "cifar", 11_173_962 - 3 * 513),
        ("resnet18", "imagenet", 11_173_962 - 3 * 513 + 64 * 3 * (49 - 9)),
        ("resnet50", "cifar", 23_520_842 - 3 * 2049),
        ("resnet50", "imagenet", 23_520_842 - 3 * 2049 + 64 * 3 * (49 - 9)),
        ("vgg16_bn", "cifar", 15_311_818 - 3 * 257),
        ("vgg16_bn_lth", "cifar", 14_728_266 - 3 * 513),
        ("swin_t", "cifar", 26_598_646 - 3 * 769),
    ],
)
def test_every_name_is_built(name, stem, total):
    network = built(model__name=name, model__stem=stem)
    assert size(network) == total and network.num_classes == 7
    assert network.channels == (None if name == "small_cnn" else models.CIFAR10)


@pytest.mark.parametrize(
    ("dataset", "chosen", "expected"),
    [
        ("cifar100", "auto", models.CIFAR100),
        ("svhn_cropped:3.1.0", "auto", models.SVHN),
        ("imagenet2012", "auto", models.IMAGENET),
        ("cifar10", "none", None),
        ("my_images", "imagenet", models.IMAGENET),
        ("my_images", "svhn", models.SVHN),
    ],
)
def test_constants(dataset, chosen, expected):
    network = built(images(dataset), model__name="resnet20s", model__channels=chosen)
    assert network.channels == expected


@pytest.mark.parametrize("chosen", rules.CHANNELS)
def test_every_choice_of_constants_is_known(chosen):
    assert (built(model__channels=chosen).channels is None) == (chosen in ("auto", "none"))


def test_a_small_network_normalises_when_asked_to():
    assert built(model__channels="cifar100").channels == models.CIFAR100


@pytest.mark.parametrize(
    ("data", "changes", "message"),
    [
        (images("my_images"), {}, "'auto': knows the constants of cifar10, .*, not of my_images; "
         "name one of cifar10, .*, or 'none' for"),
        (images("digits", (8, 8, 1)), {"model__channels": "cifar10"},
         "'cifar10': normalises 3 channels, the images of digits have 1; set .*channels=none"),
        (images(shape=(15, 32, 3)), {"model__name": "vgg16_bn_lth"},
         "'vgg16_bn_lth': needs images of at least 16 pixels, cifar10 has 15x32; see "),
        (images(shape=(48, 32, 3)), {"model__name": "swin_t"},
         "'swin_t': needs images whose sides are multiples of 32, cifar10 has 48x32; see "),
    ],
)  # fmt: skip
def test_what_does_not_go_together(data, changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        built(data, **{"model__name": "resnet20s", **changes})
    assert str(caught.value).startswith("config.") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"model.name": "swin_t", "model.stem": "imagenet"}, "model.stem"),
        ({"model.name": "swin_t"}, "prune.sparsities"),
        ({"model.name": "swin_t", "prune.sparsities": (),
          "unlearn.methods": ("finetune_and_prune",)}, "unlearn.methods"),
        ({"model.name": "swin_t", "prune.sparsities": (), "unlearn.methods": ("l1_sparse",),
          "unlearn.l1_sparse.penalty": "proximal"}, "unlearn.l1_sparse.penalty"),
    ],
)  # fmt: skip
def test_what_no_images_could_make_right(changes, key):
    given = digits.get_config().to_dict()
    for changed, value in changes.items():
        *groups, last = changed.split(".")
        functools.reduce(dict.__getitem__, groups, given)[last] = value
    with pytest.raises(ConfigError, match=rf"^config\.{key} = .*: must be .*'swin_t'"):
        config.check(given)


@pytest.mark.parametrize("name", ["small_cnn", "resnet18", "swin_t"])
def test_batches_split_over_an_axis(name):
    network = build_network(
        flat(dataset__name="cifar10", model__name=name), images(), axis_name="rows"
    )
    params, net_state = jax.eval_shape(network.init, jax.random.key(0))
    batch = jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32)

    def train(params, net_state, batch, apply_fn=network.whole_apply_fn):
        return apply_fn(params, net_state, batch, train=True, key=jax.random.key(0))[0]

    assert jax.eval_shape(train, params, net_state, batch).shape == (2, 7)
    if name != "swin_t":  # it has no statistics
        with pytest.raises(NameError, match="rows"):
            jax.eval_shape(lambda *a: train(*a, network.apply_fn), params, net_state, batch)
