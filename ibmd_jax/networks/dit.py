"""A diffusion transformer with adaLN-zero blocks (DiT; Peebles and Xie, arXiv 2212.09748)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ibmd_jax.core.types import Array
from ibmd_jax.networks.blocks import (
    check_settings,
    condition_embedding,
    depth_to_space,
    recomputed,
    space_to_depth,
    timestep_embedding,
)

ZERO = nn.initializers.zeros


def positions(height: int, width: int, dim: int) -> Array:
    """Sines and cosines of row and column, [height * width, dim] float32; dim is divisible by 4."""
    rows, columns = jnp.mgrid[:height, :width].astype(jnp.float32)
    parts = [timestep_embedding(axis.reshape(-1), dim // 2) for axis in (rows, columns)]
    return jnp.concatenate(parts, axis=-1)


class Block(nn.Module):
    """Attention and a perceptron, each scaled, shifted and gated by the embedding; starts as the identity."""

    heads: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, emb: Array) -> Array:
        b, n, c = x.shape
        modulation = nn.Dense(6 * c, kernel_init=ZERO, name="modulation")(nn.silu(emb))[:, None]
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = jnp.split(modulation, 6, axis=-1)

        def norm(h: Array, scale: Array, shift: Array) -> Array:
            h = nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False)(h)
            return h * (1 + scale) + shift

        h = nn.Dense(3 * c, name="qkv", dtype=self.dtype)(norm(x, scale_1, shift_1))
        q, k, v = jnp.moveaxis(h.reshape(b, n, 3, self.heads, c // self.heads), 2, 0)
        h = jax.nn.dot_product_attention(q, k, v).reshape(b, n, c)
        x = x + gate_1 * nn.Dense(c, name="proj_out", dtype=self.dtype)(h).astype(x.dtype)
        h = nn.Dense(4 * c, name="mlp_in", dtype=self.dtype)(norm(x, scale_2, shift_2))
        h = nn.Dense(c, name="mlp_out", dtype=self.dtype)(nn.gelu(h))
        return x + gate_2 * h.astype(x.dtype)


class DiT(nn.Module):
    """x [B, H, W, C] and time t [B] -> [B, H, W, out_channels]; H and W divisible by patch.

    channels: width of the tokens, divisible by heads and by 4. depth: blocks.
    classes: number of labels in cond [B] int32; 0 for none.
    embedding: width of cond [B, embedding] float32, instead of labels; 0 for none.
    dtype: "float32" or "bfloat16", of dense layers and attention; the residual stream and norms are in float32.
    remat: "none", "block" or "full": what the backward pass computes again, see blocks.recomputed.
    """

    out_channels: int = 3
    channels: int = 384
    depth: int = 12
    heads: int = 6
    patch: int = 2
    classes: int = 0
    embedding: int = 0
    dtype: str = "float32"
    remat: str = "none"

    @nn.compact
    def __call__(self, x: Array, t: Array, cond: Any = None, z: Array | None = None) -> Array:
        """z: noise [B, H, W, C_z], through input weights that start at zero. cond: as `classes` or `embedding` say."""
        check_settings(self.dtype)
        emb = nn.Dense(self.channels, name="time_in")(timestep_embedding(t, 256))
        emb = nn.Dense(self.channels, name="time_out")(nn.silu(emb))
        given = condition_embedding(cond, self.classes, self.embedding, self.channels)
        emb = emb if given is None else emb + given

        patches = space_to_depth(x, self.patch)
        h = nn.Dense(self.channels, name="patch_in")(patches)
        if z is not None:
            noise_in = nn.Dense(self.channels, use_bias=False, kernel_init=ZERO, name="noise_in")
            h = h + noise_in(space_to_depth(z, self.patch))
        b, height, width, c = h.shape
        h = h.reshape(b, height * width, c) + positions(height, width, c)[None]

        (block,) = recomputed(self.remat, Block)
        for i in range(self.depth):
            h = block(self.heads, jnp.dtype(self.dtype), name=f"block_{i}")(h, emb)

        shift, scale = jnp.split(
            nn.Dense(2 * c, kernel_init=ZERO, name="modulation")(nn.silu(emb))[:, None], 2, axis=-1
        )
        h = nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False)(h) * (1 + scale) + shift
        h = h.reshape(b, height, width, c)
        self.sow("intermediates", "features", h)
        h = nn.Dense(self.patch**2 * self.out_channels, kernel_init=ZERO, name="patch_out")(h)
        return depth_to_space(h, self.patch)
