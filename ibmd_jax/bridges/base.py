"""The bridge contract and all that follows from it.

Forward process, alpha and rho (IBMD, arXiv 2502.01362, section 2; rho = sigma / alpha):

    q(x_t | x_0)        = N(alpha_t x_0, (alpha_t rho_t)^2 I)                                        (1)
    dx_t                = f(t) x_t dt + g(t) dw,   f = alpha'/alpha,   g^2 = alpha^2 (rho^2)'        (2)

pinned at both ends:

    q(x_t | x_0, x_T)   = N(a_t x_T + b_t x_0, c_t^2 I)                                              (3)
        a = (alpha_t/alpha_T) rho_t^2/rho_T^2,  b = alpha_t (1 - rho_t^2/rho_T^2),
        c^2 = alpha_t^2 rho_t^2 (1 - rho_t^2/rho_T^2)
    q(x_t | x_0, x_s)   = the same with s in the place of T, for t < s (the process is Markov)       (4)

An instance writes `coeffs`, `alpha` and `rho` in a form that stays exact near t = 0 and t = T.
"""

import dataclasses
from typing import ClassVar, TypeVar

import jax
import jax.numpy as jnp

from ibmd_jax.core.arrays import expand
from ibmd_jax.core.types import Array, Coeffs, Key

B = TypeVar("B", bound=type)


def bridge(cls: B) -> B:
    """Class decorator: a frozen dataclass whose fields are pytree leaves."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


class Bridge:
    """Base of all bridges; times are in [0, T], scalar or [B]; images are [B, ...] of one float dtype."""

    T: ClassVar[float] = 1.0

    # What an instance writes.

    def coeffs(self, t: Array) -> Coeffs:
        """(a, b, c) of equation (3), each of the shape of t."""
        raise NotImplementedError(f"{type(self).__name__} must define coeffs(t)")

    def alpha(self, t: Array) -> Array:
        """alpha_t of equation (1)."""
        raise NotImplementedError(f"{type(self).__name__} must define alpha(t)")

    def rho(self, t: Array) -> Array:
        """rho_t of equation (1); rho(0) = 0."""
        raise NotImplementedError(f"{type(self).__name__} must define rho(t)")

    # What follows.

    def at(self, t: Array, x: Array) -> Coeffs:
        """coeffs(t), shaped to multiply x."""
        return Coeffs(*(expand(v, x) for v in self.coeffs(t)))

    def sample(self, key: Key, x_0: Array, x_T: Array, t: Array) -> Array:
        """Draws x_t of equation (3), differentiable in x_0 and x_T (IBMD needs that gradient)."""
        a, b, c = self.at(t, x_0)
        return a * x_T + b * x_0 + c * jax.random.normal(key, x_0.shape, x_0.dtype)

    def posterior(self, x_0: Array, x_s: Array, s: Array, t: Array) -> tuple[Array, Array]:
        """Mean [B, ...] and standard deviation (broadcastable) of x_t given x_0 and x_s, t <= s: equation (4)."""
        alpha_s, alpha_t = expand(self.alpha(s), x_0), expand(self.alpha(t), x_0)
        rho_s, rho_t = expand(self.rho(s), x_0), expand(self.rho(t), x_0)
        r = jnp.square(rho_t / rho_s)
        mean = (alpha_t / alpha_s) * r * x_s + alpha_t * (1 - r) * x_0
        return mean, alpha_t * rho_t * jnp.sqrt(1 - r)

    def f_and_g2(self, t: Array) -> tuple[Array, Array]:
        """Drift f(t) and squared diffusion g^2(t) of equation (2), by differentiating alpha and rho; t > 0."""
        t = jnp.asarray(t, jnp.result_type(float))
        alpha, d_alpha = jax.jvp(self.alpha, (t,), (jnp.ones_like(t),))
        rho, d_rho = jax.jvp(self.rho, (t,), (jnp.ones_like(t),))
        return d_alpha / alpha, 2 * alpha**2 * rho * d_rho

    def eps(self, x_0: Array, x_t: Array, x_T: Array, t: Array) -> Array:
        """The standard noise that equation (3) used; needs c_t > 0."""
        a, b, c = self.at(t, x_t)
        return (x_t - a * x_T - b * x_0) / c

    def score(self, x_0: Array, x_t: Array, x_T: Array, t: Array) -> Array:
        """grad_x log q(x_t | x_0, x_T) = -eps / c_t."""
        return -self.eps(x_0, x_t, x_T, t) / self.at(t, x_t).c

    def v(self, x_0: Array, x_t: Array, t: Array) -> Array:
        """-(x_t - alpha_t x_0) / (alpha_t rho_t)^2, the bridge-matching drift of IBMD, equation (6)."""
        alpha, rho = expand(self.alpha(t), x_t), expand(self.rho(t), x_t)
        return -(x_t - alpha * x_0) / jnp.square(alpha * rho)

    def x_0_from_v(self, v: Array, x_t: Array, t: Array) -> Array:
        """Inverse of `v`."""
        alpha, rho = expand(self.alpha(t), x_t), expand(self.rho(t), x_t)
        return (x_t + jnp.square(alpha * rho) * v) / alpha

    def drift(self, x_0: Array, x_t: Array, t: Array) -> Array:
        """Drift f x_t - g^2 v of the reverse-time SDE that runs from x_T to x_0 with diffusion g."""
        f, g2 = self.f_and_g2(t)
        return expand(f, x_t) * x_t - expand(g2, x_t) * self.v(x_0, x_t, t)

    def velocity(self, x_0: Array, x_t: Array, x_T: Array, t: Array) -> Array:
        """dx_t/dt of the probability flow, a' x_T + b' x_0 + c' eps; needs 0 < t < T."""
        t = jnp.asarray(t, x_t.dtype)
        _, slopes = jax.jvp(self.coeffs, (t,), (jnp.ones_like(t),))
        da, db, dc = (expand(v, x_t) for v in slopes)
        return da * x_T + db * x_0 + dc * self.eps(x_0, x_t, x_T, t)
