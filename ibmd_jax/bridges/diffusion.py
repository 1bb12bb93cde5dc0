"""Diffusion models as bridges whose x_T is independent Gaussian noise of standard deviation sigma_T.

x_t = alpha_t x_0 + sigma_t eps,   a = 0: given x_0, x_T says nothing of x_t                                 (1)

With a_bar = alpha^2, and sigma^2 = 1 - a_bar for the variance-preserving ones (T = 1):

    linear   a_bar = exp(-B),  B = beta_min t + (beta_max - beta_min) t^2 / 2     (Song et al., 2011.13456)  (2)
    cosine   a_bar = cos^2(u) / cos^2(u_0),  u = (t + s)/(1 + s) pi/2     (Nichol and Dhariwal, 2102.09672)  (3)
    sigmoid  a_bar = (S(v_1) - S(v_t)) / (S(v_1) - S(v_0)),  v from start to end over tau     (2212.11972)   (4)
    VE       alpha = 1, sigma^2 = sigma_min^2 expm1(2 t ln(sigma_max/sigma_min)), T = 1       (2011.13456)   (5)
    EDM      alpha = 1, sigma = t, T = sigma_max                              (Karras et al., 2206.00364)    (6)

cos^2 A - cos^2 B = sin(B-A) sin(B+A) and S(x) - S(y) = sinh((x-y)/2) / (2 cosh(x/2) cosh(y/2)) keep both ends of
(3) and (4) exact. There alpha_T = 0: what divides by alpha (eps and score networks, Euler-Maruyama) must start below T.
"""

import math

import jax.numpy as jnp

from ibmd_jax.bridges.base import Bridge, bridge
from ibmd_jax.core.types import Array, Coeffs


class Diffusion(Bridge):
    """Base: an instance writes alpha and sigma."""

    pinned = False

    def coeffs(self, t: Array) -> Coeffs:
        alpha, sigma = self.alpha(t), self.sigma(t)
        return Coeffs(jnp.zeros_like(alpha), alpha, sigma)

    def rho(self, t: Array) -> Array:
        return self.sigma(t) / self.alpha(t)


@bridge
class Linear(Diffusion):
    """Equation (2): g^2(t) rises from beta_min to beta_max."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def _B(self, t: Array) -> Array:
        return t * (self.beta_min + (self.beta_max - self.beta_min) / 2 * t)

    def alpha(self, t: Array) -> Array:
        return jnp.exp(-self._B(t) / 2)

    def sigma(self, t: Array) -> Array:
        return jnp.sqrt(-jnp.expm1(-self._B(t)))


@bridge
class Cosine(Diffusion):
    """Equation (3); s: offset that keeps the first steps from being too small."""

    s: float = 0.008

    def alpha(self, t: Array) -> Array:
        quarter = math.pi / 2 / (1 + self.s)
        return jnp.sin((1 - t) * quarter) / jnp.sin(quarter)

    def sigma(self, t: Array) -> Array:
        quarter = math.pi / 2 / (1 + self.s)
        up = jnp.sin(t * quarter) * jnp.sin((t + 2 * self.s) * quarter)
        return jnp.sqrt(up) / jnp.sin(quarter)


@bridge
class Sigmoid(Diffusion):
    """Equation (4); start and end of the logistic curve, tau its temperature."""

    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0

    def _part(self, t: Array, span: Array, far: float) -> Array:
        """The curve's change over `span`, which ends at t, as a part of its whole change; far: its other end."""
        width, at = (self.end - self.start) / (2 * self.tau), self.start / (2 * self.tau)
        v = at + width * t
        return jnp.sinh(width * span) * jnp.cosh(far / (2 * self.tau)) / (jnp.cosh(v) * jnp.sinh(width))

    def alpha(self, t: Array) -> Array:
        return jnp.sqrt(self._part(t, 1 - t, self.start))

    def sigma(self, t: Array) -> Array:
        return jnp.sqrt(self._part(t, t, self.end))


@bridge
class VE(Diffusion):
    """Equation (5): the noise grows geometrically."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def alpha(self, t: Array) -> Array:
        return jnp.ones_like(t)

    def sigma(self, t: Array) -> Array:
        return self.sigma_min * jnp.sqrt(jnp.expm1(2 * t * jnp.log(self.sigma_max / self.sigma_min)))


@bridge
class EDM(Diffusion):
    """Equation (6): time is the noise's standard deviation."""

    sigma_max: float = 80.0

    @property
    def T(self) -> float:
        return self.sigma_max

    def alpha(self, t: Array) -> Array:
        return jnp.ones_like(t)

    def sigma(self, t: Array) -> Array:
        return jnp.asarray(t)
