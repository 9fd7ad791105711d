"""What every key of a config may hold: its type, the values allowed, and the same in words."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from sparse_mu import membership
from sparse_mu.optimiser import LEARNING_RATE_SCHEDULES
from sparse_mu.proximal import GAMMA_SCHEDULES

METHODS = (
    *("finetune", "gradient_ascent", "fisher", "influence", "l1_sparse", "finetune_and_prune"),
    *("negative_gradient", "random_label", "salun", "scrub"),
)
PRUNING = ("omp", "imp", "synflow", "snip", "snip_official", "grasp", "grasp_official", "random")
NETWORKS = ("small_cnn", "resnet20s", "resnet18", "resnet50", "vgg16_bn", "vgg16_bn_lth", "swin_t")
CHANNELS = ("auto", "none", "cifar10", "cifar100", "svhn", "imagenet")
SCENARIOS = ("class", "random", "indices", "trojan")
AUGMENTATIONS = ("none", "crop_flip", "resized_crop_flip")
LARGEST_WHOLE = 2**31 - 1
LARGEST_NUMBER = 3.4e38  # in float32, the type that all are computed in
LARGEST_BATCH = 2**16  # rows; far below where a row's position would overflow int32
LARGEST_TRIALS = 10_000


class Rule(NamedTuple):
    """What one key may hold.

    Attributes:
        types: accepted Python types (bool never counts as int).
        holds: whether a value of that type is allowed.
        allowed: the same in words, ending the sentence "must be ...".
        names: the names it chooses from, if it does; the nearest is offered for a wrong one.
    """

    types: tuple[type, ...]
    holds: Callable[[Any], bool]
    allowed: str
    names: tuple[str, ...] = ()


def _whole(least: int, most: int = LARGEST_WHOLE, note: str = "") -> Rule:
    words = f"a whole number from {least} to {most}{note}"
    return Rule((int,), lambda value: least <= value <= most, words)


def _number(holds: Callable[[float], bool], allowed: str) -> Rule:
    return Rule(
        (float, int),
        lambda value: abs(value) <= LARGEST_NUMBER and holds(value),  # NaN compares False
        allowed,
    )


def _choice(names: Iterable[str]) -> Rule:
    names = tuple(names)
    return Rule((str,), lambda value: value in names, "one of " + ", ".join(names), names)


_TEXT = Rule((str,), str.isprintable, "a text on one line")
_POSITIVE = _number(lambda value: value > 0, "a finite number above 0 (float32)")
_NOT_NEGATIVE = _number(lambda value: value >= 0, "a finite number of at least 0 (float32)")
_FRACTION = _number(lambda value: 0 < value < 1, "a fraction above 0 and below 1")
_PORTION = _number(lambda value: 0 <= value <= 1, "a fraction from 0 to 1")
_MOMENTUM = _number(lambda value: 0 <= value < 1, "a number of at least 0 and below 1")


def _distinct(values: tuple) -> bool:
    return len(set(values)) == len(values)


def _is_sparsity(value: object) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and 0 <= value < 1


def _is_class(value: object) -> bool:
    if type(value) is int:
        return 0 <= value <= LARGEST_WHOLE
    return type(value) is str and value.strip() != "" and value.isprintable()


def _is_method(value: object) -> bool:
    return type(value) is str and value in METHODS


def _is_phase(value: object) -> bool:
    return _is_method(value) or value == "retrain"


_GRADIENT_STEPS = {
    "epochs": _whole(1),
    "batch_size": _whole(2, LARGEST_BATCH),
    "learning_rate": _POSITIVE,
    "momentum": _MOMENTUM,
    "weight_decay": _NOT_NEGATIVE,
}
_METHOD_RULES = {
    "finetune": _GRADIENT_STEPS,
    "gradient_ascent": {
        **_GRADIENT_STEPS,
        "batchnorm": _choice(("train", "frozen")),
        "loss_ceiling": _NOT_NEGATIVE,
        "gamma": _NOT_NEGATIVE,
    },
    "fisher": {
        "alpha": _POSITIVE,
        "estimate": _choice(("exact", "official")),
        "noise": _choice(("floored", "quarter", "official")),
        "floor": _POSITIVE,
        "head": _choice(("intact", "zeroed", "removed")),
        "batch_size": _whole(1, LARGEST_BATCH),
    },
    "influence": {
        "alpha": _POSITIVE,
        "solver": _choice(("woodbury", "cg", "official")),
        "damping": _POSITIVE,
        "rows": _whole(1),
        "curvature": _choice(("gauss_newton", "hessian")),
        "iterations": _whole(1),
        "tolerance": _NOT_NEGATIVE,
        "weighting": _choice(("average", "sum")),
        "batch_size": _whole(1, LARGEST_BATCH),
    },
    "l1_sparse": {
        **_GRADIENT_STEPS,
        "gamma": _NOT_NEGATIVE,
        "schedule": _choice(GAMMA_SCHEDULES),
        "penalty": _choice(("subgradient", "proximal")),
    },
    "finetune_and_prune": {**_GRADIENT_STEPS, "sparsity": _FRACTION},
    "negative_gradient": {
        **_GRADIENT_STEPS,
        "retain_weight": _PORTION,
        "ceiling": _NOT_NEGATIVE,
    },
    "random_label": {**_GRADIENT_STEPS, "retain_weight": _NOT_NEGATIVE},
    "salun": {
        **_GRADIENT_STEPS,
        "retain_weight": _NOT_NEGATIVE,
        "saliency": _number(lambda value: 0 < value <= 1, "a fraction above 0 and at most 1"),
    },
    "scrub": {
        **_GRADIENT_STEPS,
        "alpha": _NOT_NEGATIVE,
        "gamma": _NOT_NEGATIVE,
        "temperature": _POSITIVE,
        "max_epochs": _whole(0),
    },
}

_KEPT_CLASSES = Rule(
    (tuple,),
    lambda v: all(map(_is_class, v)) and _distinct(v) and len(v) != 1,
    "a tuple of at least two distinct class numbers or names, such as (0, 'cat'); () = all",
)

RULES: dict[str, Rule] = {
    "seed": _whole(0),
    "trials": _whole(1, LARGEST_TRIALS),
    "dataset.name": Rule(
        (str,),
        lambda v: v != "" and v.isprintable(),
        "'digits', 'folder', 'npz' or the name of a TFDS dataset",
    ),
    "dataset.data_dir": _TEXT,
    "dataset.limit": _whole(0, note=" (0 = all)"),
    "dataset.classes": _KEPT_CLASSES,
    "dataset.reading": _choice(("resident", "stream")),
    "dataset.image_size": _whole(0, 4096, note=" (0 = as stored)"),
    "dataset.cache_dir": _TEXT,
    "dataset.workers": _whole(0, 256),
    "dataset.split_seed": _whole(0),
    "dataset.unlearn_split_seed": _whole(-1, note=" (-1 = the split of training)"),
    "dataset.validation": _number(lambda v: 0 <= v < 1, "a fraction in [0, 1)"),
    "dataset.pool": _choice(("report", "tuning")),
    "model.name": _choice(NETWORKS),
    "model.stem": _choice(("cifar", "imagenet")),
    "model.channels": _choice(CHANNELS),
    "model.checkpoint": _TEXT,
    "model.dtype": _choice(("float32", "bfloat16")),
    "forget.scenario": _choice(SCENARIOS),
    "forget.classes": Rule(
        (tuple,),
        lambda v: all(map(_is_class, v)) and _distinct(v),
        "a tuple of distinct class numbers or names, those forgotten together joined by +, such as "
        "(0, 'cat', '3+5'); () = every class in turn",
    ),
    "forget.fraction": _FRACTION,
    "forget.count": _whole(0, note=" (0 = use forget.fraction)"),
    "forget.file": _TEXT,
    "forget.duplicates": _choice(("count", "skip")),
    "trojan.trigger": _choice(("none", "black_square", "white_square", "blended")),
    "trojan.size": _whole(1, 4096),
    "trojan.offset": _whole(0, 4096),
    "trojan.strength": _number(lambda v: 0 < v <= 1, "a fraction above 0 and at most 1"),
    "trojan.target": Rule(
        (str,), lambda v: v.strip() != "" and v.isprintable(), "the number or name of a class"
    ),
    "trojan.ratio": _FRACTION,
    "trojan.variant": _choice(("all_to_one", "all_to_all", "clean_label")),
    "transfer.dataset": _TEXT,
    "transfer.data_dir": _TEXT,
    "transfer.limit": _whole(0, note=" (0 = all)"),
    "transfer.classes": _KEPT_CLASSES,
    "transfer.choose": _choice(("given", "influence", "random")),
    "transfer.count": _whole(0, note=" (0 when transfer.choose is 'given')"),
    "transfer.subsets": Rule(
        (int,), lambda v: 2 <= v <= LARGEST_TRIALS and v % 2 == 0, "an even whole number from 2"
    ),
    "transfer.validation": _FRACTION,
    "transfer.probe_seeds": _whole(3, 1000),
    "transfer.finetune_epochs": _whole(0, note=" (0 = no fine-tuning)"),
    "transfer.finetune_batch_size": _whole(1, LARGEST_BATCH),
    "transfer.finetune_learning_rate": _POSITIVE,
    "transfer.finetune_momentum": _MOMENTUM,
    "transfer.finetune_weight_decay": _NOT_NEGATIVE,
    "train.epochs": _whole(1),
    "train.batch_size": _whole(2, LARGEST_BATCH),
    "train.learning_rate": _POSITIVE,
    "train.momentum": _MOMENTUM,
    "train.weight_decay": _NOT_NEGATIVE,
    "train.schedule": _choice(LEARNING_RATE_SCHEDULES),
    "train.warmup_epochs": _NOT_NEGATIVE,
    "train.budget": _choice(("epochs", "steps")),
    "train.augment": _choice(AUGMENTATIONS),
    "prune.method": _choice(PRUNING),
    "prune.sparsities": Rule(
        (tuple,),
        # six digits, as in the names of stages and columns
        lambda v: all(map(_is_sparsity, v)) and _distinct(tuple(f"{s:g}" for s in v)),
        "a tuple of distinct fractions in [0, 1), such as (0.9,)",
    ),
    "prune.rewind_epoch": _whole(-1, note=" (-1 = prune in place)"),
    "prune.scope": _choice(("global", "leaf")),
    "prune.structure": _choice(("entries", "filters", "channels")),
    "prune.rate": _FRACTION,
    "prune.rounds": _whole(1),
    "prune.synflow_counts": _choice(("exact", "official")),
    "prune.per_class": _whole(1),
    "unlearn.methods": Rule(
        (tuple,),
        lambda v: all(map(_is_method, v)) and _distinct(v),
        "a tuple of distinct names out of " + ", ".join(METHODS),
        METHODS,
    ),
    **{
        f"unlearn.{method}.{key}": rule
        for method, rules in _METHOD_RULES.items()
        for key, rule in rules.items()
    },
    "unprune.methods": Rule(
        (tuple,),
        lambda v: all(map(_is_phase, v)) and _distinct(v),
        "a tuple of distinct names, those of unlearn.methods or retrain",
        ("retrain", *METHODS),
    ),
    "unprune.mode": _choice(("difference", "projected", "rewind", "regrow")),
    "unprune.epochs": _whole(1),
    "unprune.block": _whole(1),
    "unprune.tolerance": _number(lambda v: 0 <= v < 1, "a fraction in [0, 1)"),
    "unprune.weights": _choice(("carry", "rewind", "continue", "estimate")),
    "unprune.settle_epochs": _whole(0),
    "unprune.grow": _choice(("initial", "gradient", "all")),
    "unprune.start": _choice(("initial", "zero", "clip")),
    "unprune.fraction": _number(lambda v: 0 < v <= 1, "a fraction above 0 and at most 1"),
    "unprune.cap": _PORTION,
    "unprune.rounds": _whole(1),
    "evaluate.mia_feature": _choice(membership.FEATURES),
    "evaluate.mia_draws": _whole(1),
    "evaluate.mia_pools": _choice(("drawn", "official")),
    "evaluate.batch_size": _whole(1, LARGEST_BATCH),
    "evaluate.interval": _FRACTION,
    "evaluate.rte_repeats": Rule(
        (int,),
        lambda value: value == 0 or 3 <= value <= LARGEST_WHOLE,
        "a whole number from 3, or 0 to measure no RTE",
    ),
    "execution.mode": _choice(("single", "sharded", "mapped")),
    "execution.batchnorm": _choice(("synchronised", "per_device")),
    "execution.trial_mode": _choice(("auto", "serial", "vmap")),
    "checkpoint.every_epochs": _whole(1),
    "checkpoint.keep": _whole(1, 100),
}
