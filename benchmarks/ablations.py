"""What parts of IBMD do: the number of auxiliary updates, the gradient through x_t, noise input, and its settings.

    python -m benchmarks.ablations --runs runs/quality --task sketch --teacher ddbm

Students of one step of the same teacher, that of benchmarks/quality.py, which is trained if it is not there. Some ten
minutes a student on 2 CPU cores, with JAX_NUM_CPU_DEVICES=2; what is trained is not trained again. After each,
benchmarks/results/ablations.{json,md} are written; rows that are not asked for stay.
"""

import argparse
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax

from benchmarks.quality import METRICS, RESULTS, TASKS, TEACHERS, base_config, sampler, trained, trained_teacher
from ibmd_jax.bridges.base import Bridge
from ibmd_jax.core.streams import stream
from ibmd_jax.train.evaluate import evaluate
from ibmd_jax.train.job import load_student

CUT = "no gradient through x_t (VSD, DMD)"
RESTLESS_STUDENT = {"student_optimizer": {"learning_rate": 2e-4, "b1": 0.0}}
RESTLESS = {**RESTLESS_STUDENT, "auxiliary_optimizer": {"learning_rate": 1e-3, "b1": 0.0}}
CALM = {
    "student_optimizer": {"learning_rate": 1e-4, "b1": 0.9},
    "auxiliary_optimizer": {"learning_rate": 3e-4, "b1": 0.9},
}
EARLIER = {"t_start": 0.9, "noise_channels": 0}
CHANNELS = {"t_start": 0.0, "noise_channels": 3}
AUTHORS = {"student_weight": "native_ten_to_1", "auxiliary_weight": "native"}  # for DDBM's teachers
# quality.md's students of I2SB's teachers have restless optimisers, further channels and lambda = 10^(2 (1 - t)), those
# of DDBM's calm ones, z in x_t and lambda = 1.
VARIANTS: dict[str, dict[str, Any]] = {
    "as in quality.md, L = 4": {},
    "L = 1": {"auxiliary_updates": 1},
    "L = 5": {"auxiliary_updates": 5},
    "L = 10": {"auxiliary_updates": 10},
    CUT: {},
    "no noise input": {**CHANNELS, "noise_channels": 0},
    "one channel of noise": {**CHANNELS, "noise_channels": 1},
    "calm optimisers": CALM,
    "z in x_t at t = 0.9": EARLIER,
    "calm optimisers, z in x_t at t = 0.9": {**CALM, **EARLIER},
    "calm optimisers, z in x_t at t = 0.9, lambda = 1": {**CALM, **EARLIER, "student_weight": "one"},
    "restless student": RESTLESS_STUDENT,
    "restless student, z in further channels": {**RESTLESS_STUDENT, **CHANNELS},
    "both restless": RESTLESS,
    "both restless, z in further channels": {**RESTLESS, **CHANNELS},
    "both restless, z in further channels, lambda = 10^(2 (1 - t))": {
        **RESTLESS,
        **CHANNELS,
        "student_weight": "ten_to_2",
    },
    "both restless, z in further channels, the authors' lambda": {**RESTLESS, **CHANNELS, **AUTHORS},
    "both restless, z in further channels, the authors' lambda, L = 10": {
        **RESTLESS,
        **CHANNELS,
        **AUTHORS,
        "auxiliary_updates": 10,
    },
    "the authors' lambda": AUTHORS,
    "lambda = 1": {"student_weight": "one"},
    "lambda = 10^(2 (1 - t))": {"student_weight": "ten_to_2"},
    "batch of 64": {"batch_size": 64},
    "800 iterations": {"steps": 800},
    "1200 iterations": {"steps": 1200},
    "normalised by the teacher's error": {"normalise": True},
    "with clean images": {"real_data": (0.95, 0.97)},
}


@contextlib.contextmanager
def cut() -> Iterator[None]:
    """While it lasts, samples of x_t are constants."""
    plain = Bridge.sample
    with mock.patch.object(Bridge, "sample", lambda *args: jax.lax.stop_gradient(plain(*args))):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"), help="folder of the trained models")
    parser.add_argument("--task", default="sketch", choices=TASKS)
    parser.add_argument("--teacher", default="i2sb", choices=TEACHERS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    args = parser.parse_args()
    config, path = base_config(args.task, args.teacher, args.seed), RESULTS / "ablations.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    rows = results.setdefault(f"{args.task} {args.teacher}, seed {args.seed}", {})
    folder = args.runs / config.name
    given = {"checkpoint": trained_teacher(args.task, args.teacher, args.runs)[1]}
    for name in args.variants:
        place = folder / ("one" if not VARIANTS[name] and name != CUT else "ablation, " + name.replace("/", "-"))
        with cut() if name == CUT else contextlib.nullcontext():
            job = trained(config, place, "distill", teacher=given, distill=VARIANTS[name])
        student = load_student(job, place)[0]
        key = stream(jax.random.key(args.seed), "evaluate")
        size = config.evaluate.batch_size
        found, _ = evaluate(
            [sampler(name, 1, job.distill, student, 1)], job.test(), job.features, batch_size=size, key=key
        )
        rows[name] = found[0]._asdict()
        print(rows[name], flush=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
        path.with_suffix(".md").write_text(markdown(results))


def markdown(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """results: "task teacher, seed n" -> variant -> row."""
    lines = [
        "# What parts of IBMD do\n",
        "One-step students of one teacher, with these settings changed; the rest, and the teacher's rows, are in",
        "[quality.md](quality.md). Diversity: root mean square deviation over z. Calm optimisers: Adam with b1 = 0.9,",
        "rates of 1e-4 (student) and 3e-4 (auxiliary network); restless ones: b1 = 0, 2e-4 and 1e-3.",
        "Made by `python -m benchmarks.ablations`.",
    ]
    for title, rows in results.items():
        lines += [f"\n## {title}\n", f"| student | {' | '.join(METRICS)} |", "|" + "---|" * (len(METRICS) + 1)]
        for name in (name for name in VARIANTS if name in rows):
            numbers = (f"{rows[name]['metrics'][metric.lower()]:.3f}" for metric in METRICS)
            lines.append(f"| {name} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
