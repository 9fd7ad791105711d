"""The membership attack's hard label under shadow pools of unequal size, and its AUC beside it."""

from typing import NamedTuple

import numpy as np

from sparse_mu import membership

# shadow members : shadow non-members, as in UNPRUNING section 4
RATIOS = ((1212, 450), (450, 450), (450, 440), (440, 450), (225, 450))


class Attacked(NamedTuple):
    """What the attack says of one model.

    Attributes:
        nonmember: of each ratio, the fraction of the forget set that is called non-member.
        auc: forget against test rows by margin; no shadow pool is in it.
    """

    nonmember: list[float]
    auc: float


def attacked(
    logits: np.ndarray,
    labels: np.ndarray,
    *,
    retain: np.ndarray,
    forget: np.ndarray,
    test: np.ndarray,
    ratios: tuple[tuple[int, int], ...] = RATIOS,
    seed: int = 0,
) -> Attacked:
    """One model under every ratio of shadow pools; pools are prefixes of one draw.

    Args:
        logits: ``float[N, K]`` of all rows.
        labels: ``int[N]``.
        retain: ``bool[N]``, where shadow members come from.
        forget: ``bool[N]``, what is judged.
        test: ``bool[N]``, where shadow non-members come from.
        ratios: sizes of the two pools.
        seed: of the draw.
    """
    scores = membership.confidence(membership.softmax(logits), labels)
    margins = membership.margin(logits, labels)
    rng = np.random.default_rng(seed)
    members, others = (rng.permutation(np.flatnonzero(rows)) for rows in (retain, test))
    found = []
    for inside, outside in ratios:
        if inside > len(members) or outside > len(others):
            raise ValueError(f"ratio {inside}:{outside}: there are {len(members)}:{len(others)}")
        pools = scores[members[:inside]], scores[others[:outside]]
        found.append(membership.svc_attack(*pools, scores[forget]))
    return Attacked(found, float(membership.auc(margins[forget], margins[test])))
