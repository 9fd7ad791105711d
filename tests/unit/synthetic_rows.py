"""Rows of a run that never ran: metrics with a known mean, spread and gap to retraining."""

from collections.abc import Sequence

import numpy as np

RATES = {  # ua, ra, ta, mia_efficacy; dense, sparse
    "original": ((0.01, 0.999, 0.947, 0.02), (0.02, 0.995, 0.942, 0.03)),
    "retrain": ((0.060, 0.998, 0.943, 0.130), (0.068, 0.992, 0.938, 0.140)),
    "retrain_dense": (None, (0.060, 0.998, 0.943, 0.130)),
    "retrain_repruned": (None, (0.071, 0.991, 0.937, 0.143)),
    "retrain_reseeded": ((0.061, 0.998, 0.942, 0.131), (0.069, 0.992, 0.937, 0.141)),
    "finetune": ((0.010, 0.997, 0.940, 0.040), (0.055, 0.990, 0.936, 0.120)),
    "gradient_ascent": ((0.310, 0.760, 0.700, 0.280), (0.110, 0.930, 0.890, 0.190)),
    "fisher": ((0.350, 0.690, 0.660, 0.330), (0.210, 0.820, 0.790, 0.260)),
    "influence": ((0.020, 0.980, 0.920, 0.050), (0.050, 0.970, 0.910, 0.100)),
    "l1_sparse": ((0.058, 0.976, 0.928, 0.115), (0.066, 0.990, 0.936, 0.138)),
}
SECONDS = {"finetune": 9.1, "gradient_ascent": 0.42, "fisher": 24.6, "influence": 3.3}
TARGETS = ("retrain", "retrain_dense", "retrain_repruned")


def make_rows(
    *,
    scenario: str = "random",
    trials: int = 10,
    sparsities: Sequence[float] = (0.0, 0.95),
    noise: float = 0.004,
    classes: int = 10,
    seed: int = 0,
) -> list[dict]:
    """Rows in the order of a run; trial t of a class scenario forgets class t mod `classes`."""
    rng = np.random.default_rng(seed)
    found: dict[tuple[str, float, int], dict] = {}
    for sparsity in sparsities:
        for method, (dense, sparse) in RATES.items():
            share = min(sparsity / 0.95, 1.0)
            if sparsity == 0 and dense is None:
                continue
            rates = sparse if dense is None else (1 - share) * np.array(dense)
            if dense is not None:
                rates = rates + share * np.array(sparse)
            for trial in range(trials):
                drawn = np.clip(rates + noise * rng.standard_normal(4), 0, 1)
                row = _row(method, sparsity, trial, [float(value) for value in drawn])
                row["forgotten_classes"] = [trial % classes] if scenario == "class" else []
                if scenario == "class":
                    row.update(ua_test=row["ua"], mia_class=0.5, mia_class_auc=0.5)
                found[method, sparsity, trial] = row
    for row in found.values():
        add_gaps(row, found)
    return list(found.values())


def add_gaps(row: dict, found: dict[tuple[str, float, int], dict]) -> None:
    """Adds the signed gaps of a row to each target of its trial."""
    for target in TARGETS:
        key = (target, row["sparsity"], row["trial"])
        if row["sparsity"] == 0 or target == "retrain_dense":
            key = ("retrain", 0.0, row["trial"])
        if key in found:
            for metric in ("ua", "ra", "ta", "mia_efficacy"):
                row[f"gap_{target}_{metric}"] = row[metric] - found[key][metric]


def make_config(scenario: str = "random") -> dict:
    return {
        "seed": 0,
        "dataset": {"name": "cifar10"},
        "model": {"name": "resnet18"},
        "forget": {"scenario": scenario, "fraction": 0.1},
        "prune": {"method": "omp", "sparsities": (0.0, 0.95), "rewind_epoch": 8},
    }


def _row(method: str, sparsity: float, trial: int, rates: list[float]) -> dict:
    ua, ra, ta, mia = rates
    seconds = SECONDS.get(method, 182.0 + trial if "retrain" in method else 9.4)
    return {
        "method": method,
        "sparsity": float(sparsity),
        "trial": trial,
        "seed": 100 + trial,
        "n_forget": 4500,
        "n_retain": 40500,
        "ua": ua,
        "ra": ra,
        "ta": ta,
        "mia_efficacy": mia,
        "ta_all": ta,
        "ta_worst_class": max(ta - 0.1, 0.0),
        "mia_efficacy_spread": 0.01,
        "mia_auc": 0.5 + (ra - ta) / 2,
        "mia_tpr_at_1fpr": 0.012,
        "mia_privacy_rate": min(ra, 0.7),
        "mia_privacy_balanced": 0.55,
        "diverged": False,
        "mask_sparsity": float(sparsity),
        "rte_seconds": None if method == "original" else seconds + 0.01 * trial,
        "rte_batched_seconds": None,
        "compile_seconds": 6.0,
        "prune_seconds": 190.0 if sparsity else 0.0,
    }
