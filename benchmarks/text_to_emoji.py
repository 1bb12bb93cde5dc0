"""From an emoji's name to its picture: a teacher of 50 evaluations, and its Di-Bregman student of one.

    python -m benchmarks.text_to_emoji --runs runs/text --seeds 0

On 2 CPU cores the teacher, trained once, takes 12 minutes, a student as long. Names of the training set, and held-out
ones; the share of images that show their own name (metrics/retrieval.py), FID and KID. --source: the names by a text
encoder (emoji:names), or by their words alone (emoji:words). Writes benchmarks/results/text_to_emoji.{json,md,png},
where the rows of the other source stay as they are.
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
from ibmd_jax.data.emoji import name_words, rows_of
from ibmd_jax.metrics import retrieval_accuracy
from ibmd_jax.train.evaluate import Sampler, evaluate
from ibmd_jax.train.job import load_student, load_teacher
from ibmd_jax.train.pictures import save_grid

NFE = (1, 4, 16, 50)  # of the teacher
SHOWN = 8
SOURCES = {"emoji:names": "text encoder", "emoji:words": "words"}


def config_of(source: str, seed: int, teacher_steps: int, steps: int) -> Any:
    config = generate_config("dibregman,emoji-names").copy_and_resolve_references()
    config.seed, config.data.source = seed, source
    config.teacher.steps, config.distill.steps = teacher_steps, steps
    config.schedule.update(picture_every=500, keep=1)
    return config


def training_names(config: Any, test: Batch) -> tuple[Batch, Array]:
    """As many images of the training set as of the test set, evenly spaced, with the same noise; and their words."""
    source = build_data(config).train
    numbers = np.linspace(0, len(source) - 1, len(test.x_T)).astype(int)
    rows = [source[int(i)] for i in numbers]
    x_0, text = (jnp.asarray(np.stack([row[name] for row in rows])) for name in ("x_0", "text"))
    batch = test._replace(x_0=x_0.astype(jnp.float32) / 127.5 - 1, cond=text)
    return batch, name_words()[rows_of("train")][numbers]


def markdown(rows: list[dict[str, Any]]) -> str:
    made = dict.fromkeys(row["command"] for row in rows if row["command"])
    lines = [
        "# Names to emoji, 32 pixels\n",
        "Teachers that take a name as a text encoder sees it (all-MiniLM-L6-v2, 128 principal axes), or as its words",
        "alone (hashed), and one-step students of each. 398 names of the training set, and the 398 held-out ones.",
        "Own name: the share of images whose own name is the nearest of all names of the set, by a small image encoder",
        "that knows words alone (`metrics/retrieval.py`); FID and KID by the features of the emoji classifier;",
        "diversity: deviation over the noise, for one name.\n",
        f"Made by {', '.join(f'`{command}`' for command in made)}.\n",
        "| names | by | model | NFE | seed | own name | of the teacher's at 50 | FID | KID | diversity | images/s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["names"], row["text"]), []).append(row)
    best = {key: row["accuracy"] for key, group in groups.items() for row in group if row["nfe"] == NFE[-1]}
    for key, group in groups.items():
        for row in group:
            metrics, nfe = row.get("metrics"), row["nfe"]
            ratio = f"{row['accuracy'] / best[key]:.2f}" if nfe and best[key] else ""
            cells = [*key, row["label"], str(nfe or ""), str(row["seed"]), f"{row['accuracy']:.3f}", ratio]
            cells += [f"{metrics[k]:.{n}f}" if nfe else "" for k, n in (("fid", 2), ("kid", 2), ("diversity", 3))]
            cells.append(f"{row['images_per_second']:.0f}" if nfe else "")
            lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    first = []
    for names, text in best:
        teacher, student = (
            [row for row in groups[names, text] if row["label"] == label] for label in ("teacher", "Di-Bregman")
        )
        first.append(teacher[0]["accuracy"] / best[names, text])
        last, least = teacher[-1], min(teacher, key=lambda row: row["metrics"]["fid"])
        fid, diversity = (np.mean([row["metrics"][name] for row in student]) for name in ("fid", "diversity"))
        lines.append(
            f"- {names.capitalize()} names by {text}: the student's FID is {fid / last['metrics']['fid']:.2f} times "
            f"the teacher's at {NFE[-1]}, {fid / least['metrics']['fid']:.2f} times its least, at {least['nfe']}; its "
            f"diversity is {diversity / last['metrics']['diversity']:.2f} of the teacher's at {NFE[-1]}."
        )
    lines.append(
        f"\nThe teachers have {min(first):.2f} to {max(first):.2f} of their own names' share at {NFE[0]} NFE already, "
        "where their images are blurred: that an image shows its own name says little of its quality, FID and KID do."
    )
    return "\n".join(lines) + "\n"


def write(found: list[dict[str, Any]]) -> None:
    """The rows found, with those that are there of the other source."""
    path = RESULTS / "text_to_emoji.json"
    before = json.loads(path.read_text()) if path.exists() else []
    rows = found + [row for row in before if row["text"] not in {row["text"] for row in found} | {""}]
    order = ["", *SOURCES.values()]
    rows.sort(key=lambda row: (row["names"] != "training", order.index(row["text"])))
    path.write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / "text_to_emoji.md").write_text(markdown(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/text"), help="folder of the trained models")
    parser.add_argument("--source", choices=SOURCES, default="emoji:names", help="what a name is given as")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--teacher_steps", type=int, default=6000)
    parser.add_argument("--steps", type=int, default=1000, help="of the student")
    args = parser.parse_args()
    runs = args.runs / args.source.partition(":")[2]
    config = config_of(args.source, 0, args.teacher_steps, args.steps)
    base = trained(config, runs / "teacher", "teacher")
    given = str(runs / "teacher" / "teacher" / "export")
    frozen = load_teacher(base, runs / "teacher")[0]
    students = {}
    for seed in args.seeds:
        changed, folder = config_of(args.source, seed, args.teacher_steps, args.steps), runs / f"student-{seed}"
        job = trained(changed, folder, "distill", teacher={"checkpoint": given})
        students[seed] = job, load_student(job, folder)[0]

    rows: list[dict[str, Any]] = []
    pictures: dict[str, Array] = {}
    flags = f"--teacher_steps {args.teacher_steps} --steps {args.steps} --seeds {' '.join(map(str, args.seeds))}"
    command = f"python -m benchmarks.text_to_emoji --source {args.source} {flags}"
    known = {"text": SOURCES[args.source], "command": command}
    sets = {"training": training_names(config, base.test()), "held-out": (base.test(), name_words()[rows_of("test")])}
    for names, (test, words) in sets.items():
        real = {"names": names, "text": "", "label": "real drawings", "nfe": 0, "seed": 0, "command": ""}
        rows.append({**real, "accuracy": retrieval_accuracy(test.x_0, words)})
        samplers = [
            (0, Sampler("teacher", n, jax.jit(functools.partial(base.teacher.sample, steps=n)), frozen)) for n in NFE
        ]
        samplers += [(s, Sampler("Di-Bregman", 1, jax.jit(j.distill.sample), p)) for s, (j, p) in students.items()]
        for seed, sampler in samplers:
            key = stream(jax.random.key(seed), "evaluate")
            settings = {"batch_size": config.evaluate.batch_size, "key": key, "generates": True}
            (row,), images = evaluate([sampler], test, base.features, **settings)
            (made,) = images.values()
            found = {"names": names, **known, "seed": seed, "accuracy": retrieval_accuracy(made, words)}
            rows.append({**row._asdict(), **found})
            print(rows[-1], flush=True)
            if seed == args.seeds[0] or sampler.label == "teacher":
                few = np.linspace(0, len(made) - 1, SHOWN).astype(int)
                pictures.setdefault(f"{sampler.label} {sampler.nfe}", made[few])
        pictures.setdefault("drawing", np.asarray(test.x_0)[np.linspace(0, len(test.x_0) - 1, SHOWN).astype(int)])
    write(rows)
    save_grid(RESULTS / "text_to_emoji.png", pictures)


if __name__ == "__main__":
    main()
