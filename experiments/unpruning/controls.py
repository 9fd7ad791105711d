"""The control of every metric: masks that saw no data, from which nothing can be deleted."""

import jax
import numpy as np

from configs import digits
from experiments.unpruning.lab import Lab, Setting
from sparse_mu import builders, config, mask_bounds, topology, unlearn
from sparse_mu.trees import of_trial
from sparse_mu.types import Masks, Model

FREE = ("synflow", "random")
SEEING = "snip"  # beside them: a mask that saw the rows, on which the metrics must move
STILL = {  # what each metric is where nothing was deleted
    **{"iou": 1, "iou_pruned": 1, "hamming": 0, "corrected_iou": 1, "kappa": 1, "overlap": 1},
    **{"should": 0, "flipped": 0, "right": 0, "resolvable": 0},
    **{"spearman": 1, "weight_distance": 0, "kl": 0, "js": 0, "flips": 0, "weight_error": 0},
}


def of_free_masks(seeds: tuple[int, ...]) -> dict:
    """Every metric of M_o against M_r, and of R1 against R2, of the command's own pruners.

    A class is deleted. Masks are found on D and found again on Dr, and ``unprune`` puts the second
    in the place of the first.

    Raises:
        AssertionError: if a mask that saw no data moves any of them, or one that did moves none.
    """
    found: dict = {"seeds": list(seeds)}
    for method in (*FREE, SEEING):
        told = _of_method(method, seeds)
        found[method] = {key: [one[key] for one in told] for key in told[0]}
        for one in told:
            still = {key: abs(one[key] - value) < 1e-12 for key, value in STILL.items()}
            assert all(still.values()) if method in FREE else not any(still.values()), still
    return found


def _of_method(method: str, seeds: tuple[int, ...]) -> list[dict]:
    given = config.flatten(digits.get_config().to_dict())
    flat = config.check(given | {"prune.method": method, "trials": len(seeds)})
    x = builders.build(flat)
    setting = Setting(
        name=method,
        inputs=np.asarray(x.data.inputs),
        labels=x.data.labels,
        train_rows=x.data.train_rows,
        classes=x.network.num_classes,
        init=x.network.init,
        apply_fn=x.network.apply_fn,
        prepare=x.prepare_eval,
        epochs=2,
        batch_size=64,
    )
    lab = Lab(setting, seeds)
    retain = ~lab.classes()
    assert x.pruner.find is not None
    before, after = (
        x.pruner.find(lab.theta_0, rows, lab.keys, 0.9) for rows in (lab.everything, retain)
    )
    original = lab.rewound(before, lab.everything)
    unpruned = unlearn.unprune(
        lab.path(retain),
        None,
        theta_0=lab.theta_0,
        original=original,
        masks=before,
        mode=unlearn.Given(after),
        epochs=1,
        batched=True,
    )
    models = [lab.rewound(masks, retain) for masks in (before, unpruned.masks)]
    logits = [lab.logits(model) for model in models]
    return [
        _of_trial(
            *(of_trial(masks, t) for masks in (before, unpruned.masks, after)),
            *(of_trial(model, t) for model in models),
            *(of_model[t] for of_model in logits),
        )
        for t in range(len(seeds))
    ]


def _of_trial(
    before: Masks,
    unpruned: Masks,
    after: Masks,
    inherited: Model,
    retrained: Model,
    ours: np.ndarray,
    theirs: np.ndarray,
) -> dict[str, float]:
    alike, flips = topology.similarity(before, after), topology.flips(before, unpruned, after)
    sizes = [jax.tree.map(np.abs, model.params) for model in (retrained, inherited)]
    signed = [topology.flat(model.params) for model in (retrained, inherited)]
    kept = int(topology.flat(after).sum())
    far = topology.divergence(ours, theirs)
    return {
        **alike._asdict(),
        **{"should": flips.should, "flipped": flips.flipped, "right": flips.right},
        # a gain has no value where the original's mask is the target's
        "resolvable": int(np.isfinite(topology.gain(1.0, alike.iou, 1.0))),
        "spearman": topology.rank_correlation(*sizes),
        "weight_distance": topology.weight_distance(inherited.params, retrained.params),
        "kl": far.kl,
        "js": far.js,
        "flips": mask_bounds.mask_errors(*(np.abs(w) for w in signed), kept).flips,
        "weight_error": mask_bounds.weight_error(*signed, kept).error,
    }
