"""Models of a run as files that other programs read: PyTorch state dicts in safetensors."""

from collections.abc import Iterable
from pathlib import Path

import jax

from sparse_mu.acts import Arm
from sparse_mu.interop import to_state_dict, write_state_dict
from sparse_mu.models import Channels


def write_models(arms: Iterable[Arm], folder: Path, channels: Channels | None) -> list[Path]:
    """Writes each trial's model of every arm, ``<method>-<sparsity>-trial<t>.safetensors``.

    Names and layouts are the official code's; of a pruned model its mask stands beside the weights.

    Args:
        arms: the models to write.
        folder: where; made if it is not there.
        channels: the constants by which the network normalises its inputs, or None.

    Returns:
        The files, in order. Files of that name are replaced.

    Raises:
        OSError: if the folder cannot be made.
        sparse_mu.interop.StateDictError: if a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for arm in arms:
        for trial in range(len(jax.tree.leaves(arm.model)[0])):
            model, masks = jax.tree.map(lambda leaf, t=trial: leaf[t], (arm.model, arm.masks))
            path = folder / f"{arm.method}-{arm.sparsity:g}-trial{trial}.safetensors"
            write_state_dict(path, to_state_dict(model, masks, channels=channels))
            written.append(path)
    return written
