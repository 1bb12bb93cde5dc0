"""I2SB in continuous time (Liu et al., arXiv 2302.05872): alpha = 1, a symmetric variance rate beta, T = 1.

    beta(t) = (m + d min(t, 1 - t))^2,  m = sqrt(beta_min),  d = sqrt(beta_max) - m                  (1)
    R(t)    = int_0^t beta = m^2 t + m d t^2 + d^2 t^3 / 3           for t <= 1/2                    (2)
    rho^2   = R(t) before 1/2,  S - R(1 - t) after,  S = 2 R(1/2);   rho_T^2 - rho_t^2 = rho_{1-t}^2 (3)
    a = rho_t^2 / S,  b = rho_{1-t}^2 / S,  c = rho_t rho_{1-t} / sqrt(S)                            (4)

The symmetry (3) means that no difference of nearly equal numbers is ever taken, at either end.
With beta_max = 1 or 0.3 this is the limit of the published 1000-step tables (S = 0.2469 and 0.1410).
"""

import jax.numpy as jnp

from ibmd_jax.bridges.base import Bridge, bridge
from ibmd_jax.core.types import Array, Coeffs


@bridge
class I2SB(Bridge):
    """beta_min, beta_max: the ends of the quadratic ramp (1), squared image units per unit of time."""

    beta_min: float = 0.1
    beta_max: float = 1.0

    def _half(self, t: Array) -> Array:
        m = self.beta_min**0.5
        d = self.beta_max**0.5 - m
        return t * (m * m + t * (m * d + t * (d * d / 3)))

    def _variance(self, t: Array) -> Array:
        """rho_t^2 for t in [0, 1], exact near both ends."""
        return jnp.where(t <= 0.5, self._half(t), self._total() - self._half(1 - t))

    def _total(self) -> float:
        return 2 * self._half(0.5)

    def coeffs(self, t: Array) -> Coeffs:
        forward, backward, total = self._variance(t), self._variance(1 - t), self._total()
        return Coeffs(forward / total, backward / total, jnp.sqrt(forward * backward / total))

    def alpha(self, t: Array) -> Array:
        return jnp.ones_like(t)

    def rho(self, t: Array) -> Array:
        return jnp.sqrt(self._variance(t))
