"""What parts of IBMD do: the number of auxiliary updates, the gradient through x_t, noise input, and its settings.

    python -m benchmarks.ablations --runs runs/quality --task sr4x

Students of one step of the same teacher, that of benchmarks/quality.py, which is trained if it is not there. About an
hour on 2 CPU cores; what is finished is not done again. Writes benchmarks/results/ablations.{json,md}.
"""

import argparse
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax

from benchmarks.quality import METRICS, RESULTS, TASKS, base_config, sampler, trained, trained_teacher
from ibmd_jax.bridges import I2SB
from ibmd_jax.core.streams import stream
from ibmd_jax.train.evaluate import evaluate
from ibmd_jax.train.job import load_student

CUT = "no gradient through x_t (VSD, DMD)"
VARIANTS: dict[str, dict[str, Any]] = {
    "as in quality.md": {},
    "L = 1": {"auxiliary_updates": 1},
    "L = 10": {"auxiliary_updates": 10},
    CUT: {},
    "no noise input": {"noise_channels": 0},
    "lambda = 1": {"student_weight": "one"},
    "normalised by the teacher's error": {"normalise": True},
    "with clean images": {"real_data": (0.95, 0.97)},
}


@contextlib.contextmanager
def cut() -> Iterator[None]:
    """While it lasts, samples of x_t are constants."""
    plain = I2SB.sample
    with mock.patch.object(I2SB, "sample", lambda *args: jax.lax.stop_gradient(plain(*args))):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"), help="folder of the trained models")
    parser.add_argument("--task", default="sr4x", choices=TASKS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    args = parser.parse_args()
    config, rows = base_config(args.task, "i2sb", args.seed), []
    folder = args.runs / config.name
    given = {"checkpoint": trained_teacher(args.task, "i2sb", args.runs)[1]}
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
        rows.append(found[0]._asdict())
        print(rows[-1], flush=True)
    (RESULTS / "ablations.json").write_text(
        json.dumps({"task": args.task, "seed": args.seed, "rows": rows}, indent=1) + "\n"
    )
    (RESULTS / "ablations.md").write_text(markdown(args.task, args.seed, rows))


def markdown(task: str, seed: int, rows: list[dict[str, Any]]) -> str:
    lines = [
        f"# What parts of IBMD do: {task}, teacher I2SB, seed {seed}\n",
        "One-step students of one teacher; the rest as in quality.md. Made by `python -m benchmarks.ablations`.\n",
        f"| student | {' | '.join(METRICS)} |",
        "|" + "---|" * (len(METRICS) + 1),
        *(f"| {r['label']} | {' | '.join(format(r['metrics'][m.lower()], '.3f') for m in METRICS)} |" for r in rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
