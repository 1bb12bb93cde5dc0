"""Blurs: a plain one, and the one that DDRM and I2SB compute, which is not a convolution.

    (1)  A = U diag(s) V^T,  s_i = 0 below 0.03      the 1-D filter of N pixels
    (2)  x -> U (G_c * (V^T x V)) U^T                every channel c of the image in [0, 1]
    (3)  G_c[perm[p]] = S[(C p + c) mod N^2]         S = the N^2 products s_i s_j, largest first, perm = their places

With S[p] in (3), (2) would be the filter of each line and column. The peers keep the coefficients channel by channel
for each p but the singular values C times one after the other, so that coefficients are scaled by the values of others.
"""

import functools

import numpy as np

from ibmd_jax.core.types import Array, Key
from ibmd_jax.corruptions.base import Corrupted
from ibmd_jax.corruptions.filters import filter_matrix, gaussian, separable


def kernel(size: int, sigma: float | None) -> tuple[float, ...]:
    """An odd number of taps with sum 1: equal ones without sigma, else Gaussian ones."""
    if size < 3 or size % 2 == 0:
        raise ValueError(f"the size of a blur is an odd number of pixels, at least 3, not {size}")
    return tuple(np.full(size, 1 / size) if sigma is None else gaussian(sigma, size // 2))


def blur(key: Key, x_0: Array, size: int = 9, sigma: float | None = None) -> Corrupted:
    """Convolution with a box or, with sigma, a Gaussian of `size` pixels; symmetric padding; inside [-1, 1]."""
    taps = kernel(size, sigma)
    return Corrupted(separable(x_0, *(filter_matrix(n, taps, -(size // 2)) for n in x_0.shape[:2])))


def blur_peers(key: Key, x_0: Array, size: int = 9, sigma: float | None = None) -> Corrupted:
    """(2): I2SB's blur-uni (size 9) and blur-gauss (size 5, sigma 10), from DDRM; darkens, can leave [-1, 1].

    The 1-D filter has zero padding and lacks its last tap, so the image loses 21 % (uni) or 36 % (gauss) of its light.
    I2SB's images are square with three channels; (1) to (3) hold for any. One channel is filtered as intended.
    """
    h, w, channels = x_0.shape
    u_h, v_h, u_w, v_w, values = peers_operator(h, w, kernel(size, sigma))
    gain = gains(values, np.argsort(-values, kind="stable"), channels).reshape(x_0.shape)
    coefficients = separable((x_0 + 1) / 2, v_h.T, v_w.T)
    return Corrupted(separable(coefficients * gain.astype(np.float32), u_h, u_w) * 2 - 1)


@functools.cache
def peers_operator(h: int, w: int, taps: tuple[float, ...]) -> tuple[np.ndarray, ...]:
    """(1) for the height and the width: U_h, V_h, U_w, V_w and the products of singular values [h w], float64."""
    (u_h, s_h, v_h), (u_w, s_w, v_w) = (_truncated_svd(_peers_matrix(n, taps)) for n in (h, w))
    return u_h, v_h, u_w, v_w, np.outer(s_h, s_w).reshape(-1)


def gains(values: np.ndarray, perm: np.ndarray, channels: int) -> np.ndarray:
    """(3): values [N^2] and their order perm [N^2] -> G [N^2, C]."""
    gain = np.empty((len(values), channels))
    gain[perm] = np.resize(values[perm], gain.shape)  # repeats S once a channel
    return gain


def _peers_matrix(n: int, taps: tuple[float, ...]) -> np.ndarray:
    """A of (1): the filter without its last tap, [n, n], zero beyond the borders."""
    return sum(tap * np.eye(n, k=i - len(taps) // 2) for i, tap in enumerate(taps[:-1]))


def _truncated_svd(a: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    u, s, vt = np.linalg.svd(a)
    return u, np.where(s < 3e-2, 0, s), vt.T
