"""Which values of a config do not go together, and what each should then be.

Every function yields ``(key, what it must be)`` for what it objects to; the first one found is the
error that the user sees (:func:`sparse_mu.config.check`).
"""

from collections.abc import Iterator
from typing import Any

Objections = Iterator[tuple[str, str]]

_DATA_DIRS = {
    "folder": "the folder that holds train/CLASS/*.png and test/CLASS/*.png",
    "npz": "the .npz file",
}
_FORGET_KEYS = {
    "forget.classes": ("class",),
    "forget.count": ("random", "class"),
    "forget.file": ("indices",),
}


def objections(flat: dict[str, Any]) -> Objections:
    """All of them, of a flat config whose values are each allowed by themselves."""
    parts = (_training, _forget_set, _trojan, _transfer, _data, _reading, _network, _checkpoint)
    for part in (*parts, _unpruning, _execution):
        yield from part(flat)


def _training(flat: dict[str, Any]) -> Objections:
    if flat["prune.rewind_epoch"] >= flat["train.epochs"]:
        yield "prune.rewind_epoch", f"below train.epochs = {flat['train.epochs']}, or -1"
    if flat["train.warmup_epochs"] > flat["train.epochs"]:
        yield "train.warmup_epochs", f"at most train.epochs = {flat['train.epochs']}"


def _forget_set(flat: dict[str, Any]) -> Objections:
    chosen = flat["forget.scenario"]
    for key, scenarios in _FORGET_KEYS.items():
        if flat[key] and chosen not in scenarios:
            named = " or ".join(map(repr, scenarios))
            unset = repr(type(flat[key])())  # 0, "" or (): what stands for "not given"
            yield key, f"{unset} when forget.scenario is '{chosen}'; it is read for {named}"
    if chosen == "indices" and not flat["forget.file"]:
        listing = "a .txt, .csv, .npy or .json of rows or ids when forget.scenario is 'indices'"
        yield "forget.file", listing


def _trojan(flat: dict[str, Any]) -> Objections:
    scenario, trigger = flat["forget.scenario"], flat["trojan.trigger"]
    if scenario == "trojan" and trigger == "none":
        yield (
            "trojan.trigger",
            "a trigger, such as 'black_square', when forget.scenario is 'trojan'",
        )
    if trigger == "none":
        return
    if flat["dataset.reading"] == "stream":
        yield (
            "trojan.trigger",
            "'none' when dataset.reading is 'stream': triggers are stamped ahead",
        )
    if scenario == "trojan" and flat["dataset.unlearn_split_seed"] >= 0:
        yield "dataset.unlearn_split_seed", "-1 when forget.scenario is 'trojan'"
    if scenario == "trojan" and flat["model.checkpoint"]:
        yield "model.checkpoint", "'' when forget.scenario is 'trojan': it never saw the poison"
    if scenario not in ("trojan", "indices"):
        yield "trojan.trigger", "'none' unless forget.scenario is 'trojan' or 'indices'"


def _transfer(flat: dict[str, Any]) -> Objections:
    name = flat["transfer.dataset"]
    if not name:
        for key in ("data_dir", "classes", "limit", "count", "finetune_epochs"):
            if value := flat[f"transfer.{key}"]:
                unset = repr(type(value)())
                yield f"transfer.{key}", f"{unset} unless transfer.dataset names the target"
        if flat["transfer.choose"] != "given":
            yield "transfer.choose", "'given' unless transfer.dataset names the target"
        return
    yield from _choice(flat)
    if flat["dataset.pool"] == "tuning":  # it would be judged on the target's reported rows
        yield "transfer.dataset", "'' when dataset.pool is 'tuning': a target has no such pool"
    yield from _place(flat, "transfer.dataset", "transfer.data_dir")
    if flat["dataset.reading"] == "stream" and name in ("digits", "folder", "npz"):
        yield "transfer.dataset", "a TFDS set when dataset.reading is 'stream'"


def _choice(flat: dict[str, Any]) -> Objections:
    how, why = flat["transfer.choose"], f"when transfer.choose is '{flat['transfer.choose']}'"
    if how == "given":
        if flat["transfer.count"]:
            yield "transfer.count", f"0 {why}: forget.classes says which"
        if flat["forget.scenario"] == "class" and not flat["forget.classes"]:
            listing = "the classes to forget, such as ('0+1',),"
            yield "forget.classes", f"{listing} {why} and transfer.dataset names the target"
        return
    if not flat["transfer.count"]:
        yield "transfer.count", f"at least 1 {why}"
    if flat["forget.scenario"] != "class":
        yield "forget.scenario", f"'class' {why}"
    for key in ("forget.classes", "forget.count"):
        if flat[key]:
            yield key, f"{type(flat[key])()!r} {why}"
    if flat["model.checkpoint"] and how == "influence":
        yield "transfer.choose", "'given' or 'random' with model.checkpoint"


def _data(flat: dict[str, Any]) -> Objections:
    yield from _place(flat, "dataset.name", "dataset.data_dir")
    tuning = flat["dataset.pool"] == "tuning"
    second = flat["dataset.unlearn_split_seed"] >= 0
    if tuning and not flat["dataset.validation"]:
        yield "dataset.validation", "above 0 when dataset.pool is 'tuning'"
    if second and not flat["dataset.validation"]:
        yield "dataset.validation", "above 0 when dataset.unlearn_split_seed draws a second"
    if second and tuning:  # it would train on the rows that are reported
        yield "dataset.unlearn_split_seed", "-1 when dataset.pool is 'tuning'"


def _place(flat: dict[str, Any], named_by: str, key: str) -> Objections:
    """Of a data set that is nowhere."""
    name = flat[named_by]
    if name != "digits" and not flat[key]:
        place = _DATA_DIRS.get(name, "the TFDS directory that holds it")
        yield key, f"{place} when {named_by} is '{name}'"


def _reading(flat: dict[str, Any]) -> Objections:
    if flat["dataset.reading"] == "stream":
        if flat["dataset.name"] in ("digits", "folder", "npz"):
            yield "dataset.reading", f"'resident' for {flat['dataset.name']}; TFDS sets stream"
        if not flat["dataset.image_size"]:
            yield "dataset.image_size", "the side, such as 224, when dataset.reading is 'stream'"
        return
    if flat["train.augment"] == "resized_crop_flip":
        yield "train.augment", "none or crop_flip unless dataset.reading is 'stream'"
    if flat["dataset.workers"]:
        yield "dataset.workers", "0 unless dataset.reading is 'stream'"


def _network(flat: dict[str, Any]) -> Objections:
    name = flat["model.name"]
    if flat["model.stem"] != "cifar" and name not in ("resnet18", "resnet50"):
        yield "model.stem", f"'cifar' when model.name is '{name}'"
    if name == "swin_t":
        why = "when model.name is 'swin_t', which has no convolution to prune"
        if any(flat["prune.sparsities"]):
            yield "prune.sparsities", f"() {why}"
        if "finetune_and_prune" in flat["unlearn.methods"]:
            yield "unlearn.methods", f"without 'finetune_and_prune' {why}"
        l1_sparse = "l1_sparse" in flat["unlearn.methods"]
        if l1_sparse and flat["unlearn.l1_sparse.penalty"] == "proximal":
            yield "unlearn.l1_sparse.penalty", f"'subgradient' {why}"


def _checkpoint(flat: dict[str, Any]) -> Objections:
    if not flat["model.checkpoint"] or not any(flat["prune.sparsities"]):
        return
    why = "with model.checkpoint, unless prune.sparsities is (): an imported model"
    if flat["prune.method"] != "omp":
        yield "prune.method", f"'omp' {why} is pruned as it is, and the others train another"
    if flat["prune.rewind_epoch"] >= 0:
        yield "prune.rewind_epoch", f"-1 {why} has no early weights"


def _unpruning(flat: dict[str, Any]) -> Objections:
    methods, mode = flat["unprune.methods"], flat["unprune.mode"]
    if not methods:
        return
    why = "unless unprune.methods is ()"
    if flat["model.checkpoint"]:
        yield "unprune.methods", "() with model.checkpoint: an imported model has no first weights"
    if not any(flat["prune.sparsities"]):
        yield "unprune.methods", "() where prune.sparsities names no sparsity: nothing is pruned"
    if flat["prune.method"] == "imp":
        yield "prune.method", f"another than 'imp' {why}: rounds of pruning are not un-pruned here"
    if flat["train.budget"] != "steps":
        yield "train.budget", f"'steps' {why}: its target takes as many steps as the original"
    missing = [name for name in methods if name not in (*flat["unlearn.methods"], "retrain")]
    if missing:  # without un-pruning, it is what un-pruning is compared with
        yield "unprune.methods", f"out of unlearn.methods or 'retrain', not {missing[0]!r}"
    if "finetune_and_prune" in methods:
        yield "unprune.methods", "without 'finetune_and_prune', which makes masks of its own"
    if flat["prune.method"] != "omp" and flat["unprune.weights"] in ("continue", "estimate"):
        yield (
            "unprune.weights",
            (
                f"'carry' or 'rewind' when prune.method is '{flat['prune.method']}': its masks are "
                "found again before training, so there are no dense weights"
            ),
        )
    if flat["unprune.epochs"] > flat["train.epochs"]:
        yield "unprune.epochs", f"at most train.epochs = {flat['train.epochs']}"
    if mode != "regrow":
        return
    if "retrain" in methods:
        yield "unprune.methods", "without 'retrain' when unprune.mode is 'regrow'"
    if flat["prune.scope"] == "leaf":
        yield "prune.scope", "'global' when unprune.mode is 'regrow'"
    if flat["prune.method"] != "omp":
        yield "prune.method", "'omp' when unprune.mode is 'regrow': it prunes by magnitude"


def _execution(flat: dict[str, Any]) -> Objections:
    mode = flat["execution.mode"]
    if mode != "single" and flat["execution.trial_mode"] == "vmap":
        yield "execution.trial_mode", "'auto' or 'serial' when batches are split over devices"
    if mode != "mapped" and flat["execution.batchnorm"] == "per_device":
        yield "execution.batchnorm", "'synchronised' unless execution.mode is 'mapped'"
