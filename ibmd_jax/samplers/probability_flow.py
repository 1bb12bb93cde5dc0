"""The probability-flow ODE of a bridge, by Heun's method with its linear part solved exactly.

dx/dt = k' x_T + b' x_0_hat + n' (x - k x_T - b x_0_hat) / n                                                 (1)

Between s and t, with lambda = ln(b/n), h = lambda_t - lambda_s and the estimates D_s and D_t at both ends, where D_t is
made at the first-order (DBIM, eta = 0) step x_t^(1):

    x_t = x_t^(1) + b_t (e^-h + h - 1) / h (D_t - D_s)                                                       (2)

The plain method of Heun on (1) does not converge for a pinned bridge: n'/n grows like 1 / (T - t), so that the first
steps change the variance by a factor which does not depend on their number. As in DBIM, the step from T of a pinned
bridge draws noise; and a last step to t = 0 is of first order, since no network is trained there. As there, networks
must see x_T where the bridge is pinned and has noise.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ibmd_jax.bridges import Bridge
from ibmd_jax.core.arrays import expand
from ibmd_jax.core.types import Array, Key
from ibmd_jax.samplers.base import Step, march
from ibmd_jax.samplers.dbim import boots, first_order


def probability_flow(
    denoise: Callable[..., Array], bridge: Bridge, key: Key, x_T: Array, times: Array, **common: Any
) -> Any:
    """Restores x_T [B, ...] with 2 (n - 1) network evaluations for n = len(times) - 1 steps from T to 0 (1 for n = 1).

    A bridge that is not pinned or has no noise, or a grid that ends above 0, takes one more. See samplers/base.py for
    the others.
    """

    def step(D: Callable[..., Array], carry: tuple[Array], i: Step) -> tuple[tuple[Array], Array]:
        (x_s,) = carry
        D_s = D(x_s, i.s)
        x_t = first_order(bridge, 0.0, x_s, D_s, x_T, i)
        (_, b_s, n_s), (_, b_t, n_t) = bridge.split(i.s), bridge.split(i.t)

        def corrected() -> Array:
            h = jnp.log(b_t / n_t) - jnp.log(b_s / n_s)
            weight = jnp.where(jnp.isfinite(h), (jnp.exp(-h) + h - 1) / jnp.where(h == 0, 1, h), 1)
            return x_t + expand(b_t * weight, x_t) * (D(x_t, i.t) - D_s)

        return (jax.lax.cond(boots(bridge, i.s) | (i.t <= 0), lambda: x_t, corrected),), D_s

    return march(step, denoise, key, x_T, times, **common)
