"""A user's own trained model: read from orbax and PyTorch's files, or refused in one line."""

import functools
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from torch_files import write_pth

from sparse_mu import checkpoint, config, interop, models
from sparse_mu.builders import build_imported
from sparse_mu.checkpoint import CheckpointError
from sparse_mu.imported_arm import VERSION, import_original
from sparse_mu.interop import StateDictError
from sparse_mu.standing import not_kept
from sparse_mu.types import Model

NETWORKS = {
    "small_cnn": (models.SmallCNN(3, "patches"), (1, 8, 8, 1), None),
    "resnet20s": (models.ResNet20s(10, "patches"), (1, 32, 32, 3), models.CIFAR10),
}


@functools.cache
def network(name="small_cnn"):
    module, shape, channels = NETWORKS[name]
    draw = models.init_of(module, shape)
    return SimpleNamespace(init=lambda key: Model(*draw(key)), channels=channels)


def draw(name="small_cnn"):
    """A model of random numbers, without a forward pass or a compilation."""
    rng = np.random.default_rng(5)
    shapes = jax.eval_shape(network(name).init, jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)


def pruned(model, every=2):
    """The model without every second convolution weight, and its masks."""

    def mask(leaf):
        kept = np.arange(leaf.size).reshape(leaf.shape) % every != 0
        return kept if leaf.ndim == 4 else np.ones(leaf.shape, bool)

    kept = jax.tree.map(mask, model.params)
    return model._replace(params=jax.tree.map(np.multiply, kept, model.params)), kept


def given(path, name="small_cnn", sparsities=()):
    flat = {"model.checkpoint": str(path), "prune.sparsities": sparsities}
    return build_imported(flat, network(name))


def save(folder, tree, kind=ocp.StandardCheckpointer):
    with kind() as checkpointer:
        checkpointer.save(folder.absolute(), tree)
        if kind is ocp.StandardCheckpointer:
            checkpointer.wait_until_finished()
    return folder


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for leaf, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert type(leaf) is np.ndarray and leaf.dtype == wanted.dtype
        np.testing.assert_array_equal(leaf, wanted)


class TrainState(NamedTuple):
    """As a training program keeps it; the optimiser's state is none of ours."""

    step: jax.Array
    params: dict
    batch_stats: dict
    opt_state: tuple


def as_variables(model):
    return {"params": model.params, **model.net_state}


def as_training_state(model):
    momentum = (jax.tree.map(np.ones_like, model.params), ())
    return TrainState(jnp.int32(7), model.params, model.net_state["batch_stats"], momentum)


@pytest.mark.parametrize("kind", [ocp.StandardCheckpointer, ocp.PyTreeCheckpointer])
@pytest.mark.parametrize("form", [as_variables, lambda model: model, as_training_state])
def test_what_programs_save_with_orbax_is_read(tmp_path, form, kind):
    model = draw()
    found = given(save(tmp_path / "saved", form(model), kind))
    assert_equal(found.model, model)
    assert all(mask.all() for mask in jax.tree.leaves(found.masks))
    assert (found.sparsity, found.file) == (0.0, "saved")


def test_masks_beside_the_weights_are_read_and_zeros_alone_are_no_masks(tmp_path):
    model, kept = pruned(draw())
    zeros = given(save(tmp_path / "zeros", as_variables(model)))
    assert zeros.sparsity == 0.0
    assert_equal(zeros.model, model)
    full = draw()  # pruned entries that are not 0 come out as 0
    masked = given(save(tmp_path / "masked", {**as_variables(full), "masks": kept}))
    assert masked.sparsity == 0.5
    assert_equal((masked.model, masked.masks), (model, kept))
    assert masked.digest != zeros.digest


def test_the_digest_is_of_the_numbers_and_not_of_the_file(tmp_path):
    model = draw()
    state_dict = interop.to_state_dict(model)
    interop.write_state_dict(tmp_path / "a.safetensors", state_dict)
    write_pth(tmp_path / "b.pth", {"epoch": 3, "state_dict": state_dict})
    paths = [tmp_path / "a.safetensors", tmp_path / "b.pth", save(tmp_path / "c", model)]
    assert len({given(path).digest for path in paths}) == 1
    other = jax.tree.map(np.copy, model)
    other.params["head"]["bias"][0] += 1
    interop.write_state_dict(tmp_path / "a.safetensors", interop.to_state_dict(other))
    assert given(paths[0]).digest != given(paths[1]).digest


def test_floats_of_another_width_are_cast_by_us(tmp_path):
    model = draw()
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model)
    found = given(save(tmp_path / "half", half))
    assert_equal(found.model, jax.tree.map(lambda leaf: leaf.astype(np.float32), half))


@pytest.mark.parametrize("sparsity", [0.0, 0.25])
def test_an_official_checkpoint_is_read(tmp_path, sparsity):
    model, kept = draw("resnet20s"), None
    if sparsity:
        model, kept = pruned(model, every=4)
    state_dict = interop.to_state_dict(model, kept, channels=models.CIFAR10)
    parallel = {f"module.{name}": value for name, value in state_dict.items()}
    path = write_pth(tmp_path / "0model_SA_best.pth.tar", {"epoch": 182, "state_dict": parallel})
    found = given(path, "resnet20s")
    assert_equal(found.model, model)
    if sparsity:
        assert_equal(found.masks, kept)
    assert (found.sparsity, found.file) == (sparsity, "0model_SA_best.pth.tar")


def test_a_pruned_model_is_not_pruned_again(tmp_path):
    model, kept = pruned(draw())
    path = tmp_path / "pruned.safetensors"
    interop.write_state_dict(path, interop.to_state_dict(model, kept))
    assert given(path, sparsities=(0.0,)).sparsity == 0.5
    with pytest.raises(config.ConfigError) as caught:
        given(path, sparsities=(0.5, 0.9))
    assert str(caught.value) == (
        "config.prune.sparsities = (0.5, 0.9): must be () with this model.checkpoint, which is "
        "pruned already, to 50%"
    )


def test_no_checkpoint_is_no_model():
    assert build_imported({"model.checkpoint": ""}, network()) is None


def fails(path, error, *said, name="small_cnn"):
    with pytest.raises(error) as caught:
        given(path, name)
    line = str(caught.value)
    assert "\n" not in line and str(path) in line and len(line) < 600, line
    for words in said:
        assert words in line, line


def test_a_file_that_is_no_model_of_this_network(tmp_path):
    other = interop.to_state_dict(draw("resnet20s"), channels=models.CIFAR10)
    path = tmp_path / "other.safetensors"
    interop.write_state_dict(path, other)
    fails(path, StateDictError, "tensor 'normalize.mean' says that the network normalises")
    bare = {name: value for name, value in other.items() if not name.startswith("normalize")}
    interop.write_state_dict(path, bare)  # in the order of the network's leaves
    fails(path, StateDictError, "tensor 'bn2.bias' (leaf 'bn2/bias') is missing")
    constants = interop.to_state_dict(draw("resnet20s"), channels=models.SVHN)
    interop.write_state_dict(path, constants)
    fails(path, StateDictError, "'normalize.mean' is [0.4377", name="resnet20s")


def test_files_that_cannot_be_read(tmp_path):
    for name in ("none", "none.pth"):
        said = f"config.model.checkpoint = '{tmp_path / name}': there is no such file or folder"
        fails(tmp_path / name, CheckpointError, said)
    text = tmp_path / "model.txt"
    text.write_text("weights")
    fails(text, StateDictError, "unknown suffix, want one of .safetensors, .pth, .pth.tar, .pt")
    for suffix in (".safetensors", ".pth"):
        damaged = tmp_path / f"damaged{suffix}"
        damaged.write_bytes(b"\x08\0\0\0\0\0\0\0{}")
        fails(damaged, StateDictError)


def test_folders_that_hold_no_model(tmp_path):
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", CheckpointError, "is no orbax checkpoint")
    with ocp.CheckpointManager(tmp_path / "manager") as manager:
        for step in (9, 10):
            manager.save(step, args=ocp.args.StandardSave(as_variables(draw())))
        manager.wait_until_finished()
    last = tmp_path / "manager" / "10" / "default"
    fails(
        tmp_path / "manager",
        CheckpointError,
        f"is no orbax checkpoint; give the folder of one step, such as {last}",
    )
    assert_equal(given(last).model, draw())
    fails(
        save(tmp_path / "bare", draw().params),
        CheckpointError,
        "must hold a dict with 'params', and has bn1, bn2, bn3, conv1, conv2, conv3, head",
    )
    fails(save(tmp_path / "list", [np.ones(3)]), CheckpointError, "with 'params', and is none")


@pytest.mark.parametrize("content", ["[]", "3", '{"tree_metadata": 3}', "null"])
def test_metadata_of_another_form_are_damage(tmp_path, content):
    folder = save(tmp_path / "saved", as_variables(draw()))
    (folder / "_METADATA").write_text(content)
    fails(folder, CheckpointError)


CHANGES = {
    "leaf 'params/conv4/kernel' is not expected": lambda v: v["params"].update(
        conv4={"kernel": np.ones(3)}
    ),
    "leaf 'params/head/bias' is missing": lambda v: v["params"]["head"].pop("bias"),
    "leaf 'params/head/kernel' has shape (64, 10), expected (64, 3)": lambda v: v["params"][
        "head"
    ].update(kernel=np.ones((64, 10), np.float32)),
    "leaf 'params/head/bias' has dtype int32, expected float32": lambda v: v["params"][
        "head"
    ].update(bias=np.ones(3, np.int32)),
    "leaf 'batch_stats/bn1/mean' is missing": lambda v: v.pop("batch_stats"),
    "leaf 'masks/head/bias' is missing": lambda v: v["masks"]["head"].pop("bias"),
    "leaf 'masks/head/bias' has dtype float32, expected bool": lambda v: v["masks"]["head"].update(
        bias=np.ones(3, np.float32)
    ),
    "leaf 'head/bias' is pruned and no convolution's weight": lambda v: v["masks"]["head"].update(
        bias=np.array([True, False, True])
    ),
    "leaf 'params/head/bias' holds numbers that are not finite": lambda v: v["params"][
        "head"
    ].update(bias=np.float32([0, np.nan, 1])),
}


@pytest.mark.parametrize("said", CHANGES)
def test_the_first_leaf_that_does_not_fit_is_named(tmp_path, said):
    model, kept = pruned(draw())
    variables = jax.tree.map(np.copy, {**as_variables(model), "masks": kept})
    CHANGES[said](variables)
    fails(save(tmp_path / "saved", variables), CheckpointError, said)


# orbax reads leaves concurrently and drops the errors of all but the first, whenever they come
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_file_of_a_folder_counts(tmp_path, caplog):
    folder = save(tmp_path / "saved", as_variables(draw()))
    for file in sorted(folder.glob("**/*")):
        if not file.is_file() or file.stat().st_size == 0:
            continue
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        try:
            model, _ = checkpoint.read_model(folder, draw())
        except CheckpointError as error:
            assert "\n" not in str(error) and str(folder) in str(error)
        else:  # orbax did not need that file
            assert_equal(model, draw())
        file.write_bytes(content)
    assert not caplog.records


def test_every_trial_gets_the_model_and_a_tuning_pool_is_warned_of(tmp_path, caplog):
    model, kept = pruned(draw())
    found = given(save(tmp_path / "mine", {**as_variables(model), "masks": kept}))

    def imported(validation):
        run = SimpleNamespace(
            x=SimpleNamespace(config={"dataset.validation": validation}),
            trials=3,
            theta_0=None,
            arm=lambda name, sparsity, depends_on, make: (
                *(name, sparsity, depends_on),
                make(not_kept()),
            ),
        )
        return import_original(run, found)

    name, sparsity, depends_on, ((models_, masks_, _), meta) = imported(0.0)
    assert (name, sparsity, depends_on) == ("original", 0.5, (VERSION, found.digest))
    for leaf, one in zip(
        jax.tree.leaves((models_, masks_)), jax.tree.leaves((model, kept)), strict=True
    ):
        np.testing.assert_array_equal(leaf, np.stack([one] * 3))
    assert meta["diverged"] == [False] * 3
    assert not caplog.records
    imported(0.4)
    [said] = [record.getMessage() for record in caplog.records]
    assert "tuning pool, 0.4 of each class" in said and "\n" not in said
    assert "set config.dataset.validation=0" in said


@pytest.mark.parametrize(("removed", "sparsity"), [(20_866, 0.9), (1, 1 / 23_184), (7_728, 0.3333)])
def test_an_arm_is_named_by_four_decimals_and_no_pruned_model_is_dense(tmp_path, removed, sparsity):
    model = draw()
    kept = jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), model.params)
    for leaf in jax.tree.leaves(kept):
        if leaf.ndim == 4:
            gone = min(removed, leaf.size)
            leaf.flat[:gone] = False
            removed -= gone
    path = tmp_path / "pruned.safetensors"
    interop.write_state_dict(path, interop.to_state_dict(model, kept))
    assert given(path).sparsity == sparsity
