"""Better transfer by forgetting, in handwritten digits: a small stand-in for the paper's Table 4.

Source: the digits 0 to 5 of scikit-learn, as in configs/digits.py. Each trial forgets two of them,
which are listed and not chosen as harmful (--config.transfer.choose=influence chooses; the forget
list is then empty and --config.transfer.count says how many). Every model is judged as a backbone
on the target, the digits 6 to 9: a linear probe on frozen features, and fine-tuning of all weights.
The methods' numbers are those of configs/digits.py, tuned there for forgetting one class of ten and
not here.

Cost: about two minutes on two CPU cores, 1.2 GiB.

    python -m sparse_mu.main --config=configs/digits_transfer.py --workdir=runs/transfer
"""

from ml_collections import ConfigDict

from sparse_mu import settings


def get_config() -> ConfigDict:
    """What differs from the recipe of digits."""
    config = settings.digits()
    config.dataset.classes = (0, 1, 2, 3, 4, 5)
    config.forget.classes = ("0+1", "2+3", "4+5")  # in turn, numbered as in dataset.classes
    config.transfer.dataset = "digits"
    config.transfer.classes = (6, 7, 8, 9)
    config.transfer.finetune_epochs = 5
    config.transfer.finetune_batch_size = 64  # rows per step
    config.transfer.finetune_learning_rate = 0.05
    return config
