"""What every corruption returns, and the brightness that several of them need."""

from typing import NamedTuple

import jax.numpy as jnp

from ibmd_jax.core.types import Array


class Corrupted(NamedTuple):
    """One corrupted image.

    x_T:   [H, W, C] float32.
    mask:  [H, W, 1] bool, True where x_T is unknown, or None: everywhere.
    label: int32 scalar, which corruption of a mixture this is, or None.
    """

    x_T: Array
    mask: Array | None = None
    label: Array | None = None


def luma(x: Array) -> Array:
    """0.299 R + 0.587 G + 0.114 B of x [H, W, 3], or x itself of one channel: [H, W] (ITU-R BT.601)."""
    if x.shape[-1] not in (1, 3):
        raise ValueError(f"the brightness of an image needs 1 or 3 channels, not {x.shape[-1]}")
    if x.shape[-1] == 1:
        return x[..., 0]
    return 0.299 * x[..., 0] + 0.587 * x[..., 1] + 0.114 * x[..., 2]


def nearest(x: Array, factor: int) -> Array:
    """Every pixel of x [H, W, ...] becomes a square: [factor H, factor W, ...]."""
    return jnp.repeat(jnp.repeat(x, factor, 0), factor, 1)
