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

from sparse_mu import settings


def get_config() -> ConfigDict:
    """What differs from the paper's CIFAR-10 setting."""
    config = settings.every_key()
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
    config.unlearn.finetune.learning_rate = 0.5  # tuned, as all below up to l1_sparse
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
