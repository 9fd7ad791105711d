"""The machine every test sees: four virtual CPU devices, no silent broadcasting, a warm cache."""

import os
from pathlib import Path

import jax
import pytest

# Before anything starts the backend. A test that needs another number of devices, as the command
# does, runs in a process of its own: jax refuses to change it afterwards.
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
# compiling is most of the time of these tests, and less of it is asked for: the commands that tests
# start, and the comparisons of tests/reference, run optimised
jax.config.update("jax_disable_most_optimizations", True)
# four devices share two cores: programs that meet over devices must not queue up behind others
jax.config.update("jax_cpu_enable_async_dispatch", False)


def pytest_configure(config):
    """Keeps compiled programs between runs, in pytest's own cache folder."""
    if getattr(config, "cache", None) is None:  # run with -p no:cacheprovider
        return
    jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(scope="session")
def shared_folder():
    """The folder of reference vectors and data, or a skip that says how to name it."""
    beside = Path(__file__).parents[2] / "shared"
    folder = Path(os.environ.get("SPARSE_MU_SHARED", beside))
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: set SPARSE_MU_SHARED to the folder of reference data")
    return folder
