"""Every figure of one bench: masks against the retrained mask, outputs against its model, costs.

All values are lists with one entry per seed; what depends on no target is told once.
"""

import jax
import numpy as np

from experiments.unpruning.arms import GROWN, Arm, Bench
from sparse_mu import mask_bounds, topology, unlearn
from sparse_mu.types import Masks, Model


def masks_of_bench(bench: Bench) -> dict:
    """T1 and T2 of one bench: how the deletion moves the mask, and what every arm does about it."""
    lab, targets = bench.lab, bench.targets
    k = bench.quarter
    phases = bench.phases()
    arms: dict[str, Arm] = {
        "no-op": bench.kept(),
        "theta_0 only": bench.first_weights(),
        "random swaps": bench.swapped(),
        "rewind": bench.unpruned(unlearn.Rewind()),
        "difference": bench.unpruned(bench.difference()),
        "difference, stopped": bench.unpruned(
            bench.difference(), block=bench.block, tolerance=0.03, epochs=lab.setting.epochs
        ),
        "retrained": Arm(targets.retrained.masks, targets.retrained.dense.params),
        "seed floor": Arm(targets.floor),
    }
    if lab.setting.rule is None:
        arms["projected"] = bench.unpruned(bench.projected())
    finetune = phases["finetune"][0]
    retain = bench.retain.sum(axis=1)
    for name, how in GROWN.items() if lab.setting.rule is None else ():
        mode = how._replace(gradient=lab.gradient(bench.retain))
        arms[name] = bench.unpruned(
            mode, unlearner=finetune, unlearn_epochs=max(k // how.rounds, 1), epochs=1
        )
        passes = how.rounds * (how.grow == "gradient")
        arms[name] = arms[name]._replace(gradients=arms[name].gradients + passes * retain)
    for name, (phase, epochs, spent) in phases.items():
        arms[f"stored dense + {name}"] = bench.stored_then(phase, epochs, spent)
    placebo = {
        name: bench.unpruned(mode, bench.placebo)
        for name, mode in (("rewind", unlearn.Rewind()), ("difference", bench.difference()))
    }
    nothing = {
        name: bench.unpruned(mode, lab.everything)
        for name, mode in (("rewind", unlearn.Rewind()), ("difference", bench.difference()))
    }
    floor = _ious(bench, targets.floor)
    kept = _ious(bench, targets.original.masks)
    whole = 2 * lab.setting.epochs * retain  # dense and sparse training of R2
    return {
        "setting": lab.setting.name,
        "deletion": bench.deletion.name,
        "sparsity": lab.setting.sparsity,
        "seeds": list(lab.seeds),
        "quarter": k,
        "epochs": lab.setting.epochs,
        "forgotten": bench.deletion.forget.sum(axis=1).tolist(),
        "floor": floor,
        "moved": _moved(bench),
        "arms": {
            name: _against(bench, arm.masks, kept, floor)
            | {
                "cost": (np.asarray(arm.gradients) / whole).tolist(),
                "stored_bytes": arm.stored_bytes,
                "errors": _errors(bench, arm),
            }
            for name, arm in arms.items()
        },
        "placebo": {name: _ious(bench, arm.masks) for name, arm in placebo.items()},
        "sham": {
            name: {"to_original": _ious(bench, arm.masks, targets.original.masks),
                   "to_retrained": _ious(bench, arm.masks)}
            for name, arm in nothing.items()
        },
    }  # fmt: skip


def _of(tree: object, trial: int) -> object:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[trial], tree)


def _ious(bench: Bench, masks: Masks, target: Masks | None = None) -> list[float]:
    target = bench.targets.retrained.masks if target is None else target
    prunable = bench.lab.setting.prunable
    trials = range(len(bench.lab.seeds))
    return [topology.iou(_of(masks, t), _of(target, t), prunable) for t in trials]


def _moved(bench: Bench) -> dict:
    """T1: how alike the original's and the retrained mask are, pooled and by leaf."""
    targets, prunable = bench.targets, bench.lab.setting.prunable
    pooled, by_leaf, floors = [], {}, {}
    ranks: dict[str, list[float]] = {"all": [], "near": []}
    for trial in range(len(bench.lab.seeds)):
        pair = [_of(m, trial) for m in (targets.original.masks, targets.retrained.masks)]
        pooled.append(topology.similarity(*pair, prunable)._asdict())
        again = [_of(m, trial) for m in (targets.floor, targets.retrained.masks)]
        for name, found in topology.similarity_by_leaf(*pair, prunable).items():
            by_leaf.setdefault(name, []).append(found.iou)
        for name, found in topology.similarity_by_leaf(*again, prunable).items():
            floors.setdefault(name, []).append(found.iou)
        scores = [
            jax.tree.map(np.abs, _of(t.dense.params, trial))
            for t in (targets.retrained, targets.original)
        ]
        ranks["all"].append(topology.rank_correlation(*scores, prunable))
        ranks["near"].append(topology.rank_correlation(*scores, prunable, kept=pair[1]))
    return {
        **{key: [one[key] for one in pooled] for key in pooled[0]},
        "by_leaf": by_leaf,
        "floor_by_leaf": floors,
        "spearman": ranks,
    }


def _against(bench: Bench, masks: Masks, kept: list[float], floor: list[float]) -> dict:
    """T2: one arm's masks against the retrained ones."""
    targets, prunable = bench.targets, bench.lab.setting.prunable
    found: dict[str, list[float]] = {}
    for trial in range(len(bench.lab.seeds)):
        ours, theirs, old = (
            _of(m, trial) for m in (masks, targets.retrained.masks, targets.original.masks)
        )
        alike = topology.similarity(ours, theirs, prunable)
        flips = topology.flips(old, ours, theirs, prunable)
        row = {
            "iou": alike.iou,
            "iou_pruned": alike.iou_pruned,
            "kappa": alike.kappa,
            "corrected": alike.corrected_iou,
            "precision": flips.precision,
            "recall": flips.recall,
            "gain": topology.gain(alike.iou, kept[trial], floor[trial]),
            "gain_exact": topology.gain(alike.iou, kept[trial], 1.0),
        }
        for key, value in row.items():
            found.setdefault(key, []).append(value)
    return found


def _errors(bench: Bench, arm: Arm) -> dict | None:
    """The bounds on an arm's mask beside the truth; None where it comes from no dense weights."""
    setting = bench.lab.setting
    unstructured = setting.structure == "entries" and setting.rule is None
    if arm.estimate is None or not unstructured or setting.scope != "global":
        return None
    found: dict[str, list[float]] = {}
    for trial in range(len(bench.lab.seeds)):
        ours, theirs = (
            topology.flat(_of(tree, trial), setting.prunable)
            for tree in (arm.estimate, bench.targets.retrained.dense.params)
        )
        kept = int(topology.flat(_of(arm.masks, trial), setting.prunable).sum())
        errors = mask_bounds.mask_errors(np.abs(theirs), np.abs(ours), kept)
        weights = mask_bounds.weight_error(theirs, ours, kept)
        # theorems: what they say must hold on every mask that is made here
        bounds = (errors.band, errors.widest_band, errors.absolute, errors.square)
        assert errors.flips <= min(bounds), errors
        assert errors.iou >= errors.iou_bound and weights.error <= weights.bound
        norm = float(np.linalg.norm(np.abs(ours) - np.abs(theirs)))
        row = {**errors._asdict(), "weights": weights.error, "weights_bound": weights.bound}
        for key, value in (row | {"error_norm": norm}).items():
            found.setdefault(key, []).append(value)
    return found


def path_of_bench(bench: Bench, epochs: list[int]) -> dict:
    """IoU with the retrained mask against K, for the arms that train dense weights."""
    modes = {"rewind": unlearn.Rewind(), "difference": bench.difference()}
    if bench.lab.setting.rule is None:
        modes["projected"] = bench.projected()
    return {
        "epochs": epochs,
        **{
            name: [_ious(bench, bench.unpruned(mode, epochs=k).masks) for k in epochs]
            for name, mode in modes.items()
        },
    }


# outputs


def outputs_of_bench(bench: Bench) -> dict:
    """T3 of one bench: accuracies and divergences of every model, against R2's."""
    lab, targets = bench.lab, bench.targets
    unpruned = bench.unpruned(bench.difference())
    old, masks = targets.original, unpruned.masks
    models: dict[str, Model | None] = {
        "original": old.sparse,
        "R1: inherited mask, T epochs": targets.inherited,
        "difference, T epochs": lab.rewound(masks, bench.retain),
        "random swaps, T epochs": lab.rewound(bench.swapped().masks, bench.retain),
        "R2: retrained": targets.retrained.sparse,
    }
    mode = bench.difference()
    for name, (phase, epochs, _) in bench.phases().items():
        models[f"inherited + {name}"] = phase(old.sparse, old.masks, start=0, stop=epochs)
        carried = bench.unpruned(mode, unlearner=phase, unlearn_epochs=epochs)
        models[f"difference, carried + {name}"] = carried.model
    finetune, epochs, _ = bench.phases()["finetune"]
    models["difference, estimate + finetune"] = bench.unpruned(
        mode, unlearner=finetune, unlearn_epochs=epochs, weights="estimate"
    ).model
    wanted = lab.logits(targets.retrained.sparse)
    return {name: _outputs(bench, lab.logits(model), wanted) for name, model in models.items()}


def _outputs(bench: Bench, logits: np.ndarray, wanted: np.ndarray) -> dict:
    setting, forget = bench.lab.setting, bench.deletion.forget
    n, labels = setting.train_rows, np.asarray(setting.labels)
    found: dict[str, list[float]] = {}
    for trial in range(len(logits)):
        gone = np.unique(labels[:n][forget[trial]])
        whole = not (labels[:n][~forget[trial], None] == gone).any()  # a class left nothing
        test = np.arange(n, len(labels))
        judged = test[~np.isin(labels[test], gone)] if whole else test
        sets = {
            "forget": np.flatnonzero(forget[trial]),
            "retain": np.flatnonzero(~forget[trial]),
            "test": judged,
        }
        right = logits[trial].argmax(1) == labels
        accuracy = {name: float(right[rows].mean()) for name, rows in sets.items()}
        row = {"ua": 1 - accuracy["forget"], "ra": accuracy["retain"], "ta": accuracy["test"]}
        for name, rows in (sets | {"test": test}).items():
            far = topology.divergence(logits[trial][rows], wanted[trial][rows])
            row |= {f"kl_{name}": far.kl, f"js_{name}": far.js}
        for key, value in row.items():
            found.setdefault(key, []).append(value)
    return found
