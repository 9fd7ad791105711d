"""Every figure of one bench: masks against the retrained mask, outputs against its model, costs.

All values are lists with one entry per seed; what depends on no target is told once.
"""

import jax
import numpy as np

from experiments.unpruning.arms import GROWN, Arm, Bench, Phase
from experiments.unpruning.pieces import pieces_of
from sparse_mu import mask_bounds, topology, unlearn
from sparse_mu.trees import of_trial
from sparse_mu.types import Masks, Model
from sparse_mu.unlearn.modes import Mode


def masks_of_bench(bench: Bench) -> dict:
    """T1 and T2 of one bench: how the deletion moves the mask, and what every arm does about it."""
    lab, targets = bench.lab, bench.targets
    phases = bench.phases() if bench.with_unlearners else {}
    searched = _searched(bench, bench.retain, phases)
    arms: dict[str, Arm] = {
        "no-op": bench.kept(),
        "theta_0 only": bench.first_weights(),
        "random swaps": bench.swapped(),
        **searched,
        "difference, stopped": bench.unpruned(
            bench.difference(), block=bench.block, tolerance=0.03, epochs=lab.setting.epochs
        ),
        "retrained": bench.retrained(),
        "seed floor": Arm(targets.floor),
    }
    for name, phase in phases.items():
        if _regrows(bench) and name not in ("finetune", "fisher"):
            loop = GROWN["regrow all, clip"]
            arms[f"regrow all, clip, {name}"] = bench.regrown(
                loop, phase, bench.retain, phase.epochs
            )
        arms[f"stored dense + {name}"] = bench.stored_then(phase)
    # another set in the place of the deleted one, and nothing in its place
    placebo = _searched(bench, bench.placebo, bench.phases(bench.deletion.placebo))
    sham = _searched(bench, lab.everything, bench.phases(~lab.everything))
    floor = _ious(bench, targets.floor)
    kept = _ious(bench, targets.original.masks)
    whole = arms["retrained"].gradients
    return {
        "setting": lab.setting.name,
        "deletion": bench.deletion.name,
        "sparsity": lab.setting.sparsity,
        "seeds": list(lab.seeds),
        "quarter": bench.quarter,
        "epochs": lab.setting.epochs,
        "forgotten": bench.deletion.forget.sum(axis=1).tolist(),
        "floor": floor,
        "moved": _moved(bench),
        "arms": {
            name: _against(bench, arm.masks, kept, floor)
            | {
                "cost": np.broadcast_to(arm.gradients / whole, len(lab.seeds)).tolist(),
                "stored_bytes": arm.stored_bytes,
                "errors": _errors(bench, arm),
            }
            for name, arm in arms.items()
        },
        "placebo": {name: _ious(bench, arm.masks) for name, arm in placebo.items()},
        "sham": {
            name: {
                "to_original": _ious(bench, arm.masks, targets.original.masks),
                "to_retrained": _ious(bench, arm.masks),
            }
            for name, arm in sham.items()
        },
    }


def _regrows(bench: Bench) -> bool:
    """Whether the re-growing loop can prune back: it knows magnitudes, ranked all together."""
    setting = bench.lab.setting
    return bench.with_unlearners and setting.tied is None and setting.scope == "global"


def _searched(bench: Bench, retain: np.ndarray, phases: dict[str, Phase]) -> dict[str, Arm]:
    """Every way of looking for a mask, given one set to retain."""
    modes: dict[str, Mode] = {"rewind": unlearn.Rewind(), "difference": bench.difference()}
    if bench.lab.setting.tied is not None:
        return {name: bench.unpruned(mode, retain) for name, mode in modes.items()}
    modes["projected"] = bench.projected()
    found = {name: bench.unpruned(mode, retain) for name, mode in modes.items()}
    for name, how in GROWN.items() if _regrows(bench) else ():
        each_round = max(bench.quarter // how.rounds, 1)
        found[name] = bench.regrown(how, phases["finetune"], retain, each_round)
    return found


def _ious(bench: Bench, masks: Masks, target: Masks | None = None) -> list[float]:
    target = bench.targets.retrained.masks if target is None else target
    prunable = bench.lab.setting.prunable
    trials = range(len(bench.lab.seeds))
    return [topology.iou(of_trial(masks, t), of_trial(target, t), prunable) for t in trials]


def _moved(bench: Bench) -> dict:
    """T1: how alike the original's and the retrained mask are, pooled and by leaf."""
    targets, prunable = bench.targets, bench.lab.setting.prunable
    pooled, by_leaf, floors = [], {}, {}
    ranks: dict[str, list[float]] = {"all": [], "near": []}
    for trial in range(len(bench.lab.seeds)):
        pair = [of_trial(m, trial) for m in (targets.original.masks, targets.retrained.masks)]
        pooled.append(topology.similarity(*pair, prunable)._asdict())
        again = [of_trial(m, trial) for m in (targets.floor, targets.retrained.masks)]
        for name, found in topology.similarity_by_leaf(*pair, prunable).items():
            by_leaf.setdefault(name, []).append(found.iou)
        for name, found in topology.similarity_by_leaf(*again, prunable).items():
            floors.setdefault(name, []).append(found.iou)
        scores = [
            jax.tree.map(np.abs, of_trial(t.dense.params, trial))
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
            of_trial(m, trial) for m in (masks, targets.retrained.masks, targets.original.masks)
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
    """The bounds on an arm's mask beside the truth, which they must hold for: they are theorems.

    Asserted layer by layer, the pieces of a layer being those within which the count is kept.

    Returns:
        Of masks of single entries, ranked all together, what the tables show.
    """
    setting, new = bench.lab.setting, bench.targets.retrained
    if arm.estimate is None:
        return None
    found: dict[str, list[float]] = {}
    for trial in range(len(bench.lab.seeds)):
        ours, theirs, mask, target = (
            of_trial(tree, trial) for tree in (arm.estimate, new.dense.params, arm.masks, new.masks)
        )
        pieces = pieces_of(setting, theirs)
        stay, differ = pieces.read(mask), pieces.read(mask) != pieces.read(target)
        for layer in np.unique(pieces.layers):
            inside = pieces.layers == layer
            scores = [pieces.scores(weights)[inside] for weights in (theirs, ours)]
            errors = mask_bounds.mask_errors(*scores, int(stay[inside].sum()))
            assert errors.flips == int(differ[inside].sum()), (setting.name, layer)
            bounds = (errors.band, errors.widest_band, errors.absolute, errors.square)
            assert errors.flips <= min(bounds) and errors.iou >= errors.iou_bound, errors
        if setting.structure != "entries" or setting.tied is not None or setting.scope == "leaf":
            continue
        signed = [topology.flat(weights, setting.prunable) for weights in (theirs, ours)]
        weights = mask_bounds.weight_error(*signed, int(stay.sum()))
        assert weights.error <= weights.bound, weights
        row = {**errors._asdict(), "weights": weights.error, "weights_bound": weights.bound}
        norm = float(np.linalg.norm(scores[1] - scores[0]))
        for key, value in (row | {"error_norm": norm}).items():
            found.setdefault(key, []).append(value)
    return found or None


def path_of_bench(bench: Bench, epochs: list[int]) -> dict:
    """IoU with the retrained mask against K, for the arms that train dense weights.

    The re-growing loop stands beside them with K epochs of fine-tuning, at every third K.
    """
    modes: dict[str, Mode] = {"rewind": unlearn.Rewind(), "difference": bench.difference()}
    found: dict[str, list] = {"epochs": epochs}
    if bench.lab.setting.tied is None:
        modes["projected"] = bench.projected()
    if _regrows(bench):
        loop, phase = GROWN["regrow all, clip"], bench.phases()["finetune"]
        found["regrow_epochs"] = epochs[::3]
        found["regrow"] = [
            _ious(bench, bench.regrown(loop, phase, bench.retain, k).masks) for k in epochs[::3]
        ]
    for name, mode in modes.items():
        found[name] = [_ious(bench, bench.unpruned(mode, epochs=k).masks) for k in epochs]
    return found


# outputs


def outputs_of_bench(bench: Bench) -> dict:
    """T3 of one bench: accuracies and divergences of every model, against R2's.

    Whether closeness of the mask buys closeness of the outputs is told by masks that know nothing
    of the deletion and are as far from M_r as M_o is: M_r itself with swaps.
    """
    lab, targets = bench.lab, bench.targets
    unpruned = bench.unpruned(bench.difference())
    old = targets.original
    models: dict[str, Model] = {
        "original": old.sparse,
        "R1: inherited mask, T epochs": targets.inherited,
        "difference, T epochs": lab.rewound(unpruned.masks, bench.retain),
        "M_r, as many random swaps as M_o, T epochs": lab.rewound(
            bench.as_far(near=False), bench.retain
        ),
        "M_r, as many near swaps as M_o, T epochs": lab.rewound(
            bench.as_far(near=True), bench.retain
        ),
        "R2: retrained": targets.retrained.sparse,
    }
    mode, settle = bench.difference(), bench.settle()
    begun = old.sparse if settle is None else settle(old.sparse, old.masks, start=0, stop=1)
    for name, phase in bench.phases().items():
        models[f"inherited + {name}"] = phase.train(begun, old.masks, start=0, stop=phase.epochs)
        carried = bench.unpruned(mode, unlearner=phase.train, unlearn_epochs=phase.epochs).model
        assert carried is not None
        models[f"difference, carried + {name}"] = carried
    phase = bench.phases()["finetune"]
    ended = bench.unpruned(
        mode, unlearner=phase.train, unlearn_epochs=phase.epochs, weights="estimate"
    ).model
    assert ended is not None
    models["difference, estimate + finetune"] = ended
    wanted, target = lab.logits(targets.retrained.sparse), targets.retrained.sparse
    return {
        name: _outputs(bench, lab.logits(model), wanted)
        | {"weights": _weights(bench, model, target)}
        for name, model in models.items()
    }


def _weights(bench: Bench, model: Model, target: Model) -> list[float]:
    """Relative distance of the sparse models' prunable weights."""
    prunable = bench.lab.setting.prunable
    return [
        topology.weight_distance(
            *(of_trial(m.params, trial) for m in (model, target)), prunable=prunable
        )
        for trial in range(len(bench.lab.seeds))
    ]


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
