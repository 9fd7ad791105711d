"""Our functions driven over a file's data, and how far what they give is from what is recorded.

Each function takes the variant of a part (loss, network, optimiser) that a mutation wants to
spoil; by default it is the library's own.
"""

import functools
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import kinks
import numpy as np
import vectors
from vectors import Row

from sparse_mu import losses, masks, membership, models, pruning, scores, unlearn
from sparse_mu.data import augment
from sparse_mu.optimiser import hyper_parameters
from sparse_mu.types import Model
from sparse_mu.unlearn import OneSet


class Limits(NamedTuple):
    """Of the error of an update: over all parameters, of the worst tensor, of the statistics."""

    together: float
    worst: float
    statistics: float


LOGITS, TRAIN_LOGITS = 1e-5, {"resnet50": 1e-4, "vgg16_bn": 1e-4}  # small-batch statistics amplify
STATISTICS = 3e-3
DOUBLE = Limits(together=5e-3, worst=3e-2, statistics=STATISTICS)
# Of float32 steps. A ReLU input that is zero within rounding falls on a side that the processor's
# order of sums decides, and each such turn moves the update: of ft_sparse by 6e-4 on one processor
# and by 6e-3 on another, of the recording's own sums we know none. In float64 ours are the same on
# all, so the limits above are held there.
SINGLE = Limits(together=2e-2, worst=1e-1, statistics=STATISTICS)
LIMITS_OF_IU = DOUBLE._replace(together=2e-3)
FISHER, FISHER_KINKS = 1e-5, 1e-3  # the second: see kinks.py
SYNFLOW_ENTRIES = 4
MASK_FRACTION = 5e-4
MIA = 1e-9

KEY = jax.random.key(0)  # nothing that is recorded draws


@functools.lru_cache(maxsize=64)
def compiled(function):
    return jax.jit(function)


@functools.lru_cache(maxsize=64)
def forward(apply_fn, train):
    def of_model(model, inputs):
        return apply_fn(model.params, model.net_state, inputs, train=train, key=KEY)[0]

    return jax.jit(of_model)


def eval_logits(path, apply_fn, model, images):
    """In batches of the file's size, so that all sets share a program."""
    size = vectors.settings_of(path)["batch"]
    parts = [images[at : at + size] for at in range(0, len(images), size)]
    return np.concatenate([forward(apply_fn, False)(model, part) for part in parts])


@functools.lru_cache(maxsize=8)
def shipped(path):
    """The library's own network for a file, so that all comparisons share its programs."""
    return vectors.network_of(path)


@functools.lru_cache(maxsize=8)
def trained(path):
    return shipped(path).load(vectors.group(path, "weights"))


def untrained(path):
    return shipped(path).load(vectors.group(path, "init_weights"))[0]


@functools.lru_cache(maxsize=8)
def pruned(path):
    """The recorded weights under the recorded magnitude mask."""
    state_dict = vectors.group(path, "weights")
    for layer, mask in vectors.group(path, "omp_mask").items():
        state_dict[f"{layer}.weight_orig"] = state_dict.pop(f"{layer}.weight")
        state_dict[f"{layer}.weight_mask"] = mask
    return shipped(path).load(state_dict)


def relative(ours, theirs):
    """Largest error over largest value."""
    return float(np.max(np.abs(np.asarray(ours) - theirs)) / np.max(np.abs(theirs)))


def ratio(differences, updates):
    """Length of the error over length of the update, over all the tensors given."""
    length = np.sqrt(sum(np.sum(np.square(value, dtype=np.float64)) for value in updates))
    error = np.sqrt(sum(np.sum(np.square(value, dtype=np.float64)) for value in differences))
    return float(error / length) if length else float(np.inf if error else 0)


def update_rows(path, key, ours, start, *, limits=DOUBLE, note=""):
    """Errors of the *update*, ``|ours - theirs| / |theirs - start|``, in PyTorch's layout."""
    theirs = vectors.group(path, key)
    names = [name for name in theirs if not name.startswith("normalize.")]
    error = {name: ours[name].astype(np.float64) - theirs[name] for name in names}
    update = {name: theirs[name].astype(np.float64) - start[name] for name in names}
    statistics = [name for name in names if ".running_" in name]
    parameters = [name for name in names if ".running_" not in name]

    def over(some):
        return ratio([error[name] for name in some], [update[name] for name in some])

    return [
        Row(f"{key} together{note}", over(parameters), limits.together),
        Row(f"{key} worst tensor{note}", max(over([n]) for n in parameters), limits.worst),
        # the worst tensor too: a biased variance shows where few values are averaged
        Row(
            f"{key} running statistics{note}", max(over([n]) for n in statistics), limits.statistics
        ),
    ]


def forward_rows(path, network=None):
    network = network or shipped(path)
    model, _ = network.load(vectors.group(path, "weights"))
    recorded = vectors.group(path, "forward")
    size = vectors.settings_of(path)["batch"]
    test, _ = vectors.rows_of(path, "test")
    retain, _ = vectors.rows_of(path, "retain")
    ours = eval_logits(path, network.apply_fn, model, test)
    ours_train = forward(network.apply_fn, True)(model, retain[:size])
    return [
        Row("logits eval", relative(ours, recorded["test_logits"]), LOGITS),
        Row("logits train", relative(ours_train, recorded["retain_logits_train_mode"]), LOGITS),
    ]


def drive(path, unlearner, model, kept, *, epochs=1, size=None):
    """One unlearner over the stored batches: survey, epochs of steps, finish; a loop in Python."""
    size = size or vectors.settings_of(path)["batch"]
    state = unlearner.init(model, kept, KEY)
    if unlearner.survey is not None:
        for batch in vectors.unlearn_batches(path, unlearner.survey.reads, size):
            state, _ = compiled(unlearner.survey.step)(state, batch)
        state = compiled(unlearner.survey.finish)(state)
    for _ in range(epochs):
        for batch in widened(vectors.unlearn_batches(path, unlearner.reads, size)):
            if isinstance(unlearner.step, OneSet):  # the body alone: one program for both sets
                chosen = getattr(batch, unlearner.reads)
                state, _ = compiled(unlearner.step.on_batch)(state, chosen)
            else:
                state, _ = compiled(unlearner.step)(state, batch)
    return compiled(unlearner.finish)(state).model


def widened(tree):
    """Float arrays in the widest type that jax computes in now."""
    wide = jnp.zeros(()).dtype
    return jax.tree.map(
        lambda leaf: np.asarray(leaf, wide) if np.issubdtype(leaf.dtype, np.floating) else leaf,
        tree,
    )


def arm(path, key):
    """The model and masks that a key such as ``ft_sparse`` starts from."""
    return pruned(path) if key.endswith("_sparse") else trained(path)


def first_order_rows(
    path, key, *, network=None, train=True, tx=None, mistake=None, limits=DOUBLE, note="", **changes
):
    """Fine-tuning, l1-sparse and ascent; ``changes`` replace leaves of the hyper-parameters.

    ``mistake`` is the number of what the optimiser of :mod:`mistakes` does wrong.
    """
    network = network or shipped(path)
    settings = vectors.settings_of(path)
    start, kept = widened(arm(path, key))
    name = key.split("_")[0]
    loss_fn = losses.classification(network.apply_fn, train=train)
    reads = "forget" if name == "ga" else "retain"
    hyper = hyper_parameters(
        learning_rate=settings["ga_lr" if name == "ga" else "ft_lr"],
        momentum=settings["momentum"],
        weight_decay=settings["weight_decay"],
        epochs=settings["epochs"],
        steps_per_epoch=len(vectors.batches(path, reads, settings["batch"])),
    )
    hyper = widened(hyper)
    match name:
        case "ft":
            unlearner = unlearn.finetune(loss_fn, tx, hyper=hyper)
        case "ga":
            unlearner = unlearn.gradient_ascent(loss_fn, tx, hyper=hyper)
        case "l1":
            # the official alpha is the peak of the decaying schedule, twice its mean
            gamma = settings["l1_alpha"] / 2
            unlearner = unlearn.l1_sparse(loss_fn, tx, gamma, schedule="decaying", hyper=hyper)
    unlearner = changed(unlearner, mistake, changes)
    ours = drive(path, unlearner, start, kept, epochs=settings["epochs"])
    return update_rows(path, key, network.dump(ours), network.dump(start), limits=limits, note=note)


def first_order_rows_in_double(path, key):
    """:func:`first_order_rows` with weights, images and sums in float64."""
    with jax.enable_x64(True):
        return first_order_rows(path, key, network=vectors.network_of(path, np.float64))


def changed(unlearner, mistake, changes):
    """The unlearner with other leaves at the start; the program stays the same."""

    def init(model, kept, key):
        state = unlearner.init(model, kept, key)
        hyper = state.hyper._replace(**{
            name: jnp.asarray(value, getattr(state.hyper, name).dtype)
            for name, value in changes.items()
        })  # fmt: skip
        if mistake is None:
            return state._replace(hyper=hyper)
        kind = jnp.asarray(mistake, jnp.int32)
        return state._replace(hyper=hyper, opt_state=state.opt_state._replace(kind=kind))

    return unlearner._replace(init=init)


def mask_rows(path, key, ours, limit=None):
    """Entries in which a mask of ours differs from the recorded one."""
    network = shipped(path)
    model = Model(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), network.like.params))
    found = network.dump(model, ours)
    apart, entries = 0, 0
    for layer, theirs in vectors.group(path, key).items():
        apart += int(np.sum((found[f"{layer}.weight_mask"] > 0) != theirs))
        entries += theirs.size
    limit = int(MASK_FRACTION * entries) if limit is None else limit
    return [Row(f"{key} entries apart of {entries}", apart, limit)]


magnitude_masks = jax.jit(pruning.magnitude_masks, static_argnames="sparsity")
masks_from_scores = jax.jit(masks.from_scores, static_argnames="sparsity")


def omp_rows(path):
    model, _ = trained(path)
    ours = magnitude_masks(model, sparsity=vectors.settings_of(path)["rate"])
    return mask_rows(path, "omp_mask", ours, 0)


def tree_rows(path, key, ours, limit=FISHER):
    """The worst tensor of a tree of recorded values, as length of the error over length."""
    network = shipped(path)
    found = network.dump(Model(ours))
    theirs = {
        name: value
        for name, value in vectors.group(path, key).items()
        if ".running_" not in name and not name.startswith("normalize.")
    }
    return [Row(f"{key} worst tensor", worst(found, theirs), limit)]


def score_batch(path):
    return vectors.whole(path, "score")


@functools.lru_cache(maxsize=16)
def scored(function, subject):
    """A score of ``scores`` compiled for its network or loss."""
    return jax.jit(functools.partial(function, subject))


def snip_rows(path, *, score=scores.snip_official, train=True):
    loss_fn = losses.classification(shipped(path).apply_fn, train=train)
    found = scored(score, loss_fn)(untrained(path), score_batch(path), KEY)
    return mask_rows(path, "snip_mask", from_scores(path, found))


def grasp_rows(path, *, score=scores.grasp_official):
    found = scored(score, shipped(path).apply_fn)(untrained(path), score_batch(path), KEY)
    return mask_rows(path, "grasp_mask", from_scores(path, found))


def from_scores(path, found):
    return masks_from_scores(found, sparsity=vectors.settings_of(path)["rate"])


def synflow_rows(path, *, network=None, apply_fn=None, rounds=100):
    network = network or shipped(path)
    side, channels = vectors.rows_of(path, "test")[0].shape[2:]
    ones = np.ones((1, side, side, channels), np.float32)
    ours = pruning.synflow_masks(
        apply_fn or network.apply_fn,
        untrained(path),
        ones,
        vectors.settings_of(path)["rate"],
        rounds=rounds,
        counts="official",
    )
    return mask_rows(path, "synflow_mask", ours, SYNFLOW_ENTRIES)


def influence_rows(path, key, *, passes=1):
    """Without its pass over Dr the recursion stays at k = v."""
    settings = vectors.settings_of(path)
    network = shipped(path)
    start, kept = arm(path, key)
    loss_fn = losses.classification(network.apply_fn, train=False)
    unlearner = unlearn.influence_unlearning(
        loss_fn, settings["iu_alpha"], solver="official", rows=settings["iu_n"]
    )
    ours = drive(path, unlearner, start, kept, epochs=passes)
    return update_rows(path, key, network.dump(ours), network.dump(start), limits=LIMITS_OF_IU)


def fisher_unlearner(path, estimate, apply_fn):
    return unlearn.fisher_forgetting(
        apply_fn,
        vectors.settings_of(path)["ff_alpha"],
        num_classes=vectors.classes_of(path),
        estimate=estimate,
        noise="official",
        head=models.head_of(shipped(path).like.params),
    )


class Fisher(NamedTuple):
    """The Fisher estimate as computed, and after turning undecided ReLU decisions (kinks.py)."""

    computed: dict
    turned: dict
    turns: int
    decisions: int


@functools.lru_cache(maxsize=4)
def fisher_of(path):
    """The mean of the batches' estimates, each by one step of the shipped unlearner."""
    network = shipped(path)
    (model, kept), theirs = trained(path), vectors.group(path, "ff_fisher")
    batches = vectors.batches(path, "retain", vectors.settings_of(path)["batch"])
    inputs_of = kinks.relu_inputs(network.apply_fn)
    inputs = [inputs_of(model, batch.inputs) for batch in batches]
    undecided, decisions = kinks.undecided(inputs)
    unlearner = fisher_unlearner(path, "official", kinks.nudged(network.apply_fn))
    nudges = [[np.zeros(x.shape, np.float32) for x in of_batch] for of_batch in inputs]

    def of_batch(index):
        net_state = {**model.net_state, "nudges": nudges[index]}
        state = unlearner.init(Model(model.params, net_state), kept, KEY)
        sums = compiled(unlearner.step.on_batch)(state, batches[index])[0].aux
        found = network.dump(Model(sums.fisher))
        return {
            name: value.astype(np.float64) / float(sums.weight) for name, value in found.items()
        }

    def mean(parts):
        return {name: sum(part[name] for part in parts) / len(parts) for name in theirs}

    parts = [of_batch(index) for index in range(len(batches))]
    found = computed = mean(parts)
    turns = 0
    for decision in undecided:
        if worst(found, theirs) <= FISHER:
            break
        kinks.turn(nudges[decision.batch], decision)
        tried = [*parts]
        tried[decision.batch] = of_batch(decision.batch)
        if together(mean(tried), theirs) < together(found, theirs):
            parts, found, turns = tried, mean(tried), turns + 1
        else:
            kinks.turn_back(nudges[decision.batch], decision)
    return Fisher(computed, found, turns, decisions)


def together(ours, theirs):
    return ratio([ours[name] - theirs[name] for name in theirs], list(theirs.values()))


def worst(ours, theirs):
    return max(ratio([ours[name] - value], [value]) for name, value in theirs.items())


def fisher_rows(path):
    theirs, found = vectors.group(path, "ff_fisher"), fisher_of(path)
    allowed = max(1, round(kinks.LARGEST_SHARE * found.decisions))
    return [
        Row("ff_fisher worst tensor as computed", worst(found.computed, theirs), FISHER_KINKS),
        Row("ff_fisher worst tensor", worst(found.turned, theirs), FISHER),
        Row(f"ff_fisher ReLU decisions turned of {found.decisions}", found.turns, allowed),
    ]


def exact_fisher_rows(path):
    """The Fisher of single rows, which the official estimate is not."""
    unlearner = fisher_unlearner(path, "exact", shipped(path).apply_fn)
    state = unlearner.init(*trained(path), KEY)
    for batch in vectors.batches(path, "retain", vectors.settings_of(path)["batch"]):
        state, _ = compiled(unlearner.step.on_batch)(state, batch)
    mean = jax.tree.map(lambda total: total / state.aux.weight, state.aux.fisher)
    return tree_rows(path, "ff_fisher", mean, FISHER_KINKS)


def gaussian_rows(path, scenario, *, noise="official", head_treatment=None):
    settings = vectors.settings_of(path)
    params = trained(path)[0].params
    classes = np.zeros(vectors.classes_of(path), bool)
    classes[settings["class"]] = True
    treatment = "zeroed" if scenario == "class" else "intact"
    # the law alone, of the recorded Fisher; as a state dict like the file's, so that it loads into
    # a tree like the parameters
    state_dict = vectors.group(path, "weights") | vectors.group(path, "ff_fisher")
    law = functools.partial(
        unlearn.fisher_gaussian,
        alpha=settings["ff_alpha"],
        noise=noise,
        head=models.head_of(params),
        head_treatment=head_treatment or treatment,
        classes=classes,
    )
    mean, variance = jax.jit(law)(params, shipped(path).load(state_dict)[0].params)
    return [
        *tree_rows(path, f"ff_mean_{scenario}", mean),
        *tree_rows(path, f"ff_variance_{scenario}", variance),
    ]


FEATURES = {  # the file's names, ours
    "correctness": "correctness",
    "confidence": "confidence",
    "entropy": "entropy",
    "m_entropy": "modified_entropy_official",
    "prob": "probability",
}


@functools.lru_cache(maxsize=4)
def set_logits(path):
    """Logits and labels of the three sets, and whether the test logits are the recorded ones."""
    model, _ = trained(path)
    of_model = functools.partial(eval_logits, path, shipped(path).apply_fn, model)
    rows = {name: vectors.rows_of(path, name) for name in ("retain", "forget", "test")}
    logits = {name: of_model(images) for name, (images, _) in rows.items()}
    labels = {name: values for name, (_, values) in rows.items()}
    recorded = vectors.group(path, "forward").get("test_logits")
    moved = recorded is not None and relative(logits["test"], recorded) > LOGITS
    return logits, labels, moved


def attack_rows(path, *, attack=membership.official_attack, features=None):
    logits, labels, moved = set_logits(path)
    rows = []
    for theirs, ours in (features or FEATURES).items():
        found = attack(logits, labels, ours)
        for kind, value, judged in (
            ("efficacy", found.efficacy, len(labels["forget"])),
            ("privacy", found.privacy, len(labels["test"]) // 2),
        ):
            recorded = json.loads(str(vectors.group(path, "mia")[kind]))[theirs]
            limit = 1 / judged if moved else MIA
            rows.append(Row(f"mia {kind} {theirs}", abs(value - recorded), limit))
    return rows


class Recorded(NamedTuple):
    """A network of a file of networks, its weights drawn, and what the official one gave."""

    info: dict
    network: vectors.Network
    model: Model
    images: np.ndarray
    logits: dict


def recorded_network(path, name):
    info = json.loads(str(vectors.arrays_of(path)[f"{name}/info"]))
    logits = vectors.group(path, name)
    side = 224 if info["kwargs"].get("imagenet") else 32
    images = np.asarray(augment.to_float(vectors.arrays_of(path)[f"images{side}"]))
    constants = info["normalize"]
    channels = constants and models.Channels(tuple(constants["mean"]), tuple(constants["std"]))
    network = vectors.make_network(name, logits["logits_eval"].shape[1], channels, side)
    model, _ = network.load(vectors.drawn_weights(info))
    return Recorded(info, network, model, images, logits)


def eval_row(name, given):
    ours = forward(given.network.apply_fn, False)(given.model, given.images)
    return Row(f"{name} logits eval", relative(ours, given.logits["logits_eval"]), LOGITS)


def network_rows(path, name):
    """Logits and parameter count of one network of a file of networks."""
    given = recorded_network(path, name)
    ours = forward(given.network.apply_fn, True)(given.model, given.images)
    error, limit = relative(ours, given.logits["logits_train"]), TRAIN_LOGITS.get(name, LOGITS)
    # the official Swin's fixed masks count as its parameters do
    written = given.network.dump(given.model)
    fixed = [value for key, value in written.items() if key.endswith("_mask")]
    count = sum(leaf.size for leaf in [*jax.tree.leaves(given.model.params), *fixed])
    apart = abs(count - given.info["trainable"])
    return [
        eval_row(name, given),
        Row(f"{name} logits train", error, limit),
        Row(f"{name} parameters too many or few", apart, 0),
    ]
