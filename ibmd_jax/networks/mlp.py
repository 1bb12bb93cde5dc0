"""A multilayer perceptron on the last axis: for points in the plane and other small vectors."""

from typing import Any

from flax import linen as nn

from ibmd_jax.core.types import Array
from ibmd_jax.networks.blocks import timestep_embedding


class MLP(nn.Module):
    """x [B, ..., D] and time t [B] -> [B, ..., out_channels], the same map at every position of the axes between.

    width, depth: of the hidden layers.
    """

    out_channels: int = 2
    width: int = 128
    depth: int = 3

    @nn.compact
    def __call__(self, x: Array, t: Array, cond: Any = None, z: Array | None = None) -> Array:
        """cond: unused by this network. z: noise [B, ..., C_z], through input weights that start at zero."""
        emb = nn.Dense(self.width, name="time_in")(timestep_embedding(t, self.width))
        h = nn.Dense(self.width, name="in")(x) + emb.reshape(emb.shape[:1] + (1,) * (x.ndim - 2) + emb.shape[1:])
        if z is not None:
            h = h + nn.Dense(self.width, use_bias=False, kernel_init=nn.initializers.zeros, name="noise_in")(z)
        for i in range(self.depth):
            h = nn.silu(h)
            h = nn.Dense(self.width, name=f"layer_{i}")(h) + (h if i else 0)
        h = nn.silu(h)
        self.sow("intermediates", "features", h)
        return nn.Dense(self.out_channels, kernel_init=nn.initializers.zeros, name="out")(h)
