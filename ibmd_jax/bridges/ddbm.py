"""The bridges of DDBM (Zhou et al., arXiv 2309.16948, table 1), also those of DBIM: VP and VE pinned at x_T.

VP:  B(t) = beta_d t^2 / 2 + beta_min t,   alpha = exp(-B/2),   rho^2 = expm1(B),   T = 1                    (1)
     with L = B(1) - B(t) = (1 - t) (beta_d (1 + t) / 2 + beta_min), nothing is subtracted:
     a = e^{L/2} expm1(B) / expm1(B_1),  b = e^{B/2} expm1(L) / expm1(B_1),  c^2 = expm1(L) expm1(B) / expm1(B_1)
VE:  alpha = 1,   rho = t,   T = sigma_max                                                                   (2)
     a = t^2 / T^2,   b = (T - t)(T + t) / T^2,   c^2 = t^2 b
"""

import jax.numpy as jnp

from ibmd_jax.bridges.base import Bridge, bridge
from ibmd_jax.core.types import Array, Coeffs


@bridge
class DDBMVP(Bridge):
    """beta_d, beta_min: slope and start of the rate g^2(t) = beta_min + beta_d t."""

    beta_d: float = 2.0
    beta_min: float = 0.1

    def _B(self, t: Array) -> Array:
        return t * (self.beta_d / 2 * t + self.beta_min)

    def coeffs(self, t: Array) -> Coeffs:
        B, total = self._B(t), jnp.expm1(self._B(jnp.ones_like(t)))
        left = (1 - t) * (self.beta_d / 2 * (1 + t) + self.beta_min)
        up, down = jnp.expm1(B) / total, jnp.expm1(left)
        return Coeffs(jnp.exp(left / 2) * up, jnp.exp(B / 2) * (down / total), jnp.sqrt(down * up))

    def alpha(self, t: Array) -> Array:
        return jnp.exp(-self._B(t) / 2)

    def rho(self, t: Array) -> Array:
        return jnp.sqrt(jnp.expm1(self._B(t)))

    def sigma(self, t: Array) -> Array:
        return jnp.sqrt(-jnp.expm1(-self._B(t)))


@bridge
class DDBMVE(Bridge):
    """sigma_max: the last time T, and the standard deviation of the free process there (image units)."""

    sigma_max: float = 80.0

    @property
    def T(self) -> float:
        return self.sigma_max

    def coeffs(self, t: Array) -> Coeffs:
        u = t / self.T
        b = (self.T - t) / self.T * (1 + u)
        return Coeffs(u * u, b, t * jnp.sqrt(b))

    def alpha(self, t: Array) -> Array:
        return jnp.ones_like(t)

    def rho(self, t: Array) -> Array:
        return jnp.asarray(t)
