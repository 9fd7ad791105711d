r"""CIFAR-10, ResNet-18, class-wise, 95% sparsity: the paper's Tables 3 and A6.

The paper prints, in percent (RTE in minutes; - is not printed):

    Table 3, CIFAR-10/ResNet-18/class-wise; l1-sparse: Table A6
                          Retrain       FT       GA       FF       IU  l1-sparse
    dense UA               100.00    22.53    93.08    79.93    87.82     100.00
    dense MIA-Efficacy     100.00    75.00    94.03   100.00    95.96     100.00
    dense RA               100.00    99.87    92.60    99.45    97.98      98.99
    dense TA                94.83    94.31    86.64    94.18    91.42      93.40
    dense DisparityAve       0.00    25.78     7.12     5.32     5.41          -
    95%   UA               100.00    73.64    98.09    94.83    99.47          -
    95%   MIA-Efficacy     100.00    83.02    97.74   100.00    99.93          -
    95%   RA                99.99    99.87    87.74    99.48    97.24          -
    95%   TA                91.80    94.32    82.58    94.04    90.76          -
    95%   DisparityAve       0.00    11.50     6.41     1.98     1.10          -
    both  RTE_min           43.23     2.52     0.33    38.91     3.25       2.53

Fisher forgetting (FF) and influence (IU) are in the form of the paper's code, whose figures these
are; docs/deviations.md says what is wrong with it. The paper gives no step length of IU and a
search range for FF: what stands here is not tuned.

Cost: ten trials, each of seven trainings of 182 epochs: two of the 45,000 training rows, five
without the forgotten ones; 532 million rows in all, and up to ten trainings of one trial to measure
RTE. For an accelerator; not run by us. Trials run side by side there: where memory is short,
--config.execution.trial_mode=serial runs one at a time. `python -m sparse_mu.prepare
--dataset=cifar10 --data_dir=DIR` makes DIR.

    python -m sparse_mu.main --config=configs/cifar10_resnet18_class.py \
        --workdir=runs/cifar10_resnet18_class --config.dataset.data_dir=DIR
"""

from ml_collections import ConfigDict

from sparse_mu import settings


def get_config() -> ConfigDict:
    """The setting that all others start from."""
    return settings.every_key()
