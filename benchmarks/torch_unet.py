"""The UNet of ibmd_jax and I2SB's ancestral loop in PyTorch, for benchmarks/samplers.py, which runs it by itself.

    TORCH_PYTHON benchmarks/torch_unet.py INPUTS.npz OUTPUT_FOLDER

Needs torch and numpy, no jax. INPUTS.npz: parameters under their names in our tree ("in0_0/emb/kernel"), the UNet's
settings as JSON, x_T [B, H, W, C], times and rho [steps + 1]. Writes, for each way of running the network, the result
of a loop without noise (x_0.npy [ways, B, H, W, C]) and the time of one with noise after it (seconds.json). The ways:
eager (NCHW), channels_last, and, where there is a C++ compiler, torch.compile of channels_last with frozen weights.
"""

import json
import math
import shutil
import sys
import sysconfig
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
        self.norm_in, self.norm_out = nn.GroupNorm(groups, inputs), nn.GroupNorm(groups, features)  # epsilon 1e-5
        self.conv_in = nn.Conv2d(inputs, features, 3, padding=1)
        self.emb = nn.Linear(width, 2 * features)
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
        self.norm = nn.GroupNorm(groups, features)
        self.qkv, self.proj_out = nn.Linear(features, 3 * features), nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        h = self.qkv(self.norm(x).flatten(2).transpose(1, 2))
        q, k, v = h.view(b, height * width, 3, -1, self.head_channels).permute(2, 0, 3, 1, 4)  # [B, heads, pixels, D]
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, height * width, c)
        return x + self.proj_out(h).transpose(1, 2).reshape(x.shape)


class UNet(nn.Module):
    """x [B, C, H, W] and t [B] -> [B, C, H, W]; settings and names are those of ibmd_jax.networks.unet."""

    def __init__(self, channels: list, attention: list, blocks: int, head_channels: int, groups: int, patch: int):
        super().__init__()
        width, pixels, last = channels[0], 3 * patch**2, len(channels) - 1
        self.patch, self.downwards, self.upwards = patch, [], []
        frequencies = torch.exp(torch.arange(width // 2) * (-math.log(1e4) / (width // 2)))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.time_in, self.time_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, 4 * width)
        self.conv_in = nn.Conv2d(pixels, width, 3, padding=1)

        def add(names: list, name: str, inputs: int, level: int, resample: str | None = None) -> int:
            self.add_module(name, ResBlock(inputs, channels[level], 4 * width, groups, resample))
            if level in attention and resample is None and name != "middle_1":
                self.add_module(f"{name}_attention", AttentionBlock(channels[level], head_channels, groups))
            names.append(name)
            return channels[level]

        skips = [width]
        for level in range(last + 1):
            for i in range(blocks):
                skips.append(add(self.downwards, f"in{level}_{i}", skips[-1], level))
            if level < last:
                skips.append(add(self.downwards, f"down{level}", skips[-1], level, "down"))
        now = add(self.upwards, "middle_1", add(self.upwards, "middle_0", skips[-1], last), last)
        for level in reversed(range(last + 1)):
            for i in range(blocks + 1):
                now = add(self.upwards, f"out{level}_{i}", now + skips.pop(), level)
            if level > 0:
                now = add(self.upwards, f"up{level}", now, level, "up")
        self.norm_out = nn.GroupNorm(groups, now)
        self.conv_out = nn.Conv2d(now, pixels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        (b, c, height, width), p = x.shape, self.patch
        angles = t[:, None] * self.frequencies
        emb = self.time_out(F.silu(self.time_in(torch.cat([angles.cos(), angles.sin()], dim=1))))

        def block(name: str, h: Tensor) -> Tensor:
            h = getattr(self, name)(h, emb)
            return getattr(self, f"{name}_attention")(h) if hasattr(self, f"{name}_attention") else h

        h = x.reshape(b, c, height // p, p, width // p, p).permute(0, 3, 5, 1, 2, 4)  # our space_to_depth
        h = self.conv_in(h.reshape(b, p * p * c, height // p, width // p))
        skips = [h]
        for name in self.downwards:
            skips.append(h := block(name, h))
        for name in self.upwards:
            h = block(name, torch.cat([h, skips.pop()], dim=1) if name.startswith("out") else h)
        h = self.conv_out(F.silu(self.norm_out(h))).view(b, p, p, c, height // p, width // p)
        return h.permute(0, 3, 4, 1, 5, 2).reshape(x.shape)


def ancestral(network: nn.Module, x: Tensor, times: list[float], rho: list[float], noise: bool) -> Tensor:
    """I2SB's; its network predicts (x_t - x_0) / rho_t."""
    for s, rho_s, rho_t in zip(times[:-1], rho[:-1], rho[1:], strict=True):
        x_0 = x - rho_s * network(x, torch.full((len(x),), 1000 * s))
        r = (rho_t / rho_s) ** 2
        x = (1 - r) * x_0 + r * x
        x = x + rho_t * math.sqrt(1 - r) * torch.randn_like(x) if noise else x
    return x


def load(data: dict) -> UNet:
    """The network with our parameters: dense kernels IO -> OI, convolution kernels HWIO -> OIHW."""
    network, state = UNet(**json.loads(str(data["settings"]))), {}
    for name in (n for n in data if "/" in n):
        path, kind = name.replace("middle_a", "middle_0_a").replace("/", ".").rsplit(".", 1)
        value = data[name] if data[name].ndim == 1 else np.moveaxis(data[name], (-1, -2), (0, 1))
        state[f"{path}.{RENAME[kind]}"] = torch.from_numpy(value.copy())
    network.load_state_dict(state)
    return network.eval()


@torch.inference_mode()
def main() -> None:
    inputs, output = map(Path, sys.argv[1:])
    torch.set_num_threads(2)
    compiler = bool(shutil.which("g++")) and Path(sysconfig.get_path("include"), "Python.h").exists()
    data = np.load(inputs)
    network, x_T = load(data), torch.from_numpy(data["x_T"]).permute(0, 3, 1, 2).contiguous()
    table, results, seconds = (data["times"].tolist(), data["rho"].tolist()), [], {}
    for way in ["eager", "channels_last"] + ["compile"] * compiler:
        if way == "channels_last":
            network, x_T = (v.to(memory_format=torch.channels_last) for v in (network, x_T))
        if way == "compile":
            torch._inductor.config.freezing = True
            network = torch.compile(network)
        results.append(ancestral(network, x_T, *table, noise=False).permute(0, 2, 3, 1).numpy())
        loops = []
        for _ in range(1 + 4 // len(x_T)):
            start = time.perf_counter()
            ancestral(network, x_T, *table, noise=True)
            loops.append(time.perf_counter() - start)
        seconds[way] = float(np.median(loops))
    np.save(output / "x_0.npy", np.stack(results))
    (output / "seconds.json").write_text(json.dumps({"torch": torch.__version__, "seconds": seconds}))


if __name__ == "__main__":
    main()
