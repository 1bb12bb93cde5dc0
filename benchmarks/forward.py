"""Speed of the full-size ADM UNet's forward pass against PyTorch's of the same weights, on two CPU threads.

    python3 -m venv torch_venv && torch_venv/bin/pip install torch==2.13.0 numpy
    python -m benchmarks.forward --torch_python torch_venv/bin/python

About 5 minutes on 2 idle CPU cores, 12 GB of memory and 2.2 GB of temporary files. Both programs run in turns, each in
its own process; the ratio is of the medians, PyTorch's for its fastest way. --compile adds torch.compile with frozen
weights, which needs a C++ compiler. Writes benchmarks/results/forward.json and forward.md.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from ibmd_jax.convert.__main__ import shapes_of
from ibmd_jax.networks import NETWORKS
from ibmd_jax.networks.adm import PRESETS

RESULTS = Path(__file__).parent / "results"
FIELDS = ("channels", "multipliers", "blocks", "attention", "head_channels", "legacy_attention")
TABLE = dict[str, np.ndarray]


def random_params(shapes: dict[str, tuple[int, ...]]) -> TABLE:
    """Weights of which none is zero, of a size that keeps the activations near 1."""
    rng = np.random.default_rng(0)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        noise = rng.standard_normal(shape, np.float32)
        if len(shape) == 1:
            return np.float32(0.03) * noise + np.float32(name.endswith("scale"))
        return noise / np.float32(np.sqrt(np.prod(shape[:-1])))

    return {name: draw(name, shape) for name, shape in shapes.items()}


def run_torch(python: Path, inputs: Path, ways: list[str]) -> tuple[np.ndarray, dict]:
    """One process of benchmarks/torch_adm.py."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(__file__).parent / "torch_adm.py"
        subprocess.run([python, script, inputs, folder, "2", *ways], check=True)
        return np.load(f"{folder}/y.npy"), json.loads(Path(folder, "seconds.json").read_text())


def measure(preset: str, size: int, repeats: int, torch_python: Path, ways: list[str]) -> dict:
    """Seconds of every run of both programs, their medians, their ratio and how far apart their results are."""
    network, channels = NETWORKS[preset](), 3 if preset.startswith("i2sb") else 6
    settings = {name: getattr(network, name) for name in FIELDS}
    table = random_params(shapes_of(settings | {"classes": 0}, channels))
    x = np.random.default_rng(1).standard_normal((1, size, size, channels), np.float32)
    t = np.full(1, 500, np.float32)
    seconds, parity = {name: [] for name in ("ours", *ways)}, []
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder, "inputs.npz")
        np.savez(inputs, x=x, t=t, settings=json.dumps(settings), **table)
        params = jax.device_put(unflatten_dict(table, sep="/"))
        del table
        forward = jax.jit(lambda params, x, t: network.apply({"params": params}, x, t))
        y = np.asarray(forward(params, x, t))  # compiles
        for i in range(repeats):
            for _ in range(2):
                start = time.perf_counter()
                forward(params, x, t).block_until_ready()
                seconds["ours"].append(time.perf_counter() - start)
            results, out = run_torch(torch_python, inputs, ways)
            for way, values in out["seconds"].items():
                seconds[way] += values
            parity.append(float(np.abs(results - y).max()))
            print(f"{i + 1}/{repeats}:", {name: round(v[-1], 2) for name, v in seconds.items()}, flush=True)
    median = {name: float(np.median(v)) for name, v in seconds.items()}
    fastest = min(ways, key=median.get)
    return {
        "preset": preset,
        "size": size,
        "parameters": sum(p.size for p in jax.tree.leaves(params)),
        "torch": out["torch"],
        "median_seconds": median,
        "fastest": fastest,
        "ratio": median["ours"] / median[fastest],
        "parity": max(parity) / float(np.abs(y).max()),
        "seconds": seconds,
    }


def markdown(summary: dict) -> str:
    lines = [
        "# Speed of the full-size forward pass\n",
        f"`{summary['preset']}`, {summary['parameters']:,} parameters, {summary['size']} x {summary['size']} pixels, "
        "batch 1, float32, two threads; PyTorch has the same weights.",
        f"{summary['cpus']} x {summary['cpu']}, jax {summary['jax']}, torch {summary['torch']}.",
        f"Made by `{summary['command']}`.\n",
        "| | seconds | ours / this |",
        "|---|---|---|",
    ]
    for name, value in summary["median_seconds"].items():
        label = "ours" if name == "ours" else f"PyTorch, {name}"
        lines.append(f"| {label} | {value:.2f} | {summary['median_seconds']['ours'] / value:.2f} |")
    lines.append(f"\nLargest difference of the results: {summary['parity']:.1e} of the largest output.")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--torch_python", type=Path, required=True, help="Python of an environment with torch and numpy"
    )
    parser.add_argument(
        "--preset", choices=[n for n, p in PRESETS.items() if "classes" not in p], default="ddbm-diode-256"
    )
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="time torch.compile too")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # before JAX makes its threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    command = " ".join(["python -m benchmarks.forward", *sys.argv[1:]])
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else None
    summary = {
        "command": command.replace(str(args.torch_python), "torch_venv/bin/python"),
        "threads": 2,
        "cpus": os.cpu_count(),
        "cpu": cpu[1] if cpu else platform.machine(),
        "jax": jax.__version__,
    }
    ways = ["eager", "channels_last"] + ["compile"] * args.compile
    summary |= measure(args.preset, args.size, args.repeats, args.torch_python, ways)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "forward.json").write_text(json.dumps(summary, indent=1) + "\n")
    (RESULTS / "forward.md").write_text(markdown(summary))
    print(markdown(summary))
    if summary["parity"] > 1e-3:
        raise SystemExit("the two programs do not compute the same")


if __name__ == "__main__":
    main()
