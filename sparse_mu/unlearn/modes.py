"""What an un-pruning may read: its modes, from which the new mask is found."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from sparse_mu.types import Masks, Model, Params, PathFn
from sparse_mu.unlearn.regrow import Regrow

Snapshots = Mapping[int, Model] | PathFn


class Difference(NamedTuple):
    """``theta_T(D) + (theta_K(Dr) - theta_K(D))``: the default; needs stored dense snapshots.

    With Df empty it is the identity. The difference cancels what K epochs of training and T of
    them have not in common.

    Attributes:
        dense: ``[T]`` models theta_T(D), the original's dense weights before it was pruned.
        snapshots: ``[T]`` models theta_K(D) at every epoch that is looked at, kept from the
            original's training; or a training on D that makes them again, while D is still there.
    """

    dense: Model
    snapshots: Snapshots


class Projected(NamedTuple):
    """The difference where theta_T(D) was not kept: what M_o tells of it stands in its place.

    theta_K(D) with the magnitudes of kept weights raised, and those of pruned weights lowered, to
    just this side of the threshold between them.

    Attributes:
        snapshots: as of :class:`Difference`.
    """

    snapshots: Snapshots


class Rewind(NamedTuple):
    """``theta_K(Dr)``: a retraining that is pruned early. Its error is under-training alone."""


class Rescored(NamedTuple):
    """Masks that were found on gradients at theta_0 (SNIP): the score of Dr, exactly.

    Gradients of a sum of losses add up, so Dr's is D's without Df's: no pass over Dr is needed.
    Exact for a loss without batch statistics, and for sums that are exact.

    Attributes:
        total: ``[T]`` gradients at theta_0 of the *sum* of losses over D.
        forgotten: the same over Df.
        score: ``"snip"`` ranks ``|theta_0 * g|``, ``"gradient"`` ranks ``|g|``.
    """

    total: Params
    forgotten: Params
    score: Literal["snip", "gradient"] = "snip"


class Given(NamedTuple):
    """Masks that were found otherwise: by a rule at theta_0 that looked at Dr, or at no data.

    Attributes:
        masks: ``[T]`` masks.
    """

    masks: Masks


Mode = Difference | Projected | Rewind | Rescored | Given | Regrow
