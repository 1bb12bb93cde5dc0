"""The blocks of ADM (Dhariwal and Nichol, arXiv 2105.05233), which I2SB, DDBM and DBIM share.

Kept from the published networks because checkpoints depend on it: GroupNorm epsilon 1e-5, SiLU, timestep embedding
with the cosines first, scale-shift normalisation, and zero-initialised last convolutions.
Images are [B, H, W, C]; parameters and activations are float32.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from ibmd_jax.core.types import Array


def timestep_embedding(t: Array, dim: int, max_period: float = 1e4) -> Array:
    """[cos(t w_i) | sin(t w_i)], w_i = max_period^(-i / half). t [B] -> [B, dim] float32; dim is even."""
    half = dim // 2
    frequencies = jnp.exp(jnp.arange(half, dtype=jnp.float32) * (-math.log(max_period) / half))
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def group_norm(groups: int, name: str) -> nn.GroupNorm:
    """GroupNorm as the published networks have it (Flax's default epsilon is ten times smaller)."""
    return nn.GroupNorm(num_groups=groups, epsilon=1e-5, name=name)


def conv(features: int, size: int, name: str, zero: bool = False) -> nn.Conv:
    """A size x size convolution that keeps the resolution; zero: starts as the zero map."""
    init = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
    return nn.Conv(features, (size, size), padding="SAME", kernel_init=init, name=name)


def upsample(x: Array) -> Array:
    """Nearest neighbour, twice the height and width."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def downsample(x: Array) -> Array:
    """Mean of 2 x 2 pixels; height and width must be even."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


class ResBlock(nn.Module):
    """Residual block with scale-shift time conditioning; optionally resamples both of its paths.

    features: output channels. groups: of every GroupNorm. resample: "up", "down" or None.
    """

    features: int
    groups: int = 32
    resample: str | None = None

    @nn.compact
    def __call__(self, x: Array, emb: Array) -> Array:
        resample = {"up": upsample, "down": downsample, None: lambda v: v}[self.resample]
        h = nn.silu(group_norm(self.groups, "norm_in")(x))
        h = conv(self.features, 3, "conv_in")(resample(h))
        scale, shift = jnp.split(nn.Dense(2 * self.features, name="emb")(nn.silu(emb)), 2, axis=-1)
        h = group_norm(self.groups, "norm_out")(h) * (1 + scale[:, None, None, :]) + shift[:, None, None, :]
        h = conv(self.features, 3, "conv_out", zero=True)(nn.silu(h))
        x = resample(x)
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, "skip")(x)
        return x + h


class AttentionBlock(nn.Module):
    """Self-attention over all pixels with a residual path; head_channels is the width of one head."""

    head_channels: int
    groups: int = 32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, height, width, c = x.shape
        h = group_norm(self.groups, "norm")(x).reshape(b, height * width, c)
        qkv = nn.Dense(3 * c, name="qkv")(h).reshape(b, height * width, 3, c // self.head_channels, self.head_channels)
        h = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        h = nn.Dense(c, kernel_init=nn.initializers.zeros, name="proj_out")(h.reshape(b, height * width, c))
        return x + h.reshape(x.shape)
