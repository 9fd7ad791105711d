r"""CIFAR-10's classes to others of its classes, ResNet-20s: a stand-in for the paper's Table 4.

Source: six of the ten classes. Two of them, of most influence on the target's validation loss, are
forgotten by every trial; every model is then probed and fine-tuned on the target, the other four
classes. The paper's own setting is configs/imagenet_resnet18_transfer.py.

Cost: 32 backbones for the choice, each trained on half of the classes, and three trainings of each
of ten trials, 182 epochs of 18,000 to 27,000 rows, 0.2 billion rows in all. For an
accelerator; not run by us. `python -m sparse_mu.prepare --dataset=cifar10 --data_dir=DIR` makes
DIR.

    python -m sparse_mu.main --config=configs/cifar10_resnet20s_transfer.py \
        --workdir=runs/cifar10_transfer --config.dataset.data_dir=DIR \
        --config.transfer.data_dir=DIR
"""

from ml_collections import ConfigDict

from sparse_mu import settings


def get_config() -> ConfigDict:
    """What differs from the CIFAR-10 setting."""
    config = settings.every_key()
    config.model.name = "resnet20s"
    config.dataset.classes = ("airplane", "automobile", "bird", "cat", "deer", "ship")
    config.transfer.dataset = "cifar10"
    config.transfer.classes = ("dog", "frog", "horse", "truck")
    config.transfer.choose = "influence"
    config.transfer.count = 2  # of the six source classes
    config.transfer.finetune_epochs = 10
    config.prune.sparsities = ()  # the paper's table is of dense models
    config.unlearn.methods = ("finetune", "gradient_ascent", "l1_sparse")
    return config
