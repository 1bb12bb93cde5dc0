"""The table of methods by task: teachers, their students in one step and in up to four, and plain regression.

    python -m benchmarks.quality --runs runs/quality                      all of it
    python -m benchmarks.quality --runs runs/quality --seeds 0 --tasks jpeg-5 --teachers i2sb

A cell is a task, a kind of teacher and a seed of this teacher's students; the teacher itself is trained and measured
once, and so is regression. On 2 CPU cores, with JAX_NUM_CPU_DEVICES=2, these take 18 minutes, a cell 20. All is under
--runs, where a stopped run goes on; what is finished is not done again. After each cell
benchmarks/results/quality.{json,md,png} are written from all in --runs; the cells of quality.json that are not there
stay as they are.
"""

import argparse
import functools
import importlib.util
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from matplotlib.figure import Figure

from ibmd_jax.bridges.parametrisations import data_moments
from ibmd_jax.build import build, build_data
from ibmd_jax.core.streams import stream
from ibmd_jax.train.evaluate import Sampler, evaluate
from ibmd_jax.train.job import Job, load_student, load_teacher, run
from ibmd_jax.train.pictures import save_grid

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


class Task(NamedTuple):
    """data: fields of config.data. noisy: x_T is noise where x_0 is unknown, so that the student of a teacher that does
    not see x_T needs no z."""

    data: dict[str, Any]
    noisy: bool = False
    features: str = "emoji"


FASHION = {"source": "tfds:fashion_mnist", "channels": 1, "fit": "pad"}
TASKS: dict[str, Task] = {
    "sr4x": Task({"corruption": "sr4x-pool"}),
    "jpeg-5": Task({"corruption": "jpeg-5"}),
    "inpaint": Task({"corruption": "inpaint-center"}, noisy=True),
    "twemoji-noto": Task({"source": "emoji:pairs", "corruption": "none"}),
    "sketch": Task({"corruption": "sketch"}),
    "fashion-sr4x": Task({**FASHION, "corruption": "sr4x-pool"}, features="fashion"),
    "fashion-inpaint": Task({**FASHION, "corruption": "inpaint-center"}, noisy=True, features="fashion"),
}
TEACHERS = ("i2sb", "ddbm")
NFE = (1, 2, 4, 10, 100)
SAMPLERS: dict[str, dict[str, Any]] = {
    "ancestral": {"name": "ancestral", "time_grid": "uniform"},
    "DBIM": {"name": "dbim"},
}
# The most that a row's FID may be of the teacher's at 100 NFE, where x_T nearly determines x_0, and elsewhere.
BARS = {("IBMD", 1): (1.15, 1.4), ("IBMD, 4 steps", 4): (1.1, 1.1)}
DETERMINED = ("sr4x", "jpeg-5", "fashion-sr4x")
# Bridge matching at t = T alone is regression to the mean; like the students it starts at the teacher.
REGRESSION = {"time_sampler": "end", "steps": 600}
METRICS = ("FID", "KID", "PSNR", "SSIM", "diversity")


def base_config(task: str, teacher: str, seed: int) -> ml_collections.ConfigDict:
    """configs/inpaint.py for another task, and for a conditional teacher."""
    spec = importlib.util.spec_from_file_location("inpaint", ROOT / "configs" / "inpaint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.name = f"{task}-{teacher}-{seed}"
    config.data.update(TASKS[task].data)
    config.evaluate.features = TASKS[task].features
    config.distill.student_steps = 1
    config.distill.noise_channels = 0 if TASKS[task].noisy else config.data.channels
    with config.unlocked():
        config.network.out_channels = config.data.channels
    config.schedule.update(save_every=200, picture_every=1000, keep=1)
    if teacher == "ddbm":
        batch = next(build_data(config).batches("teacher", 3000)(0))
        moments = {name: round(value, 3) for name, value in data_moments(batch.x_0, batch.x_T).items()}
        with config.unlocked():
            config.bridge = {"name": "ddbm_vp", "beta_d": 2.0, "beta_min": 0.1}
            config.parametrisation = {"name": "ddbm", **moments}
            config.network.conditional = True
        config.teacher.weight = "native"
        # Students of conditional teachers need calm optimisers, and z where the teacher knows it: see ablations.md.
        config.distill.update(student_weight="one", auxiliary_weight="native", t_start=0.9, noise_channels=0)
        config.distill.student_optimizer.update(learning_rate=1e-4, b1=0.9)
        config.distill.auxiliary_optimizer.update(learning_rate=3e-4, b1=0.9)
    config.seed = seed  # last: the moments are the same for all seeds, as their teacher is
    return config


def trained(config: ml_collections.ConfigDict, folder: Path, mode: str, **changes: dict[str, Any]) -> Job:
    """The job of a configuration with some sections changed, after running a mode of it."""
    changed = config.copy_and_resolve_references()
    for section, values in changes.items():
        changed[section].update(values)
    job = build(changed)
    run(job, folder, mode)
    return job


def trained_teacher(task: str, teacher: str, runs: Path) -> tuple[Job, str]:
    """The teacher of all cells of a task: its job, and the folder of its parameters."""
    folder = runs / f"{task}-{teacher}"
    return trained(base_config(task, teacher, 0), folder, "teacher"), str(folder / "teacher" / "export")


def sampler(label: str, nfe: int, method: Any, params: Any, steps: int) -> Sampler:
    return Sampler(label, nfe, jax.jit(functools.partial(method.sample, steps=steps)), params)


def measure(folder: Path, samplers: list[Sampler], job: Job, seed: int) -> None:
    """Puts the rows of some samplers into a folder, with a picture."""
    key, test = stream(jax.random.key(seed), "evaluate"), job.test()
    size = job.config["evaluate"]["batch_size"]
    found, images = evaluate(
        samplers, test, job.features, batch_size=size, key=key, report=lambda r: print(r, flush=True)
    )
    few = np.linspace(0, test.x_T.shape[0] - 1, 6).astype(int)
    shown = {"input": test.x_T, **images, "truth": test.x_0}
    save_grid(folder / "samples.png", {name: np.asarray(x)[few] for name, x in shown.items()})
    (folder / "rows.json").write_text(json.dumps([row._asdict() for row in found], indent=1))


def measure_teacher(task: str, teacher: str, runs: Path) -> None:
    """The teacher by both samplers, and regression: once for all seeds of students, if it is not done."""
    folder = runs / f"{task}-{teacher}"
    if (folder / "rows.json").exists():
        return
    slow, given = trained_teacher(task, teacher, runs)
    config = base_config(task, teacher, 0)
    regression = trained(config, folder / "regression", "teacher", teacher={"start": given, **REGRESSION})
    plain = load_teacher(regression, folder / "regression")[0]
    samplers = [sampler("regression", 1, regression.teacher, plain, 1)]
    frozen = load_teacher(slow, folder)[0]
    for label, settings in SAMPLERS.items():
        with config.unlocked():
            config.evaluate.sampler = settings
        config.evaluate.nfe = NFE
        job = build(config)
        samplers += [
            sampler(f"teacher, {label}", nfe, job.teacher, frozen, steps) for nfe, steps in job.teacher_steps.items()
        ]
    measure(folder, samplers, slow, 0)


def cell(task: str, teacher: str, seed: int, runs: Path) -> None:
    """Trains what is not there yet, and measures all rows on the same test images."""
    folder, config = runs / f"{task}-{teacher}-{seed}", base_config(task, teacher, seed)
    if (folder / "rows.json").exists():
        return
    given = trained_teacher(task, teacher, runs)[1]
    measure_teacher(task, teacher, runs)
    one = trained(config, folder / "one", "distill", teacher={"checkpoint": given})
    four = trained(config, folder / "four", "distill", teacher={"checkpoint": given}, distill={"student_steps": 4})
    student = load_student(one, folder / "one")[0]
    multi = load_student(four, folder / "four")[0]
    samplers = [sampler("IBMD", 1, one.distill, student, 1)]
    samplers += [sampler("IBMD, 4 steps", n, four.distill, multi, n) for n in (1, 2, 4)]
    measure(folder, samplers, one, seed)


def best_teachers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with only the better sampler of the teacher, by FID, for each NFE; the last is the teacher at 100."""
    kept = [row for row in rows if not row["label"].startswith("teacher")]
    for nfe in NFE:
        same = [row for row in rows if row["label"].startswith("teacher") and row["nfe"] == nfe]
        kept += [min(same, key=lambda row: row["metrics"]["fid"])] if same else []
    return kept


def markdown(results: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """results: "task teacher" -> seed -> rows."""
    lines = [
        "# Methods by task\n",
        "32 pixels; the embedded emoji, 398 held-out images, or the 10,000 of Fashion-MNIST (fashion-). FID, KID:",
        "on the bundled features of either; they compare with no other table. Teachers, 2000 steps of 64, and",
        "regression from them, 600 steps: one for all seeds. Students: 400 iterations of 32 with L = 4. DDBM's",
        "students have lambda = 1, z in x_t and calm optimisers: see [ablations.md](ablations.md). Teachers'",
        "rows have the better of ancestral sampling and DBIM, which is made for teachers that see x_T: DDBM's,",
        "not I2SB's. Diversity: root mean square deviation over z. Images/s compare within a cell, roughly: the",
        "machine had other work. Made by `python -m benchmarks.quality` (after",
        "`python -m ibmd_jax.data.prepare fashion_mnist`); with more seeds, mean ± standard deviation.\n",
        "![FID against NFE by task](quality.png)",
    ]
    heads = ["model", "NFE", *METRICS, "images/s", "FID over teacher's at 100", "bar"]
    for name, seeds in results.items():
        lines += [f"\n## {name} (seeds {', '.join(seeds)})\n", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
        kept = [best_teachers(rows) for rows in seeds.values()]
        for versions in zip(*kept, strict=True):
            label = " or ".join(dict.fromkeys(v["label"] for v in versions))  # the better sampler may differ by seed
            nfe = versions[0]["nfe"]
            ratio = np.mean(
                [v["metrics"]["fid"] / r[-1]["metrics"]["fid"] for v, r in zip(versions, kept, strict=True)]
            )
            bar = BARS.get((label, nfe))
            limit = bar and bar[name.split()[0] not in DETERMINED]
            cells = [number([v["metrics"][m.lower()] for v in versions]) for m in METRICS]
            cells += [f"{np.mean([v['images_per_second'] for v in versions]):.0f}", f"{ratio:.2f}"]
            cells += [f"{limit}: {'met' if ratio <= limit else 'missed'}" if limit else ""]
            lines.append(f"| {label} | {nfe} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def number(values: list[float]) -> str:
    """Mean ± standard deviation; a teacher is measured once, for all seeds, and has none."""
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(set(values)) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"), help="folder of the trained models")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--teachers", nargs="+", default=list(TEACHERS), choices=TEACHERS)
    args = parser.parse_args()
    for seed in args.seeds:
        for task in args.tasks:
            for teacher in args.teachers:
                cell(task, teacher, seed, args.runs)
                write(args.runs)


def plot(results: dict[str, dict[str, list[dict[str, Any]]]], path: Path) -> None:
    """FID against NFE for each task and kind of teacher, both logarithmic; means over the seeds."""
    columns = min(4, len(results))
    figure = Figure(figsize=(3.2 * columns, 2.8 * -(-len(results) // columns)), layout="constrained")
    grid = figure.subplots(-(-len(results) // columns), columns, squeeze=False)
    for axes in grid.flat[len(results) :]:
        axes.remove()
    for axes, (name, seeds) in zip(grid.flat, results.items(), strict=False):
        axes.set(title=name, xscale="log", yscale="log", xlabel="NFE", ylabel="FID")
        fids: dict[str, dict[int, list[float]]] = {}
        for row in itertools.chain.from_iterable(map(best_teachers, seeds.values())):
            label = "teacher" if row["label"].startswith("teacher") else row["label"]
            fids.setdefault(label, {}).setdefault(row["nfe"], []).append(row["metrics"]["fid"])
        for label in ("teacher", "regression", "IBMD", "IBMD, 4 steps"):
            axes.plot(list(fids[label]), [np.mean(v) for v in fids[label].values()], ".-", label=label)
    grid.flat[0].legend(fontsize="x-small")
    figure.savefig(path, dpi=120)


def write(runs: Path) -> None:
    """The results from every finished cell, in the order of the tables above."""
    path, cells = RESULTS / "quality.json", {}
    before = json.loads(path.read_text()) if path.exists() else {}
    for name in (f"{task}-{teacher}" for task in TASKS for teacher in TEACHERS):
        slow, files = runs / name / "rows.json", runs.glob(f"{name}-[0-9]*/rows.json")
        seeds = {
            file.parent.name.rsplit("-", 1)[1]: json.loads(slow.read_text()) + json.loads(file.read_text())
            for file in files
        }
        key = " ".join(name.rsplit("-", 1))
        if seeds := before.get(key, {}) | seeds:
            cells[key] = dict(sorted(seeds.items()))
    path.write_text(json.dumps(cells, indent=1) + "\n")
    (RESULTS / "quality.md").write_text(markdown(cells))
    plot(cells, RESULTS / "quality.png")


if __name__ == "__main__":
    main()
