"""The bridge contract and all that follows from it.

Forward process, alpha and rho (IBMD, arXiv 2502.01362, section 2; rho = sigma / alpha, its SNR_t = 1 / rho_t^2):

    q(x_t | x_0)        = N(alpha_t x_0, sigma_t^2 I),  sigma = alpha rho                            (1)
    dx_t                = f(t) x_t dt + g(t) dw,   f = alpha'/alpha,   g^2 = (sigma^2)' - 2 f sigma^2 (2)

pinned at both ends:

    q(x_t | x_0, x_T)   = N(a_t x_T + b_t x_0, c_t^2 I)                                              (3)
        a = (alpha_t/alpha_T) rho_t^2/rho_T^2,  b = alpha_t (1 - rho_t^2/rho_T^2),
        c^2 = alpha_t^2 rho_t^2 (1 - rho_t^2/rho_T^2)
    q(x_t | x_0, x_s)   = the same with s in the place of T, for t < s (the process is Markov)       (4)
    p(x_T | x_t)        : h = grad log p = (alpha_t/alpha_T x_T - x_t) / (alpha_t^2 (rho_T^2 - rho_t^2)) (5)

A diffusion model is the limit rho_T -> infinity, where x_T is independent noise and a = 0; a flow or an ODE bridge has
c = 0. An instance writes `coeffs`, `alpha` and `rho` in a form that stays exact near t = 0 and t = T.
"""

import dataclasses
from typing import ClassVar, TypeVar

import jax
import jax.numpy as jnp

from ibmd_jax.core.arrays import expand
from ibmd_jax.core.streams import normal
from ibmd_jax.core.types import Array, Coeffs, Key

B = TypeVar("B", bound=type)


def bridge(cls: B) -> B:
    """Class decorator: a frozen dataclass whose fields are pytree leaves, or static where their metadata says so."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


class Bridge:
    """Base of all bridges; times are in [0, T], scalar or [B]; images are [B, ...] of one float dtype."""

    T: float = 1.0
    deterministic: ClassVar[bool] = False  # c = 0: given both ends, the path has no randomness
    pinned: ClassVar[bool] = True  # x_T is where the path ends, and not independent noise

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

    # What follows; an instance overrides it where it knows better.

    def sigma(self, t: Array) -> Array:
        """sigma_t of equation (1); finite even where alpha_T = 0 and rho_T is not."""
        return self.alpha(t) * self.rho(t)

    def noise_level(self, t: Array) -> Array:
        """The time as networks trained in the way of I2SB are told it: from 0 to 1000."""
        return 1000 * t / self.T

    def at(self, t: Array, x: Array) -> Coeffs:
        """coeffs(t), shaped to multiply x."""
        return Coeffs(*(expand(v, x) for v in self.coeffs(t)))

    def split(self, t: Array) -> tuple[Array, Array, Array]:
        """(k, b, n) of x_t = k x_T + b x_0 + n noise: the noise is eps, or x_T itself where c = 0."""
        a, b, c = self.coeffs(t)
        return (jnp.zeros_like(a), b, a) if self.deterministic else (a, b, c)

    def slopes(self, t: Array) -> tuple[tuple[Array, Array, Array], tuple[Array, Array, Array]]:
        """(k, b, n) and their time derivatives."""
        t = jnp.asarray(t)
        return jax.jvp(self.split, (t,), (jnp.ones_like(t),))

    def sample(self, key: Key, x_0: Array, x_T: Array, t: Array) -> Array:
        """Draws x_t of equation (3), differentiable in x_0 and x_T (IBMD needs that gradient); key: one, or [B]."""
        a, b, c = self.at(t, x_0)
        return a * x_T + b * x_0 + c * normal(key, x_0.shape, x_0.dtype)

    def posterior(self, x_0: Array, x_s: Array, s: Array, t: Array) -> tuple[Array, Array]:
        """Mean [B, ...] and standard deviation (broadcastable) of x_t given x_0 and x_s, t <= s: equation (4)."""
        alpha_s, alpha_t, sigma_s, sigma_t = self.alpha(s), self.alpha(t), self.sigma(s), self.sigma(t)
        ratio, fade = jnp.square(sigma_t / sigma_s), alpha_s / alpha_t
        r = jnp.minimum(fade**2 * ratio, 1)  # rho_t^2 / rho_s^2; rounding may put t above s
        old, new, std = (expand(v, x_0) for v in (fade * ratio, alpha_t * (1 - r), sigma_t * jnp.sqrt(1 - r)))
        return old * x_s + new * x_0, std

    def f_and_g2(self, t: Array) -> tuple[Array, Array]:
        """Drift f(t) and squared diffusion g^2(t) of equation (2), by differentiating alpha and sigma; t > 0."""
        t = jnp.asarray(t, jnp.result_type(float))
        alpha, d_alpha = jax.jvp(self.alpha, (t,), (jnp.ones_like(t),))
        sigma, d_sigma = jax.jvp(self.sigma, (t,), (jnp.ones_like(t),))
        f = d_alpha / alpha
        return f, 2 * sigma * (d_sigma - f * sigma)

    def bridge_eps(self, x_0: Array, x_t: Array, x_T: Array, t: Array) -> Array:
        """The noise of `split`; needs n_t > 0."""
        k, b, n = (expand(v, x_t) for v in self.split(t))
        return (x_t - k * x_T - b * x_0) / n

    def bridge_score(self, x_0: Array, x_t: Array, x_T: Array, t: Array) -> Array:
        """grad_x log q(x_t | x_0, x_T) = -bridge_eps / n_t."""
        return -self.bridge_eps(x_0, x_t, x_T, t) / expand(self.split(t)[2], x_t)

    def score(self, x_0: Array, x_t: Array, t: Array) -> Array:
        """grad_x log q(x_t | x_0) = -(x_t - alpha_t x_0) / sigma_t^2, the drift v of IBMD, equation (6)."""
        return (expand(self.alpha(t), x_t) * x_0 - x_t) / jnp.square(expand(self.sigma(t), x_t))

    def h(self, x_t: Array, x_T: Array, t: Array) -> Array:
        """grad_x log p(x_T | x_t) of equation (5), which pulls the forward process to x_T; t < T."""
        end = jnp.full_like(jnp.asarray(t, x_t.dtype), self.T)
        alpha, alpha_T, rho_T = self.alpha(t), self.alpha(end), self.rho(end)
        variance = alpha * self.coeffs(t).b * rho_T**2  # b = alpha (1 - rho_t^2 / rho_T^2)
        return (expand(alpha / alpha_T, x_t) * x_T - x_t) / expand(variance, x_t)

    def drift(self, x_0: Array, x_t: Array, t: Array) -> Array:
        """Drift f x_t - g^2 score of the reverse-time SDE that runs from x_T to x_0 with diffusion g."""
        f, g2 = self.f_and_g2(t)
        return expand(f, x_t) * x_t - expand(g2, x_t) * self.score(x_0, x_t, t)

    def velocity(self, x_0: Array, x_t: Array, x_T: Array, t: Array) -> Array:
        """dx_t/dt of the probability flow, k' x_T + b' x_0 + n' noise; needs 0 < t < T."""
        dk, db, dn = (expand(v, x_t) for v in self.slopes(t)[1])
        return dk * x_T + db * x_0 + dn * self.bridge_eps(x_0, x_t, x_T, t)
