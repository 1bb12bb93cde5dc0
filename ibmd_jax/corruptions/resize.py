"""Super-resolution: the image is reduced f times and shown at its old size by repeating pixels, as I2SB does.

    (1)  pool:     the mean of f x f pixels
    (2)  bicubic:  sum_j k((j - c_m) / f) x_j / sum_j k((j - c_m) / f),   c_m = f m + (f - 1) / 2; symmetric padding
    (3)  k(u) = 3/2 |u|^3 - 5/2 |u|^2 + 1                   for |u| < 1   (Keys 1981, a = -1/2)
              -1/2 |u|^3 + 5/2 |u|^2 - 4 |u| + 2            for |u| < 2

(2) is what DDRM and I2SB call sr_bicubic. Inside the image it is also the antialiased bicubic of torch and jax.image;
on the two outer rows of the small image those renormalise where this reflects.
"""

import numpy as np

from ibmd_jax.core.types import Array, Key
from ibmd_jax.corruptions.base import Corrupted, nearest
from ibmd_jax.corruptions.filters import filter_matrix, separable


def sr_pool(key: Key, x_0: Array, factor: int = 4) -> Corrupted:
    """(1), then nearest upsampling; inside [-1, 1]; I2SB's sr4x-pool. H and W are multiples of the factor."""
    _check(x_0, factor)
    h, w, c = x_0.shape
    return Corrupted(nearest(x_0.reshape(h // factor, factor, w // factor, factor, c).mean((1, 3)), factor))


def sr_bicubic(key: Key, x_0: Array, factor: int = 4) -> Corrupted:
    """(2), then nearest upsampling; overshoots [-1, 1] at edges; I2SB's sr4x-bicubic. H, W multiples of the factor."""
    _check(x_0, factor)
    offsets = np.arange(-2 * factor, 3 * factor)
    taps = keys_cubic((offsets - (factor - 1) / 2) / factor)
    rows, columns = (filter_matrix(n, taps / taps.sum(), offsets[0], factor) for n in x_0.shape[:2])
    return Corrupted(nearest(separable(x_0, rows, columns), factor))


def keys_cubic(u: np.ndarray) -> np.ndarray:
    """(3)."""
    u = np.abs(u)
    near, far = (1.5 * u - 2.5) * u**2 + 1, ((-0.5 * u + 2.5) * u - 4) * u + 2
    return np.where(u < 1, near, np.where(u < 2, far, 0))


def _check(x_0: Array, factor: int) -> None:
    if factor < 1 or any(n % factor for n in x_0.shape[:2]):
        raise ValueError(f"an image of {x_0.shape[0]} x {x_0.shape[1]} cannot be reduced {factor} times")
