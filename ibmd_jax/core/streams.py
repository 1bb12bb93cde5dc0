"""Named random streams: keys are derived, never carried, so any run resumes bit for bit.

base = jax.random.key(seed); key of step k = fold_in(stream(base, "distill"), k)
"""

import zlib

import jax

from ibmd_jax.core.types import Array, Key


def stream(key: Key, name: str) -> Key:
    """An independent key for each name; the same name gives the same key in every process and version."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def step_key(key: Key, name: str, step: int | Array) -> Key:
    """The key of one step of a named stream."""
    return jax.random.fold_in(stream(key, name), step)
