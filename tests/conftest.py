"""Four CPU devices, and no silent promotion of dtypes or ranks in any test.

Most tests compile longer than they run. So XLA optimises little, fuses without the emitters that take most of its time,
and does not split a program for threads, since the other core has a test of its own: a quarter of the time. What one
test compiled, in whatever process, serves all of them. On a loaded machine the threads of several devices may come to a
collective later than the 40 seconds after which XLA ends the process.
"""

import os
import tempfile

os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 "
    "--xla_cpu_collective_call_terminate_timeout_seconds=240",
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers of pytest-xdist inherit it
    COMPILED = tempfile.TemporaryDirectory(prefix="compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items):
    """The files beside this one, which take longest, go first, so that no worker is left with one at the end."""
    items.sort(key=lambda item: item.path.parent.name != "tests")


@pytest.fixture
def lenient():
    """Ordinary promotion of dtypes, for tests that run optax.adam: it raises a float to an integer power."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def one_device():
    """For modules of whole jobs: on one of the devices, for which they compile a third faster.

    Those of test_generate are on four.
    """
    with pytest.MonkeyPatch.context() as patch:
        devices = jax.devices
        patch.setattr(jax, "device_count", lambda: 1)
        patch.setattr(jax, "devices", lambda *backend: devices(*backend)[:1])
        yield


@pytest.fixture(scope="session")
def environment():
    """For processes that tests start: one CPU device."""
    return {**os.environ, "JAX_PLATFORMS": "cpu"}
