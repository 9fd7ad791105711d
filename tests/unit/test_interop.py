"""State dicts in and out: exact round trips, one-line errors, and pickles that may not run."""

import builtins
import collections
import functools
import importlib.util
import json
import os
import struct
import sys
import zipfile

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_files import Parameter, View, archive, pickled, write_pth

from sparse_mu import interop, masks, models, trees
from sparse_mu.interop import StateDictError
from sparse_mu.models import swin
from sparse_mu.types import Model

IMAGES = (1, 32, 32, 3)
NARROW_VGG = ((2, 2), (2, 2), (2, 2, 2), (3, 3, 3), (3, 3, 3))  # its layers, few channels
NETWORKS = {
    "resnet20s": (models.ResNet20s(10, "patches"), IMAGES, models.CIFAR10),
    "small_cnn": (models.SmallCNN(10, "patches"), (1, 8, 8, 1), None),
    "resnet18": (models.ResNet18(10, "patches", width=2), IMAGES, models.CIFAR10),
    "resnet50": (models.ResNet50(10, "patches", stem="imagenet", width=1), IMAGES, models.CIFAR10),
    "vgg16_bn": (models.VGG16BN(10, "patches", widths=NARROW_VGG), IMAGES, models.CIFAR10),
    "vgg16_bn_lth": (models.VGG16BNLTH(10, "patches", widths=NARROW_VGG), IMAGES, models.CIFAR10),
    "swin_t": (models.SwinT(10, width=4), IMAGES, models.CIFAR10),
}


@functools.cache
def shapes(name):
    network, shape, _ = NETWORKS[name]
    return Model(*jax.eval_shape(models.init_of(network, shape), jax.random.key(0)))


def draw(name):
    """A model of random numbers, with the values that a careless copy changes."""
    rng = np.random.default_rng(3)

    def fill(leaf):
        values = rng.standard_normal(leaf.shape).astype(leaf.dtype)
        values.flat[:3] = (-0.0, 1e-40, np.nan)
        return values

    return jax.tree.map(fill, shapes(name))


def magnitudes(model):
    """Scores have no place for a NaN."""
    return jax.tree.map(lambda leaf: np.nan_to_num(np.abs(leaf)), model.params)


def bits(tree):
    return [np.asarray(leaf).view(np.uint8 if leaf.dtype == bool else np.uint32) for leaf in tree]


def assert_same_bits(found, expected):
    assert trees.leaf_names(found) == trees.leaf_names(expected)
    for one, other in zip(
        bits(jax.tree.leaves(found)), bits(jax.tree.leaves(expected)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.ci
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("sparsity", [0.0, 0.7])
def test_a_round_trip_keeps_every_bit(name, sparsity):
    model, channels = draw(name), NETWORKS[name][2]
    rank = 2 if name == "swin_t" else 4  # it has no convolution
    rng = np.random.default_rng(4)
    kept = jax.tree.map(
        lambda leaf: (rng.random(leaf.shape) >= sparsity) | (leaf.ndim != rank), model.params
    )
    pruned = jax.tree.map(lambda mask, leaf: np.where(mask, leaf, 0.0), kept, model.params)
    model = model._replace(params=jax.tree.map(np.float32, pruned))
    state_dict = interop.to_state_dict(model, kept, channels=channels)
    assert all(value.flags.c_contiguous for value in state_dict.values())
    found, found_masks = interop.from_state_dict(state_dict, shapes(name), channels=channels)
    assert_same_bits(found, model)
    assert_same_bits(found_masks, kept)
    again = interop.to_state_dict(found, found_masks, channels=channels)
    assert again.keys() == state_dict.keys()
    for key, value in state_dict.items():
        assert again[key].tobytes() == value.tobytes()


def test_layouts_and_names_are_pytorchs():
    model = draw("resnet20s")
    state_dict = interop.to_state_dict(model, channels=models.CIFAR10)
    # 19 convolutions, 19 BatchNorms of 5 tensors, a head of 2, 2 constants
    assert len(state_dict) == 19 + 95 + 2 + 2
    kernel = model.params["layer2_0"]["conv1"]["kernel"]
    weight = state_dict["layer2.0.conv1.weight"]
    assert kernel.shape == (3, 3, 16, 32) and weight.shape == (32, 16, 3, 3)
    assert weight[5, 7, 2, 1] == kernel[2, 1, 7, 5]
    assert state_dict["fc.weight"].shape == (10, 64)
    assert state_dict["fc.weight"][4, 9] == model.params["head"]["kernel"][9, 4]
    norm, statistics = "layer1.2.bn2", model.net_state["batch_stats"]["layer1_2"]["bn2"]
    ours = model.params["layer1_2"]["bn2"]
    for key, value in (
        ("weight", ours["scale"]),
        ("bias", ours["bias"]),
        ("running_mean", statistics["mean"]),
        ("running_var", statistics["var"]),
    ):
        np.testing.assert_array_equal(state_dict[f"{norm}.{key}"], value)
    counter = state_dict[f"{norm}.num_batches_tracked"]
    assert counter.shape == () and counter.dtype == np.int64
    assert state_dict["normalize.std"].tolist() == np.float32(models.CIFAR10.std).tolist()
    small = interop.to_state_dict(draw("small_cnn"))
    assert {"conv3.weight", "bn1.running_var", "fc.bias"} <= small.keys()
    assert not [key for key in small if key.startswith("normalize")]


def official_names(shared_folder, name):
    """Parameters and running statistics of a network whose logits are recorded."""
    with np.load(shared_folder / "reference" / "architectures.npz") as file:
        info = json.loads(str(file[f"{name}/info"]))
    return {tensor["name"] for tensor in info["parameters"]}


@pytest.mark.parametrize("name", ["resnet20s", "resnet18", "resnet50", "vgg16_bn", "swin_t"])
def test_names_are_the_official_ones(shared_folder, name):
    found = interop.to_state_dict(draw(name), channels=NETWORKS[name][2])
    counters = {key for key in found if key.endswith(".num_batches_tracked")}
    added = {key for key in found if key.startswith("normalize.") or key.endswith("_mask")}
    assert found.keys() - counters - added == official_names(shared_folder, name)
    assert len(counters) == len([key for key in found if key.endswith(".running_var")])


def test_a_lottery_ticket_vgg_has_biases_and_one_linear_layer():
    found = interop.to_state_dict(draw("vgg16_bn_lth"))
    places = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
    layers = {f"features.{place}" for place in places} | {"classifier"}
    norms = {f"features.{place + 1}" for place in places}
    statistics = {"running_mean", "running_var", "num_batches_tracked"}
    assert found.keys() == {f"{layer}.{key}" for layer in layers for key in ("weight", "bias")} | {
        f"{norm}.{key}" for norm in norms for key in {"weight", "bias"} | statistics
    }
    assert found["classifier.weight"].shape == (10, 3)


@pytest.mark.parametrize(("name", "convolutions"), [("resnet18", 2), ("resnet50", 3)])
def test_torchvisions_names_load(name, convolutions):
    """Its networks have the ImageNet stem, and normalise outside."""
    counts = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}[name]
    blocks = [(stage, i) for stage, count in enumerate(counts, start=1) for i in range(count)]
    pairs = [("conv1", "bn1")]
    for stage, index in blocks:
        layer = f"layer{stage}.{index}"
        pairs += [(f"{layer}.conv{i}", f"{layer}.bn{i}") for i in range(1, convolutions + 1)]
        if index == 0 and (stage > 1 or name == "resnet50"):
            pairs.append((f"{layer}.downsample.0", f"{layer}.downsample.1"))
    statistics = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {f"{conv}.weight" for conv, _ in pairs} | {"fc.weight", "fc.bias"}
    expected |= {f"{norm}.{key}" for _, norm in pairs for key in statistics}
    model = draw(name)
    state_dict = interop.to_state_dict(model)
    assert state_dict.keys() == expected
    found, _ = interop.from_state_dict(state_dict, shapes(name), channels=models.IMAGENET)
    assert_same_bits(found, model)


def test_the_masks_of_shifted_windows_are_written_and_may_be_missing():
    model = draw("swin_t")
    state_dict = interop.to_state_dict(model)
    found = {key: value for key, value in state_dict.items() if key.endswith("_mask")}
    blocks = ("stage1.layers.0", "stage2.layers.0", "stage3.layers.0", "stage3.layers.1",
              "stage3.layers.2", "stage4.layers.0")  # fmt: skip
    for block in blocks:
        for side, mask in zip(("upper_lower", "left_right"), swin.shift_masks(4), strict=True):
            value = found.pop(f"{block}.1.attention_block.fn.fn.{side}_mask")
            np.testing.assert_array_equal(value, mask)
            assert value.dtype == np.float32 and value.shape == (16, 16)
    assert not found
    without = {key: value for key, value in state_dict.items() if not key.endswith("_mask")}
    assert_same_bits(interop.from_state_dict(without, shapes("swin_t"))[0], model)
    name = "stage1.layers.0.1.attention_block.fn.fn.left_right_mask"
    with pytest.raises(StateDictError, match=f"tensor '{name}' is not the mask of windows"):
        interop.from_state_dict({**state_dict, name: np.zeros((16, 16))}, shapes("swin_t"))


def test_a_swin_with_constants_is_one_that_does_not_normalise():
    """The official code gives every network constants; its Swin does not use them."""
    model, like = draw("swin_t"), shapes("swin_t")
    assert "normalize.mean" not in interop.to_state_dict(model, channels=models.CIFAR10)
    constants = {"normalize.mean": np.float32(models.CIFAR10.mean), "normalize.std": np.ones(3)}
    official = {**interop.to_state_dict(model), **constants}
    assert_same_bits(interop.from_state_dict(official, like)[0], model)
    with pytest.raises(StateDictError, match=r"'normalize\.mean' stands in a Swin .* never norm"):
        interop.from_state_dict(official, like, channels=models.CIFAR10)


def test_the_recorded_state_dict_comes_back_exactly(shared_folder):
    with np.load(shared_folder / "reference" / "resnet20s.npz") as file:
        recorded = {
            name.removeprefix("weights/"): file[name]
            for name in file.files
            if name.startswith("weights/")
        }
    like = shapes("resnet20s")
    model, kept = interop.from_state_dict(recorded, like, channels=models.CIFAR10)
    assert all(np.asarray(leaf).all() for leaf in jax.tree.leaves(kept))
    back = interop.to_state_dict(model, kept, channels=models.CIFAR10)
    assert back.keys() == recorded.keys()
    for name, value in recorded.items():
        assert back[name].dtype == value.dtype and back[name].shape == value.shape
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(back[name], value)


def test_masks_come_as_torch_writes_them():
    model = draw("small_cnn")
    kept = masks.ones_like(model.params)
    kept["conv2"]["kernel"] = kept["conv2"]["kernel"].at[1, 2, 3, 4].set(False)
    state_dict = interop.to_state_dict(model, kept)
    # the official code attaches masks to every convolution or to none
    assert {key for key in state_dict if key.endswith("_mask")} == {
        "conv1.weight_mask", "conv2.weight_mask", "conv3.weight_mask"
    }  # fmt: skip
    mask = state_dict["conv2.weight_mask"]
    assert mask.dtype == np.float32 and mask.sum() == mask.size - 1 and mask[4, 3, 1, 2] == 0
    assert state_dict["conv2.weight_orig"][4, 3, 1, 2] != 0
    found, found_masks = interop.from_state_dict(state_dict, shapes("small_cnn"))
    assert found.params["conv2"]["kernel"][1, 2, 3, 4] == 0
    assert_same_bits(found_masks, kept)


@pytest.mark.ci
def test_a_pruned_leaf_that_is_no_convolution_keeps_its_mask():
    model = draw("small_cnn")
    kept = masks.from_scores(magnitudes(model), 0.5, masks.matrices)
    state_dict = interop.to_state_dict(model, kept)
    assert "fc.weight_mask" in state_dict and "fc.bias" in state_dict
    assert_same_bits(interop.from_state_dict(state_dict, shapes("small_cnn"))[1], kept)


def test_checkpoints_and_prefixes_are_unwrapped():
    model = draw("small_cnn")
    state_dict = interop.to_state_dict(model)
    parallel = {f"module.{key}": value for key, value in state_dict.items()}
    checkpoint = {"epoch": 3, "state_dict": parallel, "best_sa": 91.5}
    found, _ = interop.from_state_dict(checkpoint, shapes("small_cnn"))
    assert_same_bits(found, model)


def test_half_precision_is_widened():
    model = draw("small_cnn")
    half = {
        key: value.astype(np.float16) if value.dtype == np.float32 else value
        for key, value in interop.to_state_dict(model).items()
    }
    found, _ = interop.from_state_dict(half, shapes("small_cnn"))
    kernel = found.params["head"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, half["fc.weight"].T.astype(np.float32))


def changed(state_dict, **changes):
    """A copy with entries replaced, or taken out where the change is None."""
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return {key: value for key, value in (state_dict | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bn2__running_var": None}, "'bn2.running_var' (leaf 'batch_stats/bn2/var') is missing"),
        ({"fc__weight": None}, "'fc.weight' (leaf 'head/kernel') is missing"),
        (
            {"fc__weight": np.zeros((64, 10), np.float32)},
            "'fc.weight' (leaf 'head/kernel') has shape (64, 10), expected (10, 64)",
        ),
        (
            {"conv1__weight": np.zeros((16, 3, 3, 3), np.float32)},
            "'conv1.weight' (leaf 'conv1/kernel') has shape (16, 3, 3, 3), expected (16, 1, 3, 3)",
        ),
        ({"conv4__weight": np.zeros(3)}, "'conv4.weight' is not expected"),
        ({"conv1__bias": np.zeros(3)}, "'conv1.bias' is not expected"),
        ({"conv4__num_batches_tracked": np.zeros(())}, "'conv4.num_batches_tracked' is not exp"),
        ({"fc__bias": np.zeros(10, np.int32)}, "'fc.bias' (leaf 'head/bias') is int32, no float"),
        ({"fc__bias": 3}, "entry 'fc.bias' is a int, not a tensor"),
        (
            {"conv1__weight_mask": np.ones((16, 1, 3, 3))},
            "'conv1.weight_mask' (leaf 'conv1/kernel') stands without 'conv1.weight_orig'",
        ),
        (
            {"conv1__weight_orig": np.ones((16, 1, 3, 3))},
            "'conv1.weight_orig' (leaf 'conv1/kernel') stands without 'conv1.weight_mask'",
        ),
        (
            {
                "conv1__weight": None,
                "conv1__weight_orig": np.ones((16, 1, 3, 3)),
                "conv1__weight_mask": np.full((16, 1, 3, 3), 0.5),
            },
            "'conv1.weight_mask' (leaf 'conv1/kernel') holds other than 0 and 1",
        ),
        (
            {
                "conv1__weight": None,
                "conv1__weight_orig": np.ones((16, 1, 3, 3)),
                "conv1__weight_mask": np.ones((16, 1, 3, 1)),
            },
            "'conv1.weight_mask' (leaf 'conv1/kernel') has shape (16, 1, 3, 1)",
        ),
        (
            {
                "conv1__weight_orig": np.ones((16, 1, 3, 3)),
                "conv1__weight_mask": np.ones((16, 1, 3, 3)),
            },
            "'conv1.weight' is not expected",
        ),
        ({"normalize__mean": np.zeros(3, np.float32)}, "'normalize.mean' says that the network"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(changes, message):
    state_dict = changed(interop.to_state_dict(draw("small_cnn")), **changes)
    with pytest.raises(StateDictError) as caught:
        interop.from_state_dict(state_dict, shapes("small_cnn"))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_constants_of_another_data_set_are_refused():
    model, like = draw("resnet20s"), shapes("resnet20s")
    state_dict = interop.to_state_dict(model, channels=models.CIFAR100)
    with pytest.raises(StateDictError, match=r"'normalize\.mean' is \[0\.507.*by \[0\.491"):
        interop.from_state_dict(state_dict, like, channels=models.CIFAR10)
    # torchvision normalises outside its networks
    bare = changed(state_dict, normalize__mean=None, normalize__std=None)
    assert_same_bits(interop.from_state_dict(bare, like, channels=models.CIFAR10)[0], model)


def test_masks_that_do_not_fit_are_refused():
    model = draw("small_cnn")
    with pytest.raises(ValueError, match="masks do not fit"):
        interop.to_state_dict(model, {"conv1": {"kernel": np.ones(3, bool)}})


# --- files ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def state_dict():
    return interop.to_state_dict(draw("small_cnn"))


def assert_same_arrays(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype and found[key].shape == value.shape
        assert found[key].tobytes() == value.tobytes()


def test_safetensors_round_trip(tmp_path, state_dict):
    path = tmp_path / "model.safetensors"
    interop.write_state_dict(path, state_dict)
    assert_same_arrays(interop.read_state_dict(path), state_dict)
    interop.write_state_dict(path, {"transposed": np.arange(6.0).reshape(2, 3).T})
    found = interop.read_state_dict(path)["transposed"]
    np.testing.assert_array_equal(found, [[0, 3], [1, 4], [2, 5]])
    assert os.listdir(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize("protocol", [2, 4])  # torch's own, and another that it offers
@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".pt"])
def test_a_checkpoint_is_read_without_torch(tmp_path, state_dict, suffix, protocol):
    inner = collections.OrderedDict(state_dict)
    inner._metadata = collections.OrderedDict(version=1)  # as torch sets it
    checkpoint = {
        "result": {"train": [0.5, -1.25], "names": ("a", "b", "c", "d")},
        "epoch": 182,
        "numbers": [True, None, -3, 70_000, 10**15, 1e300],
        "state_dict": inner,
        "scheduler": {"milestones": collections.Counter({91: 1, 136: 1})},
    }
    path = write_pth(tmp_path / f"model{suffix}", checkpoint, protocol)
    found = interop.read_state_dict(path)
    assert_same_arrays(found, state_dict)
    model, _ = interop.from_state_dict(found, shapes("small_cnn"))
    assert_same_bits(model, draw("small_cnn"))


def test_views_parameters_and_types_are_rebuilt(tmp_path):
    storage = np.arange(12, dtype=np.float32)
    path = write_pth(
        tmp_path / "a.pth",
        {
            "strided": View(storage, 1, (2, 3), (1, 4)),
            "same storage": View(storage, 0, (12,), (1,)),
            "parameter": Parameter(np.float16([1, 2])),
            "scalar": np.int64([5]).reshape(()),
            "empty": View(storage, 0, (0, 3), (3, 1)),
        },
    )
    found = interop.read_state_dict(path)
    np.testing.assert_array_equal(found["strided"], [[1, 5, 9], [2, 6, 10]])
    np.testing.assert_array_equal(found["same storage"], storage)
    assert found["parameter"].dtype == np.float16 and found["parameter"].tolist() == [1, 2]
    assert found["scalar"].shape == () and found["scalar"] == 5
    assert found["empty"].shape == (0, 3)


class Calls:
    """Pickles into a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(marker):
    return {
        "posix.system": Calls(os.system, f"touch {marker}"),
        "builtins.eval": Calls(eval, f"open({str(marker)!r}, 'w')"),
        "builtins.exec": Calls(exec, f"open({str(marker)!r}, 'w')"),
        "builtins.getattr": Calls(getattr, "text", "upper"),
        "builtins.print": builtins.print,
    }


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", hostile(""))
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, name, protocol):
    marker = tmp_path / "ran"
    value = {"conv1.weight": np.zeros(3, np.float32), "x": hostile(marker)[name]}
    path = write_pth(tmp_path / "a.pth", value, protocol)
    # protocol 2 writes Python 2's name of builtins
    named = name if protocol > 2 else name.replace("builtins", "__builtin__")
    with pytest.raises(StateDictError, match=f"refers to the global '{named}'"):
        interop.read_state_dict(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "global 'os.system'"),
        (b"ctorch\nload\n.", "global 'torch.load'"),
        (b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n.", "global 'torch._utils._rebuild_ten"),
        (b"ccollections\nOrderedDict.__init__\n.", "global 'collections.OrderedDict.__init__'"),
        (b"(S'true'\nios\nsystem\n.", "opcode"),  # INST imports too
        (b"(cos\nsystem\nS'true'\no.", "global 'os.system'"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "opcode NEWOBJ"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        # BUILD would set attributes of whatever stands there
        (b"\x80\x02ccollections\nOrderedDict\n}b.", "sets attributes"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NtR.", "damaged"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "calls the global 'torch.FloatStorage'"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "damaged"),  # bytes that are not there
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.", "damaged"),
        (b"\x80\x02]", "damaged"),
        (b"", "damaged"),
        (b"\x80\x02].", "holds a list, not a state dict"),
        (b"\x80\x02}(K\x01K\x02u.", "entry 1 is a int"),
        (b"\x80\x02}]K\x01s.", "damaged"),  # an unhashable key
    ],
)
def test_pickles_written_by_hand_are_refused(tmp_path, content, message):
    path = archive(tmp_path / "a.pth", content)
    with pytest.raises(StateDictError, match=message) as caught:
        interop.read_state_dict(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_the_number_of_a_memo_takes_no_memory(tmp_path):
    # Python's own unpickler allocates 2^33 entries for this one
    assert (
        interop.read_state_dict(archive(tmp_path / "a.pth", b"\x80\x02}r\xff\xff\xff\xff.")) == {}
    )


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(0, (13,), (1,)), (1, (12,), (1,)), (0, (2, 3), (1, 6)), (0, (10**9,), (0,)), (-1, (2,), (1,)),
     (0, (-2,), (1,)), (0, (2,), (1, 1)), (0, (2.0,), (1,)), (0, (2,), (-1,)), (2**62, (2,), (1,))],
)  # fmt: skip
def test_a_tensor_may_not_leave_its_storage(tmp_path, offset, shape, strides):
    value = {"x": View(np.arange(12, dtype=np.float32), offset, shape, strides)}
    with pytest.raises(StateDictError, match=r"larger than its storage|damaged"):
        interop.read_state_dict(write_pth(tmp_path / "a.pth", value))


def test_archives_are_bounded_by_their_own_size(tmp_path):
    content, storages = pickled({"x": np.zeros(4096, np.float32)})
    path = tmp_path / "a.pth"
    archive(path, content, storages, zipfile.ZIP_DEFLATED)
    with pytest.raises(StateDictError, match="compressed"):
        interop.read_state_dict(path)
    archive(path, content, {"0": storages["0"][:-4]})
    with pytest.raises(StateDictError, match="storage '0' has 16380 bytes, expected 16384"):
        interop.read_state_dict(path)
    archive(path, content)
    with pytest.raises(StateDictError, match="storage '0' is not in the archive"):
        interop.read_state_dict(path)
    archive(path, content, storages)
    whole = path.read_bytes()
    # the size that the directory at the end claims for the storage: 2^31
    at = whole.rindex(b"model/data/0") - 46 + 20
    assert whole[at : at + 8] == struct.pack("<II", 16384, 16384)
    path.write_bytes(whole[:at] + struct.pack("<II", 2**31, 2**31) + whole[at + 8 :])
    with pytest.raises(StateDictError, match="claim more bytes than the file has"):
        interop.read_state_dict(path)
    archive(path, content, {"0": storages["0"]}, extra=[("other/data.pkl", b"")])
    with pytest.raises(StateDictError, match="not one of PyTorch's"):
        interop.read_state_dict(path)


def test_members_are_read_by_their_exact_name(tmp_path):
    content, storages = pickled({"x": View(np.zeros(2, np.float32), 0, (2,), (1,), "../x")})
    path = archive(tmp_path / "a.pth", content, {}, extra=[("model/x", storages["../x"])])
    with pytest.raises(StateDictError, match=r"storage '\.\./x' is not in the archive"):
        interop.read_state_dict(path)


def test_numbers_with_the_high_byte_first_are_refused(tmp_path):
    content, storages = pickled({"x": np.zeros(2, np.float32)})
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", content)
        file.writestr("m/byteorder", b"big")
        file.writestr("m/data/0", storages["0"])
    with pytest.raises(StateDictError, match="high byte"):
        interop.read_state_dict(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", r"1\.6 .*torch\.save\(torch\.load"),
        ("a.safetensors", b"nothing", "no valid safetensors"),
        ("a.npz", b"", r"unknown suffix, want one of \.safetensors, \.pth"),
        ("a.pth", None, "a.pth cannot be read: No such file"),
        ("a.safetensors", None, "cannot be read: No such file"),
    ],
)
def test_files_that_are_none_say_so_in_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StateDictError, match=message) as caught:
        interop.read_state_dict(path)
    assert "\n" not in str(caught.value)


CHANGED = pickled(
    {"state_dict": collections.OrderedDict(a=np.zeros(5, np.float32), b=np.zeros((), np.int64))}
)


@settings(max_examples=60, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=3))
def test_damage_is_read_or_refused_and_nothing_else(tmp_path_factory, changes):
    path = tmp_path_factory.getbasetemp() / "damaged.pth"
    archive(path, *CHANGED)
    whole = bytearray(path.read_bytes())
    for place, value in changes:
        whole[place % len(whole)] = value
    path.write_bytes(whole)
    try:
        assert isinstance(interop.read_state_dict(path), dict)
    except StateDictError as error:
        assert "\n" not in str(error)


@settings(max_examples=120, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=4))
def test_damaged_pickles_are_read_or_refused_and_nothing_else(tmp_path_factory, changes):
    content = bytearray(CHANGED[0])
    for place, value in changes:
        content[place % len(content)] = value
    path = archive(tmp_path_factory.getbasetemp() / "pickle.pth", bytes(content), CHANGED[1])
    try:
        assert isinstance(interop.read_state_dict(path), dict)
    except StateDictError as error:
        assert "\n" not in str(error)


def test_a_failed_write_leaves_what_was_there(tmp_path, state_dict, monkeypatch):
    path = tmp_path / "model.safetensors"
    interop.write_state_dict(path, state_dict)
    before = path.read_bytes()

    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StateDictError, match="cannot be written: No space left"):
        interop.write_state_dict(path, {"x": np.zeros(3)})
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["model.safetensors"]
    with pytest.raises(StateDictError, match="unknown suffix"):
        interop.write_state_dict(tmp_path / "model.bin", state_dict)


HAS_TORCH = importlib.util.find_spec("torch") is not None


def test_writing_for_torch_without_it_is_one_line(tmp_path, state_dict, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # import torch raises ImportError
    with pytest.raises(StateDictError, match=r"needs PyTorch \(pip install"):
        interop.write_state_dict(tmp_path / "a.pth", state_dict)
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(not HAS_TORCH, reason="PyTorch is not installed (extra 'torch')")
def test_files_agree_with_torch_itself(tmp_path, state_dict):
    import torch
    import torch.nn.utils.prune

    path = tmp_path / "a.pth.tar"
    interop.write_state_dict(path, state_dict)
    loaded = torch.load(path, weights_only=True)
    assert_same_arrays({key: value.numpy() for key, value in loaded.items()}, state_dict)
    assert_same_arrays(interop.read_state_dict(path), state_dict)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    torch.nn.utils.prune.l1_unstructured(net[0], "weight", 0.5)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.ones(2, 3, 5, 5)).sum().backward()
    optimiser.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [91, 136])
    checkpoint = {"state_dict": net.state_dict(), "half": torch.ones(2, dtype=torch.bfloat16)}
    checkpoint |= {"optimizer": optimiser.state_dict(), "scheduler": schedule.state_dict()}
    torch.save(checkpoint, path)
    expected = {key: value.numpy() for key, value in net.state_dict().items()}
    assert_same_arrays(interop.read_state_dict(path), expected)
    torch.save(net, path)
    with pytest.raises(StateDictError, match=r"global 'torch\.nn\.modules\.container\.Sequential'"):
        interop.read_state_dict(path)
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)
    with pytest.raises(StateDictError, match=r"1\.6"):
        interop.read_state_dict(path)
