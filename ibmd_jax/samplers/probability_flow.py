"""The probability-flow ODE of a bridge, by Heun's method.

dx/dt = k' x_T + b' x_0_hat + n' (x - k x_T - b x_0_hat) / n                                                 (1)

(1) is singular where n = 0: a pinned bridge starts with one first-order step from T that draws noise, as in DBIM, and
a last step to t = 0 goes to the estimate of x_0.
"""

from collections.abc import Callable
from typing import Any

import jax

from ibmd_jax.bridges import Bridge
from ibmd_jax.core.types import Array, Key
from ibmd_jax.samplers.base import Step, march
from ibmd_jax.samplers.dbim import first_order


def probability_flow(
    denoise: Callable[..., Array], bridge: Bridge, key: Key, x_T: Array, times: Array, **common: Any
) -> Any:
    """Restores x_T [B, ...] with 2 (n - 1) network evaluations for n = len(times) - 1 steps from T to 0 (1 for n = 1).

    A grid that ends above 0 takes one more. See samplers/base.py for the other arguments.
    Raises: UserError for a bridge without time derivatives.
    """

    def step(D: Callable[..., Array], carry: tuple[Array], i: Step) -> tuple[tuple[Array], Array]:
        (x,) = carry
        x_0 = D(x, i.s)

        def heun() -> Array:
            dt = i.t - i.s
            d = bridge.velocity(x_0, x, x_T, i.s)
            euler = x + dt * d
            return x + dt * (d + bridge.velocity(D(euler, i.t), euler, x_T, i.t)) / 2

        plain = (i.s >= bridge.T) | (i.t <= 0)
        return (jax.lax.cond(plain, lambda: first_order(bridge, 0.0, x, x_0, x_T, i), heun),), x_0

    return march(step, denoise, key, x_T, times, **common)
