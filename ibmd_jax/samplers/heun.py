"""DDBM's hybrid sampler (Zhou et al., arXiv 2309.16948, algorithm 1): a stochastic Euler step, then one of Heun.

With q = grad log q(x_t | x_0_hat, x_T) and h = grad log p(x_T | x_t), reverse time runs along

    SDE   f x - g^2 (q - w h)            ODE   f x - g^2 (q/2 - w h)                                         (1)

w is a guidance strength, 1 by theory. The authors' VE code defines it otherwise, with s = q - h, the score of
q(x_t | x_0_hat):

    SDE   f x - g^2 s                    ODE   f x - g^2 (s - w h) / 2                                       (2)

The two agree at w = 1 only. Each step s -> t makes the part `churn` of it on the SDE, and the rest on the ODE.
q takes E[x_0 | x_t, x_T], of a network that sees x_T: without it the result has another distribution.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ibmd_jax.bridges import Bridge
from ibmd_jax.core.arrays import expand
from ibmd_jax.core.streams import normal
from ibmd_jax.core.types import Array, Key
from ibmd_jax.samplers.base import Step, march


def heun(
    denoise: Callable[..., Array],
    bridge: Bridge,
    key: Key,
    x_T: Array,
    times: Array,
    *,
    churn: float = 0.33,
    guidance: float = 1.0,
    guide_score: bool = False,
    **common: Any,
) -> Any:
    """Restores x_T [B, ...] with 3 n - 1 network evaluations for n = len(times) - 1 (2 n - 1 without churn).

    Args:
        times: from just below T (see times.ddbm_grid) to 0; for pinned bridges with alpha_T > 0.
        churn: part of each step that is stochastic, in [0, 1).
        guidance: w of (1), or of (2) if guide_score is set, as the authors have it for VE bridges.
        See samplers/base.py for the others.
    The last Euler step to 0 leaves a part of the noise at times[-2], as in the authors' code: with point-mass data the
    result is off by about c(times[-2]).
    Raises: ValueError for a bridge that is not pinned or has no noise, and for churn outside [0, 1).
    """
    if bridge.deterministic or not bridge.pinned:
        raise ValueError(f"heun needs a pinned bridge with noise, {type(bridge).__name__} is none: use dbim")
    if not 0 <= churn < 1:
        raise ValueError(f"heun: churn = {churn}, it must be at least 0 and less than 1")

    def slope(x_0: Array, x_t: Array, t: Array, stochastic: bool) -> Array:
        f, g2 = (expand(v, x_t) for v in bridge.f_and_g2(t))
        h = bridge.h(x_t, x_T, t)
        q = bridge.score(x_0, x_t, t) if guide_score else bridge.bridge_score(x_0, x_t, x_T, t)
        if stochastic:
            return f * x_t - g2 * (q if guide_score else q - guidance * h)
        return f * x_t - g2 * (q / 2 - guidance * h / (2 if guide_score else 1))

    def step(D: Callable[..., Array], carry: tuple[Array], i: Step) -> tuple[tuple[Array], Array]:
        (x_s,) = carry
        x, u = x_s, i.s
        x_0 = first = D(x, u)
        if churn:
            dt = churn * (i.t - i.s)
            g = jnp.sqrt(-dt * bridge.f_and_g2(u)[1])
            x = x + expand(dt, x) * slope(x_0, x, u, True) + expand(g, x) * normal(i.key, x.shape, x.dtype)
            u = u + dt
            x_0 = D(x, u)
        dt = expand(i.t - u, x)
        d = slope(x_0, x, u, False)
        euler = x + dt * d

        def corrected() -> Array:
            return x + dt * (d + slope(D(euler, i.t), euler, i.t, False)) / 2

        return (jax.lax.cond(i.last, lambda: euler, corrected),), first

    return march(step, denoise, key, x_T, times, **common)
