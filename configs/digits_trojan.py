"""A Trojan in handwritten digits, and cleansing it. No download; a few minutes on two CPU cores.

Data: scikit-learn's digits as in configs/digits.py. A tenth of each trial's training rows carry a
white square of 2x2 pixels in the corner (a black one cannot be seen there) and the label 0; they
are the forget set. Each method cleanses the dense model and the sparse ones. The methods' numbers
are those of configs/digits.py, tuned there for forgetting a class and not here.

What it reaches is in docs/applications.md. Cost: about four minutes, 1.2 GiB.

    python -m sparse_mu.main --config=configs/digits_trojan.py --workdir=runs/trojan
"""

from ml_collections import ConfigDict

from sparse_mu import settings


def get_config() -> ConfigDict:
    """What differs from the recipe of digits."""
    config = settings.digits()
    config.forget.scenario = "trojan"
    config.trojan.trigger = "white_square"
    config.trojan.size = 2  # pixels of 8
    config.trojan.offset = 0  # in the corner itself
    config.trojan.target = "0"
    config.trojan.ratio = 0.1  # of the training rows
    config.prune.sparsities = (0.5, 0.9)
    config.unlearn.fisher.head = "intact"  # no class is forgotten
    return config
