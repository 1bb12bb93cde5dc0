"""What the training loop and the partitioning cost beside the compiled step.

    python -m benchmarks.loop                    all of it
    python -m benchmarks.loop --parts distill    one part; the others keep their results

About an hour on 2 idle CPU cores. The loop: a stage, `teacher` or `distill`, as `fit` runs it, against its bare
compiled step on one batch; both run by turns in one process. The overhead is that of all turns together, since few of
them have a checkpoint, after every 500 steps, whose files are waited for before the bare steps go on. What a run does
once, as compiling the checkpoints' checksums, is in it. Input and logging are in every turn. Beside the time that
passes, in which machines are noisy, it is measured in that of the cores. The partitioning: an IBMD iteration of one
batch on 1, 2, 4 and 8 devices that the same two cores pretend to be, a process each, by turns.
Writes benchmarks/results/loop.json.
"""

import argparse
import functools
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
TURN = {"teacher": 50, "distill": 10}  # steps, of either
STEPS = {"teacher": 1100, "distill": 510}  # without the first turn, a checkpoint in every 500
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


def starts(made: Any) -> tuple[Callable[[], Any], dict[str, Callable[..., Any]]]:
    """What makes the teacher, an untrained one, and each stage's first state."""
    import jax

    from ibmd_jax.networks.generator import with_new_inputs

    def teacher() -> Any:
        return made.init_params(jax.random.key(0))

    def student(*_: Any) -> Any:
        return made.distill.init((with_new_inputs(teacher(), teacher()), teacher()))

    return teacher, {"teacher": lambda *_: made.teacher.init(teacher()), "distill": student}


def clocks() -> np.ndarray:
    """Seconds that have passed, and those of all cores together that this process has used."""
    return np.asarray([time.perf_counter(), time.process_time()])


def bare_steps(made: Any, method: Any, stage: str, frozen: Any, state: Any) -> Callable[[int], np.ndarray]:
    """A function that makes some more of the bare steps, and returns what they add to the clocks."""
    import jax

    batch = jax.block_until_ready(next(made.batches(stage)(0)))
    step, count = jax.jit(method.step, donate_argnums=0), itertools.count()

    def run(steps: int) -> np.ndarray:
        nonlocal state
        begin = clocks()
        for _ in range(steps):
            state, info = step(state, frozen, batch, jax.random.key(next(count)))
        jax.block_until_ready((state, info))
        return clocks() - begin

    run(2)
    return run


def overhead(stage: str) -> dict[str, Any]:
    """Mean seconds of a step in the loop and bare, and the part that the loop adds, by either clock, with its error."""
    import jax

    from ibmd_jax.train import loop

    opened: list[Any] = []  # the checkpoints of the run, which has one stage

    class Waited(loop.Checkpoints):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            opened.append(self)

    made = job()
    teacher, start = starts(made)
    method, frozen = getattr(made, stage), jax.jit(teacher)() if stage == "distill" else None
    bare = bare_steps(made, method, stage, frozen, jax.jit(start[stage])())
    found: dict[str, list[np.ndarray]] = {"loop": [], "bare": []}

    def batches(first: int) -> Iterator[Any]:
        begin, turn = clocks(), TURN[stage]
        for i, batch in enumerate(made.batches(stage)(first)):
            if i % turn == 0:
                settle()
                opened[0].wait()
                if i > turn:
                    found["loop"].append((clocks() - begin) / turn)
                    found["bare"].append(bare(turn) / turn)
                begin = clocks()
            yield batch

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(loop, "Checkpoints", Waited):
        loop.fit(
            stage,
            method,
            start[stage],
            frozen,
            batches,
            steps=STEPS[stage] + 1,
            seed=0,
            folder=Path(folder),
            mesh=made.mesh,
            identity={},
            schedule=made.schedule,
            model={},
        )
    turns = {name: np.stack(v, axis=1) for name, v in found.items()}  # [2 clocks, turns]
    means = {name: v.mean(1) for name, v in turns.items()}
    overhead, cpu_overhead = (means["loop"] / means["bare"] - 1).tolist()
    errors = np.std(turns["loop"] / turns["bare"], axis=1, ddof=1) / np.sqrt(turns["loop"].shape[1])
    return {
        **{name: float(v[0]) for name, v in means.items()},
        "overhead": overhead,
        "standard_error": float(errors[0]),
        "cpu_overhead": cpu_overhead,
        "cpu_standard_error": float(errors[1]),
        "turns": {name: v[0].tolist() for name, v in turns.items()},
    }


def worker(devices: int) -> None:
    """Prints seconds of IBMD iterations on so many devices, for every line that it reads."""
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    import jax

    from ibmd_jax.train.sharding import abstract_state

    made = job()
    teacher, start = starts(made)
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(made.mesh, 2**20, start["distill"]))
    state = jax.jit(start["distill"], out_shardings=shardings)()
    frozen = jax.jit(teacher, out_shardings=shardings.student)()
    run = bare_steps(made, made.distill, "distill", frozen, state)
    print("ready", flush=True)
    for _ in sys.stdin:
        print(run(4)[0] / 4, flush=True)


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
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "partitioning": partitioning,
        "teacher": functools.partial(overhead, "teacher"),
        "distill": functools.partial(overhead, "distill"),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(parts), choices=parts, help="what to measure")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    if args.worker:
        worker(args.worker)
        return
    path = ROOT / "benchmarks" / "results" / "loop.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for name in args.parts:
        found[name] = parts[name]()
        path.write_text(json.dumps({"cpus": os.cpu_count(), **found}, indent=1) + "\n")
        print(name, json.dumps({k: v for k, v in found[name].items() if k != "turns"}), flush=True)


if __name__ == "__main__":
    main()
