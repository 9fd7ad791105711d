"""What a summary says in words: two sentences, with nothing in them that it does not hold."""

from collections.abc import Sequence

from sparse_mu.blocks import arm_name
from sparse_mu.summary_words import REFERENCES, sparsity_key


def reading(summary: dict) -> str:
    """What the disparities say, in two sentences."""
    methods = [method for method in summary["methods"] if method not in REFERENCES]
    tried = {key for method in methods for key in summary["cells"][method]}
    # the dense arm of an imported sparse model has targets alone
    arms = [sparsity for sparsity in summary["sparsities"] if sparsity_key(sparsity) in tried]
    sparsities = arms or summary["sparsities"]
    first = _said(summary, methods, sparsities[0])
    if len(sparsities) == 1:
        return f"{first}."
    last = _said(summary, methods, sparsities[-1])
    if sparsities[0] > 0:
        return f"{first}. {last}."
    own, own_of = _smaller(summary, methods, sparsities[-1], "retrain")
    dense, dense_of = _smaller(summary, methods, sparsities[-1], "retrain_dense")
    return (
        f"{first}. {last}; compared with the same method on the dense model the disparity is, "
        f"by its point estimate, smaller for {own} of {own_of} methods when each arm is held "
        "against its own retrain, "
        f"and for {dense} of {dense_of} when both are held against retrain_dense."
    )


def _said(summary: dict, methods: Sequence[str], sparsity: float) -> str:
    key = sparsity_key(sparsity)
    where = f"At {arm_name(sparsity)} sparsity" if sparsity else "On the dense model"
    found = {
        method: summary["disparity"][method][key]["retrain"]
        for method in methods
        if "retrain" in summary["disparity"][method].get(key, {})
    }
    if not found:
        return f"{where} no method was compared with retraining"
    floor = summary["noise_floor"].get(key)
    known = f" of {100 * floor['value']:.2f} points" if floor else ""
    before = summary["disparity"].get("original", {}).get(key, {}).get("retrain", {})
    if before.get("within_floor"):
        return (
            f"{where} the original, which forgot nothing, is within the noise floor{known} too: "
            "these figures cannot tell forgetting from not forgetting"
        )
    within = [method for method, value in found.items() if value["within_floor"]]
    if within:
        listed = ", ".join(within) + (" is" if len(within) == 1 else " are")
        count = f"{len(within)} of {len(found)} methods"
        return f"{where} {listed} within the noise floor{known}, {count}"
    nearest = min(found, key=lambda method: found[method]["value"])
    distance = (
        f"{nearest} comes nearest to retrain, {100 * found[nearest]['value']:.2f} points away"
    )
    if any(value["within_floor"] is None for value in found.values()):
        return f"{where} {distance}; whether that is within the noise floor is not known"
    return f"{where} no method is within the noise floor{known}; {distance}"


def _smaller(
    summary: dict, methods: Sequence[str], sparsity: float, target: str
) -> tuple[int, int]:
    """How many methods have a smaller disparity at a sparsity than dense, and of how many."""
    pairs = []
    for method in methods:
        arms = summary["disparity"][method]
        sparse = arms.get(sparsity_key(sparsity), {}).get(target)
        dense = arms.get("0", {}).get("retrain")  # at sparsity 0 all targets are this one
        if sparse and dense:
            pairs.append((sparse["value"], dense["value"]))
    return sum(sparse < dense for sparse, dense in pairs), len(pairs)
