"""Named random streams: keys are derived, never carried, so any run resumes bit for bit.

base = jax.random.key(seed); key of step k = fold_in(stream(base, "distill"), k)

Wherever images [B, ...] are drawn, the key may also be an array of keys [B], one for each example: then an example's
numbers do not depend on which others are computed beside it.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp

from ibmd_jax.core.types import Array, Key


def stream(key: Key, name: str) -> Key:
    """An independent key for each name; the same name gives the same key in every process and version."""
    return fold(key, zlib.crc32(name.encode()))


def step_key(key: Key, name: str, step: int | Array) -> Key:
    """The key of one step of a named stream."""
    return fold(stream(key, name), step)


def several(key: Key) -> bool:
    """Whether `key` is an array of keys; one of the old kind is itself an array of two numbers."""
    return jnp.ndim(key) > (0 if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else 1)


def fold(key: Key, data: int | Array) -> Key:
    """jax.random.fold_in, of one key or of each of several."""
    data = jnp.asarray(data, jnp.uint32)
    return jax.vmap(jax.random.fold_in, (0, None))(key, data) if several(key) else jax.random.fold_in(key, data)


def split(key: Key, n: int) -> Key:
    """jax.random.split: [n]; of several keys [B], [n, B]."""
    if not several(key):
        return jax.random.split(key, n)
    return jax.vmap(lambda k: jax.random.split(k, n), out_axes=1)(key)


def normal(key: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """N(0, I) of `shape`; of several keys [B], shape[0] = B, each draws its example."""
    if not several(key):
        return jax.random.normal(key, shape, dtype)
    return jax.vmap(lambda k: jax.random.normal(k, shape[1:], dtype))(key)


def first_key(key: Key) -> Key:
    """The key itself, or the first of several."""
    return key[0] if several(key) else key
