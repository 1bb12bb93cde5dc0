"""A teacher for each of three tasks into one student, which is told the task or has to see it.

    python -m benchmarks.several --runs runs/quality

The teachers are those of benchmarks/quality.py that see x_T (DDBM), trained if they are not there; each task's rows
stand beside its teacher's at 100 NFE and its own student's from benchmarks/results/quality.json, whose cells have to
be there. Students begin as one network of all three tasks (17 minutes on 2 CPU cores, with JAX_NUM_CPU_DEVICES=2);
each takes 13 minutes. What is trained is not trained again. Writes benchmarks/results/several.{json,md,png}.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from benchmarks.quality import (
    BARS,
    DETERMINED,
    METRICS,
    RESULTS,
    TASKS,
    base_config,
    best_teachers,
    number,
    sampler,
    trained,
    trained_teacher,
)
from ibmd_jax.build import build
from ibmd_jax.core.errors import UserError
from ibmd_jax.core.streams import stream
from ibmd_jax.train.evaluate import evaluate
from ibmd_jax.train.job import load_student
from ibmd_jax.train.pictures import save_grid

TOGETHER = ("sr4x", "jpeg-5", "inpaint")
# Of bridge matching on all tasks, from the first one's teacher: what student and auxiliary network start as.
START = 3000
STUDENTS = {"told the task": False, "blind": True}
STEPS = 600  # half as many again as for one task: each has half as many images as alone


def config_of(seed: int, teachers: list[str]) -> ml_collections.ConfigDict:
    """The first task's configuration, for all of them."""
    config = base_config(TOGETHER[0], "ddbm", seed)
    config.data.corruption = {"name": "mixture", "corruptions": [TASKS[task].data["corruption"] for task in TOGETHER]}
    config.teacher.update(checkpoint=",".join(teachers), combine="by_label")
    config.distill.steps = STEPS
    return config


def single(seed: int) -> dict[str, list[dict[str, Any]]]:
    """Task -> the rows of quality.json to compare with: the teacher at 100 NFE, and its student in one step."""
    cells, found = json.loads((RESULTS / "quality.json").read_text()), {}
    for task in TOGETHER:
        rows = cells.get(f"{task} ddbm", {}).get(str(seed))
        if rows is None:
            raise UserError(
                f"quality.json has no cell {task} ddbm of seed {seed}: run "
                f"python -m benchmarks.quality --tasks {task} --teachers ddbm --seeds {seed} first"
            )
        (student,) = (row for row in rows if row["label"] == "IBMD")
        found[task] = [best_teachers(rows)[-1], {**student, "label": "IBMD, this task alone"}]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"), help="folder of the trained models")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    path = RESULTS / "several.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for seed in args.seeds:
        found = single(seed)
        teachers = [trained_teacher(task, "ddbm", args.runs)[1] for task in TOGETHER]
        config, alone = config_of(seed, teachers), [build(base_config(task, "ddbm", seed)) for task in TOGETHER]
        tests = [job.test() for job in alone]
        shown = {"input": [test.x_T for test in tests]}
        first = {"checkpoint": "", "combine": "mean", "start": teachers[0], "steps": START}
        trained(config_of(0, teachers), args.runs / "several", "teacher", teacher=first)
        config.distill.start = str(args.runs / "several" / "teacher" / "export")
        for label, blind in STUDENTS.items():
            folder = args.runs / f"several-{seed}" / label.replace(" ", "-")
            job = trained(config, folder, "distill", distill={"blind": blind})
            student = sampler(f"IBMD, {label}", 1, job.distill, load_student(job, folder)[0], 1)
            shown[label] = []
            for cond, (task, one, test) in enumerate(zip(TOGETHER, alone, tests, strict=True)):
                told = test._replace(cond=np.full(len(test.x_T), cond, np.int32))
                size, key = config.evaluate.batch_size, stream(jax.random.key(seed), "evaluate")
                rows, images = evaluate([student], told, one.features, batch_size=size, key=key)
                found[task] += [row._asdict() for row in rows]
                shown[label] += images.values()
                print(task, rows[0], flush=True)
            columns = {**shown, "truth": [test.x_0 for test in tests]}
            picked = {name: np.concatenate([x[:: len(x) // 3][:4] for x in images]) for name, images in columns.items()}
            save_grid(path.with_suffix(".png"), picked)
            results[str(seed)] = found
            path.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
            path.with_suffix(".md").write_text(markdown(results))


def markdown(results: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """results: seed -> task -> rows, the first of which is the teacher's."""
    lines = [
        "# Three teachers into one student\n",
        f"Seeds {', '.join(results)}; the tasks, teachers and columns of [quality.md](quality.md). One network, of the",
        f"size of each teacher, for all three tasks: {STEPS} iterations of 32 images, of a task drawn for each image.",
        "The blind one is not told which. Both begin as one network of all three, "
        f"{START} steps of bridge matching from\nthe first teacher. Told the task, seed 0, with 1000 of these steps a "
        "student ended at 3.2, 2.8 and 1.6 times the teachers'\nFID, without them, as the first teacher, at 3.7, 3.3 "
        "and 3.5. Made by `python -m benchmarks.several`.\n",
        "![Four images of each task](several.png)\n",
        f"| task | model | NFE | {' | '.join(METRICS)} | FID over teacher's at 100 | bar for one task |",
        "|" + "---|" * (len(METRICS) + 5),
    ]
    for task in TOGETHER:
        rows: dict[tuple[str, int], list[tuple[dict[str, Any], float]]] = {}
        for found in results.values():
            for row in found[task]:
                slow = found[task][0]["metrics"]["fid"]
                rows.setdefault((row["label"], row["nfe"]), []).append((row, row["metrics"]["fid"] / slow))
        for (label, nfe), versions in rows.items():
            ratio = np.mean([over for _, over in versions])
            limit = BARS["IBMD", 1][task not in DETERMINED]
            cells = [number([row["metrics"][m.lower()] for row, _ in versions]) for m in METRICS] + [f"{ratio:.2f}"]
            met = f"{limit}: {'met' if ratio <= limit else 'missed'}" if label.startswith("IBMD") else ""
            lines.append(f"| {task} | {label} | {nfe} | {' | '.join([*cells, met])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
