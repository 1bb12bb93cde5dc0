"""Convolutions of small images as one matrix product on the CPU, where XLA's own are 2 to 40 times slower.

benchmarks/forward.py measures the whole network; elsewhere, and for larger images, XLA's are used.
"""

import jax.numpy as jnp
from jax import lax

from ibmd_jax.core.types import Array

PIXELS, CHANNELS = 256, 256  # the product is faster for at most so many pixels of a batch, at least so many channels


def as_product(x: Array, kernel: Array) -> Array:
    """x [B, H, W, C], kernel [k, k, C, F], k odd -> [B, H, W, F]: stride 1, padding k // 2."""
    (b, h, w, c), k, features = x.shape, kernel.shape[0], kernel.shape[-1]
    padded = jnp.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    taps = [padded[:, i : i + h, j : j + w] for i in range(k) for j in range(k)]
    return (jnp.concatenate(taps, -1).reshape(-1, k * k * c) @ kernel.reshape(-1, features)).reshape(b, h, w, features)


def convolve(x: Array, kernel: Array, stride: int = 1) -> Array:
    """x [B, H, W, C], kernel [k, k, C, F], k odd -> [B, H / stride, W / stride, F], padded by k // 2."""

    def usual(x: Array, kernel: Array) -> Array:
        padding = [(kernel.shape[0] // 2,) * 2] * 2
        dimensions = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=dimensions)

    small = x.size // x.shape[-1] <= PIXELS and x.shape[-1] >= CHANNELS and stride == 1
    return lax.platform_dependent(x, kernel, cpu=as_product, default=usual) if small else usual(x, kernel)
