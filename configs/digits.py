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
    """The recipe of digits as it is, which other configs begin from."""
    return settings.digits()
