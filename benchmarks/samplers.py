"""Speed of the compiled sampling loop: over its bare network, and over the same network in PyTorch, on two CPU threads.

    python3 -m venv torch_venv && torch_venv/bin/pip install torch==2.13.0 numpy
    python -m benchmarks.samplers --torch_python torch_venv/bin/python

About 15 minutes on 2 idle CPU cores; without --torch_python 3 minutes, and the comparison with PyTorch is left out. What
is compared runs by turns, and the medians of the ratios are reported. Writes benchmarks/results/samplers.json and .md.
"""

import argparse
import functools
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from ibmd_jax.bridges import I2SB, parametrisations
from ibmd_jax.bridges.base import bridge as register
from ibmd_jax.bridges.times import uniform_grid
from ibmd_jax.core.types import Array, Params
from ibmd_jax.networks.adapters import from_linen
from ibmd_jax.networks.denoiser import init_denoiser, make_denoiser
from ibmd_jax.networks.unet import UNet
from ibmd_jax.samplers.ancestral import ancestral

RESULTS = Path(__file__).parent / "results"
SETTINGS = {"channels": (32, 64, 64), "blocks": 1, "attention": (2,), "head_channels": 32, "groups": 16, "patch": 2}
MAKE = "python3 -m venv torch_venv && torch_venv/bin/pip install torch==2.13.0 numpy"
DENOISE = make_denoiser(from_linen(UNet(**SETTINGS)), I2SB(), parametrisations.eps)


@register
class NoiseFree(I2SB):
    """I2SB whose posterior is its mean: what both programs must agree on."""

    def posterior(self, x_0: Array, x_s: Array, s: Array, t: Array) -> tuple[Array, Array]:
        mean, std = super().posterior(x_0, x_s, s, t)
        return mean, 0 * std


@jax.jit
def loop(bridge: I2SB, params: Params, x_T: Array, times: Array) -> Array:
    return ancestral(functools.partial(DENOISE, params), bridge, jax.random.key(2), x_T, times)


def seconds(run: Callable[[], Array]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def measure(batch: int, args: argparse.Namespace, params: Params) -> dict:
    """Times of every repetition at one batch size, and the largest difference of the two programs' results."""
    x_T, times = jax.random.normal(jax.random.key(1), (batch, 32, 32, 3)), uniform_grid(args.steps)
    forward, every = jax.jit(DENOISE), list(times[:-1])

    def bare() -> Array:
        return [forward(params, x_T, t) for t in every][-1]

    def compiled() -> Array:
        return loop(I2SB(), params, x_T, times)

    raw = {"bare": [], "loop": [], "torch": []}
    seconds(bare), seconds(compiled)  # compile and warm up
    for i in range(args.repeats):
        for name, run in [("bare", bare), ("loop", compiled)][:: 1 if i % 2 else -1]:
            raw[name].append(seconds(run))
        if args.torch_python:
            out = run_torch(args, params, x_T, times)
            raw["torch"].append(out["seconds"])
        print(f"batch {batch}, {i + 1}/{args.repeats}:", {k: v[-1] for k, v in raw.items() if v}, flush=True)
    result = {"batch": batch, "seconds": raw, "evaluations_per_second": args.steps / float(np.median(raw["loop"]))}
    result["overhead"] = float(np.median(np.divide(raw["loop"], raw["bare"]))) - 1
    if args.torch_python:
        ways = {w: [v[w] for v in raw["torch"]] for w in raw["torch"][0]}
        best = min(ways, key=lambda w: np.median(ways[w]))
        result |= {"torch": out["torch"], "torch_way": best}
        result["torch_evaluations_per_second"] = args.steps / float(np.median(ways[best]))
        result["ratio"] = float(np.median(np.divide(ways[best], raw["loop"])))
        quiet = loop(NoiseFree(), params, x_T, times)
        result["parity"] = float(np.abs(out["x_0"] - quiet).max() / np.abs(quiet).max())
    return result


def run_torch(args: argparse.Namespace, params: Params, x_T: Array, times: Array) -> dict:
    """One process of benchmarks/torch_unet.py."""
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.npz"
        table = {"x_T": x_T, "times": times, "rho": I2SB().rho(times), "settings": json.dumps(SETTINGS)}
        np.savez(inputs, **table, **flatten_dict(params, sep="/"))
        script = [args.torch_python, Path(__file__).parent / "torch_unet.py", inputs, folder]
        subprocess.run([*script, *["--compile"] * args.compile], check=True)
        out = json.loads((Path(folder) / "seconds.json").read_text())
        return out | {"x_0": np.load(Path(folder) / "x_0.npy")}
