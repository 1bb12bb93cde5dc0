"""Brownian bridge with diffusion epsilon: alpha = 1, rho_t^2 = epsilon t, T = 1.

x_t = t x_T + (1 - t) x_0 + sqrt(epsilon t (1 - t)) eps
"""

import jax.numpy as jnp

from ibmd_jax.bridges.base import Bridge, bridge
from ibmd_jax.core.types import Array, Coeffs


@bridge
class Brownian(Bridge):
    """epsilon: variance of the free process at t = 1 (squared image units)."""

    epsilon: float = 1.0

    def coeffs(self, t: Array) -> Coeffs:
        return Coeffs(t, 1 - t, jnp.sqrt(self.epsilon * t * (1 - t)))

    def alpha(self, t: Array) -> Array:
        return jnp.ones_like(t)

    def rho(self, t: Array) -> Array:
        return jnp.sqrt(self.epsilon * t)
