"""Curvature against the official loops in torch: ``experiments/results/against_torch.md``.

    python -m experiments.against_torch fisher      # exact Fisher diagonal, seconds per example
    python -m experiments.against_torch influence   # Woodbury against the official recursion

Both sides have ResNet-20s with the same weights, the same seeded random images, float32 and as
many threads as there are cores. First they must agree (logits, Fisher diagonal, the official
recursion as torch and as this package compute it); else nothing is timed. Then they are timed in
turn. Compilation is printed and not counted. The torch loops are those of the official code, one
example at a time: its Fisher takes one forward pass and one backward pass per class.
"""

import argparse
import functools
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional

from experiments.benchmark import machine, pace
from experiments.torch_resnet20s import ResNet20s
from sparse_mu import curvature, interop, models
from sparse_mu.losses import classification
from sparse_mu.types import ApplyFn, Array, Batch, LossFn, Model, Params

CLASSES = 10
KEY = jax.random.key(0)  # no bundled network draws
DAMPING = 1.0
LOGITS, FISHER, RECURSION = 1e-5, 1e-3, 1e-4  # largest relative differences taken for agreement


class Sides(NamedTuple):
    """One network twice, and the images both read.

    Attributes:
        apply_fn: ours.
        loss_fn: its cross entropy in evaluation mode.
        model: its parameters and statistics.
        network: torch's, in evaluation mode.
        images: ``float32[N, 32, 32, 3]``; torch gets views of them, channels first.
        labels: ``int32[N]``.
    """

    apply_fn: ApplyFn
    loss_fn: LossFn
    model: Model
    network: ResNet20s
    images: np.ndarray
    labels: np.ndarray

    def batch(self, begin: int, end: int) -> Batch:
        """Rows ``begin`` to ``end``, each of weight 1."""
        ones = np.ones(end - begin, np.float32)
        return Batch(self.images[begin:end], self.labels[begin:end], ones)

    def row(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One row as torch's loader hands it out."""
        image = np.ascontiguousarray(self.images[index].transpose(2, 0, 1))
        return torch.from_numpy(image)[None], torch.tensor(self.labels[index : index + 1]).long()

    def ours(self, tensors: list[torch.Tensor]) -> Params:
        """Torch's values of every parameter as a tree like ours."""
        names = [name for name, _ in self.network.named_parameters()]
        state = {name: value.detach().numpy() for name, value in self.network.state_dict().items()}
        state |= {name: value.numpy() for name, value in zip(names, tensors, strict=True)}
        return interop.from_state_dict(state, self.model, channels=models.CIFAR10)[0].params

    def split(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """A vector of all parameters as torch concatenates them, cut into tensors."""
        parameters = list(self.network.parameters())
        parts = flat.split([p.numel() for p in parameters])
        return [part.reshape(p.shape) for part, p in zip(parts, parameters, strict=True)]


def both_sides(examples: int, threads: int) -> Sides:
    """Our seeded weights in both networks; BatchNorm statistics are those of 64 random images."""
    torch.set_num_threads(threads)
    draw = np.random.default_rng(0)
    images = draw.random((examples, 32, 32, 3), np.float32)
    labels = draw.integers(0, CLASSES, examples, np.int32)
    module = models.ResNet20s(CLASSES, form=models.default_form(jax.default_backend()))
    model = Model(*jax.jit(models.init_of(module, (1, 32, 32, 3)))(KEY))
    network = ResNet20s(CLASSES)
    state = interop.to_state_dict(model, channels=models.CIFAR10)
    network.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.from_numpy(draw.random((64, 3, 32, 32), np.float32)))
    state = {name: value.numpy() for name, value in network.eval().state_dict().items()}
    model, _ = interop.from_state_dict(state, model, channels=models.CIFAR10)
    apply_fn = models.apply_fn_of(module)
    loss_fn = classification(apply_fn, train=False)
    return Sides(apply_fn, loss_fn, model, network, images, labels)


# ---- the official loops ----------------------------------------------------------------------


def torch_fisher(sides: Sides, rows: range) -> list[torch.Tensor]:
    """Sum over rows and classes of ``p(c) * (d CE(x, c) / d w)^2``, one row at a time."""
    parameters = list(sides.network.parameters())
    sums = [torch.zeros_like(p) for p in parameters]
    for index in rows:
        logits = sides.network(sides.row(index)[0])
        probabilities = torch.softmax(logits.detach(), 1)[0]
        for label in range(CLASSES):
            loss = functional.cross_entropy(logits, torch.tensor([label]))
            gradients = torch.autograd.grad(loss, parameters, retain_graph=label < CLASSES - 1)
            for total, gradient in zip(sums, gradients, strict=True):
                total += probabilities[label] * gradient.square()
    return sums


def torch_gradient(sides: Sides, index: int) -> torch.Tensor:
    """The gradient of one row's loss, all parameters in one vector."""
    image, label = sides.row(index)
    loss = functional.cross_entropy(sides.network(image), label)
    gradients = torch.autograd.grad(loss, list(sides.network.parameters()))
    return torch.cat([gradient.reshape(-1) for gradient in gradients])


def torch_recursion(sides: Sides, vector: torch.Tensor, rows: range) -> torch.Tensor:
    """The official "inverse Hessian" times a vector (SPEC section 4.8), N_w the number of rows."""
    solution, along, count = vector.clone(), None, len(rows)
    for index in rows:
        gradient = torch_gradient(sides, index)
        if along is None:
            along = gradient
            continue
        overlap = torch.dot(along, gradient)
        solution -= torch.dot(solution, gradient) / (count + overlap) * along
        along -= overlap / (count + overlap) * along
    return solution


# ---- agreement -------------------------------------------------------------------------------


def norm(tree: Params) -> float:
    """Euclidean length of a tree taken as one vector."""
    squares = [np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(tree)]
    return float(np.sqrt(sum(squares)))


def distance(found: Params, expected: Params) -> float:
    """``|found - expected| / |expected|``."""
    return norm(jax.tree.map(jnp.subtract, found, expected)) / norm(expected)


def worst_leaf(found: Params, expected: Params) -> float:
    """The largest :func:`distance` of a leaf."""
    return max(jax.tree.leaves(jax.tree.map(distance, found, expected)))


def must_agree(what: str, difference: float, limit: float) -> None:
    """Prints a difference and stops the command where it is too large."""
    print(f"agreement: {what} differ by {difference:.1e} (limit {limit:.0e})")
    if not difference <= limit:
        raise SystemExit(f"{what} differ by {difference:.1e}, more than {limit:.0e}: nothing timed")


def check_logits(sides: Sides) -> None:
    count = min(8, len(sides.images))
    batch = sides.batch(0, count)
    logits, _ = sides.apply_fn(*sides.model, batch.inputs, train=False, key=KEY)
    with torch.no_grad():
        theirs = torch.cat([sides.network(sides.row(index)[0]) for index in range(count)])
    must_agree("logits", distance(logits, theirs.numpy()), LOGITS)


def check_recursion(sides: Sides, vector: torch.Tensor) -> None:
    """On a few rows, by how far the vector moved: it hardly moves."""
    rows = range(min(6, len(sides.images)))
    gradients = gradients_of(sides.loss_fn, sides.model, sides.batch(0, len(rows)), KEY)
    start = sides.ours(sides.split(vector))
    state = curvature.begin_official_recursion(start)
    for index in rows:
        row = jax.tree.map(lambda leaf, index=index: leaf[index], gradients)
        state = recursion_of(state, row, float(len(rows)))
    theirs = sides.ours(sides.split(torch_recursion(sides, vector, rows)))
    moves = [jax.tree.map(jnp.subtract, end, start) for end in (state.solution, theirs)]
    must_agree("moves of the official recursion", distance(*moves), RECURSION)


# ---- timing ----------------------------------------------------------------------------------

fisher_of = jax.jit(
    functools.partial(curvature.fisher_diagonal_sum, in_turn=True), static_argnums=0
)
gradients_of = jax.jit(curvature.example_gradients, static_argnums=0)
recursion_of = jax.jit(curvature.official_recursion)
gram_of = jax.jit(curvature.gram_matrix)
woodbury_of = jax.jit(curvature.woodbury_solve)


@functools.partial(jax.jit, donate_argnums=0)
def keep(rows: Params, found: Params, begin: Array) -> Params:
    """Writes the gradients of a chunk where they belong among all rows."""
    return jax.tree.map(
        lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, begin, 0), rows, found
    )


def seconds(call: Callable[[], object]) -> float:
    """Wall seconds of one call, its arrays computed."""
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def spread(values: list[float], unit: str = "s", scale: float = 1.0) -> str:
    """Median, smallest and largest."""
    middle, low, high = (f"{scale * f(values):.4g}" for f in (statistics.median, min, max))
    return f"{middle} {unit} ({low} to {high})"


def chosen_chunk(name: str, chunks: list[int], examples: int, call: Callable[[int], object]) -> int:
    """The chunk that takes the least time per example, measured; prints all of them."""
    chunks = sorted({min(chunk, examples) for chunk in chunks})
    found = {}
    for chunk in chunks:
        first = seconds(lambda chunk=chunk: call(chunk))
        found[chunk] = statistics.median(
            seconds(lambda chunk=chunk: call(chunk)) / chunk for _ in range(3)
        )
        print(
            f"{name}: chunks of {chunk}: {1e3 * found[chunk]:.1f} ms per example; "
            f"first call, compilation included, {first:.1f} s"
        )
    return min(chunks, key=lambda chunk: found[chunk])


def fisher(sides: Sides, pairs: int, chunks: list[int]) -> None:
    """The exact Fisher diagonal, summed over all rows."""
    count = len(sides.images)
    few = min(4, count)
    theirs = sides.ours(torch_fisher(sides, range(few)))
    ours = fisher_of(sides.apply_fn, sides.model, sides.batch(0, few), KEY)
    must_agree("Fisher diagonals (worst leaf)", worst_leaf(ours, theirs), FISHER)

    def chunk_of(begin: int, size: int) -> Params:
        return fisher_of(sides.apply_fn, sides.model, sides.batch(begin, begin + size), KEY)

    chunk = chosen_chunk("Fisher", chunks, count, lambda size: chunk_of(0, size))
    whole = count // chunk * chunk

    def ours_in_chunks() -> Params:
        parts = [chunk_of(begin, chunk) for begin in range(0, whole, chunk)]
        return functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), parts)

    ours_in_chunks()
    timed = []
    for _ in range(pairs):
        mine = seconds(ours_in_chunks) / whole
        timed.append((mine, seconds(lambda: torch_fisher(sides, range(whole))) / whole))
    ours_all, theirs_all = ([t[side] for t in timed] for side in (0, 1))
    ratio = statistics.median(theirs_all) / statistics.median(ours_all)
    print(
        f"exact Fisher diagonal per example, {whole} examples, {pairs} pairs: "
        f"torch, one at a time {spread(theirs_all, 'ms', 1e3)}; "
        f"ours, chunks of {chunk} {spread(ours_all, 'ms', 1e3)}; ratio of medians {ratio:.2f} "
        f"(wanted: at least 2), of each pair {', '.join(f'{b / a:.2f}' for a, b in timed)}"
    )


def influence(sides: Sides, pairs: int, chunks: list[int]) -> None:
    """The inverse curvature times a vector: Woodbury against the official recursion."""
    count = len(sides.images)
    vector = torch_gradient(sides, 0) - torch_gradient(sides, count - 1)
    check_recursion(sides, vector)
    start = sides.ours(sides.split(vector))
    chunk = chosen_chunk(
        "gradients",
        chunks,
        count,
        lambda size: gradients_of(sides.loss_fn, sides.model, sides.batch(0, size), KEY),
    )
    begins = [*range(0, count - chunk, chunk), count - chunk]  # the last may overlap: same rows

    def rows_of() -> Params:
        rows = jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape)), sides.model.params)
        for begin in begins:
            batch = sides.batch(begin, begin + chunk)
            found = gradients_of(sides.loss_fn, sides.model, batch, KEY)
            rows = keep(rows, found, np.int32(begin))
        return rows

    def once() -> tuple[float, float, float, float]:
        rows: list[Params] = []
        gradients = seconds(lambda: rows.append(rows_of()) or rows[0])
        gram = seconds(lambda: gram_of(rows[0]))
        solved: list[Params] = []
        woodbury = seconds(
            lambda: (
                solved.append(woodbury_of(rows[0], np.float32(count), DAMPING, start)) or solved[0]
            )
        )
        return gradients, gram, woodbury, residual(rows[0], solved[0], start)

    compiling = sum(once()[:3])
    timed = []
    for _ in range(pairs):
        mine = once()
        timed.append((*mine, seconds(lambda: torch_recursion(sides, vector, range(count)))))
    print(f"influence: {compiling:.1f} s the first time, compilation included; chunks of {chunk}")
    gradients, gram, woodbury, residuals, theirs = map(list, zip(*timed, strict=True))
    totals = [a + b for a, b in zip(gradients, woodbury, strict=True)]
    solve = [max(0.0, w - g) for w, g in zip(woodbury, gram, strict=True)]
    ratio = statistics.median(theirs) / statistics.median(totals)
    print(
        f"influence over {count} gradients, {pairs} pairs: official recursion in torch "
        f"{spread(theirs)}; Woodbury, damping {DAMPING:g} {spread(totals)}: gradients "
        f"{spread(gradients)}, Gram {spread(gram)}, solve {spread(solve)}; ratio of medians "
        f"{ratio:.2f} (wanted: at least 1), of each pair "
        f"{', '.join(f'{b / a:.2f}' for a, b in zip(totals, theirs, strict=True))}; "
        f"residual {max(residuals):.1e}"
    )


@jax.jit
def product_of(rows: Params, vector: Params) -> Params:
    """``(DAMPING * I + G^T G / M) vector`` with G the rows."""
    products = jax.tree.map(lambda g, v: jnp.tensordot(g, v, axes=v.ndim), rows, vector)
    along = functools.reduce(jnp.add, jax.tree.leaves(products))
    mean = along / len(along)
    return jax.tree.map(lambda g, v: DAMPING * v + jnp.tensordot(mean, g, axes=1), rows, vector)


def residual(rows: Params, solution: Params, vector: Params) -> float:
    """``|(DAMPING * I + G^T G / M) x - v| / |v|``."""
    return distance(product_of(rows, solution), vector)


def main() -> None:
    """Runs one comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("fisher", "influence"))
    parser.add_argument("--examples", type=int, help="default: 64 for fisher, 1000 for influence")
    parser.add_argument("--pairs", type=int, default=5, help="times each side is timed, in turn")
    parser.add_argument("--chunks", type=int, nargs="+", help="sizes to choose from")
    parser.add_argument("--threads", type=int, help="torch's; default: as many as cores")
    chosen = parser.parse_args()
    if min(chosen.examples or 2, 2 * chosen.pairs) < 2:
        parser.error("--examples must be at least 2, --pairs at least 1")
    fishers = chosen.what == "fisher"
    examples = chosen.examples or (64 if fishers else 1000)
    threads = chosen.threads or len(os.sched_getaffinity(0))
    print(
        f"{chosen.what}: ResNet-20s, {machine()}, torch {torch.__version__}, {threads} threads "
        f"each, {platform.machine()}, pace {pace():.2f}"
    )
    sides = both_sides(examples, threads)
    check_logits(sides)
    if fishers:
        fisher(sides, chosen.pairs, chosen.chunks or [1, 2, 4, 8])
    else:
        influence(sides, chosen.pairs, chosen.chunks or [8, 16, 32])
    print(f"pace at the end {pace():.2f}")


if __name__ == "__main__":
    main()
