"""One of several corruptions for each image, as I2SB's mixture."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from ibmd_jax.core.types import Array, Key
from ibmd_jax.corruptions.base import Corrupted


def mixture(key: Key, x_0: Array, corruptions: Sequence[Callable[[Key, Array], Corrupted]]) -> Corrupted:
    """One of the corruptions, drawn uniformly; label is its number. Leaves [-1, 1] if one of them does.

    With an inpainting among them every image has a mask, of True where another corruption was drawn: all images of a
    batch have one or none does. Under vmap every corruption is computed for every image.
    """
    k_choice, k_corrupt = jax.random.split(key)
    label = jax.random.randint(k_choice, (), 0, len(corruptions), jnp.int32)
    everywhere = jnp.ones((*x_0.shape[:-1], 1), jnp.bool_)

    def both(corrupt: Callable[[Key, Array], Corrupted]) -> Callable[[Key, Array], tuple[Array, Array]]:
        def apply(key: Key, x_0: Array) -> tuple[Array, Array]:
            found = corrupt(key, x_0)
            return found.x_T, everywhere if found.mask is None else found.mask

        return apply

    x_T, mask = jax.lax.switch(label, [both(f) for f in corruptions], k_corrupt, x_0)
    masked = any(jax.eval_shape(f, key, x_0).mask is not None for f in corruptions)
    return Corrupted(x_T, mask if masked else None, label)
