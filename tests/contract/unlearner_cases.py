"""The unlearners that the contract suite runs over, and how it runs them."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import pytest
import tiny_network as tiny
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sparse_mu import masks, unlearn
from sparse_mu.execution import over_trials, single
from sparse_mu.losses import classification
from sparse_mu.optimiser import hyper_parameters
from sparse_mu.training import fit

HYPER = {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4}


class Case(NamedTuple):
    """An unlearner as the suite makes it, and what it says it reads.

    Attributes:
        make: ``(loss in training mode, loss in evaluation mode, apply_fn, common)`` to the method;
            ``common`` holds ``hyper`` and ``axis_name``.
        reads: the set or sets of its steps.
        passes: as of the method.
        surveys: what its survey reads, or None.
        trace: whether its optimiser keeps momentum.
        gathers: whether it keeps rows gathered from all devices, which jax's replication check
            cannot see are equal everywhere.
    """

    make: Callable
    reads: str = "retain"
    passes: str = "epochs"
    surveys: str | None = None
    trace: bool = True
    gathers: bool = False


def _fisher(losses, common, **more):
    return unlearn.fisher_forgetting(
        losses.apply_fn,
        1e-4,
        num_classes=tiny.CLASSES,
        head=tiny.HEAD,
        head_treatment="zeroed",
        forgotten_classes=(1,),
        axis_name=common["axis_name"],
        **more,
    )


def _influence(losses, common, **more):
    return unlearn.influence_unlearning(
        losses.frozen, 0.5, rows=12, axis_name=common["axis_name"], **more
    )


class Losses(NamedTuple):
    train: Callable
    frozen: Callable
    apply_fn: Callable


def _salun(losses, common):
    return unlearn.salun(losses.train, num_classes=tiny.CLASSES, **common)


def _capped_ascent(losses, common):
    return unlearn.gradient_ascent(losses.train, gamma=0.01, loss_ceiling=2.0, **common)


def _proximal(losses, common):
    return unlearn.l1_sparse(
        losses.train, gamma=0.01, penalty="proximal", prunable=masks.matrices, **common
    )


def _progressive(losses, common):
    return unlearn.finetune_and_prune(losses.train, sparsity=0.7, prunable=masks.matrices, **common)


CASES = {
    "finetune": Case(lambda losses, common: unlearn.finetune(losses.train, **common)),
    "gradient_ascent": Case(
        lambda losses, common: unlearn.gradient_ascent(losses.train, **common), reads="forget"
    ),
    "capped_ascent": Case(_capped_ascent, reads="forget"),
    "l1_sparse": Case(lambda losses, common: unlearn.l1_sparse(losses.train, gamma=0.01, **common)),
    "retrain": Case(
        lambda losses, common: unlearn.retrain(losses.train, reinit=tiny.draw, **common)
    ),
    "l1_proximal": Case(_proximal),
    "finetune_and_prune": Case(_progressive),
    "negative_gradient": Case(
        lambda losses, common: unlearn.negative_gradient(losses.train, **common), reads="paired"
    ),
    "random_label": Case(
        lambda losses, common: unlearn.random_label(
            losses.train, num_classes=tiny.CLASSES, **common
        ),
        reads="paired",
    ),
    "salun": Case(_salun, reads="paired", surveys="forget"),
    "scrub": Case(
        lambda losses, common: unlearn.scrub(losses.apply_fn, alpha=0.5, **common), reads="both"
    ),
    "fisher_forgetting": Case(_fisher, passes="once", trace=False),
    "fisher_official": Case(
        functools.partial(_fisher, estimate="official", noise="official"),
        passes="once",
        trace=False,
    ),
    "influence_unlearning": Case(
        _influence, reads="both", passes="once", trace=False, gathers=True
    ),
    "influence_cg": Case(
        lambda losses, common: _influence(
            losses, common, solver="cg", apply_fn=losses.apply_fn, damping=0.1
        ),
        surveys="both",
        trace=False,
    ),
    "influence_official": Case(
        functools.partial(_influence, solver="official"),
        passes="once",
        surveys="both",
        trace=False,
        gathers=True,
    ),
}
METHODS = tuple(CASES)
# one of each kind of program
QUICK = ("finetune", "salun", "fisher_forgetting", "influence_cg")
FIRST_ORDER = ("finetune", "gradient_ascent", "capped_ascent", "l1_sparse", "retrain")  # one body
each_method = pytest.mark.parametrize("name", METHODS)


def by_default(*names, rest=pytest.mark.slow):
    """Every method, those not named with the mark ``rest``: most of their time is compiling."""
    marked = [pytest.param(n, marks=() if n in names else rest) for n in METHODS]
    return pytest.mark.parametrize("name", marked)


each_mask = pytest.mark.parametrize("mask", ["dense", "sparse"])


@functools.lru_cache(maxsize=64)
def method(name, axis_name=None, apply_fn=tiny.apply_fn):
    frozen = classification(apply_fn, train=False)
    losses = Losses(classification(apply_fn), frozen, apply_fn)
    common = {"hyper": hyper_parameters(**HYPER), "axis_name": axis_name}
    return CASES[name].make(losses, common)


# Methods that share a step body share its compiled forms: each of these is found again.
jit_of = functools.lru_cache(maxsize=64)(jax.jit)
donating_jit_of = functools.lru_cache(maxsize=64)(functools.partial(jax.jit, donate_argnums=0))


def jitted(name):
    return jit_of(method(name).step), jit_of(method(name).finish)


@functools.lru_cache(maxsize=64)
def scan_of(step):
    return jax.jit(lambda state, batches: jax.lax.scan(step, state, batches))


@functools.lru_cache(maxsize=64)
def vmap_of(function):
    return jax.jit(jax.vmap(function, in_axes=(0, None)))


@functools.lru_cache(maxsize=64)
def pmap_of(step):
    return jax.pmap(step, axis_name="devices", in_axes=(None, 0))


@functools.lru_cache(maxsize=64)
def sharded_jit_of(step):
    """The step with whole states and every batch split over the devices by the compiler."""
    mesh = Mesh(np.asarray(jax.devices()), ("devices",))
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("devices",)))
    return jax.jit(step, in_shardings=(whole, split), out_shardings=whole)


@functools.lru_cache(maxsize=64)
def shard_map_of(step, check_vma):
    mesh = Mesh(np.asarray(jax.devices()), ("devices",))
    whole, split = PartitionSpec(), PartitionSpec("devices")
    return jax.jit(
        jax.shard_map(
            step, mesh=mesh, in_specs=(whole, split), out_specs=whole, check_vma=check_vma
        )
    )


def started(name, mask="dense", seed=0):
    model = tiny.draw(jax.random.key(seed))
    kept = masks.ones_like(model.params) if mask == "dense" else tiny.half_masks(model)
    return surveyed(method(name), method(name).init(model, kept, jax.random.key(seed + 50)))


def three_batches():
    return [tiny.both_sets(seed, padding=seed) for seed in range(3)]


def surveyed(unlearner, state):
    """The state its first step sees."""
    survey = unlearner.survey
    if survey is None:
        return state
    for batch in three_batches():
        state, _ = jit_of(survey.step)(state, batch)
    return jit_of(survey.finish)(state)


def run_three(name, state):
    step, finish = jitted(name)
    for batch in three_batches():
        state, _ = step(state, batch)
    return finish(state)


def one(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def run_fit(unlearner, batched, execution, *, data=None, batch_size=8, epochs=2, **more):
    model, dense, keys, trials = batched
    data = tiny.dataset() if data is None else data
    return fit(
        unlearner, model, dense, keys, trials, execution.put_shared(data),
        batch_size=batch_size, epochs=epochs, execution=execution, **more,
    )  # fmt: skip


def trial_of(batched, index):
    """One trial of a batch, alone, with its leading axis of length one."""
    return jax.tree.map(lambda leaf: leaf[index : index + 1], batched)


LOCAL = {"compiled": single(), "python": single("python")}


@functools.lru_cache(maxsize=8)
def devices_of(count, loop="compiled"):
    return over_trials(jax.devices()[:count], loop=loop)
