"""The papers' membership attack on the outputs of one model (host side; SPEC.md section 5.1).

An attacker sees one score per row, fits a support vector classifier on rows whose membership it
knows (the shadow pools) and guesses for others (the targets). Rules that hold for every function
here:

- Pools are disjoint from what they judge. Forget rows are never in a shadow pool, and a privacy
  attack judges only the retain and test rows left over from its own pools. Overlapping masks raise.
- `pools="drawn"` (ours): shadow pools of equal size, drawn without replacement by a numpy
  generator; the value is the mean of several draws, and its spread (standard deviation over draws)
  stands beside it. The same seed and masks give the same pools, whatever the model: methods are
  compared on equal pools.
- `pools="official"`: the code's, the first rows in order, possibly of unequal size, one draw,
  spread `nan`.
- A feature scores each row by itself, but for `modified_entropy_official`, which scores one pool at
  a time and depends on which classes occur in it.
- A pool without rows makes the figure `nan`, as in `metrics.accuracy`; scores that are not finite
  raise.
- Functions keep no state; libsvm frees the GIL, so callers may run models in threads.

Figures are fractions in [0, 1].
"""

from sparse_mu.membership.attack import (
    Attack,
    ClassAttack,
    OfficialAttack,
    Privacy,
    class_attack,
    efficacy,
    membership_metrics,
    official_attack,
    privacy,
)
from sparse_mu.membership.features import (
    FEATURES,
    PER_POOL,
    Evidence,
    Feature,
    by_row,
    confidence,
    correctness,
    entropy,
    evidence_of,
    margin,
    modified_entropy,
    modified_entropy_official,
    probability,
    softmax,
)
from sparse_mu.membership.pools import PoolRule, Pools, efficacy_pools, privacy_pools
from sparse_mu.membership.ranks import auc, tpr_at_fpr
from sparse_mu.membership.svc import svc_attack

__all__ = [
    "FEATURES",
    "PER_POOL",
    "Attack",
    "ClassAttack",
    "Evidence",
    "Feature",
    "OfficialAttack",
    "PoolRule",
    "Pools",
    "Privacy",
    "auc",
    "by_row",
    "class_attack",
    "confidence",
    "correctness",
    "efficacy",
    "efficacy_pools",
    "entropy",
    "evidence_of",
    "margin",
    "membership_metrics",
    "modified_entropy",
    "modified_entropy_official",
    "official_attack",
    "privacy",
    "privacy_pools",
    "probability",
    "softmax",
    "svc_attack",
    "tpr_at_fpr",
]
