"""Which benches a sweep has, and running them: one JSON file each, found again when it is there."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.unpruning import settings
from experiments.unpruning.arms import Bench, Deletion
from experiments.unpruning.attack import sweep_of_lab
from experiments.unpruning.lab import Lab, Setting, Trained
from experiments.unpruning.measure import masks_of_bench, outputs_of_bench, path_of_bench
from sparse_mu.checkpoint import write_atomically

# The test of issue and docs, stated before it was run: BatchNorm CNN, filters, minibatches. The ten
# seeds are used nowhere else, K is a quarter of a dense training rounded up, class s mod 10 is
# deleted. H0: IoU(difference, retrained) - IoU(kept, retrained) has mean 0 over seeds; paired
# t-test, two-sided, level 0.05, n = 10. The result is stated whichever it is.
PAIRED_SEEDS = tuple(range(100, 110))


class Planned(NamedTuple):
    """One bench of a sweep."""

    setting: Setting
    deletion: str
    looks: tuple[int, ...]
    quarter: int
    block: int
    with_outputs: bool = True
    with_path: bool = True

    @property
    def name(self) -> str:
        """Of its file."""
        parts = (self.setting.name, f"{self.setting.sparsity:g}", self.deletion)
        return "-".join(parts).replace(", ", "-").replace(" ", "-").replace("%", "pct")


def deletion_of(lab: Lab, name: str) -> Deletion:
    """A class, and in the placebo another; or a share of all rows, and as many others."""
    if name == "class":
        return Deletion("class", lab.classes(), lab.classes(5))
    fraction = float(name.removeprefix("random ").removesuffix("%")) / 100
    return Deletion(name, lab.random(fraction), lab.random(fraction, draw=1))


def of_mlp(setting: Setting, deletion: str, *, light: bool = False) -> Planned:
    """K = 100 of 400 epochs; looked at every 25."""
    looks = (25, 50, 75, 100, 150, 200, 300, 400)
    looks = tuple(sorted({*looks, *range(25, 401, 25)}))
    return Planned(setting, deletion, looks, 100, 25, not light, not light)


def of_cnn(setting: Setting, deletion: str, *, light: bool = False) -> Planned:
    """K = 4 of 15 epochs; looked at after each."""
    looks = tuple(range(1, setting.epochs + 1))
    return Planned(setting, deletion, looks, -(-setting.epochs // 4), 1, not light, not light)


def digits() -> list[Planned]:
    """All arms on digits with the MLP, three deletions."""
    mlp = settings.digits_mlp()
    return [of_mlp(mlp, name) for name in ("class", "random 30%", "random 5%")]


def more_digits() -> list[Planned]:
    """Other sparsities, hidden units, minibatches, and the CNN with entries and filters."""
    plans = [of_mlp(settings.digits_mlp(), "random 10%", light=True)]
    plans += [
        of_mlp(settings.digits_mlp(sparsity=s), name, light=True)
        for s in (0.5, 0.8, 0.95)
        for name in ("class", "random 10%")
    ]
    plans.append(of_mlp(settings.digits_units(), "class"))
    cnn = settings.digits_cnn()
    filters = settings.digits_cnn(structure="filters", sparsity=0.5)
    plans += [of_cnn(cnn, "class"), of_cnn(cnn, "random 10%"), of_cnn(filters, "class")]
    return plans


def run(plans: list[Planned], seeds: tuple[int, ...], folder: Path) -> Iterator[str]:
    """Runs what is not there yet; says what it does."""
    folder.mkdir(parents=True, exist_ok=True)
    labs: dict[str, tuple[Lab, Trained]] = {}
    for plan in plans:
        file = folder / f"{plan.name}.json"
        if file.exists():
            yield f"{plan.name}: found"
            continue
        key = f"{plan.setting.name} {plan.setting.sparsity} {plan.looks}"
        if key not in labs:
            labs.clear()
            lab = Lab(plan.setting, seeds)
            labs[key] = lab, lab.pipeline(lab.everything, snapshots=plan.looks)
        lab, original = labs[key]
        deletion = deletion_of(lab, plan.deletion)
        bench = Bench(
            lab, deletion, original, plan.quarter, plan.block, with_outputs=plan.with_outputs
        )
        found = {"masks": masks_of_bench(bench)}
        if plan.with_outputs:
            found["outputs"] = outputs_of_bench(bench)
        if plan.with_path:
            found["path"] = path_of_bench(bench, list(plan.looks))
        keep(file, found)
        yield f"{plan.name}: done"


def attack(seeds: tuple[int, ...], folder: Path) -> Iterator[str]:
    """T5 on the MLP."""
    yield from once(folder / "attack.json", lambda: _attack(seeds))


def _attack(seeds: tuple[int, ...]) -> dict:
    lab = Lab(settings.digits_mlp(), seeds)
    original = lab.pipeline(lab.everything)
    models = {"original, dense": original.dense, "original, sparse": original.sparse}
    return sweep_of_lab(lab, original.masks, models)


def paired(folder: Path) -> Iterator[str]:
    """The pre-stated test, on seeds of its own."""
    setting = settings.digits_cnn(structure="filters", sparsity=0.5)
    plan = of_cnn(setting, "class", light=True)

    def measure() -> dict:
        lab = Lab(setting, PAIRED_SEEDS)
        original = lab.pipeline(lab.everything, snapshots=plan.looks)
        bench = Bench(
            lab,
            deletion_of(lab, "class"),
            original,
            plan.quarter,
            plan.block,
            with_outputs=False,
        )
        return masks_of_bench(bench)

    yield from once(folder / "paired-test.json", measure)


def free_masks(seeds: tuple[int, ...], folder: Path) -> Iterator[str]:
    """Controls: masks that saw no data, which nothing can be deleted from."""
    yield from once(folder / "free-masks.json", lambda: _free_masks(seeds))


def _free_masks(seeds: tuple[int, ...]) -> dict:
    """SynFlow and random masks: M_o = M_r and R1 = R2, bit for bit, and every metric says so."""
    import jax
    import jax.numpy as jnp

    from sparse_mu import pruning, topology

    setting = settings.digits_cnn(epochs=4)
    lab = Lab(setting, seeds)
    retain = ~lab.classes()
    found = {}
    for name in ("synflow", "random"):

        def masks() -> object:
            if name == "random":  # noqa: B023 (called at once)
                return pruning.random_masks(lab.keys, lab.theta_0, 0.9, batched=True)
            ones = jnp.ones((1, *setting.inputs.shape[1:]))
            return pruning.synflow_masks(
                setting.apply_fn, lab.theta_0, ones, 0.9, rounds=20, batched=True
            )

        before, after = masks(), masks()  # on D, and on Dr: they are handed neither
        first, second = lab.rewound(before, retain), lab.rewound(after, retain)
        logits = lab.logits(first), lab.logits(second)
        trials = range(len(seeds))
        of = [
            [jax.tree.map(lambda x, t=t: np.asarray(x)[t], m) for t in trials]
            for m in (before, after)
        ]
        alike = [topology.similarity(a, b, setting.prunable) for a, b in zip(*of, strict=True)]
        kls = [topology.divergence(logits[0][t], logits[1][t]).kl for t in trials]
        same = all(
            np.array_equal(a, b)
            for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
        )
        found[name] = {
            "iou": [one.iou for one in alike],
            "kappa": [one.kappa for one in alike],
            "kl": kls,
            "same_weights": same,
        }
        assert same and all(one.iou == 1 for one in alike) and not any(kls)
    return {"seeds": list(seeds), **found}


def once(file: Path, measure: Callable[[], dict]) -> Iterator[str]:
    """Measures unless the file is there."""
    if file.exists():
        yield f"{file.stem}: found"
        return
    keep(file, measure())
    yield f"{file.stem}: done"


def keep(file: Path, found: dict) -> None:
    """Writes a bench's figures whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(found, default=_plain))


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(type(value))
