"""Speed of an IBMD iteration against an equivalent PyTorch program of the same network and weights, on two CPU threads.

    python3 -m venv torch_venv && torch_venv/bin/pip install torch==2.13.0 numpy
    python -m benchmarks.throughput --torch_python torch_venv/bin/python

Some 5 minutes on 2 idle CPU cores: PyTorch's threads spin while they wait, so other programs must not run. The network,
batch and L of configs/inpaint.py. The programs run in turns, each turn of PyTorch in a process of its own; the ratio is
of the medians, PyTorch's for its fastest way. --compile adds torch.compile, which needs a C++ compiler. Writes
benchmarks/results/throughput.json, or --out, so that it can be run once more with a batch split over two devices, each
of which then has a core to itself, or with YNNPACK's matrix products:

    JAX_NUM_CPU_DEVICES=2 python -m benchmarks.throughput ...
    XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_DOT python -m benchmarks.throughput ...
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.samplers import BRIDGE, DENOISE, NETWORK, RESULTS, SETTINGS
from ibmd_jax.bridges.times import TIME_SAMPLERS
from ibmd_jax.core.types import Batch, Params
from ibmd_jax.methods import ibmd
from ibmd_jax.methods.base import WEIGHTS
from ibmd_jax.methods.ibmd import student_terms
from ibmd_jax.methods.teacher import denoising_error
from ibmd_jax.networks.denoiser import init_denoiser
from ibmd_jax.train.sharding import batch_sharding, make_mesh

L, BATCH, SIZE = 4, 32, 32


def weights() -> Params:
    """Parameters of which none is zero."""
    leaves, tree = jax.tree.flatten(init_denoiser(NETWORK, jax.random.key(0), (SIZE, SIZE, 3)))
    moved = [p + 0.03 * jax.random.normal(jax.random.key(i), p.shape) for i, p in enumerate(leaves)]
    return jax.tree.unflatten(tree, moved)


@jax.jit
def losses(params: Params, x_T: jax.Array, eps: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The auxiliary's and the student's loss, for given noise and times.

    The student is its teacher still, the auxiliary's weights are 0.9 of theirs.
    """
    batch, weight, phi = Batch(x_T), WEIGHTS["ten_to_2"], jax.tree.map(lambda p: 0.9 * p, params)
    x_0 = DENOISE(params, x_T, BRIDGE.T)
    a, b, c = BRIDGE.at(t, x_0)
    x_t = a * x_T + b * x_0 + c * eps
    terms = student_terms(DENOISE, BRIDGE, params, phi, x_0, x_t, t, batch, weight)
    return denoising_error(DENOISE, BRIDGE, phi, x_t, t, x_0, batch).mean(), (terms.teacher - terms.auxiliary).mean()


def ours(params: Params, x_T: np.ndarray) -> Any:
    """A function that makes one more iteration, and returns its seconds."""
    fast, slow = optax.adam(1e-3, b1=0.0), optax.adam(2e-4, b1=0.0)
    method = ibmd(
        DENOISE,
        BRIDGE,
        slow,
        fast,
        auxiliary_updates=L,
        student_weight=WEIGHTS["ten_to_2"],
        time_sampler=TIME_SAMPLERS["stratified"],
    )
    mesh = make_mesh()
    batch = Batch(jax.device_put(np.concatenate(x_T), batch_sharding(mesh)))
    replicated = NamedSharding(mesh, PartitionSpec())
    params = jax.device_put(params, replicated)
    step, count = jax.jit(method.step, donate_argnums=0), 0
    state = jax.jit(method.init, out_shardings=replicated)((params, params))

    def run() -> float:
        nonlocal state, count
        begin, count = time.perf_counter(), count + 1
        state, info = step(state, params, batch, jax.random.key(count))
        jax.block_until_ready((state, info))
        return time.perf_counter() - begin

    run()
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--torch_python", type=Path, required=True, help="Python of an environment with torch and numpy"
    )
    parser.add_argument("--compile", action="store_true", help="also torch.compile")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=8, help="of each program in a turn")
    parser.add_argument("--out", type=Path, default=RESULTS / "throughput.json")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # before JAX makes its threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    params, rng = weights(), np.random.default_rng(0)
    x_T = rng.standard_normal((L + 1, BATCH, SIZE, SIZE, 3), np.float32)
    eps, t = rng.standard_normal(x_T.shape[1:], np.float32), rng.uniform(0.01, 1, BATCH).astype(np.float32)
    ways = ["eager", "channels_last"] + ["compile"] * args.compile
    expected, run = np.array(losses(params, x_T[0], eps, t)), ours(params, x_T)
    seconds: dict[str, list[float]] = {"ours": [], **{way: [] for way in ways}}
    with tempfile.TemporaryDirectory() as folder:
        inputs, output = f"{folder}/inputs.npz", Path(folder, "out.json")
        table = {"x_T": x_T, "eps": eps, "t": t, "settings": json.dumps(SETTINGS)}
        np.savez(inputs, **table, **flatten_dict(params, sep="/"))
        for _ in range(args.turns):
            seconds["ours"] += [run() for _ in range(args.iterations)]
            for way in ways:
                script = Path(__file__).with_name("torch_ibmd.py")
                subprocess.run([args.torch_python, script, inputs, output, way, str(args.iterations)], check=True)
                found = json.loads(output.read_text())
                seconds[way] += found["seconds"]
                np.testing.assert_allclose(found["losses"], expected, rtol=1e-3, atol=1e-4)
    medians = {name: float(np.median(v)) for name, v in seconds.items()}
    fastest = min(ways, key=medians.get)
    summary = {
        "network": "UNet of configs/inpaint.py",
        "batch": BATCH,
        "auxiliary_updates": L,
        "cpus": os.cpu_count(),
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "torch": found["torch"],
        "losses": {"ours": expected.tolist(), "torch": found["losses"]},
        "median_seconds": medians,
        "fastest_of_torch": fastest,
        "iterations_per_second_over_torch": medians[fastest] / medians["ours"],
        "seconds": seconds,
    }
    args.out.write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps({k: v for k, v in summary.items() if k != "seconds"}, indent=1))


if __name__ == "__main__":
    main()
