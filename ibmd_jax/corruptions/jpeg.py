"""JPEG with 2 x 2 fewer chroma pixels, ITU-T T.81, as a function of arrays (no entropy coding: it loses nothing).

With v = 127.5 (x + 1), for the 8 x 8 blocks of Y - 128, Cb and Cr:

    (1)  q = round(D v D^T / Q),   v' = D^T (q Q) D,   D the orthonormal DCT-II
    (2)  Q = floor((s K + 50) / 100) in [1, 255],   K of Annex K,   s = 5000 / quality below 50, else 200 - 2 quality
"""

import jax
import jax.numpy as jnp
import numpy as np

from ibmd_jax.core.types import Array, Key
from ibmd_jax.corruptions.base import Corrupted, nearest

HIGHEST = jax.lax.Precision.HIGHEST  # one coefficient rounded the other way changes its whole block

LUMA = np.array([
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
])  # fmt: skip
CHROMA = np.full((8, 8), 99)
CHROMA[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]

# DDRM and I2SB use rounded digits and their exact inverse; libjpeg those of JFIF.
TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]])
TO_RGB = np.linalg.inv(TO_YCC)
JFIF_TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]])
JFIF_TO_RGB = np.array([[1, 0, 1.402], [1, -0.344136286, -0.714136286], [1, 1.772, 0]])

_u, _i = np.mgrid[:8, :8]
DCT = np.where(_u == 0, np.sqrt(1 / 8), 0.5) * np.cos(np.pi * _u * (2 * _i + 1) / 16)


def jpeg(key: Key, x_0: Array, quality: int = 10, libjpeg: bool = False) -> Corrupted:
    """Coded and decoded once, at a quality from 1 to 100. 3 channels, or 1: luma only. Borders repeat up to 16 pixels.

    libjpeg=False: the smooth idealisation of DDRM and I2SB. Chroma is every second pixel, shown twice; nothing is
        rounded to bytes or clipped, so x_T leaves [-1, 1].
    libjpeg=True: what libjpeg does to a file, in all its roundings. Chroma is averaged 2 x 2 and interpolated
        ("fancy upsampling"), pixels are bytes at both ends, so x_T is inside [-1, 1].
    """
    h, w, channels = x_0.shape
    if channels not in (1, 3):
        raise ValueError(f"JPEG takes images of 1 or 3 channels, not {channels}")
    v = (jnp.pad(x_0, ((0, -h % 16), (0, -w % 16), (0, 0)), mode="edge") + 1) * 127.5
    v = _libjpeg(v, quality, h, w) if libjpeg else _ideal(v, quality)[:h, :w]
    return Corrupted(v / 127.5 - 1)


def _ideal(v: Array, quality: int) -> Array:
    luma, chroma = tables(quality)
    y, *cbcr = planes(v, TO_YCC)
    y = decode(encode(y - 128, luma), luma) + 128
    cbcr = [nearest(decode(encode(p[::2, ::2], chroma), chroma), 2) for p in cbcr]
    return jnp.stack(planes(jnp.stack([y, *cbcr], -1), TO_RGB), -1)


def _libjpeg(v: Array, quality: int, h: int, w: int) -> Array:
    luma, chroma = tables(quality, whole=True)

    def code(plane: Array, table: np.ndarray) -> Array:
        return jnp.clip(jnp.rint(decode(encode(plane, table, libjpeg=True), table)), -128, 127)

    y, *cbcr = (jnp.rint(p) for p in planes(jnp.rint(v), JFIF_TO_YCC))
    y = code(y - 128, luma)[:h, :w] + 128
    rows, h2, w2 = np.minimum(np.arange(len(v) // 2), (h - 1) // 2), -(-h // 2), -(-w // 2)
    # Below the image libjpeg repeats the last row of means; on its right, the mean of the repeated pixels.
    cbcr = [_fancy(code(_mean(p)[rows], chroma)[:h2, :w2])[:h, :w] for p in cbcr]
    return jnp.clip(jnp.rint(jnp.stack(planes(jnp.stack([y, *cbcr], -1), JFIF_TO_RGB), -1)), 0, 255)


def tables(quality: int, whole: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Q of (2) for luma and chroma, [8, 8] float32 each. whole: s is rounded down to an integer, as in libjpeg."""
    if not 1 <= quality <= 100:
        raise ValueError(f"the quality of a JPEG is from 1 to 100, not {quality}")
    scale = 200 - 2 * quality if quality >= 50 else 5000 // quality if whole else 5000 / quality
    luma, chroma = (np.clip(np.floor((scale * k + 50) / 100), 1, 255).astype(np.float32) for k in (LUMA, CHROMA))
    return luma, chroma


def encode(plane: Array, table: np.ndarray, libjpeg: bool = False) -> Array:
    """q of (1), plane and q [H, W], the coefficients of a block in the place of its pixels; H, W multiples of 8.

    libjpeg: its DCT gives multiples of 1/8, and it rounds halves away from zero, not to even; they are frequent.
    """
    d = jnp.asarray(DCT, plane.dtype)
    q = jnp.einsum("ui,aibj,vj->aubv", d, _blocks(plane), d, precision=HIGHEST)
    if libjpeg:
        q = jnp.rint(8 * q) / 8 / table[None, :, None]
        q = jnp.sign(q) * jnp.floor(jnp.abs(q) + 0.5)
    else:
        q = jnp.rint(q / table[None, :, None])
    return q.reshape(plane.shape)


def decode(q: Array, table: np.ndarray) -> Array:
    """v' of (1), the inverse of encode but for the rounding."""
    d = jnp.asarray(DCT, q.dtype)
    blocks = _blocks(q) * table[None, :, None]
    return jnp.einsum("ui,aubv,vj->aibj", d, blocks, d, precision=HIGHEST).reshape(q.shape)


def _blocks(plane: Array) -> Array:
    h, w = plane.shape
    return plane.reshape(h // 8, 8, w // 8, 8)


def planes(v: Array, matrix: np.ndarray) -> list[Array]:
    """The channels of v [H, W, C] after a change of colours; a single channel stays as it is."""
    if v.shape[-1] == 1:
        return [v[..., 0]]
    return [sum(float(m) * v[..., i] for i, m in enumerate(row)) for row in matrix]


def _mean(p: Array) -> Array:
    """Mean of 2 x 2 whole numbers, rounded down and up in turn at halves: [H, W] -> [H / 2, W / 2]."""
    h, w = p.shape
    bias = jnp.asarray(1 + np.arange(w // 2) % 2, p.dtype)
    return jnp.floor((p.reshape(h // 2, 2, w // 2, 2).sum((1, 3)) + bias[None]) / 4)


def _fancy(p: Array) -> Array:
    """Linear interpolation of whole numbers to twice the size, 3/4 of the nearer and 1/4 of the farther neighbour."""
    p = _twice(_twice(p).T).T
    bias = jnp.asarray(8 - np.arange(p.shape[1]) % 2, p.dtype)
    return jnp.floor((p + bias[None]) / 16)


def _twice(p: Array) -> Array:
    """[H, W] -> [2 H, W], four times the interpolated rows; the first and last are repeated beyond the border."""
    q = jnp.pad(p, ((1, 1), (0, 0)), mode="edge")
    return jnp.stack([3 * p + q[:-2], 3 * p + q[2:]], 1).reshape(-1, p.shape[1])
