"""Diffusion bridge implicit models (DBIM; Zheng et al., ICLR 2025, arXiv 2405.15885).

With x_t = k_t x_T + b_t x_0 + n_t noise and D = x_0_hat(x_s, s), a step s -> t of first order is

    x_t = kappa x_s + (b_t - kappa b_s) D + (k_t - kappa k_s) x_T + omega z                                  (1)
    omega = eta std q(x_t | x_0, x_s),   kappa = sqrt(n_t^2 - omega^2) / n_s                                 (2)

eta = 1 is ancestral sampling, eta = 0 deterministic; for diffusion models the latter is DDIM. A pinned bridge has no
noise at T to carry on, so the step from T always draws it: kappa = 0, omega = n_t ("booting noise")           (3)

On a pinned bridge with noise, D must be E[x_0 | x_s, x_T], of a network that sees x_T, unless eta = 1: with
E[x_0 | x_s], (1) goes to another distribution.

Orders 2 and 3 (eta = 0) let x_0_hat vary over the step, in lambda = ln(b/n), h = lambda_t - lambda_s:

    x_t = (1) + b_t [ (e^-h + h - 1) d_1 + (h^2/2 - h + 1 - e^-h) d_2 ]                                      (4)

d_1 and d_2 are divided differences of the last two or three estimates. The first step with an estimate before it has
order 2, the one before that and the last have order 1, as in the authors' code. On an equidistant grid these first and
last steps keep the error at order 2, however small the rest is.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ibmd_jax.bridges import Bridge
from ibmd_jax.core.arrays import expand
from ibmd_jax.core.types import Array, Key
from ibmd_jax.samplers.base import Step, march, noise


def boots(bridge: Bridge, s: Array) -> Array:
    """Whether a step from s is one of equation (3): a scalar bool."""
    return (s >= bridge.T) & (bridge.pinned and not bridge.deterministic)


def carry_on(
    bridge: Bridge, x_s: Array, x_0: Array, x_T: Array, s: Array, t: Array, z: Array, omega: Array | float = 0.0
) -> Array:
    """Equations (1) to (3) for x_0 = D, all but omega of the last: [B, ...]. s, t: scalars or [B]; z: noise as x_s."""
    (k_s, b_s, n_s), (k_t, b_t, n_t) = (tuple(expand(v, x_s) for v in bridge.split(u)) for u in (s, t))
    boot = expand(boots(bridge, s), x_s) > 0
    omega = jnp.where(boot, n_t, omega)
    kappa = jnp.where(boot, 0, jnp.sqrt(jnp.maximum(n_t**2 - omega**2, 0)) / jnp.where(boot, 1, n_s))
    return kappa * x_s + (b_t - kappa * b_s) * x_0 + (k_t - kappa * k_s) * x_T + omega * z


def estimate_of(bridge: Bridge, x_s: Array, x_t: Array, x_T: Array, s: Array, t: Array, z: Array) -> Array:
    """The x_0 with which one deterministic `carry_on` from x_s arrives at x_t: its inverse, as it is linear in x_0."""
    zero = jnp.zeros_like(x_s)
    rest = carry_on(bridge, x_s, zero, x_T, s, t, z)
    return (x_t - rest) / carry_on(bridge, zero, zero + 1, zero, s, t, zero)


def first_order(bridge: Bridge, eta: float, x_s: Array, x_0: Array, x_T: Array, i: Step) -> Array:
    """`carry_on` in a sampler."""
    omega = eta * bridge.posterior(x_0, x_s, i.s, i.t)[1] if eta else 0.0
    boot = boots(bridge, i.s)
    z = noise(i, x_s) if eta else jax.lax.cond(boot, lambda: noise(i, x_s), lambda: jnp.zeros_like(x_s))
    return carry_on(bridge, x_s, x_0, x_T, i.s, i.t, z, omega)


def dbim(
    denoise: Callable[..., Array],
    bridge: Bridge,
    key: Key,
    x_T: Array,
    times: Array,
    *,
    eta: float = 0.0,
    **common: Any,
) -> Any:
    """Restores x_T [B, ...] with len(times) - 1 network evaluations; times[0] = T.

    Args: eta: from 0, deterministic after the booting noise, to 1, ancestral; on a bridge without noise these are the
        same. See samplers/base.py for the others.
    Raises: ValueError for another eta.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"dbim: eta = {eta}, it must be from 0 to 1")

    def step(D: Callable[..., Array], carry: tuple[Array], i: Step) -> tuple[tuple[Array], Array]:
        (x_s,) = carry
        x_0 = D(x_s, i.s)
        return (first_order(bridge, eta, x_s, x_0, x_T, i),), x_0

    return march(step, denoise, key, x_T, times, **common)


def dbim_high_order(
    denoise: Callable[..., Array],
    bridge: Bridge,
    key: Key,
    x_T: Array,
    times: Array,
    *,
    order: int = 3,
    **common: Any,
) -> Any:
    """Restores x_T [B, ...] with len(times) - 1 network evaluations; times[0] = T; deterministic after the boot.

    Args: order: 2 or 3. See samplers/base.py for the others. Raises: ValueError for another order.
    """
    if order not in (2, 3):
        raise ValueError(f"dbim_high_order: order = {order}, it must be 2 or 3")

    def lam(t: Array) -> Array:
        _, b, n = bridge.split(t)
        return jnp.log(b / n)

    def step(D: Callable[..., Array], carry: tuple, i: Step) -> tuple[tuple, Array]:
        x_s, D_1, D_2, t_1, t_2, known = carry  # the estimates before this one, their times and their number
        D_0 = D(x_s, i.s)
        x_t = first_order(bridge, 0.0, x_s, D_0, x_T, i)
        two, three = (known >= 1) & ~i.last, (known >= 2) & ~i.last & (order == 3)

        # Where a difference is not used, harmless times keep its value finite.
        h = jnp.where(two, lam(jnp.where(two, i.t, bridge.T / 2)) - lam(jnp.where(two, i.s, bridge.T / 2)), 1)
        h_1 = jnp.where(two, lam(i.s) - lam(jnp.where(two, t_1, bridge.T / 2)), 1)
        h_2 = jnp.where(three, lam(t_1) - lam(jnp.where(three, t_2, bridge.T / 2)), 1)
        e_1, e_2 = (D_0 - D_1) / expand(h_1, x_s), (D_1 - D_2) / expand(h_2, x_s)
        d_1 = jnp.where(three, (e_1 * (2 * h_1 + h_2) - e_2 * h_1) / (h_1 + h_2), e_1)
        d_2 = jnp.where(three, 2 * (e_1 - e_2) / (h_1 + h_2), 0)
        e = jnp.exp(-h)
        more = bridge.split(i.t)[1] * ((e + h - 1) * d_1 + (h**2 / 2 - h + 1 - e) * d_2)
        x_t = jnp.where(two, x_t + more, x_t)

        # The estimate at T is of no use where x_T alone made it, or where lambda_T is infinite.
        skip = boots(bridge, i.s) | ~jnp.isfinite(lam(i.s))
        new = (x_t, D_0, D_1, i.s, t_1, jnp.where(skip, 0, known + 1))
        stays = lam(i.t) == lam(i.s)  # two times of one index in a table: the next difference would be 0/0
        return jax.tree.map(lambda old, x: jnp.where(stays, old, x), carry, new), D_0

    zero = jnp.zeros_like(x_T)
    start = (zero, zero, times[0], times[0], jnp.zeros((), jnp.int32))
    return march(step, denoise, key, x_T, times, start=start, **common)
