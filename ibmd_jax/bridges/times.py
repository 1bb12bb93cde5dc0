"""Where on [0, T] to train (time samplers) and to sample (time grids)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ibmd_jax.core.types import Array, Key


def uniform(key: Key, batch: int, t_min: float, t_max: float) -> Array:
    """Independent times, uniform on [t_min, t_max). Returns [batch] float32."""
    return jax.random.uniform(key, (batch,), jnp.float32, t_min, t_max)


def stratified(key: Key, batch: int, t_min: float, t_max: float) -> Array:
    """One uniform time in each of `batch` equal strata, in random order: each is uniform, their mean varies less."""
    k_order, k_jitter = jax.random.split(key)
    u = (jnp.arange(batch, dtype=jnp.float32) + jax.random.uniform(k_jitter, (batch,))) / batch
    return t_min + (t_max - t_min) * jax.random.permutation(k_order, u)


def end(key: Key, batch: int, t_min: float, t_max: float) -> Array:
    """t_max for every example: bridge matching is then regression from x_T to E[x_0 | x_T]. Returns [batch] float32."""
    return jnp.full((batch,), t_max, jnp.float32)


def log_normal(key: Key, batch: int, t_min: float, t_max: float) -> Array:
    """exp(N(-1.2, 1.2^2)), cut off at the ends: EDM's noise levels (2206.00364, table 1). Returns [batch] float32."""
    return jnp.clip(jnp.exp(1.2 * jax.random.normal(key, (batch,), jnp.float32) - 1.2), t_min, t_max)


def uniform_grid(steps: int, T: float = 1.0, t_min: float = 0.0) -> Array:
    """steps + 1 equally spaced times from T down to t_min. Returns [steps + 1] float32."""
    return jnp.linspace(T, t_min, steps + 1, dtype=jnp.float32)


def karras_grid(steps: int, T: float = 1.0, t_min: float = 1e-3, power: float = 7.0) -> Array:
    """Equally spaced in t^(1/power): denser near t_min (EDM, 2206.00364, equation 5). Returns [steps + 1] float32."""
    return jnp.asarray(np.linspace(T ** (1 / power), t_min ** (1 / power), steps + 1) ** power, jnp.float32)


def i2sb_grid(steps: int, T: float = 1.0, t_min: float = 0.0, table: int = 1000) -> Array:
    """I2SB's: `steps` equal strides over the table's indices, rounded half to even, as times n / (table - 1)."""
    stride = (table - 1) / steps
    sums = np.cumsum([0.0, *[stride] * steps])  # the published code adds the stride up too: rounding must agree
    return jnp.asarray(t_min + (T - t_min) * np.round(sums)[::-1] / (table - 1), jnp.float32)


def dbim_grid(steps: int, T: float = 1.0, t_min: float = 1e-4) -> Array:
    """DBIM's: T, where noise is booted, then equally spaced from T - 1e-3 to t_min. Returns [steps + 1] float32."""
    rest = np.linspace(T - 1e-3, t_min, steps) if steps > 1 else np.array([t_min])
    return jnp.asarray([T, *rest], jnp.float32)


def ddbm_grid(steps: int, T: float = 1.0, t_min: float = 1e-4) -> Array:
    """DDBM's: `steps` Karras times from T - 1e-4 to t_min, then 0. Returns [steps + 1] float32."""
    return jnp.append(karras_grid(max(steps - 1, 1), T - 1e-4, t_min)[:steps], jnp.float32(0))


TIME_SAMPLERS = {"uniform": uniform, "stratified": stratified, "end": end, "log_normal": log_normal}
TIME_GRIDS: dict[str, Callable[..., Array]] = {
    "uniform": uniform_grid,
    "karras": karras_grid,
    "i2sb": i2sb_grid,
    "dbim": dbim_grid,
    "ddbm": ddbm_grid,
}
