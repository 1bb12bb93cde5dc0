"""Bridges without noise of their own: straight flows, and the ODE version of any bridge.

Flow     x_t = t x_T + (1 - t) x_0, T = 1. With x_T independent N(0, I): flow matching (Lipman et al., 2210.02747),
         alpha = 1 - t, sigma = t; with paired ends: rectified flow (Liu et al., 2209.03003).                (1)
OtOde    x_t = a x_T + b x_0 of a pinned bridge, and its posterior's mean: I2SB's `--ot-ode` (2302.05872).    (2)
"""

import jax.numpy as jnp

from ibmd_jax.bridges.base import Bridge, bridge
from ibmd_jax.core.arrays import expand
from ibmd_jax.core.types import Array, Coeffs


@bridge
class Flow(Bridge):
    """Equation (1)."""

    deterministic = True

    def coeffs(self, t: Array) -> Coeffs:
        t = jnp.asarray(t)
        return Coeffs(t, 1 - t, jnp.zeros_like(t))

    def alpha(self, t: Array) -> Array:
        return 1 - t

    def rho(self, t: Array) -> Array:
        return t / (1 - t)

    def sigma(self, t: Array) -> Array:
        return jnp.asarray(t)

    def posterior(self, x_0: Array, x_s: Array, s: Array, t: Array) -> tuple[Array, Array]:
        r = expand(t, x_0) / expand(s, x_0)
        return r * x_s + (1 - r) * x_0, jnp.zeros_like(r)


@bridge
class OtOde(Bridge):
    """Equation (2) for the bridge `of`. Raises: ValueError unless it is pinned and has noise."""

    of: Bridge
    deterministic = True

    def __post_init__(self):
        if isinstance(self.of, Bridge) and (self.of.deterministic or not self.of.pinned):
            raise ValueError(f"there is no ODE version of {type(self.of).__name__}: it has no noise, or starts from it")

    @property
    def T(self) -> float:
        return self.of.T

    def coeffs(self, t: Array) -> Coeffs:
        a, b, c = self.of.coeffs(t)
        return Coeffs(a, b, jnp.zeros_like(c))

    def alpha(self, t: Array) -> Array:
        return self.of.alpha(t)

    def rho(self, t: Array) -> Array:
        return self.of.rho(t)

    def sigma(self, t: Array) -> Array:
        return self.of.sigma(t)

    def noise_level(self, t: Array) -> Array:
        return self.of.noise_level(t)

    def f_and_g2(self, t: Array) -> tuple[Array, Array]:
        return self.of.f_and_g2(t)

    def slopes(self, t: Array) -> tuple[tuple[Array, Array, Array], tuple[Array, Array, Array]]:
        (a, b, _), (da, db, _) = self.of.slopes(t)
        return (jnp.zeros_like(a), b, a), (jnp.zeros_like(da), db, da)  # c may have an infinite slope

    def posterior(self, x_0: Array, x_s: Array, s: Array, t: Array) -> tuple[Array, Array]:
        mean, std = self.of.posterior(x_0, x_s, s, t)
        return mean, jnp.zeros_like(std)
