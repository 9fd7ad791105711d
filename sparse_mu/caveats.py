"""What a reader of a summary must be told: splits, copies, ruined originals, divergence, memory."""

import math
from collections.abc import Mapping, Sequence

from sparse_mu.config import printable
from sparse_mu.summary_words import DISPARITY_METRICS, sparsity_key

RUINED = 0.1  # of the retain set; an original so far below its retrained model is told of

Arms = Mapping[tuple[str, float], Sequence[dict]]


def caveats(
    arms: Arms, methods: Sequence[str], cells: dict, config: dict, manifest: dict
) -> list[str]:
    """All warnings of a run, a line each.

    Args:
        arms: rows by (method, sparsity).
        methods: in the order that they are told of.
        cells: of the summary.
        config: the resolved config.
        manifest: what it says of splits, copies and imports.
    """
    sparsities = sorted({sparsity for _, sparsity in arms})
    return [
        *_split_warnings(config, manifest),
        *_copies_warnings(manifest),
        *_original_warnings(config, manifest, cells, sparsities),
        *_warnings(arms, cells, methods, sparsities),
        *_memory_warnings(arms),
    ]


def _split_warnings(config: dict, manifest: dict) -> list[str]:
    """Says that the original model did not train on all that is unlearned, where that was asked."""
    split = manifest.get("unlearning_split")
    if not split:
        return []
    unseen, sizes = split["forget_never_trained_on"], split["forget"]
    seed = config.get("dataset", {}).get("unlearn_split_seed")
    return [
        f"dataset.unlearn_split_seed = {seed}: the original model never trained on "
        f"{_range(unseen)} of the {_range(sizes)} forget rows of a trial "
        f"({100 * sum(unseen) / sum(sizes):.1f}% in all); on those it is as good as unlearned"
    ]


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _copies_warnings(manifest: dict) -> list[str]:
    """One line for exact, one for near copies of forget images that a method still trains on."""
    found = manifest.get("duplicates")
    if not found:
        return []
    lines = []
    for kind in ("exact", "near"):
        hit = [of_trial for of_trial in found["trials"] if of_trial[kind]]
        if not hit:
            continue
        total = sum(of_trial[kind] for of_trial in hit)
        first = next(pair for pair in hit[0]["first"] if pair["kind"] == kind)
        what = {
            "exact": "what they show is not forgotten, and no claim about it holds",
            "near": f"hashes at most {found['near_bits']} of 64 bits apart; look at them",
        }
        lines.append(
            f"{total} {kind} {'copies' if total > 1 else 'copy'} of forget images left in the "
            f"retain set, in {len(hit)} of {len(found['trials'])} trials; the first is row "
            f"{printable(str(first['copy']))}, of forget row {printable(str(first['forget']))}: "
            f"{what[kind]}"
        )
    return lines


def _original_warnings(
    config: dict, manifest: dict, cells: dict, sparsities: list[float]
) -> list[str]:
    """An original that was not trained here, with its mask, and does badly on what it should know.

    Compared with the retrained model of its arm on the retain set: what is unlearned from a model
    that never learnt says nothing.
    """
    imported = manifest.get("imported")
    lines = []
    for sparsity in sparsities:
        key = sparsity_key(sparsity)
        in_place = bool(sparsity) and (config["prune"]["rewind_epoch"] < 0)
        given = imported is not None and imported["sparsity"] == sparsity
        found = [cells.get(name, {}).get(key) for name in ("original", "retrain")]
        if not (in_place or given) or None in found:
            continue
        own, retrained = (cell["ra"]["mean"] for cell in found)
        if own is None or retrained is None or own > retrained - RUINED:
            continue
        why = "pruning in place may have ruined it: prune less, or rewind and train again"
        if given:
            why = (
                "its order of classes, its normalisation (model.channels) or its recipe (train.*) "
                "may be others"
            )
        lines.append(
            f"the original at sparsity {key} gets {100 * own:.1f}% of the retain set right, the "
            f"retrained model {100 * retrained:.1f}%: {why}"
        )
    return lines


def _warnings(
    arms: Arms, cells: dict, methods: Sequence[str], sparsities: list[float]
) -> list[str]:
    lines = []
    for method in methods:
        for sparsity in sparsities:
            arm = arms.get((method, sparsity), [])
            key = sparsity_key(sparsity)
            where = f"{method} at sparsity {key}"
            diverged = [row["trial"] for row in arm if row.get("diverged")]
            if diverged:
                listed = ", ".join(str(trial) for trial in diverged)
                lines.append(
                    f"{where}: {len(diverged)} of {len(arm)} trials diverged (trial {listed}); "
                    f"counted at the last finite state; without them {_means(cells[method], key)}"
                )
            unfinished = sum(row.get("probe_converged") is False for row in arm)
            if unfinished:
                lines.append(
                    f"{where}: a linear probe did not converge in {unfinished} of {len(arm)} trials"
                )
            short = [row for row in arm if row.get("solver_converged") is False]
            if short:
                worst = max(row["solver_relative_residual"] for row in short)
                lines.append(
                    f"{where}: the solver did not converge in {len(short)} of {len(arm)} trials "
                    f"(relative residual up to {worst:.1g}); raise its iterations or damping"
                )
            judged = [m for m in ("probe_accuracy", "tuned_accuracy") if any(m in r for r in arm)]
            for metric in (*DISPARITY_METRICS, *judged):
                count = len(arm) - _known(arm, metric)
                if count:
                    lines.append(f"{where}: {metric} has no value in {count} of {len(arm)} trials")
    return lines


def _memory_warnings(arms: Arms) -> list[str]:
    """One line for all arms that are equal up to rounding only."""
    marked = [key for key, arm in arms.items() if any(row.get("halved") for row in arm)]
    which = ", ".join(f"{method} at sparsity {sparsity_key(s)}" for method, s in marked)
    which = "every arm" if len(marked) == len(arms) else which
    line = "memory was short in, or before, {}: halved trials or rows at a time, equal by rounding"
    return [line.format(which)] if marked else []


def _means(cells: dict, key: str) -> str:
    """The means without diverged trials, in words: `ua 5.1%, ra 99.0%`."""
    means = {
        metric: cells[key][metric]["mean_without_diverged"]
        for metric in DISPARITY_METRICS
        if metric in cells[key]
    }
    known = [f"{metric} {100 * mean:.1f}%" for metric, mean in means.items() if mean is not None]
    return ", ".join(known) or "none is left"


def _known(arm: Sequence[dict], metric: str) -> int:
    """How many trials have a finite value."""
    values = (row.get(metric) for row in arm)
    return sum(value is not None and math.isfinite(value) for value in values)
