"""Four CPU devices, and no silent promotion of dtypes or ranks in any test. Most tests compile longer than they run."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

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


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """For processes that tests start: one CPU device, and compiled programs kept between them all."""
    env = dict(os.environ)
    base = tmp_path_factory.getbasetemp()
    cache = (base.parent if "PYTEST_XDIST_WORKER" in env else base) / "compiled"  # one for all workers of pytest-xdist
    settings = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return {**env, "JAX_PLATFORMS": "cpu", **settings}
