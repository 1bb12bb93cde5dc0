"""Where on [0, T] to train (time samplers) and to sample (time grids)."""

import jax
import jax.numpy as jnp

from ibmd_jax.core.types import Array, Key


def uniform(key: Key, batch: int, t_min: float, t_max: float) -> Array:
    """Independent times, uniform on [t_min, t_max). Returns [batch] float32."""
    return jax.random.uniform(key, (batch,), jnp.float32, t_min, t_max)


def stratified(key: Key, batch: int, t_min: float, t_max: float) -> Array:
    """One uniform time in each of `batch` equal strata, in random order: each is uniform, their mean varies less."""
    k_order, k_jitter = jax.random.split(key)
    u = (jnp.arange(batch, dtype=jnp.float32) + jax.random.uniform(k_jitter, (batch,))) / batch
    return t_min + (t_max - t_min) * jax.random.permutation(k_order, u)


def uniform_grid(steps: int, T: float = 1.0, t_min: float = 0.0) -> Array:
    """steps + 1 equally spaced times from T down to t_min. Returns [steps + 1] float32."""
    return jnp.linspace(T, t_min, steps + 1, dtype=jnp.float32)


def power_grid(steps: int, T: float = 1.0, t_min: float = 0.0, power: float = 2.0) -> Array:
    """Times (i / steps)^power from T to t_min: denser near t_min for power > 1. Returns [steps + 1] float32."""
    u = jnp.linspace(1.0, 0.0, steps + 1, dtype=jnp.float32)
    return t_min + (T - t_min) * u**power


TIME_SAMPLERS = {"uniform": uniform, "stratified": stratified}
TIME_GRIDS = {"uniform": uniform_grid, "power": power_grid}
