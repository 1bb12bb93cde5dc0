"""Small array functions that more than one folder needs."""

import jax
import jax.numpy as jnp
import numpy as np

from ibmd_jax.core.types import Array, Params


def expand(t: Array, x: Array) -> Array:
    """Reshapes t, scalar or [B], so that it multiplies x [B, ...] example by example."""
    t = jnp.asarray(t, x.dtype)
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def composite(x: Array, known: Array, mask: Array | None) -> Array:
    """x inside the mask, `known` outside, bit for bit; x itself where there is no mask.

    Args: x, known [B, H, W, C]; mask [B, H, W, 1] bool or None.
    """
    return x if mask is None else jnp.where(mask, x, known)


def mean_inside(x: Array, mask: Array | None = None) -> Array:
    """Mean of each example, over the masked elements only where a mask is given.

    Args: x [B, ...]; mask bool, broadcastable to it ([B, H, W, 1]), or None.
    Returns: [B]. An example whose mask is empty counts 0.
    """
    axes = tuple(range(1, x.ndim))
    if mask is None:
        return x.mean(axes)
    weight = jnp.broadcast_to(mask, x.shape).astype(x.dtype)
    return (weight * x).sum(axes) / jnp.maximum(weight.sum(axes), 1)


def squared_error(prediction: Array, target: Array, mask: Array | None = None) -> Array:
    """`mean_inside` of (prediction - target)^2: [B] of prediction, target [B, ...]."""
    return mean_inside(jnp.square(prediction - target), mask)


def ema_update(average: Params, params: Params, step: Array, decay: float) -> Params:
    """Exponential moving average with torch_ema's warm-up: decay_n = min(decay, (1 + n) / (10 + n)).

    Args: step: the number n of this update, counted from 1.
    """
    n = jnp.asarray(step, jnp.float32)
    d = jnp.minimum(jnp.float32(decay), (1 + n) / (10 + n))
    return jax.tree.map(lambda m, p: m + (1 - d).astype(m.dtype) * (p - m), average, params)


def fingerprint(tree: Params) -> list[int]:
    """One 32-bit checksum a leaf, from the bits of its values and their positions.

    Computed on the devices that hold the leaf, so it needs no copy of a sharded array on the host, and one leaf after
    the other: XLA:CPU keeps the products before it sums them, and several CPU devices of one process can block each
    other for ever when two programs with collectives are in flight. Two equal trees have equal fingerprints on any
    number of devices; a flipped bit or two swapped values change them.
    """
    return [int(_checksum(x)) for x in jax.tree.leaves(tree)]


@jax.jit
def _checksum(x: Array) -> Array:
    x = jnp.asarray(x).reshape(-1)
    if x.dtype == jnp.bool_ or x.dtype.itemsize > 4:
        x = x.astype(jnp.uint32)
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
    position = 2 * jax.lax.iota(jnp.uint32, bits.size) + 1  # odd: any single change shows modulo 2^32
    return (bits * position).sum(dtype=jnp.uint32)


def to_uint8(x: Array | np.ndarray) -> np.ndarray:
    """Images in [-1, 1] as rounded bytes for a file; values outside are clipped."""
    return np.clip(np.rint((np.asarray(x, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def from_uint8(x: np.ndarray) -> np.ndarray:
    """Bytes as float32 in [-1, 1]; to_uint8 is its inverse."""
    return x.astype(np.float32) / np.float32(127.5) - np.float32(1)
