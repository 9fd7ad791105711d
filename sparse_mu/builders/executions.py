"""Where trials run, from a config."""

import contextlib
import os

import jax

from sparse_mu import execution as executions
from sparse_mu.config import ConfigError, Flat
from sparse_mu.rules import LARGEST_TRIALS
from sparse_mu.types import Execution


def start_backend(flat: Flat) -> None:
    """Before jax starts: a CPU device per core that has work, compiled programs kept on disk."""
    most = flat["trials"] if flat["execution.mode"] == "single" else LARGEST_TRIALS
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with contextlib.suppress(RuntimeError):  # a process that already computes keeps its devices
        jax.config.update("jax_num_cpu_devices", min(cores or 1, most))
    if flat["execution.mode"] != "single":  # on CPU, programs that meet must not queue up
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "sparse_mu", "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    # of where an operation comes from the innermost frame alone: programs are lowered faster
    jax.config.update("jax_include_full_tracebacks_in_locations", False)


def stay_on_cpu() -> None:
    """Before jax starts: what only reads arrays takes no accelerator from a run that may use it."""
    jax.config.update("jax_platforms", "cpu")


def build_executions(flat: Flat) -> tuple[Execution, Execution, Execution]:
    """How all trials run together, how one trial alone is timed, and how forward passes run.

    Raises:
        ConfigError: if vmapped trials are asked for on CPU, or a batch size cannot be split.
    """
    devices = jax.local_devices()
    over_trials = executions.over_trials(devices)
    mode, trial_mode = flat["execution.mode"], flat["execution.trial_mode"]
    if mode != "single":
        split = executions.sharded if mode == "sharded" else executions.mapped
        execution = split(devices)
        for group in ("train", *(f"unlearn.{name}" for name in flat["unlearn.methods"])):
            size = flat[f"{group}.batch_size"]
            if size % execution.parts:
                raise ConfigError(
                    f"config.{group}.batch_size = {size}: must be a multiple of {execution.parts}, "
                    f"the devices that execution.mode = {mode!r} splits a batch over"
                )
        return execution, execution, over_trials
    if trial_mode == "auto":
        trial_mode = "serial" if jax.default_backend() == "cpu" else "vmap"
    if trial_mode == "serial":
        return over_trials, over_trials, over_trials
    if jax.default_backend() == "cpu":
        # vmapped Cholesky solves on several CPU devices never return, and vmap is slower there
        raise ConfigError("config.execution.trial_mode = 'vmap': needs an accelerator; use 'auto'")
    per_device = -(-flat["trials"] // len(devices))
    together = executions.over_trials(devices, per_device=per_device)
    return together, over_trials, together
