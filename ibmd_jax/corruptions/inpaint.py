"""Inpainting: a hole filled with standard normal noise, as I2SB does; x_T leaves [-1, 1] inside the hole only."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ibmd_jax.core.arrays import composite
from ibmd_jax.core.types import Array, Key


class Corrupted(NamedTuple):
    """x_T [H, W, C] float32, and mask [H, W, 1] bool, True where x_T is unknown (None: everywhere)."""

    x_T: Array
    mask: Array | None


def fill_hole(key: Key, x_0: Array, mask: Array) -> Corrupted:
    """Standard normal noise where mask [H, W, 1] bool is True, x_0 [H, W, C] elsewhere."""
    return Corrupted(composite(jax.random.normal(key, x_0.shape, x_0.dtype), x_0, mask), mask)


def inpaint_center(key: Key, x_0: Array) -> Corrupted:
    """The centre rectangle of half the height and half the width is unknown."""
    h, w, _ = x_0.shape
    rows = (jnp.arange(h) >= h // 4) & (jnp.arange(h) < h - h // 4)
    columns = (jnp.arange(w) >= w // 4) & (jnp.arange(w) < w - w // 4)
    return fill_hole(key, x_0, (rows[:, None] & columns[None, :])[:, :, None])


def inpaint_freeform(key: Key, x_0: Array, low: float = 0.1, high: float = 0.3, points: int = 12) -> Corrupted:
    """A random brush stroke is unknown: a share of the pixels drawn uniformly from [low, high].

    The stroke follows a bounded random walk of `points` corners; the pixels nearest to its path are taken until
    the share is reached, so the brush is as wide as it needs to be and the share is exact to one pixel.
    """
    h, w, _ = x_0.shape
    k_share, k_start, k_walk, k_fill = jax.random.split(key, 4)
    start = jax.random.uniform(k_start, (1, 2))
    corners = start + jnp.cumsum(jax.random.uniform(k_walk, (points, 2), minval=-0.35, maxval=0.35), axis=0)
    corners = 1 - jnp.abs(1 - corners % 2)  # reflect at the borders
    rows, columns = ((jnp.arange(n, dtype=jnp.float32) + 0.5) / n for n in (h, w))
    pixels = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1)
    # Distance of every pixel to every segment of the walk, [H, W, points - 1].
    begin, along = corners[:-1], corners[1:] - corners[:-1]
    offset = pixels[:, :, None, :] - begin[None, None, :, :]
    length = jnp.maximum(jnp.square(along).sum(-1), 1e-8)[None, None, :]
    position = jnp.clip((offset * along[None, None, :, :]).sum(-1) / length, 0, 1)
    distance = jnp.square(offset - position[..., None] * along[None, None, :, :]).sum(-1).min(-1)
    count = jnp.rint(jax.random.uniform(k_share, minval=low, maxval=high) * (h * w)).astype(jnp.int32)
    rank = jnp.argsort(jnp.argsort(distance.reshape(-1))).reshape(h, w, 1)
    return fill_hole(k_fill, x_0, rank < count)
