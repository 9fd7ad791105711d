"""What stands around the results in words: what was run, what the marks and the figures mean."""

from sparse_mu.blocks import (
    arm_name,
    is_transfer,
    is_trojan,
    percent,
    shared_count,
    spread,
    unpruned,
)
from sparse_mu.summary_words import FLOOR, NEAR, sparsity_key


def header(summary: dict) -> list[str]:
    """Two lines: what was run, and what a printed figure is; a third on an imported original."""
    config, over, n = summary["config"], summary["over"], shared_count(summary)
    network = config.get("model", {}).get("name", "")
    data = config.get("dataset", {}).get("name", "")
    imported = summary["manifest"].get("imported")
    pruning = f"by {config['prune']['method']}" if config.get("prune", {}).get("method") else ""
    if imported and imported["sparsity"]:
        pruning = "before it was imported"
    arms = ", ".join(arm_name(sparsity) for sparsity in summary["sparsities"])
    pruned = " sparse" if max(summary["sparsities"]) else ""
    pruned += f" (pruned {pruning})" if pruning and pruned else ""
    what = f"{summary['scenario']} forgetting"
    where = " on ".join(part for part in (network, data) if part)
    count = f"n = {n} {over} throughout" if n else "(n) beside each figure"
    if n == 1:
        count = f"n = 1 {over[:-2] if over == 'classes' else over[:-1]}: no interval"
    averaged = (
        "classes, seeds averaged within a class first"
        if over == "classes"
        else "trials, the data fixed"
    )
    return [
        ": ".join(part for part in (where, what) if part) + f"; {arms}{pruned}",
        f"Percent, mean ± half-width of the {100 * summary['level']:g}% interval (n); {count}; "
        f"intervals are over {averaged}.",
        *([_origin(imported)] if imported else []),
        *([_chosen(summary)] if summary["manifest"].get("class_influence") else []),
    ]


def _origin(imported: dict) -> str:
    """Where an imported original comes from, and what cannot be there for that."""
    line = f"The original was imported from {imported['file']}, the same for every trial"
    if not imported["sparsity"]:
        return line + "."
    return (
        f"{line}, pruned already: there is no dense original, and no retrain_repruned, for how its "
        "mask was found is not known."
    )


def _chosen(summary: dict) -> str:
    """Which source classes were found harmful."""
    told = sorted(summary["manifest"]["class_influence"], key=lambda of_class: -of_class["value"])
    count = summary["config"]["transfer"]["count"]
    listed = ", ".join(
        f"{of_class['class']} ({of_class['value']:+.3f} ± {of_class['error']:.3f})"
        for of_class in told
    )
    names = " and ".join(str(of_class["class"]) for of_class in told[:count])
    return (
        f"Forgotten: {names}, of most influence on the target's validation loss (nats ± standard "
        f"error; above 0 harms): {listed}."
    )


def legend(summary: dict) -> list[str]:
    """What the marks, the targets and the noise floor mean."""
    lines = [
        "Closer to retrain is better; a larger UA or MIA-Efficacy alone is not. Disparity: mean "
        "over UA, MIA-Efficacy, RA, TA of |difference of the means|."
    ]
    if any(floor["n"] > 1 for floor in summary["noise_floor"].values()):
        near = f"{100 * NEAR:g} points"
        lines.append(
            f"≈ within the noise floor: not told apart from retraining by {summary['units']} "
            f"{summary['over']}, so not ranked. △ ▽ above or below retrain by up to {near}, "
            "▲ ▼ by more. Disparity has no sign, so ≈ alone; it may be told apart where no single "
            "metric can."
        )
        lines.append(
            f"Noise floor: {FLOOR}, retraining once more with another seed; what chance alone "
            "does. Of the dense arm where the target is retrain_dense."
        )
    repeats = summary["config"].get("evaluate", {}).get("rte_repeats", "several")
    timing = f"RTE: median seconds of {repeats} runs of one trial alone, compiling left out."
    if max(summary["sparsities"]):
        timing += " RTE + pruning adds the seconds that made the sparse model from the dense one."
    if repeats == 0:
        timing = "RTE was not measured (evaluate.rte_repeats = 0)."
    if is_trojan(summary):
        lines.append(trojan_legend(summary))
    if is_transfer(summary):
        lines.append(transfer_legend(summary))
    if not max(summary["sparsities"]):
        return [*lines, "Target: retrain = retrained without the forget set.", timing]
    if unpruned(summary):
        lines += mask_legend(summary)
    return [
        *lines,
        "Targets: retrain = retrained without the forget set, the arm's own mask; retrain_dense = "
        "not pruned; retrain_repruned = mask found without the forget set.",
        timing,
    ]


def trojan_legend(summary: dict) -> str:
    """What the figures of a Trojan are."""
    told = summary["manifest"].get("trojan") or {}
    wanted = told.get("wanted", [])
    as_what = f"as {wanted[0]}" if len(wanted) == 1 else "as the next class"
    return (
        f"Trojan: {told.get('trigger', 'a trigger')} is to have images classified {as_what}. ASR: "
        "share of the triggered test images of other classes for which it does (all images: of "
        "all); without trigger: share of the same images, clean, that are classified so anyway. "
        "SA: accuracy on clean test images. ASR carries no marks."
    )


def transfer_legend(summary: dict) -> str:
    """What the figures of transfer are."""
    told = summary["config"].get("transfer", {})
    seeds = told.get("probe_seeds", "several")
    return (
        "Transfer: accuracy on the target's test rows of a logistic regression on frozen features, "
        f"its regulariser chosen on validation rows, mean of {seeds} draws of these (linear "
        "probe), and of the whole model trained on the target (fine-tuned). The original is the "
        "row where nothing was forgotten. Accuracies on the target carry no marks."
    )


def mask_legend(summary: dict) -> list[str]:
    """What the figures of masks are, and what chance alone does to them."""
    floors = [
        f"{arm_name(sparsity)}: {spread(cell['mask_floor'], percent(1))}"
        for sparsity in summary["sparsities"]
        if (cell := summary["cells"]["original"].get(sparsity_key(sparsity), {})).get("mask_floor")
    ]
    line = (
        "Masks are held against that of retrain_repruned; original is the mask that saw the forget "
        "set. Flips right: of the bits that un-pruning changed, those that the target has too; "
        "found: of the bits that should change, those it changed. KL(retrain_repruned || model), "
        "test rows."
    )
    if not floors:
        return [line]
    return [
        line,
        "Gain: 0 leaves the mask alone, 100 comes as near as the seed floor, the IoU of two such "
        f"retrainings whose rows came in other orders ({'; '.join(floors)}); above 100 it is "
        "nearer than that, for un-pruning shares the order of rows.",
    ]


def copies(summary: dict) -> str:
    """What was found of copies of forget images, in a sentence; "" where nobody looked."""
    found = summary["manifest"].get("duplicates")
    if not found:
        return ""
    most = {
        key: max(of_trial[key] for of_trial in found["trials"])
        for key in ("exact", "near", "exact_test", "near_test")
    }

    def said(exact: int, near: int) -> str:
        return f"{exact} exact" + (f", {near} near" if found["near_bits"] is not None else "")

    text = (
        "Copies of forget images, the most of any trial: in the retain set "
        f"{said(most['exact'], most['near'])}; in the test set "
        f"{said(most['exact_test'], most['near_test'])}."
    )
    if found["near_bits"] is None:
        return f"{text} Near copies were not looked for: {found['reason']}."
    text += f" Near: perceptual hashes at most {found['near_bits']} of 64 bits apart"
    flat = f"; {found['flat']} flat images not compared" if found["flat"] else ""
    return f"{text}{flat}."
