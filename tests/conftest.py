"""Four CPU devices, and no silent promotion of dtypes or ranks in any test."""

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def lenient():
    """Ordinary promotion of dtypes, for tests that run optax.adam: it raises a float to an integer power."""
    with jax.numpy_dtype_promotion("standard"):
        yield
