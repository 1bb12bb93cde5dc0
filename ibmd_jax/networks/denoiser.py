"""A network and a preconditioning make a denoiser, the only thing that methods and samplers see.

x_0_hat(x_t, t) = c_skip(t) x_t + c_out(t) F(c_in(t) x_t [, x_T], c_noise(t))
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ibmd_jax.core.arrays import expand
from ibmd_jax.core.errors import lookup
from ibmd_jax.core.types import Array, BridgeLike, Denoise, Key, Network, Params


class Scalings(NamedTuple):
    """Each of the shape of t."""

    c_skip: Array
    c_out: Array
    c_in: Array
    c_noise: Array


def i2sb(bridge: BridgeLike, t: Array) -> Scalings:
    """F predicts (x_t - x_0) / rho_t, for bridges with alpha = 1 (I2SB, arXiv 2302.05872, equation 12)."""
    one = jnp.ones_like(t)
    return Scalings(one, -bridge.rho(t), one, 1000 * t)


def ddbm(bridge: BridgeLike, t: Array, sigma_0: float = 0.5, sigma_T: float = 0.5, covariance: float = 0.0) -> Scalings:
    """Unit variance at the input and the target of F (DDBM, arXiv 2309.16948, section 4.3).

    sigma_0, sigma_T: standard deviations of x_0 and x_T about 0; covariance: of the two, at one pixel.
    """
    a, b, c = bridge.coeffs(t)
    v_0, v_T = sigma_0**2, sigma_T**2
    c_in = jax.lax.rsqrt(a**2 * v_T + b**2 * v_0 + 2 * a * b * covariance + c**2)
    c_out = c_in * jnp.sqrt(a**2 * (v_0 * v_T - covariance**2) + v_0 * c**2)
    return Scalings((b * v_0 + a * covariance) * c_in**2, c_out, c_in, 250 * jnp.log(t + 1e-44))


PRECONDITIONINGS: dict[str, Callable[..., Scalings]] = {"i2sb": i2sb, "ddbm": ddbm}


def make_denoiser(network: Network, bridge: BridgeLike, preconditioning: str, conditional: bool = False) -> Denoise:
    """The Denoise function of a network on a bridge.

    Args:
        preconditioning: a name of PRECONDITIONINGS.
        conditional: whether the network also sees x_T, as further input channels (DDBM); I2SB's do not.
    Raises: UserError for an unknown preconditioning.
    """
    scalings = lookup(PRECONDITIONINGS, preconditioning, "preconditioning")

    def denoise(
        params: Params, x_t: Array, t: Array, x_T: Array | None = None, cond: Any = None, z: Array | None = None
    ) -> Array:
        t = jnp.broadcast_to(jnp.asarray(t, x_t.dtype), x_t.shape[:1])
        s = scalings(bridge, t)
        x = expand(s.c_in, x_t) * x_t
        if conditional:
            x = jnp.concatenate([x, x_T], axis=-1)
        return expand(s.c_skip, x_t) * x_t + expand(s.c_out, x_t) * network.apply(params, x, s.c_noise, cond, z)

    return denoise


def init_denoiser(
    network: Network, key: Key, image_shape: tuple[int, int, int], conditional: bool = False, noise_channels: int = 0
) -> Params:
    """Parameters for images [H, W, C]; jit it or eval_shape it at will."""
    h, w, c = image_shape
    x = jnp.zeros((1, h, w, 2 * c if conditional else c), jnp.float32)
    z = jnp.zeros((1, h, w, noise_channels), jnp.float32) if noise_channels else None
    return network.init(key, x, jnp.zeros((1,), jnp.float32), None, z)
