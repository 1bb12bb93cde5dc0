"""A network and a parametrisation make a denoiser, the only thing that methods and samplers see.

x_0_hat(x_t, t) = c_skip x_t + c_T x_T + c_out F(c_in x_t [, x_T], c_noise)     see bridges/parametrisations.py
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ibmd_jax.core.arrays import expand
from ibmd_jax.core.errors import UserError
from ibmd_jax.core.types import Array, Denoise, Key, Network, Params


def make_denoiser(
    network: Network, bridge: Any, parametrisation: Callable[[Any, Array], Any], conditional: bool = False
) -> Denoise:
    """The Denoise function of a network on a bridge.

    Args:
        parametrisation: what the network predicts: a function of bridges/parametrisations.py, its settings bound.
        conditional: whether the network also sees x_T, as further input channels (DDBM); I2SB's do not.
    """

    def denoise(
        params: Params,
        x_t: Array,
        t: Array,
        x_T: Array | None = None,
        cond: Any = None,
        z: Array | None = None,
        key: Key | None = None,
        features: bool = False,
    ) -> Any:
        t = jnp.broadcast_to(jnp.asarray(t, x_t.dtype), x_t.shape[:1])
        s = parametrisation(bridge, t)
        x = expand(s.c_in, x_t) * x_t
        if conditional:
            x = jnp.concatenate([x, x_T], axis=-1)
        drop = () if key is None else (key,)  # networks that drop nothing need not take one
        if features and network.features is None:
            raise UserError("this network shows no features, which this method asks for: take a Linen module's")
        apply = network.features if features else network.apply
        out = apply(params, x, s.c_noise, cond, z, *drop)
        out, seen = out if features else (out, None)
        x_0 = expand(s.c_skip, x_t) * x_t + expand(s.c_out, x_t) * out
        x_0 = x_0 if s.c_T is None else x_0 + expand(s.c_T, x_t) * x_T
        return (x_0, seen) if features else x_0

    return denoise


def init_denoiser(
    network: Network,
    key: Key,
    image_shape: tuple[int, int, int],
    conditional: bool = False,
    noise_channels: int = 0,
    cond: Any = None,
) -> Params:
    """Parameters for images [H, W, C], compiled as one program; eval_shape it at will.

    cond: one of the right shape and dtype.
    """
    h, w, c = image_shape
    x = jnp.zeros((1, h, w, 2 * c if conditional else c), jnp.float32)
    z = jnp.zeros((1, h, w, noise_channels), jnp.float32) if noise_channels else None
    return jax.jit(network.init)(key, x, jnp.zeros((1,), jnp.float32), cond, z)
