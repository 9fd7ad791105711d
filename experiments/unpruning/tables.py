"""T1 to T5 in Markdown: means with half-widths of 95% intervals over seeds, and wins by seed."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from sparse_mu.statistics import mean_interval, paired_difference

Values = Sequence[float | None]


NOT_MADE = ("seed floor", "random swaps")  # masks that nobody would have, so without a cost


def shown(values: Values, digits: int = 3, scale: float = 1.0) -> str:
    """``mean ± half-width``; ``(n)`` where a seed has no value; a dash where none has."""
    known = [scale * v for v in values if v is not None and math.isfinite(v)]
    if not known:
        return "—"
    found = mean_interval(np.array(known))
    half = "" if math.isnan(found.half_width) else f" ± {found.half_width:.{digits}f}"
    count = "" if len(known) == len(values) else f" ({len(known)})"
    return f"{found.mean:.{digits}f}{half}{count}"


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def title(bench: dict) -> str:
    """What a bench is called."""
    found = bench["masks"]
    return (
        f"{found['setting']}, {100 * found['sparsity']:g}% sparse, {found['deletion']} deleted "
        f"(n = {len(found['seeds'])} seeds, K = {found['quarter']} of {found['epochs']} epochs)"
    )


def moved(benches: list[dict]) -> list[str]:
    """T1."""
    head = (
        *("setting", "deleted", "share", "IoU(M_o, M_r)", "seed floor", "chance", "kappa"),
        *("IoU of pruned", "Spearman, all", "near threshold"),
    )
    rows = []
    for bench in benches:
        found = bench["masks"]
        told = found["moved"]
        rows.append(
            (
                f"{found['setting']}, {100 * found['sparsity']:g}%",
                found["deletion"],
                f"{np.mean(found['forgotten']):.0f} rows",
                shown(told["iou"]),
                shown(found["floor"]),
                shown(told["chance_iou"]),
                shown(told["kappa"]),
                shown(told["iou_pruned"]),
                shown(told["spearman"]["all"]),
                shown(told["spearman"]["near"]),
            )
        )
    return grid(head, rows)


def by_leaf(bench: dict) -> list[str]:
    """T1, leaf by leaf."""
    told = bench["masks"]["moved"]
    rows = [
        (name, shown(values), shown(told["floor_by_leaf"][name]))
        for name, values in told["by_leaf"].items()
    ]
    return grid(("leaf", "IoU(M_o, M_r)", "seed floor"), rows)


def arms(bench: dict) -> list[str]:
    """T2 and, in its last columns, T4."""
    found = bench["masks"]
    kept = found["arms"]["no-op"]["iou"]
    head = (
        *("arm", "IoU to M_r", "wins over no-op", "gain in IoU over no-op", "kappa"),
        *("flips right", "flips found", "G to the floor", "G to 1", "cost / R2", "stored, KiB"),
    )
    rows = []
    for name, arm in found["arms"].items():
        paired = paired_difference(arm["iou"], kept)
        wins = sum(a > b for a, b in zip(arm["iou"], kept, strict=True))
        is_target = name in ("retrained", "no-op")
        rows.append(
            (
                name,
                shown(arm["iou"]),
                "" if is_target else f"{wins}/{len(kept)}",
                "" if is_target else f"{paired.mean:+.3f} ± {paired.half_width:.3f}",
                shown(arm["kappa"]),
                shown(arm["precision"], 2),
                shown(arm["recall"], 2),
                _where_all(arm["gain"]),
                shown(arm["gain_exact"], 2),
                "" if name in NOT_MADE else f"{np.mean(arm['cost']):.3f}",
                "" if name in NOT_MADE else f"{arm['stored_bytes'] / 1024:.0f}",
            )
        )
    lines = grid(head, rows)
    rows = []
    for name in found["placebo"]:
        sham = found["sham"][name]
        rows.append(
            (
                name,
                shown(found["arms"][name]["iou"]),
                shown(found["placebo"][name]),
                shown(sham["to_original"]),
                shown(sham["to_retrained"]),
            )
        )
    head = (
        *("mode", "IoU to M_r", "placebo: another set un-pruned, to M_r"),
        *("sham: nothing deleted, to M_o", "sham, to M_r"),
    )
    return lines + grid(head, rows)


def _where_all(values: Values) -> str:
    """A gain to the floor where every seed has one: where M_o is below the floor."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    return shown(values, 2) if len(known) == len(values) else "—"


def bounds(bench: dict) -> list[str]:
    """The truth beside the theorems of UNPRUNING 2.6, which hold on every mask here."""
    head = (
        *("arm", "h", "band (i)", "(i) by max", "L1 (ii)", "L2 (ii)", "IoU", "IoU bound (iii)"),
        *("norm of e", "weights", "bound (iv)"),
    )
    rows = []
    for name, arm in bench["masks"]["arms"].items():
        told = arm["errors"]
        if told is None or name == "retrained":
            continue
        keys = ("flips", "band", "widest_band", "absolute", "square")
        rows.append(
            (
                name,
                *(shown(told[key], 0) for key in keys),
                *(shown(told[key]) for key in ("iou", "iou_bound")),
                *(shown(told[key], 2) for key in ("error_norm", "weights", "weights_bound")),
            )
        )
    return grid(head, rows)


def outputs(bench: dict) -> list[str]:
    """T3."""
    found = bench["outputs"]
    target = found["R2: retrained"]
    head = (
        *("model", "UA", "RA", "TA", "UA gap to R2", "RA gap", "TA gap"),
        *("KL test", "KL forget", "KL retain", "JS test", "weights, relative"),
    )
    rows = []
    for name, told in found.items():
        gaps = [
            "" if told is target else _points(told[key], target[key]) for key in ("ua", "ra", "ta")
        ]
        rows.append(
            (
                name,
                *(shown(told[key], 1, 100) for key in ("ua", "ra", "ta")),
                *gaps,
                *(shown(told[f"kl_{key}"]) for key in ("test", "forget", "retain")),
                shown(told["js_test"]),
                shown(told["weights"]),
            )
        )
    return grid(head, rows)


def _points(ours: list[float], theirs: list[float]) -> str:
    found = paired_difference(ours, theirs)
    return f"{100 * found.mean:+.1f} ± {100 * found.half_width:.1f}"


def attack(found: dict) -> list[str]:
    """T5."""
    head = ("model", *(f"pools {ratio}" for ratio in found["ratios"]), "swing, largest", "AUC")
    rows = []
    for name, seeds in found["by_ratio"].items():
        columns = list(zip(*(one["nonmember"] for one in seeds), strict=True))
        swing = max(max(one["nonmember"]) - min(one["nonmember"]) for one in seeds)
        auc = [one["auc"] for one in seeds]
        rows.append((name, *(_range(column) for column in columns), f"{swing:.2f}", shown(auc)))
    lines = grid(head, rows)
    sizes = next(iter(found["by_size"].values()))
    pools = [key for key in next(iter(sizes.values())) if key not in ("auc", "pool")]
    head = ("model", *(f"{float(s):.0%}, {pool}" for s in sizes for pool in pools))
    rows = [
        (name, *(_range(told[s][pool]) for s in told for pool in pools))
        for name, told in found["by_size"].items()
    ]
    lines += grid(head, rows)
    head = ("model", *(f"AUC, {float(s):.0%}" for s in sizes))
    return lines + grid(
        head,
        [(name, *(shown(told[s]["auc"]) for s in told)) for name, told in found["by_size"].items()],
    )


def _range(values: Values) -> str:
    """Median, and the smallest and largest of the seeds."""
    known = [v for v in values if v is not None]
    return f"{np.median(known):.2f} [{min(known):.2f}, {max(known):.2f}]"


def paired_test(found: dict) -> list[str]:
    """A pre-stated test, whichever way it went; beside it the modes that it was not about."""
    arms = found["arms"]
    ours, kept = (np.array(arms[name]["iou"]) for name in ("difference", "no-op"))
    told, p = paired_difference(ours, kept), stats.ttest_rel(ours, kept).pvalue
    verdict = "is rejected" if p < 0.05 else "is not rejected"
    lines = [
        f"IoU to M_r: kept {shown(kept.tolist())}, difference {shown(ours.tolist())}; difference "
        f"of the pairs {told.mean:+.3f} ± {told.half_width:.3f} (n = {told.n}, {_won(ours, kept)} "
        f"seeds won), two-sided paired t-test p = {p:.2g}: that the two are alike {verdict} at "
        f"0.05. Seed floor {shown(found['floor'])}; placebo "
        f"{shown(found['placebo']['difference'])}.",
        "",
    ]
    for name in ("projected", "rewind"):
        values = np.array(arms[name]["iou"])
        more = paired_difference(values, ours)
        lines += [
            f"Not part of the test: {name} {shown(values.tolist())}, {_won(values, kept)} seeds "
            f"won over kept; {name} minus difference {more.mean:+.3f} ± {more.half_width:.3f}, "
            f"{_won(values, ours)} seeds won and {_won(ours, values)} lost.",
            "",
        ]
    return lines


def _won(ours: np.ndarray, theirs: np.ndarray) -> str:
    return f"{int((ours > theirs).sum())} of {len(ours)}"


def controls(found: dict) -> list[str]:
    """What every metric says of masks that saw no data, and of one that did."""
    methods = [key for key in found if key not in ("seeds", "made")]
    names = list(found[methods[0]])
    return grid(
        ("metric", *methods), [(name, *(shown(found[m][name]) for m in methods)) for name in names]
    )
