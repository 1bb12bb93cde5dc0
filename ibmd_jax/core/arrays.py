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

    Two equal trees have equal fingerprints on any number of devices; any one changed value changes them, and of changes
    to several nearly all.
    """
    return examine(tree)[0]


def examine(tree: Params) -> tuple[list[int], bool]:
    """The fingerprint, and whether all values are finite.

    Computed on the devices that hold a leaf, so it needs no copy of a sharded array on the host. One program a leaf,
    since a program for all takes long to compile, and one after the other: several CPU devices of one process can block
    each other for ever when two programs with collectives are in flight.
    """
    found = [jax.device_get(_examine(x)) for x in jax.tree.leaves(tree)]
    return [int(checksum) for checksum, _ in found], not any(broken for _, broken in found)


@jax.jit
def _examine(x: Array) -> tuple[Array, Array]:
    """The checksum, and not 0 if a value is NaN or infinite; both uint32.

    In one reduction, since two take XLA:CPU six times longer to compile, and in the shape of x: flattened, an array
    that is split along another axis than its first would be gathered on every device.
    """
    x = jnp.asarray(x)
    broken = (~jnp.isfinite(x)).astype(jnp.uint32)
    if x.dtype == jnp.bool_ or x.dtype.itemsize > 4:
        x = x.astype(jnp.uint32)
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
    position = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        position = size * position + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    position = 2 * position + 1  # odd: any single change shows modulo 2^32
    zeros, axes = (jnp.uint32(0), jnp.uint32(0)), tuple(range(x.ndim))
    return jax.lax.reduce((bits * position, broken), zeros, lambda a, b: (a[0] + b[0], a[1] | b[1]), axes)


def to_uint8(x: Array | np.ndarray) -> np.ndarray:
    """Images in [-1, 1] as rounded bytes for a file; values outside are clipped."""
    return np.clip(np.rint((np.asarray(x, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def from_uint8(x: np.ndarray) -> np.ndarray:
    """Bytes as float32 in [-1, 1]; to_uint8 is its inverse."""
    return x.astype(np.float32) / np.float32(127.5) - np.float32(1)
