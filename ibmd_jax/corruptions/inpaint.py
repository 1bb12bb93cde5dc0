"""Inpainting: a hole filled with standard normal noise, as I2SB does, where x_T leaves [-1, 1]; or with grey."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ibmd_jax.core.arrays import composite
from ibmd_jax.core.errors import UserError, lookup
from ibmd_jax.core.types import Array, Key
from ibmd_jax.corruptions.base import Corrupted


def fill_hole(key: Key, x_0: Array, mask: Array, fill: str = "noise") -> Corrupted:
    """x_0 [H, W, C], but standard normal "noise", or "grey" (0), where mask [H, W, 1] bool is True."""
    fills = {"noise": lambda: jax.random.normal(key, x_0.shape, x_0.dtype), "grey": lambda: jnp.zeros_like(x_0)}
    return Corrupted(composite(lookup(fills, fill, "fill of the hole")(), x_0, mask), mask)


def inpaint_center(key: Key, x_0: Array, fill: str = "noise") -> Corrupted:
    """The centre rectangle of half the height and half the width is unknown; "noise" in it is I2SB's, "grey" DBIM's."""
    h, w, _ = x_0.shape
    rows = (jnp.arange(h) >= h // 4) & (jnp.arange(h) < h - h // 4)
    columns = (jnp.arange(w) >= w // 4) & (jnp.arange(w) < w - w // 4)
    return fill_hole(key, x_0, (rows[:, None] & columns[None, :])[:, :, None], fill)


def inpaint_freeform(key: Key, x_0: Array, low: float = 0.1, high: float = 0.3, points: int = 12) -> Corrupted:
    """A random brush stroke is unknown: a share of the pixels drawn uniformly from [low, high].

    The stroke follows a bounded random walk of `points` corners; the pixels nearest to its path are taken until
    the share is reached, so the brush is as wide as it needs to be and the share is exact to one pixel.
    Raises: ValueError for shares that are none.
    """
    if not 0 <= low <= high < 1:
        raise ValueError(f"low = {low}, high = {high}: the hole's share of the pixels needs 0 <= low <= high < 1")
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
    threshold = jnp.sort(distance.reshape(-1))[count]
    return fill_hole(k_fill, x_0, (distance < threshold)[..., None])


def inpaint_freeform_file(
    key: Key, x_0: Array, path: str = "imagenet_freeform_masks.npz", share: str = "10-20%", size: int = 256
) -> Corrupted:
    """A random one of the masks of a file, as `freeform_file` reads it: I2SB's inpaint-freeform1020 to the pixel."""
    return freeform_file(path, share, size)(key, x_0)


@functools.cache
def freeform_file(path: str, share: str, size: int = 256) -> Callable[[Key, Array], Corrupted]:
    """The free-form masks that Palette and I2SB use, as a corruption of images of size x size pixels.

    Args: path: an npz file with arrays "10-20% freeform", "20-30% freeform", "30-40% freeform", each np.packbits of
        [N, size, size]; share: which. They stay packed, 8 pixels a byte, and a mask is unpacked where it is used.
    """
    entry = f"{share} freeform"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = list(file)
            packed = file[entry] if entry in arrays else None
    except Exception as error:
        raise UserError(f"cannot read the free-form masks of {path}: {error}") from error
    if packed is None:
        raise UserError(f"{path} has no array {entry!r}: it has {', '.join(map(repr, arrays)) or 'none'}")
    if packed.dtype != np.uint8 or not packed.size or size % 4 or packed.size % (size**2 // 8):
        raise UserError(f"{entry!r} of {path} does not hold packed masks of {size} x {size} pixels")
    packed = packed.reshape(-1, size**2 // 8)

    def corrupt(key: Key, x_0: Array) -> Corrupted:
        if x_0.shape[:2] != (size, size):
            raise UserError(f"the masks of {path} are for images of {size} x {size} pixels, not {x_0.shape[:2]}")
        k_mask, k_fill = jax.random.split(key)
        bits = jnp.asarray(packed)[jax.random.randint(k_mask, (), 0, len(packed))]
        return fill_hole(k_fill, x_0, jnp.unpackbits(bits).reshape(size, size, 1).astype(bool))

    return corrupt
