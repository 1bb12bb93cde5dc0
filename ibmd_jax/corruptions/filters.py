"""Separable filters as two matrix products, exact at the borders:

(1)  y = A_h x A_w^T
(2)  A[m, r(stride m + first + i)] += taps[i],   r reflects about the edges: ... 2 1 0 | 0 1 2 ... (symmetric padding)
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ibmd_jax.core.types import Array


def filter_matrix(n: int, taps: Sequence[float], first: int, stride: int = 1) -> np.ndarray:
    """A of (2), [n / stride, n] float64, for a line of n pixels. Lines shorter than the filter reflect repeatedly."""
    rows = np.arange(n // stride)
    matrix = np.zeros((n // stride, n))
    for i, tap in enumerate(taps):
        j = (stride * rows + first + i) % (2 * n)
        matrix[rows, np.minimum(j, 2 * n - 1 - j)] += tap
    return matrix


def separable(x: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
    """(1) for every channel of x [H, W, C], with A_h = rows [h, H] and A_w = columns [w, W]: [h, w, C]."""
    rows, columns = (jnp.asarray(a, x.dtype) for a in (rows, columns))
    return jnp.einsum("ih,hwc,jw->ijc", rows, x, columns, precision=jax.lax.Precision.HIGHEST)


def gaussian(sigma: float, radius: int) -> np.ndarray:
    """2 radius + 1 taps exp(-d^2 / (2 sigma^2)), divided by their sum. Raises: ValueError unless sigma > 0."""
    if not sigma > 0:
        raise ValueError(f"sigma = {sigma}: a Gaussian filter needs one above 0")
    taps = np.exp(-0.5 * np.square(np.arange(-radius, radius + 1) / sigma))
    return taps / taps.sum()
