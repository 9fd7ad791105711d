"""The membership attack's hard label under shadow pools of unequal size, and its AUC beside it."""

from typing import NamedTuple

import numpy as np

from experiments.unpruning.lab import Lab
from sparse_mu import membership
from sparse_mu.types import Masks, Model

# shadow members : shadow non-members, as in UNPRUNING section 4
RATIOS = ((1212, 450), (450, 450), (450, 440), (440, 450), (225, 450))


FRACTIONS = (0.01, 0.02, 0.05)  # of the training rows that are deleted
FIXED, FOLLOWING = "fixed 450:450", "following |Dr| / 3 : 450"


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


def sweep_of_lab(lab: Lab, sparse_masks: Masks, models: dict[str, Model]) -> dict:
    """T5: the attack's hard label against the size of the deletion and of its shadow pools.

    The models are not unlearned: the same two are attacked however much is "deleted", so whatever
    moves is the attack's own. Beside them a model that was retrained without the rows.

    Args:
        lab: the setting.
        sparse_masks: ``[T]`` masks of the sparse models.
        models: ``[T]`` original models by name, dense and sparse.
    """
    setting = lab.setting
    n, labels = setting.train_rows, np.asarray(setting.labels)
    test = np.arange(len(labels)) >= n

    def rows(members: np.ndarray) -> np.ndarray:
        return np.concatenate([members, np.zeros(len(labels) - n, bool)])

    def attack(logits: np.ndarray, forget: np.ndarray, ratios: tuple) -> list[Attacked]:
        return [
            attacked(
                logits[t],
                labels,
                retain=rows(~forget[t]),
                forget=rows(forget[t]),
                test=test,
                ratios=ratios,
            )
            for t in range(len(lab.seeds))
        ]

    known = {name: lab.logits(model) for name, model in models.items()}
    by_ratio, by_size = {}, {}
    tenth = lab.random(0.1)
    retrained = lab.logits(lab.rewound(sparse_masks, ~tenth))
    for name, logits in (known | {"retrained, sparse": retrained}).items():
        by_ratio[name] = [one._asdict() for one in attack(logits, tenth, RATIOS)]
    for fraction in FRACTIONS:
        forget = lab.random(fraction)
        ratios = ((450, 450), (int((~forget[0]).sum()) // 3, 450))
        again = {"retrained, sparse": lab.logits(lab.rewound(sparse_masks, ~forget))}
        for name, logits in (known | again).items():
            found = attack(logits, forget, ratios)
            by_size.setdefault(name, {})[str(fraction)] = {
                FIXED: [one.nonmember[0] for one in found],
                FOLLOWING: [one.nonmember[1] for one in found],
                "auc": [one.auc for one in found],
                "pool": ratios[1],
            }
    return {
        "seeds": list(lab.seeds),
        "ratios": [f"{a}:{b}" for a, b in RATIOS],
        "by_ratio": by_ratio,
        "by_size": by_size,
    }
