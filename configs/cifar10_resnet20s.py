r"""CIFAR-10 with ResNet-20s: the paper's Table A8, class-wise; the full run is for an accelerator.

The paper prints, class-wise at 90% sparsity (dense in brackets): Retrain UA 100.00 (100.00), RA
92.95 (99.76), TA 88.58 (92.22); FT UA 91.67 (83.10); GA UA 90.57 (88.48); dense l1-sparse UA 98.57.
The full setting (ten trials, seven trainings of 182 epochs each) has not been run by us. Learning
rates of fine-tuning, ascent and l1-sparse are the paper's (SPEC section 8); the strengths of Fisher
and influence are its search range's, not tuned here.

    python -m sparse_mu.main --config=configs/cifar10_resnet20s.py --workdir=runs/cifar10 \
        --config.dataset.data_dir=DIR

Shrunk to about five minutes on two CPU cores (a check that it runs, not a result):

    python -m sparse_mu.main --config=configs/cifar10_resnet20s.py --workdir=runs/cifar10-small \
        --config.dataset.data_dir=DIR --config.dataset.limit=2000 --config.trials=1 \
        --config.train.epochs=2 --config.prune.rewind_epoch=0 \
        --config.unlearn.methods=finetune,gradient_ascent --config.unlearn.finetune.epochs=1 \
        --config.unlearn.gradient_ascent.epochs=1 --config.evaluate.rte_repeats=0
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The complete config: every key there is, each with its unit."""
    config = ConfigDict()
    config.seed = 0  # draws weights, batch order and forget sets of every trial
    config.trials = 10  # number of trials; class-wise, trial t forgets class t mod K

    config.dataset = ConfigDict()
    config.dataset.name = "cifar10"  # digits, or a TFDS image classification set such as cifar10
    config.dataset.data_dir = ""  # TFDS directory that holds cifar10; must be given
    config.dataset.limit = 0  # first training rows to use (a fifth as many test rows); 0 = all
    config.dataset.split_seed = 1  # draws the tuning pool
    config.dataset.validation = 0.1  # fraction of each class set aside as the tuning pool
    config.dataset.pool = "report"  # report: all but the tuning pool; tuning: the pool alone

    config.model = ConfigDict()
    config.model.name = "resnet20s"  # small_cnn (24,058 parameters) or resnet20s (269,722)
    config.model.dtype = "float32"  # type computed in: float32 or bfloat16

    config.forget = ConfigDict()
    config.forget.scenario = "class"  # class, random or indices
    config.forget.classes = ()  # class: which classes the trials rotate over; () = all
    config.forget.fraction = 0.1  # random: fraction of the training rows, in (0, 1)
    config.forget.count = 0  # random: number of training rows; 0 = use the fraction
    config.forget.file = ""  # indices: .txt or .npy of row numbers of the stored training set

    config.train = ConfigDict()
    config.train.epochs = 182  # epochs of the original and of every retrained model
    config.train.batch_size = 128  # rows per step
    config.train.learning_rate = 0.1  # peak step size
    config.train.momentum = 0.9  # fraction of the buffer kept
    config.train.weight_decay = 5e-4  # per unit of weight, all parameters
    config.train.schedule = "step"  # constant, step (x0.1 at 50% and 75%) or cosine
    config.train.warmup_epochs = 1.0  # epochs of linear warm-up
    config.train.augment = "crop_flip"  # none or crop_flip

    config.prune = ConfigDict()
    config.prune.method = "omp"  # omp: one-shot magnitude pruning
    config.prune.sparsities = (0.9,)  # fractions of the convolution weights; dense is always run
    config.prune.rewind_epoch = 8  # go back to this epoch and train again; -1 = prune in place

    config.unlearn = ConfigDict()
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
    config.unlearn.fisher = ConfigDict()
    config.unlearn.fisher.alpha = 1e-8  # noise variance times Fisher
    config.unlearn.fisher.head = "zeroed"  # class-wise: zeroed or intact rows of the class head
    config.unlearn.fisher.batch_size = 4  # rows whose gradients are held at once
    config.unlearn.influence = ConfigDict()
    config.unlearn.influence.alpha = 1.0  # step length; 1 is the theory's
    config.unlearn.influence.damping = 1e-2  # added to the diagonal of the curvature
    config.unlearn.influence.rows = 256  # gradients of retain rows that build the curvature
    config.unlearn.influence.batch_size = 32  # rows per step
    config.unlearn.l1_sparse = ConfigDict()
    config.unlearn.l1_sparse.epochs = 10  # passes over the retain set
    config.unlearn.l1_sparse.batch_size = 128  # rows per step
    config.unlearn.l1_sparse.learning_rate = 0.01  # step size, constant
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
