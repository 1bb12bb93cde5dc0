"""What a network predicts, as a linear function of the clean image, and the other way round.

    x_0_hat = c_skip x_t + c_T x_T + c_out F(c_in x_t; c_noise)                                              (1)
    F       = (x_0 - c_skip x_t - c_T x_T) / c_out,      || F_hat - F ||^2 = || x_0_hat - x_0 ||^2 / c_out^2 (2)

so the plain squared error of any output is the squared error of x_0 with the weight lambda(t) = 1 / c_out^2.

    name          F                                            of
    x_0           x_0                                          either
    eps, i2sb     (x_t - alpha x_0) / sigma                    the forward process; I2SB's target, since alpha = 1
    score         -(x_t - alpha x_0) / sigma^2                 the forward process; this is v of IBMD's paper
    v             alpha eps - sigma x_0                        the forward process (Salimans and Ho, 2202.00512)
    velocity      dx_t/dt = k' x_T + b' x_0 + n' noise         the pinned path; for a flow x_T - x_0
    bridge_eps    (x_t - k x_T - b x_0) / n                    the pinned path
    bridge_score  -(x_t - k x_T - b x_0) / n^2                 the pinned path (DDBM, 2309.16948, equation 9)
    ddbm, edm     unit variance at input and target            (DDBM, section 4.3; EDM, 2206.00364, table 1)

Those of the pinned path use x_T, and all but x_0, v, ddbm and edm are singular where c_out is infinite or 0.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ibmd_jax.bridges.base import Bridge
from ibmd_jax.core.arrays import expand
from ibmd_jax.core.types import Array


class Scalings(NamedTuple):
    """The coefficients of equation (1), each of the shape of t; c_T None stands for 0."""

    c_skip: Array
    c_out: Array
    c_in: Array
    c_noise: Array
    c_T: Array | None = None


Parametrisation = Callable[[Bridge, Array], Scalings]


def estimate(s: Scalings, output: Array, x_t: Array, x_T: Array | None = None) -> Array:
    """x_0_hat of equation (1) for a network output of the shape of x_t."""
    x_0 = expand(s.c_skip, x_t) * x_t + expand(s.c_out, x_t) * output
    return x_0 if s.c_T is None else x_0 + expand(s.c_T, x_t) * x_T


def target(s: Scalings, x_0: Array, x_t: Array, x_T: Array | None = None) -> Array:
    """F of equation (2), what the network should output; the inverse of `estimate`."""
    return (x_0 - estimate(s, jnp.zeros_like(x_t), x_t, x_T)) / expand(s.c_out, x_t)


def native_weight(parametrisation: Parametrisation) -> Callable[[Bridge, Array], Array]:
    """lambda(t) = 1 / c_out^2, with which the x_0 loss is the plain squared error of the network's output."""

    def weight(bridge: Bridge, t: Array) -> Array:
        return 1 / jnp.square(parametrisation(bridge, t).c_out)

    return weight


def x_0(bridge: Bridge, t: Array) -> Scalings:
    one = jnp.ones_like(t)
    return Scalings(jnp.zeros_like(t), one, one, bridge.noise_level(t))


def eps(bridge: Bridge, t: Array) -> Scalings:
    return Scalings(1 / bridge.alpha(t), -bridge.rho(t), jnp.ones_like(t), bridge.noise_level(t))


def score(bridge: Bridge, t: Array) -> Scalings:
    alpha = bridge.alpha(t)
    return Scalings(1 / alpha, jnp.square(bridge.sigma(t)) / alpha, jnp.ones_like(t), bridge.noise_level(t))


def v(bridge: Bridge, t: Array) -> Scalings:
    alpha, sigma = bridge.alpha(t), bridge.sigma(t)
    norm = alpha**2 + sigma**2
    return Scalings(alpha / norm, -sigma / norm, jnp.ones_like(t), bridge.noise_level(t))


def velocity(bridge: Bridge, t: Array) -> Scalings:
    (k, b, n), (dk, db, dn) = bridge.slopes(t)
    norm = n * db - b * dn
    return Scalings(-dn / norm, n / norm, jnp.ones_like(t), bridge.noise_level(t), (k * dn - n * dk) / norm)


def bridge_eps(bridge: Bridge, t: Array) -> Scalings:
    k, b, n = bridge.split(t)
    return Scalings(1 / b, -n / b, jnp.ones_like(t), bridge.noise_level(t), -k / b)


def bridge_score(bridge: Bridge, t: Array) -> Scalings:
    k, b, n = bridge.split(t)
    return Scalings(1 / b, n**2 / b, jnp.ones_like(t), bridge.noise_level(t), -k / b)


def ddbm(bridge: Bridge, t: Array, sigma_0: float = 0.5, sigma_T: float = 0.5, covariance: float = 0.0) -> Scalings:
    """sigma_0, sigma_T: standard deviations of x_0 and x_T about 0; covariance: of the two, at one pixel.

    `data_moments` estimates the three. Raises: ValueError for a covariance that no two such images have.
    """
    if abs(covariance) > sigma_0 * sigma_T:
        raise ValueError(f"covariance = {covariance} is beyond sigma_0 sigma_T = {sigma_0 * sigma_T:g}")
    a, b, c = bridge.coeffs(t)
    v_0, v_T = sigma_0**2, sigma_T**2
    c_in = jax.lax.rsqrt(a**2 * v_T + b**2 * v_0 + 2 * a * b * covariance + c**2)
    c_out = c_in * jnp.sqrt(a**2 * (v_0 * v_T - covariance**2) + v_0 * c**2)
    return Scalings((b * v_0 + a * covariance) * c_in**2, c_out, c_in, 250 * jnp.log(jnp.maximum(t, 1e-37)))


def edm(bridge: Bridge, t: Array, sigma_0: float = 0.5) -> Scalings:
    """ddbm where a = 0, with EDM's c_noise; sigma_0: standard deviation of x_0 about 0."""
    return ddbm(bridge, t, sigma_0)._replace(c_noise=jnp.log(bridge.sigma(t)) / 4)


def data_moments(x_0: Array, x_T: Array) -> dict[str, float]:
    """The settings of `ddbm` for a data set, from a batch of pairs of it, both [B, ...]; a few thousand images do.

    Moments are about 0, so that the network's input has a mean square of exactly 1.
    """
    return {
        "sigma_0": float(jnp.sqrt(jnp.mean(x_0**2))),
        "sigma_T": float(jnp.sqrt(jnp.mean(x_T**2))),
        "covariance": float(jnp.mean(x_0 * x_T)),
    }


PARAMETRISATIONS: dict[str, Callable[..., Scalings]] = {
    "x_0": x_0,
    "eps": eps,
    "i2sb": eps,
    "score": score,
    "v": v,
    "velocity": velocity,
    "bridge_eps": bridge_eps,
    "bridge_score": bridge_score,
    "ddbm": ddbm,
    "edm": edm,
}
