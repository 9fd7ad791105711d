"""Handwritten digits: the embedded default. No download; a minute or two on two CPU cores.

Data: scikit-learn's 1,797 real 8x8 images (its load_digits). 445 of them are the test part, 815 are
trained on, and 537 are a tuning pool, set aside once, that no reported trial trains on, forgets or
tests. Learning rates, epochs and strengths of the unlearning methods were chosen on that pool alone
by experiments/tune_digits.py (class-wise, ten trials, smallest mean disparity of both arms); the
table is experiments/results/tuning_digits.md. Other scenarios run with the same values, untuned.

What it reaches is printed in the README. Cost: about 110 s with a cold compilation cache and 80 s
with a warm one on two CPU cores, 1.1 GiB.

    python -m sparse_mu.main --config=configs/digits.py --workdir=runs/digits
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The complete config: every key there is, each with its unit."""
    config = ConfigDict()
    config.seed = 0  # draws weights, batch order and forget sets of every trial
    config.trials = 10  # number of trials; class-wise, trial t forgets class t mod K

    config.dataset = ConfigDict()
    config.dataset.name = "digits"  # digits, or a TFDS image classification set such as cifar10
    config.dataset.data_dir = ""  # TFDS directory; "" for digits
    config.dataset.limit = 0  # first training rows to use (a fifth as many test rows); 0 = all
    config.dataset.split_seed = 1  # draws the tuning pool
    config.dataset.validation = 0.4  # fraction of each class set aside as the tuning pool
    config.dataset.pool = "report"  # report: all but the tuning pool; tuning: the pool alone

    config.model = ConfigDict()
    config.model.name = "small_cnn"  # small_cnn (24,058 parameters) or resnet20s (269,722)
    config.model.dtype = "float32"  # type computed in: float32 or bfloat16

    config.forget = ConfigDict()
    config.forget.scenario = "class"  # class, random or indices
    config.forget.classes = ()  # class: which classes the trials rotate over; () = all
    config.forget.fraction = 0.1  # random: fraction of the training rows, in (0, 1)
    config.forget.count = 0  # random: number of training rows; 0 = use the fraction
    config.forget.file = ""  # indices: .txt or .npy of row numbers of the stored training set

    config.train = ConfigDict()
    config.train.epochs = 15  # epochs of the original and of every retrained model
    config.train.batch_size = 64  # rows per step
    config.train.learning_rate = 0.1  # peak step size
    config.train.momentum = 0.9  # fraction of the buffer kept
    config.train.weight_decay = 5e-4  # per unit of weight, all parameters
    config.train.schedule = "step"  # constant, step (x0.1 at 50% and 75%) or cosine
    config.train.warmup_epochs = 0.0  # epochs of linear warm-up
    config.train.augment = "none"  # none or crop_flip

    config.prune = ConfigDict()
    config.prune.method = "omp"  # omp: one-shot magnitude pruning
    config.prune.sparsities = (0.9,)  # fractions of the convolution weights; dense is always run
    config.prune.rewind_epoch = 0  # go back to this epoch and train again; -1 = prune in place

    config.unlearn = ConfigDict()
    config.unlearn.methods = ("finetune", "gradient_ascent", "fisher", "influence", "l1_sparse")
    config.unlearn.finetune = ConfigDict()
    config.unlearn.finetune.epochs = 10  # passes over the retain set
    config.unlearn.finetune.batch_size = 64  # rows per step
    config.unlearn.finetune.learning_rate = 0.5  # step size, constant
    config.unlearn.finetune.momentum = 0.9  # fraction of the buffer kept
    config.unlearn.finetune.weight_decay = 5e-4  # per unit of weight
    config.unlearn.gradient_ascent = ConfigDict()
    config.unlearn.gradient_ascent.epochs = 5  # passes over the forget set
    config.unlearn.gradient_ascent.batch_size = 64  # rows per step
    config.unlearn.gradient_ascent.learning_rate = 1e-2  # step size, constant
    config.unlearn.gradient_ascent.momentum = 0.9  # fraction of the buffer kept
    config.unlearn.gradient_ascent.weight_decay = 5e-4  # per unit of weight
    config.unlearn.fisher = ConfigDict()
    config.unlearn.fisher.alpha = 1e-7  # noise variance times Fisher
    config.unlearn.fisher.head = "zeroed"  # class-wise: zeroed or intact rows of the class head
    config.unlearn.fisher.batch_size = 2  # rows whose gradients are held at once
    config.unlearn.influence = ConfigDict()
    config.unlearn.influence.alpha = 0.1  # step length; 1 is the theory's
    config.unlearn.influence.damping = 1e-3  # added to the diagonal of the curvature
    config.unlearn.influence.rows = 256  # gradients of retain rows that build the curvature
    config.unlearn.influence.batch_size = 64  # rows per step
    config.unlearn.l1_sparse = ConfigDict()
    config.unlearn.l1_sparse.epochs = 10  # passes over the retain set
    config.unlearn.l1_sparse.batch_size = 64  # rows per step
    config.unlearn.l1_sparse.learning_rate = 0.2  # step size, constant
    config.unlearn.l1_sparse.momentum = 0.9  # fraction of the buffer kept
    config.unlearn.l1_sparse.weight_decay = 5e-4  # per unit of weight
    config.unlearn.l1_sparse.gamma = 5e-4  # l1 penalty per unit of weight, mean of the schedule
    config.unlearn.l1_sparse.schedule = "decaying"  # constant, growing or decaying

    config.evaluate = ConfigDict()
    config.evaluate.mia_feature = "confidence"  # what the membership attack looks at
    config.evaluate.mia_draws = 5  # pools drawn and averaged per attack
    config.evaluate.batch_size = 256  # rows per forward pass
    config.evaluate.interval = 0.95  # level of every printed interval
    config.evaluate.rte_repeats = 3  # timed runs of one trial alone, at least 3; 0 = do not measure

    config.execution = ConfigDict()
    config.execution.mode = "single"  # single: no batch is split over devices
    config.execution.trial_mode = "auto"  # serial, vmap, or auto (serial on CPU, else vmap)
    return config
