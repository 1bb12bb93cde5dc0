"""Ancestral sampling of a bridge: I2SB's algorithm 2 (arXiv 2302.05872), the DDPM posterior.

x_0_hat = x_0(x_s, s),   x_t ~ q(x_t | x_0_hat, x_s)        for each s -> t of the time grid, from x_T       (1)
known pixels:            x_t ~ q(x_t | x_T, x_T)            drawn anew in each step, as I2SB does            (2)
"""

from collections.abc import Callable
from typing import Any

from ibmd_jax.bridges import Bridge
from ibmd_jax.core.arrays import composite
from ibmd_jax.core.streams import stream
from ibmd_jax.core.types import Array, Key
from ibmd_jax.samplers.base import Step, march, noise


def ancestral(
    denoise: Callable[..., Array],
    bridge: Bridge,
    key: Key,
    x_T: Array,
    times: Array,
    *,
    mask: Array | None = None,
    **common: Any,
) -> Any:
    """Restores x_T [B, ...] with len(times) - 1 network evaluations; a last time of 0 returns the last x_0 estimate
    (on a table nearly: its first entry is not 0).

    See samplers/base.py for the other arguments.
    """

    def step(D: Callable[..., Array], carry: tuple[Array], i: Step) -> tuple[tuple[Array], Array]:
        (x_s,) = carry
        x_0 = D(x_s, i.s)
        mean, std = bridge.posterior(x_0, x_s, i.s, i.t)
        x_t = mean + std * noise(i, x_s)
        if mask is not None:
            x_t = composite(x_t, bridge.sample(stream(i.key, "known"), x_T, x_T, i.t), mask)
        return (x_t,), x_0

    return march(step, denoise, key, x_T, times, mask=mask, **common)
