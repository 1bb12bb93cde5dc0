"""What teacher and student make of the same noise: only for models that generate.

Semantic consistency, in the way of SFDDM (arXiv 2405.14961): the cosine of the features of two images from one x_T,
after the mean of the data's features is taken off, so that unrelated images have a cosine near 0.
"""

import jax.numpy as jnp
import numpy as np

from ibmd_jax.core.arrays import expand
from ibmd_jax.core.types import Array


def cosine(a: np.ndarray, b: np.ndarray, mean: np.ndarray) -> float:
    """Mean over the rows of the cosine of a - mean and b - mean, [N, D] each."""
    a, b = a - mean, b - mean
    return float(((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).mean())


def spherical(x: Array, y: Array, part: float) -> Array:
    """The point `part` of the way from x to y, [B, ...], on the great circle through their directions (slerp).

    Of two independent Gaussian images it is as long as either; the straight line passes much nearer to 0.
    """
    flat = (v.reshape(v.shape[0], -1) for v in (x, y))
    u, v = (w / jnp.linalg.norm(w, axis=1, keepdims=True) for w in flat)
    angle = jnp.arccos(jnp.clip((u * v).sum(1), -1, 1))
    first, second = (jnp.sin(w * angle) / jnp.sin(angle) for w in (1 - part, part))
    return expand(first, x) * x + expand(second, x) * y


def straight(x: Array, y: Array, part: float) -> Array:
    """(1 - part) x + part y."""
    return (1 - part) * x + part * y
