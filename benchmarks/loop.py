"""What the training loop and the partitioning cost beside the compiled step.

    python -m benchmarks.loop

About 30 minutes on 2 idle CPU cores. The loop: a teacher's training as `fit` runs it, against the bare compiled step on
one batch; both run by turns of 50 steps in one process. The overhead is that of all turns together, since only two of
them have a checkpoint, after 500 and 1000 steps, whose files are waited for before the bare steps go on. What a run
does once, as compiling the checkpoints' checksums, is in it. Input and logging are in every turn. The partitioning: an
IBMD iteration of one batch on 1, 2, 4 and 8 devices that the same two cores pretend to be, a process each, by turns.
Writes benchmarks/results/loop.json.
"""

import argparse
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

ROOT = Path(__file__).parents[1]
STEPS, TURN, SKIP = 1100, 50, 50
DEVICES = (1, 2, 4, 8)


def job() -> Any:
    from ibmd_jax.build import build

    spec = importlib.util.spec_from_file_location("inpaint", ROOT / "configs" / "inpaint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.schedule.update(save_every=500, picture_every=10**6)
    return build(config)


def settle() -> None:
    """Waits for all that was dispatched."""
    import jax

    for x in jax.live_arrays():
        x.block_until_ready()


def bare_steps(made: Any, method: Any, stage: str, frozen: Any, state: Any) -> Callable[[int], float]:
    """A function that makes some more of the bare steps, and returns their seconds."""
    import jax

    batch = jax.block_until_ready(next(made.batches(stage)(0)))
    step, count = jax.jit(method.step, donate_argnums=0), itertools.count()

    def run(steps: int) -> float:
        nonlocal state
        begin = time.perf_counter()
        for _ in range(steps):
            state, info = step(state, frozen, batch, jax.random.key(next(count)))
        jax.block_until_ready((state, info))
        return time.perf_counter() - begin

    run(2)
    return run


def overhead() -> dict[str, float]:
    """Mean seconds of a step in the loop and bare, and the part that the loop adds."""
    import jax

    from ibmd_jax.train import loop

    opened: list[Any] = []  # the checkpoints of the run, which has one stage

    class Waited(loop.Checkpoints):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            opened.append(self)

    made = job()
    method, key = made.teacher, jax.random.key(0)
    bare = bare_steps(made, method, "teacher", None, jax.jit(lambda: method.init(made.init_params(key)))())
    seconds: dict[str, list[float]] = {"loop": [], "bare": []}

    def batches(first: int) -> Iterator[Any]:
        begin = time.perf_counter()
        for i, batch in enumerate(made.batches("teacher")(first)):
            if i % TURN == 0:
                settle()
                opened[0].wait()
                if i > SKIP:
                    seconds["loop"].append((time.perf_counter() - begin) / TURN)
                    seconds["bare"].append(bare(TURN) / TURN)
                begin = time.perf_counter()
            yield batch

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(loop, "Checkpoints", Waited):
        loop.fit(
            "teacher",
            method,
            lambda frozen, given: method.init(made.init_params(key)),
            None,
            batches,
            steps=STEPS + 1,
            seed=0,
            folder=Path(folder),
            mesh=made.mesh,
            identity={},
            schedule=made.schedule,
            model={},
        )
    means = {name: float(np.mean(v)) for name, v in seconds.items()}
    return means | {"overhead": means["loop"] / means["bare"] - 1, "turns": seconds}


def worker(devices: int) -> None:
    """Prints seconds of IBMD iterations on so many devices, for every line that it reads."""
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    import jax

    from ibmd_jax.networks.generator import with_new_inputs
    from ibmd_jax.train.sharding import abstract_state

    made = job()
    method, key = made.distill, jax.random.key(0)

    def start() -> Any:
        teacher = made.init_params(key)
        return method.init((with_new_inputs(teacher, teacher), teacher))

    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(made.mesh, 2**20, start))
    state = jax.jit(start, out_shardings=shardings)()
    frozen = jax.jit(made.init_params, out_shardings=shardings.student)(key)
    run = bare_steps(made, method, "distill", frozen, state)
    print("ready", flush=True)
    for _ in sys.stdin:
        print(run(4) / 4, flush=True)


def partitioning() -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.loop", "--worker"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    workers = {n: subprocess.Popen([*command, str(n)], **pipes) for n in DEVICES}
    for process in workers.values():
        assert process.stdout.readline() == "ready\n"
    seconds: dict[int, list[float]] = {n: [] for n in DEVICES}
    for _ in range(6):
        for n, process in workers.items():
            process.stdin.write("\n")
            process.stdin.flush()
            seconds[n].append(float(process.stdout.readline()))
    for process in workers.values():
        process.stdin.close()
        process.wait()
    medians = {n: float(np.median(v)) for n, v in seconds.items()}
    return {"seconds": medians, "over_one": {n: medians[n] / medians[1] - 1 for n in DEVICES}, "turns": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    if args.worker:
        worker(args.worker)
        return
    summary = {"cpus": os.cpu_count(), "partitioning": partitioning(), "loop": overhead()}
    (ROOT / "benchmarks" / "results" / "loop.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(
        json.dumps(
            {name: {k: v for k, v in part.items() if k != "turns"} for name, part in summary.items() if name != "cpus"},
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
