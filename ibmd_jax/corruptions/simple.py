"""Noise, added or alone, grey and line drawings."""

import jax
import jax.numpy as jnp
import numpy as np

from ibmd_jax.core.types import Array, Key
from ibmd_jax.corruptions.base import Corrupted, luma
from ibmd_jax.corruptions.filters import filter_matrix, gaussian, separable


def noise(key: Key, x_0: Array, sigma: float = 0.5) -> Corrupted:
    """x_0 + sigma n, n standard normal; leaves [-1, 1]."""
    return Corrupted(x_0 + sigma * jax.random.normal(key, x_0.shape, x_0.dtype))


def pure_noise(key: Key, x_0: Array, std: float = 1.0) -> Corrupted:
    """std n, n standard normal: nothing of x_0. What diffusion models and flows start from; std is sigma_T."""
    return Corrupted(std * jax.random.normal(key, x_0.shape, x_0.dtype))


def grey(key: Key, x_0: Array) -> Corrupted:
    """The luma of ITU-R BT.601 in every channel, for colourisation; inside [-1, 1]. 3 channels, or 1: no change."""
    return Corrupted(jnp.broadcast_to(luma(x_0)[..., None], x_0.shape))


def sketch(key: Key, x_0: Array, sigma: float = 0.5, strength: float = 6.0) -> Corrupted:
    """Dark lines on white where the luma changes: 2 exp(-(strength g)^2) - 1 in every channel; inside [-1, 1].

    g is the length of the gradient (half the luma's difference over a pixel, so at most about 1) by Sobel's operator
    after a Gaussian of `sigma` pixels, with symmetric padding. Smooth in x_0.
    """
    radius = int(np.ceil(3 * sigma))
    smooth = gaussian(sigma, radius)
    along, across = (np.convolve(smooth, taps) for taps in ([-0.5, 0, 0.5], [0.25, 0.5, 0.25]))
    (rows, columns), (rows_d, columns_d) = (
        [filter_matrix(n, taps, -radius - 1) for n in x_0.shape[:2]] for taps in (across, along)
    )
    y = luma(x_0)[..., None] / 2
    squared = jnp.square(separable(y, rows_d, columns)) + jnp.square(separable(y, rows, columns_d))
    return Corrupted(jnp.broadcast_to(2 * jnp.exp(-(strength**2) * squared) - 1, x_0.shape))
