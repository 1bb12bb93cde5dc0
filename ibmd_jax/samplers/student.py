"""The distilled generator."""

from collections.abc import Callable
from typing import Any

import jax

from ibmd_jax.bridges import Bridge
from ibmd_jax.core.arrays import composite
from ibmd_jax.core.types import Array, Key


def one_step(
    denoise: Callable[..., Array],
    bridge: Bridge,
    key: Key,
    x_T: Array,
    *,
    noise_channels: int = 0,
    mask: Array | None = None,
    cond: Any = None,
) -> Array:
    """x_0 = G(x_T, z), z ~ N(0, I): the denoiser at t = T, once (IBMD, section 3.4).

    Args:
        x_T: [B, H, W, C]. mask: [B, H, W, 1] bool; outside it the result is x_T bit for bit.
        noise_channels: channels of z [B, H, W, noise_channels]; 0 where x_T itself is noisy.
    """
    z = jax.random.normal(key, (*x_T.shape[:-1], noise_channels), x_T.dtype) if noise_channels else None
    return composite(denoise(x_T, bridge.T, x_T, cond, z), x_T, mask)
