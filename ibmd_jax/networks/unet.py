"""A UNet of ADM blocks that can work on patches, which is what makes it quick on a CPU."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from ibmd_jax.core.types import Array
from ibmd_jax.networks.blocks import (
    AttentionBlock,
    Conv,
    GroupNorm,
    ResBlock,
    check_settings,
    condition_embedding,
    depth_to_space,
    recomputed,
    space_to_depth,
    timestep_embedding,
)


class UNet(nn.Module):
    """x [B, H, W, C] and time t [B] -> [B, H, W, out_channels]; H and W divisible by patch * 2^(levels - 1).

    channels: width of each level, finest first. blocks: residual blocks a level (one more on the way up).
    attention: the levels (0 is the finest) that have attention after each of their residual blocks.
    patch: side of the pixel patches that become channels at the input and pixels again at the output.
    classes: number of labels in cond [B] int32; 0 for none.
    embedding: width of cond [B, embedding] float32, instead of labels; 0 for none.
    dtype: "float32" or "bfloat16", of convolutions and attention; norms, softmax and embeddings are in float32.
    remat: "none", "block" or "full": what the backward pass computes again, see blocks.recomputed.
    """

    out_channels: int = 3
    channels: tuple[int, ...] = (32, 64, 64)
    blocks: int = 1
    attention: tuple[int, ...] = (2,)
    head_channels: int = 32
    groups: int = 32
    patch: int = 2
    classes: int = 0
    embedding: int = 0
    dtype: str = "float32"
    remat: str = "none"

    @nn.compact
    def __call__(self, x: Array, t: Array, cond: Any = None, z: Array | None = None) -> Array:
        """z: noise [B, H, W, C_z], through input weights that start at zero. cond: as `classes` or `embedding` say."""
        check_settings(self.dtype, self.attention, range(len(self.channels)))
        width, dtype = self.channels[0], jnp.dtype(self.dtype)

        def head(self: UNet, h: Array) -> tuple[Array, Array]:
            h = nn.silu(GroupNorm(self.groups, name="norm_out")(h.astype(jnp.float32)))
            return h, Conv(self.patch**2 * self.out_channels, 3, zero=True, name="conv_out")(h)

        res_block, attention_block, head = recomputed(self.remat, ResBlock, AttentionBlock, head)
        emb = timestep_embedding(t, width)
        emb = nn.Dense(4 * width, name="time_in")(emb)
        emb = nn.Dense(4 * width, name="time_out")(nn.silu(emb))
        given = condition_embedding(cond, self.classes, self.embedding, 4 * width)
        emb = emb if given is None else emb + given

        def res(h: Array, features: int, name: str, resample: str | None = None, skip: Array | None = None) -> Array:
            return res_block(features, self.groups, resample, dtype=dtype, name=name)(h, emb, skip)

        def attend(h: Array, level: int, name: str) -> Array:
            if level not in self.attention:
                return h
            return attention_block(self.head_channels, self.groups, dtype=dtype, name=name)(h)

        h = Conv(width, 3, dtype=dtype, name="conv_in")(space_to_depth(x, self.patch).astype(dtype))
        if z is not None:
            # The same map as extra input channels; summed apart, so that zero weights change no bit of h.
            noise_in = nn.Conv(
                width, (3, 3), use_bias=False, kernel_init=nn.initializers.zeros, name="noise_in", dtype=dtype
            )
            h = h + noise_in(space_to_depth(z, self.patch).astype(dtype))

        skips = [h]
        last = len(self.channels) - 1
        for level, features in enumerate(self.channels):
            for i in range(self.blocks):
                h = res(h, features, f"in{level}_{i}")
                h = attend(h, level, f"in{level}_{i}_attention")
                skips.append(h)
            if level < last:
                h = res(h, features, f"down{level}", "down")
                skips.append(h)

        features = self.channels[-1]
        h = res(h, features, "middle_0")
        h = attend(h, last, "middle_attention")
        h = res(h, features, "middle_1")

        for level, features in reversed(list(enumerate(self.channels))):
            for i in range(self.blocks + 1):
                h = res(h, features, f"out{level}_{i}", skip=skips.pop())
                h = attend(h, level, f"out{level}_{i}_attention")
            if level > 0:
                h = res(h, features, f"up{level}", "up")

        found, out = head(self, h)
        self.sow("intermediates", "features", found)
        return depth_to_space(out, self.patch)
