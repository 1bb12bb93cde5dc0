"""The UNet of ibmd_jax and I2SB's ancestral loop in PyTorch, which benchmarks/samplers.py compares with ours.

    TORCH_PYTHON benchmarks/torch_unet.py INPUTS.npz OUTPUT_FOLDER [--compile]

Needs torch and numpy and no jax. INPUTS.npz holds the parameters under their names in our tree ("in0_0/emb/kernel"),
x_T [B, H, W, C], times and rho [steps + 1], and the UNet's settings as JSON. Writes x_0.npy, the result of a loop without
noise, for comparison with ours, and seconds.json: the time of one loop with noise, after the warm-up that the loop without
noise is, for each way of running the network:

    eager            contiguous NCHW
    channels_last    the memory format PyTorch recommends for convolutions
    compile          channels_last and torch.compile with frozen weights; needs a C++ compiler
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

RENAME = {"kernel": "weight", "scale": "weight", "bias": "bias"}
RESAMPLE = {"up": lambda x: F.interpolate(x, scale_factor=2), "down": lambda x: F.avg_pool2d(x, 2), None: lambda x: x}


class ResBlock(nn.Module):
    def __init__(self, inputs: int, features: int, width: int, groups: int, resample: str | None = None) -> None:
        super().__init__()
        self.resample = RESAMPLE[resample]
        self.norm_in = nn.GroupNorm(groups, inputs, eps=1e-5)
        self.conv_in = nn.Conv2d(inputs, features, 3, padding=1)
        self.emb = nn.Linear(width, 2 * features)
        self.norm_out = nn.GroupNorm(groups, features, eps=1e-5)
        self.conv_out = nn.Conv2d(features, features, 3, padding=1)
        self.skip = nn.Conv2d(inputs, features, 1) if inputs != features else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv_in(self.resample(F.silu(self.norm_in(x))))
        scale, shift = self.emb(F.silu(emb))[:, :, None, None].chunk(2, dim=1)
        h = self.conv_out(F.silu(self.norm_out(h) * (1 + scale) + shift))
        return self.skip(self.resample(x)) + h


class AttentionBlock(nn.Module):
    def __init__(self, features: int, head_channels: int, groups: int) -> None:
        super().__init__()
        self.head_channels = head_channels
        self.norm = nn.GroupNorm(groups, features, eps=1e-5)
        self.qkv = nn.Linear(features, 3 * features)
        self.proj_out = nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        h = self.qkv(self.norm(x).flatten(2).transpose(1, 2))
        q, k, v = h.view(b, height * width, 3, -1, self.head_channels).permute(2, 0, 3, 1, 4)  # [B, heads, pixels, D]
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, height * width, c)
        return x + self.proj_out(h).transpose(1, 2).reshape(x.shape)


class UNet(nn.Module):
    """x [B, C, H, W] and t [B] -> [B, C, H, W]; the modules have the names of ibmd_jax.networks.unet."""

    def __init__(self, channels: list[int], blocks: int, attention: list[int], head_channels: int, groups: int, patch: int):
        super().__init__()
        self.patch, self.blocks, self.levels, self.attention = patch, blocks, len(channels), attention
        width, pixels = channels[0], 3 * patch**2
        frequencies = torch.exp(torch.arange(width // 2) * (-math.log(1e4) / (width // 2)))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.time_in, self.time_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, 4 * width)
        self.conv_in = nn.Conv2d(pixels, width, 3, padding=1)

        def add(name: str, inputs: int, level: int, attend: bool, resample: str | None = None) -> int:
            features = channels[level]
            self.add_module(name, ResBlock(inputs, features, 4 * width, groups, resample))
            if attend and level in attention:
                name = "middle_attention" if name == "middle_0" else name + "_attention"
                self.add_module(name, AttentionBlock(features, head_channels, groups))
            return features

        now, last, skips = width, self.levels - 1, [width]
        for level in range(self.levels):
            for i in range(blocks):
                skips.append(now := add(f"in{level}_{i}", now, level, True))
            if level < last:
                skips.append(now := add(f"down{level}", now, level, False, "down"))
        now = add("middle_1", add("middle_0", now, last, True), last, False)
        for level in reversed(range(self.levels)):
            for i in range(blocks + 1):
                now = add(f"out{level}_{i}", now + skips.pop(), level, True)
            if level > 0:
                now = add(f"up{level}", now, level, False, "up")
        self.norm_out = nn.GroupNorm(groups, now, eps=1e-5)
        self.conv_out = nn.Conv2d(now, pixels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        b, c, height, width = x.shape
        p, parts = self.patch, self._modules
        angles = t[:, None] * self.frequencies
        emb = self.time_out(F.silu(self.time_in(torch.cat([angles.cos(), angles.sin()], dim=1))))

        def block(name: str, h: Tensor) -> Tensor:
            h = parts[name](h, emb)
            return parts[name + "_attention"](h) if name + "_attention" in parts else h

        h = x.reshape(b, c, height // p, p, width // p, p).permute(0, 3, 5, 1, 2, 4)  # our space_to_depth
        h = self.conv_in(h.reshape(b, p * p * c, height // p, width // p))
        skips, last = [h], self.levels - 1
        for level in range(self.levels):
            for name in [f"in{level}_{i}" for i in range(self.blocks)] + [f"down{level}"] * (level < last):
                skips.append(h := block(name, h))
        h = parts["middle_0"](h, emb)
        h = self.middle_1(self.middle_attention(h) if last in self.attention else h, emb)
        for level in reversed(range(self.levels)):
            for i in range(self.blocks + 1):
                h = block(f"out{level}_{i}", torch.cat([h, skips.pop()], dim=1))
            h = block(f"up{level}", h) if level > 0 else h
        h = self.conv_out(F.silu(self.norm_out(h))).view(b, p, p, c, height // p, width // p)
        return h.permute(0, 3, 4, 1, 5, 2).reshape(x.shape)


def ancestral(network: nn.Module, x: Tensor, times: list[float], rho: list[float], noise: bool) -> Tensor:
    """Equation (1) of ibmd_jax/samplers/ancestral.py for I2SB, whose network predicts (x_t - x_0) / rho_t."""
    for s, rho_s, rho_t in zip(times[:-1], rho[:-1], rho[1:], strict=True):
        x_0 = x - rho_s * network(x, torch.full((len(x),), 1000 * s))
        r = (rho_t / rho_s) ** 2
        x = (1 - r) * x_0 + r * x
        if noise:
            x = x + rho_t * math.sqrt(1 - r) * torch.randn_like(x)
    return x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(2)
    data = np.load(args.inputs)
    network, state = UNet(**json.loads(str(data["settings"]))).eval(), {}
    for name in (n for n in data.files if "/" in n):
        path, kind = name.replace("/", ".").rsplit(".", 1)  # dense kernels IO -> OI, convolution kernels HWIO -> OIHW
        value = data[name] if data[name].ndim == 1 else np.moveaxis(data[name], (-1, -2), (0, 1))
        state[f"{path}.{RENAME[kind]}"] = torch.from_numpy(value.copy())
    network.load_state_dict(state)
    x_T = torch.from_numpy(data["x_T"]).permute(0, 3, 1, 2).contiguous()
    times, rho = data["times"].tolist(), data["rho"].tolist()
    seconds = {}
    with torch.inference_mode():
        for way in ["eager", "channels_last"] + ["compile"] * args.compile:
            if way == "channels_last":
                network, x_T = (v.to(memory_format=torch.channels_last) for v in (network, x_T))
            if way == "compile":
                torch._inductor.config.freezing = True
                network = torch.compile(network)
            x_0 = ancestral(network, x_T, times, rho, noise=False)
            start = time.perf_counter()
            ancestral(network, x_T, times, rho, noise=True)
            seconds[way] = time.perf_counter() - start
    np.save(args.output / "x_0.npy", x_0.permute(0, 2, 3, 1).numpy())
    (args.output / "seconds.json").write_text(json.dumps({"torch": torch.__version__, "seconds": seconds}))


if __name__ == "__main__":
    main()
