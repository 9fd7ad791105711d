"""CIFAR-10 as a bench: ResNet-20s on a CPU as far as time allows, ResNet-18 on a GPU."""

import numpy as np

from configs import cifar10_resnet20s
from experiments.unpruning import settings
from experiments.unpruning.benches import Planned
from sparse_mu import builders, config


def planned(data_dir: str, network: str, epochs: int, limit: int, *, masks_only: bool) -> Planned:
    """A class deleted, 90% (ResNet-18: 95%) sparse; un-augmented, so that orders alone differ.

    Masks only: no sparse model is trained beside the original's, and no arm runs an unlearner.
    """
    flat = config.flatten(cifar10_resnet20s.get_config().to_dict())
    flat = config.check(flat | {"dataset.data_dir": data_dir, "dataset.limit": limit, "trials": 1})
    data = builders.build_data(flat)
    setting = settings.cifar10(
        np.asarray(data.inputs), data.labels, data.train_rows, network, epochs
    )._replace(sparsity=0.95 if network == "resnet18" else 0.9)
    looks = tuple(range(1, epochs + 1))
    return Planned(
        setting,
        "class",
        looks,
        quarter=-(-epochs // 4),
        block=1,
        with_outputs=not masks_only,
        with_unlearners=not masks_only,
    )
