"""The words of a summary: its methods in their order, its targets, its metrics, its keys."""

from collections.abc import Iterable

METHOD_ORDER = (
    "original",
    "retrain",
    "retrain_dense",
    "retrain_repruned",
    "retrain_reseeded",
    "finetune",
    "gradient_ascent",
    "fisher",
    "influence",
    "l1_sparse",
    "negative_gradient",
    "random_label",
    "salun",
    "scrub",
    "finetune_and_prune",
)
TARGETS = ("retrain", "retrain_dense", "retrain_repruned")
FLOOR = "retrain_reseeded"
REFERENCES = ("original", *TARGETS, FLOOR)  # what a method is compared with; not methods under test
NEAR = 0.05  # fraction; a gap beyond the noise floor is "near" up to here, then "far"
DISPARITY_METRICS = ("ua", "mia_efficacy", "ra", "ta")
METRICS = (
    *("ua", "ra", "ta", "ta_all", "ta_worst_class", "ua_test"),
    *("mia_efficacy", "mia_efficacy_spread", "mia_auc", "mia_tpr_at_1fpr"),
    *("mia_class", "mia_class_auc", "mia_privacy_rate", "mia_privacy_balanced"),
    *("asr", "asr_all", "false_target"),
    *("probe_accuracy", "probe_spread", "tuned_accuracy"),
    *("mask_sparsity", "mask_iou", "mask_iou_pruned", "mask_iou_corrected", "mask_kappa"),
    *("mask_flip_precision", "mask_flip_recall", "mask_floor", "mask_gain"),
    *("kl_forget", "kl_retain", "kl_test", "js_forget", "js_retain", "js_test"),
    *("unprune_epochs", "unprune_rounds", "unprune_gradients", "unprune_stored_bytes"),
    *("rte_seconds", "rte_batched_seconds", "compile_seconds", "prune_seconds"),
)
WHOLE_METRICS = ("mask_gain",)  # shown only if every trial has a value: which do is no accident
UNPRUNED = "unprune_"  # begins the name of a method that runs after un-pruning


def in_order(methods: Iterable[str]) -> list[str]:
    """The known methods in their fixed order, each followed by itself after un-pruning.

    The others follow in order of appearance.
    """
    methods = list(methods)
    known = [
        name
        for method in METHOD_ORDER
        for name in (method, UNPRUNED + method)
        if name in methods and name != f"{UNPRUNED}retrain"
    ]
    return known + [method for method in methods if method not in known]


def sparsity_key(sparsity: float) -> str:
    """The key of a sparsity in the summary's dicts: 0 -> "0", 0.95 -> "0.95"."""
    return f"{sparsity:.10g}"
