"""A small classifier on the features of a denoising network."""

import jax.numpy as jnp
from flax import linen as nn

from ibmd_jax.core.types import Array


class Head(nn.Module):
    """Features [B, h, w, C] -> logit [B], 0 at the start. width: of its two convolutions of stride 2."""

    width: int = 64

    @nn.compact
    def __call__(self, features: Array) -> Array:
        h = features.astype(jnp.float32)
        for i in range(2):
            h = nn.silu(nn.Conv(self.width, (3, 3), strides=(2, 2), name=f"conv_{i}")(h))
        return nn.Dense(1, kernel_init=nn.initializers.zeros, name="out")(h.mean((1, 2)))[:, 0]
