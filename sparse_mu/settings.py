"""Every key of a config, each with its unit, as values the paper's CIFAR-10 setting.

A config file starts from :func:`every_key` and names what its setting changes, nothing else.
"""

from ml_collections import ConfigDict


def every_key() -> ConfigDict:
    """Every key there is: ResNet-18 on CIFAR-10, class-wise, dense and at 95% sparsity.

    Numbers are the paper's (its tables A1 and A2 and its appendix) and, where it prints none, the
    defaults of its code. Strengths that it only says were searched carry their range in the
    comment. The methods of other papers, from ``finetune_and_prune`` on, have starting points.
    """
    config = ConfigDict()
    config.seed = 0  # draws weights, batch order and forget sets of every trial
    config.trials = 10  # number of trials; class-wise, trial t forgets class t mod K

    config.dataset = ConfigDict()
    config.dataset.name = "cifar10"  # digits, folder, npz, or a TFDS image classification set
    config.dataset.data_dir = ""  # TFDS directory that holds it, folder of images, FILE.npz
    config.dataset.limit = 0  # first training rows (folder, npz: spread) + 1/5 test rows; 0 = all
    config.dataset.classes = ()  # kept alone, numbered anew, as (3, "cat"); () = all
    config.dataset.reading = "resident"  # all images in memory, or stream: decoded when read
    config.dataset.image_size = 0  # side in pixels that images are brought to; 0 = as stored
    config.dataset.cache_dir = ""  # where decoded images are kept; "" = beside the data
    config.dataset.workers = 0  # stream: processes that decode beside the main one
    config.dataset.split_seed = 1  # draws the tuning pool
    config.dataset.unlearn_split_seed = -1  # split of the unlearning sets; -1 = the one trained on
    config.dataset.validation = 0.1  # fraction of each class set aside as the tuning pool
    config.dataset.pool = "report"  # report: all but the tuning pool; tuning: the pool alone

    config.model = ConfigDict()
    config.model.name = "resnet18"  # small_cnn, resnet{20s,18,50}, vgg16_bn{,_lth}, swin_t
    config.model.stem = "cifar"  # resnet18, resnet50: 3x3 stem, or imagenet: 7x7 and a max-pool
    config.model.channels = "auto"  # input normalisation: of the data set (auto), a named one, none
    config.model.checkpoint = ""  # a trained model to start from; "" = train one
    config.model.dtype = "float32"  # type computed in: float32 or bfloat16

    config.forget = ConfigDict()
    config.forget.scenario = "class"  # class, random, indices, or trojan: the poisoned rows
    config.forget.classes = ()  # class: as (3, "cat", "cat+dog"), one a trial in turn; () = each
    config.forget.fraction = 0.1  # random: fraction of the training rows, in (0, 1)
    config.forget.count = 0  # random, class: number of rows; 0 = the fraction, or whole classes
    config.forget.file = ""  # indices: .txt, .csv, .npy or .json of row numbers or ids
    config.forget.duplicates = "count"  # copies of forget images left in the retain set, or skip

    config.trojan = ConfigDict()
    config.trojan.trigger = "none"  # none, black_square (the paper's), white_square or blended
    config.trojan.size = 4  # of a square: side in pixels
    config.trojan.offset = 2  # of a square: pixels off the bottom-right corner, both ways
    config.trojan.strength = 0.2  # of blended: weight of the pattern
    config.trojan.target = "0"  # class that triggered images are to be called, number or name
    config.trojan.ratio = 0.1  # scenario trojan: fraction of the training rows that is poisoned
    config.trojan.variant = "all_to_one"  # all_to_one, all_to_all (next class), clean_label

    # what every model is worth as a backbone on another data set
    config.transfer = ConfigDict()
    config.transfer.dataset = ""  # the target, as dataset.name; "" = none is judged
    config.transfer.data_dir = ""  # as dataset.data_dir
    config.transfer.limit = 0  # as dataset.limit
    config.transfer.classes = ()  # as dataset.classes
    config.transfer.choose = "given"  # forget.classes, or by influence on the target, or random
    config.transfer.count = 0  # influence, random: number of source classes that are forgotten
    config.transfer.subsets = 32  # influence: backbones on random classes; even, 2 K or more
    config.transfer.validation = 0.2  # of each class's training rows: they choose the probe's C
    config.transfer.probe_seeds = 3  # draws of these rows; at least 3
    config.transfer.finetune_epochs = 0  # of all weights, passes over the target; 0 = none
    config.transfer.finetune_batch_size = 128  # rows per step
    config.transfer.finetune_learning_rate = 0.01  # step size, constant
    config.transfer.finetune_momentum = 0.9  # fraction of the buffer kept
    config.transfer.finetune_weight_decay = 5e-4  # per unit of weight

    config.train = ConfigDict()
    config.train.epochs = 182  # epochs of the original and of every retrained model
    config.train.batch_size = 128  # rows per step
    config.train.learning_rate = 0.1  # peak step size
    config.train.momentum = 0.9  # fraction of the buffer kept
    config.train.weight_decay = 5e-4  # per unit of weight, all parameters
    config.train.schedule = "step"  # constant, step (x0.1 at 50% and 75%) or cosine
    config.train.warmup_epochs = 1.0  # epochs of linear warm-up
    config.train.budget = "epochs"  # retrained: epochs (official), or the original's steps
    config.train.augment = "crop_flip"  # none, crop_flip, or resized_crop_flip: to image_size

    config.prune = ConfigDict()
    config.prune.method = "omp"  # omp, imp, synflow, random, snip, grasp; {snip,grasp}_official
    config.prune.sparsities = (0.95,)  # fractions of the convolution weights; dense is always run
    config.prune.rewind_epoch = 8  # omp, imp: go back to this epoch and train again; -1 = stay
    config.prune.scope = "global"  # ranks all leaves together, or each leaf by itself: leaf
    config.prune.structure = "entries"  # what goes: single entries, whole filters or whole channels
    config.prune.rate = 0.2  # imp: fraction of the remaining weights that a round removes
    config.prune.rounds = 100  # synflow: rounds of scoring
    config.prune.synflow_counts = "exact"  # synflow: exact final count, or official rounding
    config.prune.per_class = 25  # snip, grasp: training rows of each class that are scored

    config.unlearn = ConfigDict()
    # which to run, on the dense model and on every sparse one
    config.unlearn.methods = ("finetune", "gradient_ascent", "fisher", "influence", "l1_sparse")
    config.unlearn.finetune = ConfigDict()
    config.unlearn.finetune.epochs = 10  # passes over the retain set
    config.unlearn.finetune.batch_size = 128  # rows per step
    config.unlearn.finetune.learning_rate = 0.01  # step size, constant
    config.unlearn.finetune.momentum = 0.9  # fraction of the buffer kept
    config.unlearn.finetune.weight_decay = 5e-4  # per unit of weight
    config.unlearn.gradient_ascent = ConfigDict()
    config.unlearn.gradient_ascent.epochs = 5  # passes over the forget set
    config.unlearn.gradient_ascent.batch_size = 128  # rows per step
    config.unlearn.gradient_ascent.learning_rate = 1e-4  # step size, constant
    config.unlearn.gradient_ascent.momentum = 0.9  # fraction of the buffer kept
    config.unlearn.gradient_ascent.weight_decay = 5e-4  # per unit of weight
    config.unlearn.gradient_ascent.batchnorm = "train"  # statistics: train (official) or frozen
    config.unlearn.gradient_ascent.loss_ceiling = 0.0  # mean loss not raised further; 0 = none
    config.unlearn.gradient_ascent.gamma = 0.0  # l1 penalty per unit of weight, constant
    config.unlearn.fisher = ConfigDict()
    config.unlearn.fisher.alpha = 1e-8  # noise variance times Fisher; searched in [1e-8, 1e-6]
    config.unlearn.fisher.estimate = "official"  # exact diagonal, or official (squared batch means)
    config.unlearn.fisher.noise = "official"  # floored alpha / F, quarter alpha / sqrt(F), official
    config.unlearn.fisher.floor = 1e-3  # smallest Fisher value of floored and quarter
    config.unlearn.fisher.head = "zeroed"  # class-wise: intact, zeroed or removed columns
    config.unlearn.fisher.batch_size = 32  # rows at once; official: a batch (32 there)
    config.unlearn.influence = ConfigDict()
    config.unlearn.influence.alpha = 1.0  # step length; 1 is the theory's, the paper gives none
    config.unlearn.influence.solver = "official"  # woodbury, cg, or official (rank-one recursion)
    config.unlearn.influence.damping = 1e-2  # added to the diagonal of the curvature
    config.unlearn.influence.rows = 1000  # gradients kept by woodbury; read by official
    config.unlearn.influence.curvature = "gauss_newton"  # of cg: gauss_newton or hessian
    config.unlearn.influence.iterations = 50  # of cg: passes over the retain set, all run
    config.unlearn.influence.tolerance = 1e-4  # relative residual at which cg has converged
    config.unlearn.influence.weighting = "average"  # average (1/n_r on Dr) or sum (1/N stays)
    config.unlearn.influence.batch_size = 32  # rows per step
    config.unlearn.l1_sparse = ConfigDict()
    config.unlearn.l1_sparse.epochs = 10  # passes over the retain set
    config.unlearn.l1_sparse.batch_size = 128  # rows per step
    config.unlearn.l1_sparse.learning_rate = 0.01  # step size, constant
    config.unlearn.l1_sparse.momentum = 0.9  # fraction of the buffer kept
    config.unlearn.l1_sparse.weight_decay = 5e-4  # per unit of weight
    config.unlearn.l1_sparse.gamma = 5e-4  # l1 penalty per unit of weight, mean of the schedule
    config.unlearn.l1_sparse.schedule = "decaying"  # constant, growing, decaying; *_matched
    config.unlearn.l1_sparse.penalty = "subgradient"  # subgradient (official) or proximal
    config.unlearn.finetune_and_prune = ConfigDict()
    config.unlearn.finetune_and_prune.epochs = 10  # passes over the retain set
    config.unlearn.finetune_and_prune.batch_size = 128  # rows per step
    config.unlearn.finetune_and_prune.learning_rate = 0.01  # step size, constant
    config.unlearn.finetune_and_prune.momentum = 0.9  # fraction of the buffer kept
    config.unlearn.finetune_and_prune.weight_decay = 5e-4  # per unit of weight
    config.unlearn.finetune_and_prune.sparsity = 0.9  # fraction of the kept weights removed
    config.unlearn.negative_gradient = ConfigDict()
    config.unlearn.negative_gradient.epochs = 5  # passes over the longer set
    config.unlearn.negative_gradient.batch_size = 128  # rows per step
    config.unlearn.negative_gradient.learning_rate = 0.01  # step size, constant
    config.unlearn.negative_gradient.momentum = 0.9  # fraction of the buffer kept
    config.unlearn.negative_gradient.weight_decay = 5e-4  # per unit of weight
    config.unlearn.negative_gradient.retain_weight = 0.95  # of the retain loss; the rest: forget
    config.unlearn.negative_gradient.ceiling = 10.0  # forget loss not raised further; 0 = none
    config.unlearn.random_label = ConfigDict()
    config.unlearn.random_label.epochs = 10  # passes over the longer set
    config.unlearn.random_label.batch_size = 128  # rows per step
    config.unlearn.random_label.learning_rate = 0.01  # step size, constant
    config.unlearn.random_label.momentum = 0.9  # fraction of the buffer kept
    config.unlearn.random_label.weight_decay = 5e-4  # per unit of weight
    config.unlearn.random_label.retain_weight = 1.0  # weight of the retain loss
    config.unlearn.salun = ConfigDict()
    config.unlearn.salun.epochs = 10  # passes over the longer set
    config.unlearn.salun.batch_size = 128  # rows per step
    config.unlearn.salun.learning_rate = 0.01  # step size, constant
    config.unlearn.salun.momentum = 0.9  # fraction of the buffer kept
    config.unlearn.salun.weight_decay = 5e-4  # per unit of weight
    config.unlearn.salun.retain_weight = 1.0  # weight of the retain loss
    config.unlearn.salun.saliency = 0.5  # fraction of the kept weights that may move
    config.unlearn.scrub = ConfigDict()
    config.unlearn.scrub.epochs = 10  # passes over the retain set
    config.unlearn.scrub.batch_size = 128  # rows per step
    config.unlearn.scrub.learning_rate = 0.01  # step size, constant
    config.unlearn.scrub.momentum = 0.9  # fraction of the buffer kept
    config.unlearn.scrub.weight_decay = 5e-4  # per unit of weight
    config.unlearn.scrub.alpha = 0.001  # weight of the divergence from the original, retain set
    config.unlearn.scrub.gamma = 0.99  # weight of the cross entropy, retain set
    config.unlearn.scrub.temperature = 4.0  # softens both distributions of the divergence
    config.unlearn.scrub.max_epochs = 2  # epochs that begin with a pass over the forget set

    config.unprune = ConfigDict()
    config.unprune.methods = ()  # run after un-pruning, too: of unlearn.methods, or retrain
    config.unprune.mode = "difference"  # omp: difference, projected, rewind, regrow (paper)
    config.unprune.epochs = 45  # omp: most epochs of dense training on the retain set
    config.unprune.block = 9  # omp: epochs between two looks at the mask
    config.unprune.tolerance = 0.03  # omp: ends at the third mask in a row with IoUs of 1 - this
    config.unprune.weights = "carry"  # begun from: carry, rewind, continue or estimate
    config.unprune.settle_epochs = 1  # passes that make BatchNorm's statistics anew; 0 = carried
    config.unprune.grow = "initial"  # regrow: by |theta_0| (initial), gradient, or all
    config.unprune.start = "initial"  # regrow: with theta_0 (initial), zero, or clip
    config.unprune.fraction = 0.2  # regrow: of the pruned units that come back in a round
    config.unprune.cap = 0.3  # regrow: of the kept units, falling by a cosine; 0 = none
    config.unprune.rounds = 5  # regrow: most rounds, each a run of the method

    config.evaluate = ConfigDict()
    config.evaluate.mia_feature = "confidence"  # what the membership attack looks at
    config.evaluate.mia_draws = 5  # pools drawn and averaged per attack
    config.evaluate.mia_pools = "drawn"  # of equal size by seed; official: first rows, one draw
    config.evaluate.batch_size = 256  # rows per forward pass
    config.evaluate.interval = 0.95  # level of every printed interval
    config.evaluate.rte_repeats = 3  # timed runs of one trial alone, at least 3; 0 = do not measure

    config.execution = ConfigDict()
    config.execution.mode = "single"  # single: trials over devices; sharded, mapped: each batch
    config.execution.batchnorm = "synchronised"  # over all devices; mapped: per_device too
    config.execution.trial_mode = "auto"  # serial, vmap, or auto (serial on CPU, else vmap)

    config.checkpoint = ConfigDict()
    config.checkpoint.every_epochs = 10  # epochs between the checkpoints inside a stage
    config.checkpoint.keep = 2  # checkpoints kept inside a stage, the newest ones
    return config


def digits() -> ConfigDict:
    """Every key there is: the recipe of scikit-learn's digits, dense and at 90% sparsity.

    Learning rates, epochs and strengths up to l1_sparse were chosen by experiments/tune_digits.py
    for class-wise forgetting, on the tuning pool alone; configs/digits.py says how.
    """
    config = every_key()
    config.dataset.name = "digits"
    config.dataset.validation = 0.4  # fraction of each class in the tuning pool
    config.model.name = "small_cnn"

    config.train.epochs = 15  # of the original and of every retrained model
    config.train.batch_size = 64  # rows per step
    config.train.warmup_epochs = 0.0
    config.train.augment = "none"
    config.prune.sparsities = (0.9,)
    config.prune.rewind_epoch = 0  # to the first weights
    config.checkpoint.every_epochs = 100  # no stage is that long: what is lost is two seconds

    config.unlearn.finetune.batch_size = 64  # rows per step
    config.unlearn.finetune.learning_rate = 0.5  # tuned, as all up to l1_sparse
    config.unlearn.gradient_ascent.batch_size = 64
    config.unlearn.gradient_ascent.learning_rate = 1e-2
    config.unlearn.fisher.alpha = 1e-7
    config.unlearn.fisher.estimate = "exact"
    config.unlearn.fisher.noise = "floored"
    config.unlearn.fisher.batch_size = 8
    config.unlearn.influence.alpha = 0.1
    config.unlearn.influence.solver = "woodbury"
    config.unlearn.influence.damping = 1e-3
    config.unlearn.influence.rows = 256  # gradients kept
    config.unlearn.influence.batch_size = 64
    config.unlearn.l1_sparse.batch_size = 64
    config.unlearn.l1_sparse.learning_rate = 0.2
    config.unprune.epochs = 4  # about a quarter of train.epochs
    config.unprune.block = 1  # epochs between two looks at the mask
    config.unprune.settle_epochs = 6  # passes of 12 batches
    for method in ("finetune_and_prune", "negative_gradient", "random_label", "salun", "scrub"):
        config.unlearn[method].batch_size = 64
        config.unlearn[method].learning_rate = 0.1  # a starting point, not tuned
    return config
