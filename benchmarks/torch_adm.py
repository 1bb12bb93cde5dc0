"""The ADM UNet of ibmd_jax in PyTorch, for benchmarks/forward.py, which runs it by itself.

    TORCH_PYTHON benchmarks/torch_adm.py INPUTS.npz OUTPUT_FOLDER RUNS WAY [WAY ...]

Needs torch and numpy, no jax. INPUTS.npz: parameters under their names in our tree ("input_blocks_4_1/qkv/kernel"),
the settings as JSON, x [B, H, W, C] and t [B]. Writes, for each way of running the network, its result (y.npy
[ways, B, H, W, C]) and the seconds of each run after the first (seconds.json). The ways: eager (NCHW), channels_last,
compile (torch.compile of channels_last with frozen weights; needs a C++ compiler).
"""

import json
import math
import re
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch_unet import RENAME, AttentionBlock, ResBlock


class Stage(nn.Sequential):
    """Modules one after another, of which residual blocks take the embedding too."""

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        for module in self:
            h = module(h, emb) if isinstance(module, ResBlock) else module(h)
        return h


class ADM(nn.Module):
    """x [B, C, H, W] and t [B] -> [B, C, H, W]; settings and names are those of ibmd_jax.networks.adm."""

    def __init__(
        self, inputs: int, channels: int, multipliers: list, blocks: int, attention: list, head_channels: int
    ) -> None:
        super().__init__()
        width, widths, last = 4 * channels, [int(m * channels) for m in multipliers], len(multipliers) - 1
        self.half = channels // 2
        self.time_embed = nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width))

        def res(before: int, after: int, resample: str | None = None) -> ResBlock:
            return ResBlock(before, after, width, 32, resample)

        def attend(level: int) -> list[nn.Module]:
            return [AttentionBlock(widths[level], head_channels, 32)] if 2**level in attention else []

        skips, downwards = [widths[0]], [Stage(nn.Conv2d(inputs, widths[0], 3, padding=1))]
        for level, after in enumerate(widths):
            for _ in range(blocks):
                downwards.append(Stage(res(skips[-1], after), *attend(level)))
                skips.append(after)
            if level < last:
                downwards.append(Stage(res(after, after, "down")))
                skips.append(after)
        now, upwards = widths[-1], []
        self.middle_block = Stage(res(now, now), AttentionBlock(now, head_channels, 32), res(now, now))
        for level in reversed(range(last + 1)):
            for i in range(blocks + 1):
                up = [res(widths[level], widths[level], "up")] if level and i == blocks else []
                upwards.append(Stage(res(now + skips.pop(), widths[level]), *attend(level), *up))
                now = widths[level]
        self.input_blocks, self.output_blocks = nn.ModuleList(downwards), nn.ModuleList(upwards)
        self.out = nn.Sequential(nn.GroupNorm(32, now), nn.SiLU(), nn.Conv2d(now, 3, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None] * torch.exp(torch.arange(self.half) * (-math.log(1e4) / self.half))
        emb, h, skips = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1)), x, []
        for stage in self.input_blocks:
            skips.append(h := stage(h, emb))
        h = self.middle_block(h, emb)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, skips.pop()], dim=1), emb)
        return self.out(h)


def load(data: np.lib.npyio.NpzFile) -> ADM:
    """The network with our parameters: dense kernels IO -> OI, convolution kernels HWIO -> OIHW."""
    settings = json.loads(str(data["settings"]))
    legacy, width = settings.pop("legacy_attention"), settings["head_channels"]
    with torch.device("meta"):  # no memory until the parameters come
        network = ADM(data["x"].shape[-1], **settings)
    state = {}
    for name in (n for n in data if "/" in n):
        path, kind = re.sub(r"_(\d+)", r".\1", name).replace("/", ".").rsplit(".", 1)
        value = data[name]
        if legacy and "qkv" in name:  # [head][q, k, v] -> [q, k, v][head]
            value = value.reshape(*value.shape[:-1], -1, 3, width).swapaxes(-2, -3).reshape(value.shape)
        value = value if value.ndim == 1 else np.moveaxis(value, (-1, -2), (0, 1))
        state[f"{path}.{RENAME[kind]}"] = torch.from_numpy(np.ascontiguousarray(value))
    network.load_state_dict(state, assign=True)
    return network.eval()


@torch.inference_mode()
def main() -> None:
    inputs, output, runs, *ways = sys.argv[1:]
    torch.set_num_threads(2)
    data = np.load(inputs)
    network, t, results, seconds = load(data), torch.from_numpy(data["t"]), [], {}
    x = torch.from_numpy(data["x"]).permute(0, 3, 1, 2).contiguous()
    for way in ways:
        if way != "eager":
            network, x = (v.to(memory_format=torch.channels_last) for v in (network, x))
        if way == "compile":
            torch._inductor.config.freezing = True
            network = torch.compile(network)
        results.append(network(x, t).permute(0, 2, 3, 1).numpy())
        seconds[way] = []
        for _ in range(int(runs)):
            start = time.perf_counter()
            network(x, t)
            seconds[way].append(time.perf_counter() - start)
    np.save(Path(output, "y.npy"), np.stack(results))
    Path(output, "seconds.json").write_text(json.dumps({"torch": torch.__version__, "seconds": seconds}))


if __name__ == "__main__":
    main()
