"""What an IBMD iteration costs beside the network passes that it is made of, each compiled alone.

    python -m benchmarks.iteration

An iteration has L times (the student's forward pass, a training step's passes of the auxiliary network), then the
student's forward and backward pass and, for teacher and auxiliary, a forward pass and one back to their input.
Operations are the compiler's count; times are medians, all programs in turns in one run. Writes
benchmarks/results/iteration.json.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ibmd_jax.bridges import I2SB
from ibmd_jax.bridges.parametrisations import eps
from ibmd_jax.core.types import Batch
from ibmd_jax.methods import ibmd
from ibmd_jax.methods.ibmd import generate
from ibmd_jax.methods.teacher import denoising_error
from ibmd_jax.networks.adapters import from_linen
from ibmd_jax.networks.denoiser import init_denoiser, make_denoiser
from ibmd_jax.networks.unet import UNet

RESULTS = Path(__file__).parent / "results"


def programs(network: UNet, size: int, batch: int, L: int) -> tuple[Callable[[], Any], dict[str, tuple[int, Any]]]:
    """The whole iteration, and name -> (how often, one pass), as compiled functions without arguments left."""
    bridge, linen = I2SB(), from_linen(network)
    denoise = make_denoiser(linen, bridge, eps)
    params = jax.jit(lambda k: init_denoiser(linen, k, (size, size, 3)))(jax.random.key(0))
    method = ibmd(denoise, bridge, optax.sgd(1e-4), optax.sgd(1e-4), auxiliary_updates=L)
    x_T = jax.random.normal(jax.random.key(1), (batch * method.batches, size, size, 3))
    state = jax.jit(method.init)((params, params))
    part, t, key = Batch(x_T[:batch]), jnp.linspace(0.1, 0.9, batch), jax.random.key(2)

    def student(theta: Any) -> jax.Array:
        return generate(denoise, theta, part.x_T, bridge.T, part, key)

    def error(p: Any, x_t: jax.Array) -> jax.Array:
        return denoising_error(denoise, bridge, p, x_t, t, part.x_T, part).mean()

    def student_gradient(theta: Any) -> Any:
        x_0, back = jax.vjp(student, theta)
        return back(x_0)

    def compiled(f: Callable, *args: Any) -> Any:
        program = jax.jit(f).lower(*args).compile()
        return program, args

    passes = {
        "student, forward": (L, compiled(student, params)),
        "auxiliary, training": (L, compiled(jax.value_and_grad(error), params, part.x_T)),
        "student, forward and backward": (1, compiled(student_gradient, params)),
        "teacher and auxiliary, to their input": (2, compiled(jax.value_and_grad(error, 1), params, part.x_T)),
    }
    return compiled(method.step, state, params, Batch(x_T), key), passes


def flops(program: tuple[Any, tuple]) -> float:
    return program[0].cost_analysis()["flops"]


def seconds(program: tuple[Any, tuple]) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(program[0](*program[1]))
    return time.perf_counter() - begin


def main() -> None:
    L, batch, size = 4, 32, 32
    whole, passes = programs(UNet(groups=16), size, batch, L)
    times = {name: [] for name in ("iteration", *passes)}
    for repeat in range(8):
        for name, program in {"iteration": whole, **{name: p for name, (_, p) in passes.items()}}.items():
            found = seconds(program)
            if repeat:  # the first is a warm-up
                times[name].append(found)
    medians = {name: float(np.median(v)) for name, v in times.items()}
    summary = {
        "network": "UNet of configs/inpaint.py",
        "batch": batch,
        "auxiliary_updates": L,
        "cpus": os.cpu_count(),
        "passes": {name: {"count": n, "flops": flops(p), "seconds": medians[name]} for name, (n, p) in passes.items()},
        "iteration": {"flops": flops(whole), "seconds": medians["iteration"]},
        "flops_over_passes": flops(whole) / sum(n * flops(p) for n, p in passes.values()),
        "seconds_over_passes": medians["iteration"] / sum(n * medians[name] for name, (n, _) in passes.items()),
    }
    (RESULTS / "iteration.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
