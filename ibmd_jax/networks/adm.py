"""The ADM UNet (Dhariwal and Nichol, arXiv 2105.05233), complete: the network of I2SB, DDBM and DBIM.

Its blocks carry the names of the published PyTorch modules ("input_blocks_4_1" is input_blocks.4.1), so that
converting a checkpoint is a change of names; convert/ has the table.
"""

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
    recomputed,
    timestep_embedding,
    upsample,
)

MULTIPLIERS = {512: (0.5, 1, 1, 2, 2, 4, 4), 256: (1, 1, 2, 2, 4, 4), 128: (1, 1, 2, 3, 4), 64: (1, 2, 3, 4)}


class ADM(nn.Module):
    """x [B, H, W, C] and time t [B] -> [B, H, W, out_channels]; H and W divisible by 2^(levels - 1).

    channels: base width. multipliers: of it at each level, finest first. blocks: residual blocks a level.
    attention: the downsampling factors (1, 2, 4, ...) at which each residual block has attention after it.
    heads, head_channels: number or width of the heads; head_channels 0 leaves it to heads.
    legacy_attention: the channel order of qkv, see AttentionBlock. A checkpoint of the other order loads, and is wrong.
    resblock_updown: resampling by residual blocks; otherwise by a strided convolution, or nearest neighbour and one.
    classes: number of labels in cond [B] int32; 0 for none.
    embedding: width of cond [B, embedding] float32, instead of labels; 0 for none.
    dtype: "float32" or "bfloat16", of convolutions and attention; norms, softmax and embeddings are in float32.
    dropout: its rate in the residual blocks, wherever the caller gives a key: in bridge matching.
    remat: "none", "block" or "full": what the backward pass computes again, see blocks.recomputed.
    """

    out_channels: int = 3
    channels: int = 256
    multipliers: tuple[float, ...] = MULTIPLIERS[256]
    blocks: int = 2
    attention: tuple[int, ...] = (8, 16, 32)
    heads: int = 4
    head_channels: int = 64
    legacy_attention: bool = True
    resblock_updown: bool = True
    scale_shift: bool = True
    classes: int = 0
    embedding: int = 0
    groups: int = 32
    dtype: str = "float32"
    dropout: float = 0.0
    remat: str = "none"

    @nn.compact
    def __call__(self, x: Array, t: Array, cond: Any = None, z: Array | None = None) -> Array:
        """z: noise [B, H, W, C_z], through input weights that start at zero. cond: as `classes` or `embedding` say."""
        check_settings(self.dtype, self.attention, [2**level for level in range(len(self.multipliers))])
        dtype = jnp.dtype(self.dtype)

        def head(self: ADM, h: Array) -> tuple[Array, Array]:
            h = nn.silu(GroupNorm(self.groups, name="out_0")(h.astype(jnp.float32)))
            return h, Conv(self.out_channels, 3, zero=True, name="out_2")(h)

        res_block, attention_block, head = recomputed(self.remat, ResBlock, AttentionBlock, head)

        def res(h: Array, width: float, name: str, resample: str | None = None, skip: Array | None = None) -> Array:
            block = res_block(int(width), self.groups, resample, self.scale_shift, dtype, self.dropout, name=name)
            return block(h, emb, skip)

        def attend(h: Array, name: str) -> Array:
            width = self.head_channels or h.shape[-1] // self.heads
            return attention_block(width, self.groups, self.legacy_attention, dtype, name=name)(h)

        emb = nn.Dense(4 * self.channels, name="time_embed_0")(timestep_embedding(t, self.channels))
        emb = nn.Dense(4 * self.channels, name="time_embed_2")(nn.silu(emb))
        given = condition_embedding(cond, self.classes, self.embedding, 4 * self.channels)
        emb = emb if given is None else emb + given

        widths = [int(m * self.channels) for m in self.multipliers]
        h = Conv(widths[0], 3, dtype=dtype, name="input_blocks_0_0")(x.astype(dtype))
        if z is not None:
            noise_in = nn.Conv(
                widths[0], (3, 3), use_bias=False, kernel_init=nn.initializers.zeros, name="noise_in", dtype=dtype
            )
            h = h + noise_in(z.astype(dtype))

        skips, scale = [h], 1
        for level, width in enumerate(widths):
            for _ in range(self.blocks):
                name = f"input_blocks_{len(skips)}"
                h = res(h, width, f"{name}_0")
                h = attend(h, f"{name}_1") if scale in self.attention else h
                skips.append(h)
            if level < len(widths) - 1:
                name = f"input_blocks_{len(skips)}_0"
                if self.resblock_updown:
                    h = res(h, width, name, "down")
                else:
                    h = Conv(width, 3, dtype=dtype, stride=2, name=f"{name}_op")(h)
                skips.append(h)
                scale *= 2

        h = res(h, widths[-1], "middle_block_0")
        h = attend(h, "middle_block_1")
        h = res(h, widths[-1], "middle_block_2")

        total = len(skips)
        for level, width in reversed(list(enumerate(widths))):
            for i in range(self.blocks + 1):
                name = f"output_blocks_{total - len(skips)}"
                h = res(h, width, f"{name}_0", skip=skips.pop())
                child = 1
                if scale in self.attention:
                    h = attend(h, f"{name}_1")
                    child = 2
                if level and i == self.blocks:
                    if self.resblock_updown:
                        h = res(h, width, f"{name}_{child}", "up")
                    else:
                        h = Conv(width, 3, dtype=dtype, name=f"{name}_{child}_conv")(upsample(h))
                    scale //= 2

        features, out = head(self, h)
        self.sow("intermediates", "features", features)
        return out


# The published networks; C_in is that of the input (6 where x_T is concatenated).
PRESETS: dict[str, dict[str, Any]] = {
    "i2sb-256": {},
    "ddbm-e2h-64": {
        "channels": 192,
        "multipliers": MULTIPLIERS[64],
        "blocks": 3,
        "attention": (2, 4, 8),
        "legacy_attention": False,
        "dropout": 0.1,
    },
    "ddbm-diode-256": {"legacy_attention": False, "dropout": 0.1},
    "dbim-imagenet-256": {"classes": 1000},
}
