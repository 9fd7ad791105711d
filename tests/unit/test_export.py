"""Exported models: the files of a run read back to the bit."""

import jax
import numpy as np
import pytest

from sparse_mu import masks, models
from sparse_mu.acts import Arm
from sparse_mu.export import write_models
from sparse_mu.interop import StateDictError, from_state_dict, read_state_dict
from sparse_mu.types import Model

pytestmark = pytest.mark.ci  # a whole run first


@pytest.fixture(scope="module")
def arms():
    module = models.SmallCNN(3, form="patches")
    draw = jax.jit(jax.vmap(models.init_of(module, (1, 8, 8, 1))))
    model = Model(*draw(jax.random.split(jax.random.key(0), 2)))
    found = []
    for sparsity in (0.0, 0.9):
        kept = jax.vmap(lambda p, s=sparsity: masks.from_scores(jax.tree.map(abs, p), s))(
            model.params
        )
        sparse = model._replace(params=masks.apply(kept, model.params))
        arrays = jax.tree.map(np.asarray, (sparse, kept, sparse))
        found.append(Arm("finetune", sparsity, *arrays, {}, "", ""))
    return found


@pytest.mark.ci
def test_every_trial_of_every_arm_is_a_file_that_reads_back_to_the_bit(arms, tmp_path):
    written = write_models(arms, tmp_path / "models", None)
    assert [path.name for path in written] == [
        "finetune-0-trial0.safetensors",
        "finetune-0-trial1.safetensors",
        "finetune-0.9-trial0.safetensors",
        "finetune-0.9-trial1.safetensors",
    ]
    for path, (arm, trial) in zip(written, [(a, t) for a in arms for t in range(2)], strict=True):
        expected = jax.tree.map(lambda leaf, t=trial: leaf[t], (arm.model, arm.masks))
        found = from_state_dict(read_state_dict(path), expected[0])
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert any(name.endswith("weight_mask") for name in read_state_dict(written[2]))


def test_a_second_export_replaces_the_first_and_leaves_nothing_else(arms, tmp_path):
    for _ in range(2):
        written = write_models(arms[:1], tmp_path, None)
    assert sorted(tmp_path.iterdir()) == sorted(written)


def test_a_folder_that_cannot_take_a_file_is_told_of(arms, tmp_path):
    (tmp_path / "finetune-0-trial0.safetensors").mkdir()
    with pytest.raises(StateDictError, match="finetune-0-trial0"):
        write_models(arms[:1], tmp_path, None)
