"""Programs are shared: a whole run, dense and sparse, traces each network pass once."""

from collections import Counter

import pytest

from configs import digits
from sparse_mu import builders, config, models
from sparse_mu import run as pipeline
from sparse_mu import workdir as workdirs

SHRUNK = {
    "trials": 3,
    "dataset.limit": 300,
    "train.epochs": 2,
    "prune.rewind_epoch": 1,
    "prune.sparsities": (0.5, 0.9),
    "unlearn.finetune.epochs": 1,
    "unlearn.gradient_ascent.epochs": 2,
    "unlearn.l1_sparse.epochs": 1,
    "unlearn.influence.rows": 16,
    "evaluate.mia_draws": 1,
}


@pytest.mark.ci
def test_a_digits_run_traces_each_pass_once(tmp_path, monkeypatch):
    calls = Counter()
    original = models.apply_fn_of

    def counting(module):
        apply_fn = original(module)

        def counted(params, net_state, inputs, *, train, key):
            calls["train" if train else "evaluation"] += 1
            return apply_fn(params, net_state, inputs, train=train, key=key)

        return counted

    monkeypatch.setattr(models, "apply_fn_of", counting)
    flat = config.check(config.flatten(digits.get_config().to_dict()) | SHRUNK)
    experiment = builders.build(flat)
    with workdirs.held(tmp_path, flat) as workdir:
        rows, _ = pipeline.run_all(experiment, workdir, lambda *_: None)

    arms = 3 + 5 + 2 * (4 + 5)  # targets and methods, dense and at two sparsities
    assert len(rows) == 3 * arms
    # trainings on D and Dr, dense and masked, rewinding, fine-tuning, ascent and l1-sparse: one
    assert calls["train"] == 1
    # Fisher, the two sums and the rows of influence, and the forward pass of the evaluation
    assert calls["evaluation"] == 5
