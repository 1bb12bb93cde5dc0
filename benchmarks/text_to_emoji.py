"""From an emoji's name to its picture: a teacher of 50 evaluations, and its Di-Bregman student of one.

    python -m benchmarks.text_to_emoji --runs runs/text --seeds 0

On 2 CPU cores the teacher, trained once, takes 12 minutes, a student as long. Names of the training set, and held-out
ones; the share of images that show their own name (metrics/retrieval.py), FID and KID. Writes
benchmarks/results/text_to_emoji.{json,md,png} for the seeds given.
"""

import argparse
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.leaderboard import generate_config
from benchmarks.quality import RESULTS, trained
from ibmd_jax.build import build_data
from ibmd_jax.core.streams import stream
from ibmd_jax.core.types import Array, Batch
from ibmd_jax.metrics import retrieval_accuracy
from ibmd_jax.train.evaluate import Sampler, evaluate
from ibmd_jax.train.job import load_student, load_teacher
from ibmd_jax.train.pictures import save_grid

NFE = (1, 4, 16, 50)  # of the teacher
SHOWN = 8


def config_of(seed: int, teacher_steps: int, steps: int) -> Any:
    config = generate_config("dibregman,emoji-names").copy_and_resolve_references()
    config.seed = seed
    config.teacher.steps, config.distill.steps = teacher_steps, steps
    config.schedule.update(picture_every=500, keep=1)
    return config


def training_names(config: Any, test: Batch) -> Batch:
    """As many images of the training set as of the test set, evenly spaced, with the same noise."""
    source = build_data(config).train
    rows = [source[int(i)] for i in np.linspace(0, len(source) - 1, len(test.x_T))]
    x_0, text = (jnp.asarray(np.stack([row[name] for row in rows])) for name in ("x_0", "text"))
    return test._replace(x_0=x_0.astype(jnp.float32) / 127.5 - 1, cond=text)


def markdown(rows: list[dict[str, Any]], settings: str) -> str:
    lines = [
        "# Names to emoji, 32 pixels\n",
        f"{settings}\n398 names of the training set, and the 398 held-out ones.",
        "Own name: the share of images whose own name is the nearest of all names of the set, by a small image encoder",
        "(`metrics/retrieval.py`); FID and KID by the features of the emoji classifier; diversity: deviation over the",
        "noise, for one name.\n",
        "| names | model | NFE | seed | own name | of the teacher's at 50 | FID | KID | diversity | images/s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    best = {row["names"]: row["accuracy"] for row in rows if row["nfe"] == NFE[-1]}
    for row in rows:
        metrics = row["metrics"]
        ratio = f"{row['accuracy'] / best[row['names']]:.2f}" if row["nfe"] and best[row["names"]] else ""
        cells = [row["names"], row["label"], str(row["nfe"] or ""), str(row["seed"]), f"{row['accuracy']:.3f}", ratio]
        cells += [f"{metrics[k]:.{n}f}" if k in metrics else "" for k, n in (("fid", 2), ("kid", 2), ("diversity", 3))]
        cells.append(f"{row['images_per_second']:.0f}" if row["nfe"] else "")
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for names in best:
        teacher, student = (
            [row for row in rows if row["names"] == names and row["label"] == label]
            for label in ("teacher", "Di-Bregman")
        )
        least = min(teacher, key=lambda row: row["metrics"]["fid"])
        fid, diversity = (np.mean([row["metrics"][name] for row in student]) for name in ("fid", "diversity"))
        lines.append(
            f"{names.capitalize()} names: the student's FID is {fid / teacher[-1]['metrics']['fid']:.2f} times the "
            f"teacher's at {NFE[-1]}, {fid / least['metrics']['fid']:.2f} times its least, at {least['nfe']}; its "
            f"diversity is {diversity / teacher[-1]['metrics']['diversity']:.2f} of the teacher's at {NFE[-1]}.  "
        )
    start = [row for row in rows if row["label"] == "teacher" and row["nfe"] == NFE[0]]
    first = [row["accuracy"] / best[row["names"]] for row in start]
    if min(first) > 0.9:
        lines.append(
            f"\nThe teacher itself has {' and '.join(f'{r:.2f}' for r in first)} of that at {NFE[0]} NFE, blurred as "
            "its images are then: that an image shows its own name says little of its quality here, FID and KID do."
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/text"), help="folder of the trained models")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--teacher_steps", type=int, default=6000)
    parser.add_argument("--steps", type=int, default=1000, help="of the student")
    args = parser.parse_args()
    config = config_of(0, args.teacher_steps, args.steps)
    base = trained(config, args.runs / "teacher", "teacher")
    given = str(args.runs / "teacher" / "teacher" / "export")
    frozen = load_teacher(base, args.runs / "teacher")[0]
    students = {}
    for seed in args.seeds:
        changed, folder = config_of(seed, args.teacher_steps, args.steps), args.runs / f"student-{seed}"
        job = trained(changed, folder, "distill", teacher={"checkpoint": given})
        students[seed] = job, load_student(job, folder)[0]

    rows: list[dict[str, Any]] = []
    pictures: dict[str, Array] = {}
    for names, test in (("training", training_names(config, base.test())), ("held-out", base.test())):
        real = {"names": names, "label": "real drawings", "nfe": 0, "seed": 0, "metrics": {}, "images_per_second": 0}
        rows.append({**real, "accuracy": retrieval_accuracy(test.x_0, test.cond)})
        samplers = [
            (0, Sampler("teacher", n, jax.jit(functools.partial(base.teacher.sample, steps=n)), frozen)) for n in NFE
        ]
        samplers += [(s, Sampler("Di-Bregman", 1, jax.jit(j.distill.sample), p)) for s, (j, p) in students.items()]
        for seed, sampler in samplers:
            key = stream(jax.random.key(seed), "evaluate")
            settings = {"batch_size": config.evaluate.batch_size, "key": key, "generates": True}
            (row,), images = evaluate([sampler], test, base.features, **settings)
            (made,) = images.values()
            found = {"names": names, "seed": seed, "accuracy": retrieval_accuracy(made, test.cond)}
            rows.append({**row._asdict(), **found})
            print(rows[-1], flush=True)
            if seed == args.seeds[0] or sampler.label == "teacher":
                few = np.linspace(0, len(made) - 1, SHOWN).astype(int)
                pictures.setdefault(f"{sampler.label} {sampler.nfe}", made[few])
        pictures.setdefault("drawing", np.asarray(test.x_0)[np.linspace(0, len(test.x_0) - 1, SHOWN).astype(int)])
    flags = f"--teacher_steps {args.teacher_steps} --steps {args.steps} --seeds {' '.join(map(str, args.seeds))}"
    command = f"python -m benchmarks.text_to_emoji {flags}"
    said = f"Teacher: {args.teacher_steps} steps of 64; student: {args.steps} of 32. Made by `{command}`."
    (RESULTS / "text_to_emoji.json").write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / "text_to_emoji.md").write_text(markdown(rows, said))
    save_grid(RESULTS / "text_to_emoji.png", pictures)


if __name__ == "__main__":
    main()
