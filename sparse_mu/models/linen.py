"""From a linen module to the two plain functions the rest of the library knows.

The core never sees a module: it sees an ``ApplyFn`` and pytrees. A bridge for another network
library has the same two functions.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.module import InterceptorContext

from sparse_mu.models.head import HEAD
from sparse_mu.types import ApplyFn, Key, Params, PyTree

BATCH_STATS = "batch_stats"


def apply_fn_of(module: nn.Module) -> ApplyFn:
    """Makes the apply function of a module called as ``module(inputs, train)``.

    Args:
        module: a linen module; the only state it may carry is the collection "batch_stats", and it
          may draw no random numbers.

    Returns:
        ``(params, net_state, inputs, *, train, key) -> (logits float32[B, K], net_state)`` with
        net_state ``{"batch_stats": ...}``, or ``{}`` for a module without. In evaluation the state
        is returned as given. ``key`` is not used.
    """

    def apply_fn(
        params: Params,
        net_state: PyTree,
        inputs: jax.Array,
        *,
        train: bool,
        key: Key,
    ) -> tuple[jax.Array, PyTree]:
        del key
        variables = {"params": params, **net_state}
        mutable = [BATCH_STATS] if train else []
        logits, updated = module.apply(variables, inputs, train, mutable=mutable)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        return logits, updated if train else net_state

    return apply_fn


def init_of(
    module: nn.Module, example_shape: tuple[int, ...]
) -> Callable[[jax.Array], tuple[Params, PyTree]]:
    """Makes the initialisation of a module called as ``module(inputs, train)``.

    No forward pass is run. The function may be jitted and vmapped over keys; jitted it compiles
    once, called as it is it compiles every draw by itself.

    Args:
        module: a linen module.
        example_shape: shape of one input batch, such as (1, 8, 8, 1).

    Returns:
        ``key -> (params, net_state)``, plain dicts of float32 arrays.
    """

    def init(key: jax.Array) -> tuple[Params, PyTree]:
        example = jax.ShapeDtypeStruct(example_shape, jnp.float32)
        variables = module.lazy_init(key, example, False)
        net_state = {name: value for name, value in variables.items() if name != "params"}
        return variables["params"], net_state

    return init


def features_fn_of(module: nn.Module) -> ApplyFn:
    """Makes the function of a bundled network's features: what its classifier head reads.

    Args:
        module: a linen module that calls a layer named :data:`sparse_mu.models.HEAD` once.

    Returns:
        ``(params, net_state, inputs, *, train, key) -> (features float32[B, F], net_state)``, in
        evaluation mode whatever ``train`` is; like an apply function, so that whatever makes logits
        makes features.
    """

    def features_fn(
        params: Params,
        net_state: PyTree,
        inputs: jax.Array,
        *,
        train: bool,
        key: Key,
    ) -> tuple[jax.Array, PyTree]:
        del train, key
        seen: list[jax.Array] = []

        def watch(
            call: Callable[..., jax.Array],
            args: tuple,
            given: dict,
            context: InterceptorContext,
        ) -> jax.Array:
            if context.module.name == HEAD and context.method_name == "__call__":
                seen.append(args[0])
            return call(*args, **given)

        with nn.intercept_methods(watch):
            module.apply({"params": params, **net_state}, inputs, False)
        (features,) = seen
        return features.astype(jnp.promote_types(features.dtype, jnp.float32)), net_state

    return features_fn
