"""Ancestral sampling of a bridge: I2SB's algorithm 2, the DDPM posterior.

x_0_hat = x_0(x_s, s),   x_t ~ q(x_t | x_0_hat, x_s)        for each s -> t of the time grid, from x_T
"""

from collections.abc import Callable
from typing import Any

import jax

from ibmd_jax.bridges import Bridge
from ibmd_jax.core.arrays import composite
from ibmd_jax.core.types import Array, Key


def ancestral(
    denoise: Callable[..., Array],
    bridge: Bridge,
    key: Key,
    x_T: Array,
    times: Array,
    *,
    mask: Array | None = None,
    cond: Any = None,
) -> Array:
    """Restores x_T [B, H, W, C] with len(times) - 1 network evaluations in one compiled loop.

    Args:
        times: descending from T, [NFE + 1]; a last time of 0 returns the last x_0 estimate itself.
        mask: [B, H, W, 1] bool; outside it every x_0 estimate, and so the result, is x_T bit for bit.
    """

    def body(x_s: Array, step: tuple[Array, Array, Key]) -> tuple[Array, None]:
        s, t, k = step
        x_0 = composite(denoise(x_s, s, x_T, cond), x_T, mask)
        mean, std = bridge.posterior(x_0, x_s, s, t)
        return mean + std * jax.random.normal(k, x_s.shape, x_s.dtype), None

    steps = (times[:-1], times[1:], jax.random.split(key, times.shape[0] - 1))
    x, _ = jax.lax.scan(body, x_T, steps)
    return x
