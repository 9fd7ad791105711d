r"""CIFAR-10, ResNet-18: cleansing a Trojan, the paper's Figure 6.

A tenth of the training rows carry a black square of 4 pixels, 2 pixels off the bottom-right corner,
and the label 0; they are the forget set. The square is stamped before augmentation, as in the
paper, so that cropping and flipping move it in training. The figure's axes are not in the paper's
text, which says: the attack on the original succeeds at every sparsity, after fine-tuning it fails
the more the sparser the model is, from 90% above all, and l1-sparse removes it from the dense
model; accuracy on clean images stays. ASR here leaves images of class 0 out; with them it is given
by name (asr_all). SynFlow in the place of OMP: --config.prune.method=synflow.

Cost: ten trials, each of three dense trainings and four at every sparsity, 182 epochs of 40,500 to
45,000 rows, 2.0 billion rows in all. For an accelerator; not run by us.
`python -m sparse_mu.prepare --dataset=cifar10 --data_dir=DIR` makes DIR.

    python -m sparse_mu.main --config=configs/cifar10_resnet18_trojan.py \
        --workdir=runs/cifar10_resnet18_trojan --config.dataset.data_dir=DIR
"""

from ml_collections import ConfigDict

from sparse_mu import settings


def get_config() -> ConfigDict:
    """What differs from the CIFAR-10 setting."""
    config = settings.every_key()
    config.forget.scenario = "trojan"
    config.trojan.trigger = "black_square"
    config.prune.sparsities = (0.2, 0.4, 0.6, 0.8, 0.9, 0.95)
    config.unlearn.methods = ("finetune", "l1_sparse")
    config.evaluate.rte_repeats = 0
    return config
