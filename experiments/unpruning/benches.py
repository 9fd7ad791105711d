"""Which benches a sweep has, and running them: one JSON file each, found again when it is there."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.unpruning import settings
from experiments.unpruning.arms import Bench, Deletion
from experiments.unpruning.attack import sweep_of_lab
from experiments.unpruning.controls import of_free_masks
from experiments.unpruning.lab import Lab, Setting, Trained
from experiments.unpruning.measure import masks_of_bench, outputs_of_bench, path_of_bench
from sparse_mu.checkpoint import write_atomically
from sparse_mu.manifest import commit
from sparse_mu.masks import Scope

# Tests stated before they were run: BatchNorm CNN, half of the filters, minibatches. The ten seeds
# are used nowhere else, K is a quarter of a dense training rounded up, class s mod 10 is deleted.
# H0: IoU(difference, retrained) - IoU(kept, retrained) has mean 0 over seeds; paired t-test,
# two-sided, level 0.05, n = 10. The result is stated whichever it is. The first ranks all filters
# together by mean magnitude; it turned out that then one of the three leaves alone is ever pruned
# differently. The second was added for that: as many filters of each leaf.
PAIRED: dict[str, tuple[Scope, tuple[int, ...]]] = {
    "paired-test": ("global", tuple(range(100, 110))),
    "paired-test-leaf": ("leaf", tuple(range(200, 210))),
}


class Planned(NamedTuple):
    """One bench of a sweep."""

    setting: Setting
    deletion: str
    looks: tuple[int, ...]
    quarter: int
    block: int
    with_outputs: bool = True
    with_path: bool = True
    with_unlearners: bool = True

    @property
    def name(self) -> str:
        """Of its file."""
        parts = (self.setting.name, f"{self.setting.sparsity:g}", self.deletion)
        return "-".join(parts).replace(", ", "-").replace(" ", "-").replace("%", "pct")

    def described(self, seeds: tuple[int, ...]) -> dict:
        """What the figures depend on, beside the code."""
        told = ("sparsity", "epochs", "batch_size", "learning_rate", "structure", "scope")
        return {
            "seeds": list(seeds),
            "rows": self.setting.train_rows,
            **{key: getattr(self.setting, key) for key in told},
            **{key: value for key, value in self._asdict().items() if key != "setting"},
        }


def deletion_of(lab: Lab, name: str) -> Deletion:
    """A class, and in the placebo another; or a share of all rows, and as many others."""
    if name == "class":
        return Deletion("class", lab.classes(), lab.classes(5))
    fraction = float(name.removeprefix("random ").removesuffix("%")) / 100
    return Deletion(name, lab.random(fraction), lab.random(fraction, draw=1))


def of_mlp(setting: Setting, deletion: str, *, light: bool = False) -> Planned:
    """K a quarter of the training, which is looked at sixteen times."""
    block = setting.epochs // 16
    looks = tuple(range(block, setting.epochs + 1, block))
    return Planned(setting, deletion, looks, setting.epochs // 4, block, not light, not light)


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
    plans.append(of_mlp(settings.digits_mlp(batch_size=128, epochs=96), "class", light=True))
    plans.append(of_mlp(settings.digits_units(), "class"))
    cnn = settings.digits_cnn()
    plans += [of_cnn(cnn, "class"), of_cnn(cnn, "random 10%")]
    for scope in ("global", "leaf"):
        filters = settings.digits_cnn(structure="filters", scope=scope, sparsity=0.5)
        plans.append(of_cnn(filters, "class", light=scope == "global"))
    return plans


def run(plans: list[Planned], seeds: tuple[int, ...], folder: Path) -> Iterator[str]:
    """Runs what is not there yet; says what it does."""
    labs: dict[str, tuple[Lab, Trained]] = {}
    for plan in plans:

        def measure(plan: Planned = plan) -> dict:
            key = f"{plan.setting.name} {plan.setting.sparsity} {plan.looks}"
            if key not in labs:
                labs.clear()
                lab = Lab(plan.setting, seeds)
                labs[key] = lab, lab.pipeline(lab.everything, snapshots=plan.looks)
            return _measured(plan, *labs[key])

        yield from once(folder / f"{plan.name}.json", plan.described(seeds), measure)


def _measured(plan: Planned, lab: Lab, original: Trained) -> dict:
    deletion = deletion_of(lab, plan.deletion)
    bench = Bench(
        lab,
        deletion,
        original,
        plan.quarter,
        plan.block,
        with_outputs=plan.with_outputs,
        with_unlearners=plan.with_unlearners,
    )
    found = {"masks": masks_of_bench(bench)}
    if plan.with_outputs:
        found["outputs"] = outputs_of_bench(bench)
    if plan.with_path:
        found["path"] = path_of_bench(bench, list(plan.looks))
    return found


def attack(seeds: tuple[int, ...], folder: Path) -> Iterator[str]:
    """T5 on the MLP."""

    def measure() -> dict:
        lab = Lab(settings.digits_mlp(), seeds)
        original = lab.pipeline(lab.everything)
        models = {"original, dense": original.dense, "original, sparse": original.sparse}
        return sweep_of_lab(lab, original.masks, models)

    yield from once(folder / "attack.json", {"seeds": list(seeds)}, measure)


def paired(folder: Path) -> Iterator[str]:
    """The pre-stated tests, on seeds of their own."""
    for name, (scope, seeds) in PAIRED.items():
        setting = settings.digits_cnn(structure="filters", scope=scope, sparsity=0.5)
        plan = of_cnn(setting, "class", light=True)

        def measure(plan: Planned = plan, seeds: tuple[int, ...] = seeds) -> dict:
            lab = Lab(plan.setting, seeds)
            original = lab.pipeline(lab.everything, snapshots=plan.looks)
            return _measured(plan, lab, original)["masks"]

        yield from once(folder / f"{name}.json", plan.described(seeds), measure)


def free_masks(seeds: tuple[int, ...], folder: Path) -> Iterator[str]:
    """The control of every metric; see :mod:`experiments.unpruning.controls`."""
    file = folder / "free-masks.json"
    yield from once(file, {"seeds": list(seeds)}, lambda: of_free_masks(seeds))


def once(file: Path, plan: dict, measure: Callable[[], dict]) -> Iterator[str]:
    """Measures unless the file is there; says which it was.

    Raises:
        MadeOtherwiseError: if the file is there and another plan made it.
    """
    plan = json.loads(json.dumps(plan, default=_plain))
    if file.exists():
        before = json.loads(file.read_text()).get("made", {}).get("plan")
        if before != plan:
            raise MadeOtherwiseError(
                f"{file}: was measured with other seeds or settings; remove it, or give another "
                "--workdir"
            )
        yield f"{file.stem}: found"
        return
    found = {"made": {"commit": commit(), "plan": plan}, **measure()}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(found, default=_plain))
    yield f"{file.stem}: done"


class MadeOtherwiseError(Exception):
    """A figure on disk is not of what is asked for."""


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(type(value))
