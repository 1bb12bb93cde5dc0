"""Speed of the compiled sampling loop, over its bare network and against PyTorch, on two CPU threads.

    python3 -m venv torch_venv && torch_venv/bin/pip install torch==2.13.0 numpy
    python -m benchmarks.samplers --torch_python torch_venv/bin/python

About 15 minutes on 2 idle CPU cores; 6 without --torch_python, which leaves PyTorch out. What is compared runs by
turns; medians of the ratios are reported, PyTorch's for its fastest way. The machine must be idle: PyTorch's threads
spin while they wait, which is much the fastest then, and many times slower where other programs run. Writes
benchmarks/results/samplers.json and samplers.md.
"""

import argparse
import functools
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from ibmd_jax.bridges import I2SB, parametrisations
from ibmd_jax.bridges.times import uniform_grid
from ibmd_jax.core.types import Array, Params
from ibmd_jax.networks.adapters import from_linen
from ibmd_jax.networks.denoiser import init_denoiser, make_denoiser
from ibmd_jax.networks.unet import UNet
from ibmd_jax.samplers.ancestral import ancestral
from ibmd_jax.samplers.base import Step, march

RESULTS = Path(__file__).parent / "results"
SETTINGS = {"channels": (32, 64, 64), "blocks": 1, "attention": (2,), "head_channels": 32, "groups": 16, "patch": 2}
MAKE = "python3 -m venv torch_venv && torch_venv/bin/pip install torch==2.13.0 numpy"
BRIDGE, NETWORK = I2SB(), from_linen(UNet(**SETTINGS))
DENOISE = make_denoiser(NETWORK, BRIDGE, parametrisations.eps)


@jax.jit
def loop(params: Params, x_T: Array, times: Array) -> Array:
    return ancestral(functools.partial(DENOISE, params), BRIDGE, jax.random.key(2), x_T, times)


@jax.jit
def quiet(params: Params, x_T: Array, times: Array) -> Array:
    """The loop without noise: its cost, and what both programs must agree on."""

    def step(D: Callable[..., Array], carry: tuple[Array], i: Step) -> tuple[tuple[Array], Array]:
        x_0 = D(carry[0], i.s)
        return (BRIDGE.posterior(x_0, carry[0], i.s, i.t)[0],), x_0

    return march(step, functools.partial(DENOISE, params), jax.random.key(2), x_T, times)


def seconds(run: Callable[[], Array]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def measure(batch: int, steps: int, repeats: int, torch_python: Path | None, params: Params) -> dict:
    """Seconds of every run at one batch size, with their medians and ratios."""
    x_T, times = jax.random.normal(jax.random.key(1), (batch, 32, 32, 3)), uniform_grid(steps)
    forward, every = jax.jit(DENOISE), list(times[:-1])
    ours = {
        "bare": lambda: [forward(params, x_T, t) for t in every][-1],
        "loop": lambda: loop(params, x_T, times),
        "quiet": lambda: quiet(params, x_T, times),
    }
    for run in ours.values():
        seconds(run)  # compiles
    raw, pairs, parity = {name: [] for name in ours}, 1 + 32 // batch, []
    for i in range(repeats):
        for j in range(pairs):
            for name in list(ours)[:: 1 if (i + j) % 2 else -1]:
                raw[name].append(seconds(ours[name]))
        if torch_python:
            result, out = run_torch(torch_python, params, x_T, times)
            for way, value in out["seconds"].items():
                raw.setdefault(way, []).append(value)
            parity.append(float(np.abs(result - quiet(params, x_T, times)).max()))
        print(f"batch {batch}, {i + 1}/{repeats}:", {name: round(v[-1], 4) for name, v in raw.items()}, flush=True)
    rate = {name: steps / float(np.median(v)) for name, v in raw.items()}
    over = {name: float(np.median(np.divide(raw[name], raw["bare"]))) - 1 for name in ("loop", "quiet")}
    row = {"batch": batch, "evaluations_per_second": rate, "overhead": over}
    if torch_python:
        fastest = max(raw.keys() - ours.keys(), key=rate.get)
        ratio = np.median(raw[fastest] / np.median(np.reshape(raw["loop"], (-1, pairs)), axis=1))
        row |= {"torch": out["torch"], "fastest": fastest, "ratio": float(ratio), "parity": max(parity)}
    return row | {"seconds": raw}


def run_torch(python: Path, params: Params, x_T: Array, times: Array) -> tuple[np.ndarray, dict]:
    """One process of benchmarks/torch_unet.py."""
    with tempfile.TemporaryDirectory() as folder:
        table = {"x_T": x_T, "times": times, "rho": BRIDGE.rho(times), "settings": json.dumps(SETTINGS)}
        np.savez(f"{folder}/inputs.npz", **table, **flatten_dict(params, sep="/"))
        command = [python, Path(__file__).parent / "torch_unet.py", f"{folder}/inputs.npz", folder]
        subprocess.run(command, check=True)
        return np.load(f"{folder}/x_0.npy"), json.loads(Path(folder, "seconds.json").read_text())


def markdown(summary: dict) -> str:
    lines = [
        "# Speed of the compiled sampling loop\n",
        f"`ancestral`, {summary['steps']} steps, the UNet of `configs/inpaint.py`, two threads; evaluations a second.",
        f"{summary['cpus']} x {summary['cpu']}, jax {summary['jax']}, torch {summary['rows'][0].get('torch', '-')}.",
        f"Made by `{summary['command']}`.\n",
        "| batch | ours | over the bare forward | without noise | PyTorch | ours / PyTorch | difference |",
        "|---" * 7 + "|",
    ]
    for r in summary["rows"]:
        rate, over = r["evaluations_per_second"], r["overhead"]
        torch = "- | - | -"
        if "torch" in r:
            torch = f"{rate[r['fastest']]:.1f} ({r['fastest']}) | {r['ratio']:.2f} | {r['parity']:.1e}"
        ours = f"{rate['loop']:.1f} | {over['loop']:+.1%} | {over['quiet']:+.1%}"
        lines.append(f"| {r['batch']} | {ours} | {torch} |")
    if "torch" not in summary["rows"][0]:
        lines.append(f"\nPyTorch was left out: `{MAKE}` makes what `--torch_python` takes.")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch_python", type=Path, help="Python of an environment with torch and numpy")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # before JAX makes its threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    fresh, tree = jax.tree.flatten(init_denoiser(NETWORK, jax.random.key(0), (32, 32, 3)))
    noisy = [p + 0.03 * jax.random.normal(jax.random.key(i), p.shape) for i, p in enumerate(fresh)]  # no layer is zero
    params = jax.tree.unflatten(tree, noisy)
    command = " ".join(["python -m benchmarks.samplers", *sys.argv[1:]])
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else None
    summary = {
        "command": command.replace(str(args.torch_python), "torch_venv/bin/python"),
        "steps": args.steps,
        "cpus": os.cpu_count(),
        "cpu": cpu[1] if cpu else platform.machine(),
        "jax": jax.__version__,
        "rows": [measure(batch, args.steps, args.repeats, args.torch_python, params) for batch in args.batches],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "samplers.json").write_text(json.dumps(summary, indent=1) + "\n")
    (RESULTS / "samplers.md").write_text(markdown(summary))
    print(markdown(summary))
    if any(r.get("parity", 0) > 1e-3 for r in summary["rows"]):
        raise SystemExit("the two programs do not compute the same")


if __name__ == "__main__":
    main()
