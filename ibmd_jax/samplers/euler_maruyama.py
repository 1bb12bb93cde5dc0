"""The reverse-time SDE of a bridge by the Euler-Maruyama method (IBMD, arXiv 2502.01362, section 2).

dx = (f x - g^2 s) dt + g dw,   s = -(x - alpha x_0_hat) / sigma^2,   t from T down                         (1)

It holds for teachers that see x_T and for those that do not: given x_0_hat, (1) does not contain x_T.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from ibmd_jax.bridges import Bridge
from ibmd_jax.core.arrays import expand
from ibmd_jax.core.types import Array, Key
from ibmd_jax.samplers.base import Step, march, noise


def euler_maruyama(
    denoise: Callable[..., Array], bridge: Bridge, key: Key, x_T: Array, times: Array, **common: Any
) -> Any:
    """Restores x_T [B, ...] with len(times) - 1 network evaluations; alpha(times[0]) must not be 0.

    See samplers/base.py for the other arguments. Raises: ValueError for a bridge without noise.
    """
    if bridge.deterministic:
        raise ValueError(f"euler_maruyama needs a bridge with noise, {type(bridge).__name__} has none: use dbim")

    def step(D: Callable[..., Array], carry: tuple[Array], i: Step) -> tuple[tuple[Array], Array]:
        (x_s,) = carry
        x_0, dt = D(x_s, i.s), i.s - i.t
        g = jnp.sqrt(dt * bridge.f_and_g2(i.s)[1])
        x_t = x_s - expand(dt, x_s) * bridge.drift(x_0, x_s, i.s) + expand(g, x_s) * noise(i, x_s)
        return (x_t,), x_0

    return march(step, denoise, key, x_T, times, **common)
