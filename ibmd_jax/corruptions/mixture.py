"""One of several corruptions for each image, as I2SB's mixture."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from ibmd_jax.core.types import Array, Key
from ibmd_jax.corruptions.base import Corrupted


def mixture(key: Key, x_0: Array, corruptions: Sequence[Callable[[Key, Array], Corrupted]]) -> Corrupted:
    """One of the corruptions, drawn uniformly; label is its number. Leaves [-1, 1] if one of them does.

    No mask, also where an inpainting is drawn (the hole is filled): all images of a batch have one or none does.
    Under vmap every corruption is computed for every image.
    """
    k_choice, k_corrupt = jax.random.split(key)
    label = jax.random.randint(k_choice, (), 0, len(corruptions), jnp.int32)
    x_T = jax.lax.switch(label, [lambda k, x, f=f: f(k, x).x_T for f in corruptions], k_corrupt, x_0)
    return Corrupted(x_T, None, label)
