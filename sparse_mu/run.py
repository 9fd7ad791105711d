"""The pipeline: which arms an experiment has, in which order, and what comes of them."""

from collections.abc import Iterator

from sparse_mu.acts import Arm, Run, record, title, train, unlearn
from sparse_mu.builders import Experiment, Unpruner
from sparse_mu.export import write_models
from sparse_mu.imported_arm import import_original
from sparse_mu.judge import evaluate
from sparse_mu.progress import OnProgress
from sparse_mu.pruned_arms import magnitude_masks, prune
from sparse_mu.transferred import transferred
from sparse_mu.types import Masks
from sparse_mu.unpruned_arms import after, called, regrow, unprune
from sparse_mu.workdir import Workdir


def arms(run: Run) -> Iterator[Arm]:
    """Every arm of the experiment, each target before the methods that are compared with it.

    An imported model that is pruned already is the original of its sparse arm. Then the dense arm
    has the retrained models alone, which are targets, and no model has a mask found without the
    forget set: how the imported mask was found is not known.
    """
    kept, trained, given = run.x.data.retain, run.trained, run.x.imported
    how, back = run.x.unpruner, run.x.rewind_epoch
    rewind = (back,) if back else ()
    if given is None:
        looks = how.snapshots if how else ()
        early = tuple(sorted({*rewind, *looks}))
        original = train(run, "original", 0.0, masks=run.dense, retain=trained, snapshots=early)
    else:
        original = import_original(run, given)
    is_dense = original.sparsity == 0
    retrained = train(
        run, "retrain", 0.0, masks=run.dense, retain=kept, timed=True, snapshots=rewind
    )
    yield from (original, retrained) if is_dense else (retrained,)
    yield train(run, "retrain_reseeded", 0.0, masks=run.dense, retain=kept, reseeded=True)
    for name in run.x.methods if is_dense else ():
        yield unlearn(run, name, original)
    for sparsity in run.x.sparsities:
        sparse = original
        if is_dense:
            sparse = prune(run, "original", sparsity, dense=original, retain=trained)
        same = {"masks": sparse.masks, "retain": kept, "depends_on": (sparse.fingerprint,)}
        yield sparse
        same_mask = train(run, "retrain", sparsity, **same, timed=True)
        yield same_mask
        if is_dense and run.x.pruner.data_free:
            # a mask that saw no data is the same without the forget set
            yield same_mask._replace(method="retrain_repruned")
        elif is_dense:
            yield prune(run, "retrain_repruned", sparsity, dense=retrained, retain=kept)
        yield train(run, "retrain_reseeded", sparsity, **same, reseeded=True)
        for name in run.x.methods:
            yield unlearn(run, name, sparse)
        if how is not None:
            yield from unpruned(run, how, sparse, original)


def unpruned(run: Run, how: Unpruner, sparse: Arm, dense: Arm) -> Iterator[Arm]:
    """The arms of one sparsity whose masks were made to forget."""
    if how.regrow is not None:
        yield from (regrow(run, how, how.regrow, name, sparse) for name in how.methods)
        return
    found = unprune(run, how, sparse, dense)
    yield from (after(run, name, found) for name in how.methods)


def mask_floors(run: Run) -> dict[float, Masks]:
    """Masks of a retraining whose rows came in another order: what chance alone moves.

    Of masks that are found before training there is no such floor.
    """
    if run.x.unpruner is None or run.x.pruner.when != "once":
        return {}
    other = train(
        run,
        "retrain_reordered",
        0.0,
        masks=run.dense,
        retain=run.x.data.retain,
        reordered=True,
    )
    return {s: magnitude_masks(run, other, s) for s in run.x.sparsities}


def run_all(
    experiment: Experiment, workdir: Workdir, on_progress: OnProgress, *, export: bool = False
) -> tuple[list[dict], dict[str, dict[str, str]]]:
    """The whole pipeline; returns the rows of ``results.jsonl`` and the record of every stage.

    Args:
        experiment: what to run.
        workdir: where.
        on_progress: told what is being done.
        export: whether the original, unlearned and retrained models are written as files too.
    """
    run = Run(experiment, workdir, on_progress)
    all_arms = list(arms(run))
    if (target := experiment.transfer) is not None:
        all_arms = [transferred(run, target, arm) for arm in all_arms]
    if export:
        how = experiment.unpruner
        asked = {*experiment.methods, "original", "retrain"}
        asked |= {called(name) for name in how.methods} if how else set()
        chosen = [arm for arm in all_arms if arm.method in asked]
        write_models(chosen, workdir.path / "models", experiment.network.channels)
    floors = mask_floors(run)
    for arm in all_arms:  # one arm may stand for two
        run.recorded.setdefault(title(arm.method, arm.sparsity), record(arm))
    return evaluate(run, all_arms, floors), run.recorded
