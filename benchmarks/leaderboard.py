"""Every method from one teacher with one budget of network passes: Fashion-MNIST from noise, 32 pixels.

    python -m ibmd_jax.data.prepare fashion_mnist --from FOLDER
    python -m benchmarks.leaderboard --runs runs/leaderboard --seeds 0 1 2

The teacher, and another one of fewer steps as a control, are trained once (20 and 6 minutes on 2 CPU cores); a row
takes 6 to 13 minutes, so a seed of all some three hours. All is under --runs, where a stopped run goes on; what is
finished is not done again. After each row benchmarks/results/leaderboard.{json,md,png} are written from all in --runs;
the rows of leaderboard.json that are not there stay as they are.
"""

import argparse
import functools
import importlib.util
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from matplotlib.figure import Figure

from benchmarks.quality import RESULTS, ROOT, trained
from ibmd_jax.build import build_data
from ibmd_jax.core.streams import stream
from ibmd_jax.core.types import Array
from ibmd_jax.train.compare import cosine
from ibmd_jax.train.evaluate import Sampler, evaluate, restore, split
from ibmd_jax.train.job import Job, load_student, load_teacher
from ibmd_jax.train.pictures import save_grid

STEPS, CHAIN = 16, 1024  # of SFDDM's student, and of the teacher's own chain
FINE = 4  # steps of the teacher in one of the student's, for latents: a chain of 64 becomes one of 16
FOLDS = [512, 256, 128, 64, 32, 16]
BUDGET = 512_000  # network passes of one image; a backward pass counts two
CONTROL = 2000  # training steps of the independent model
COMPARED = 2000  # images that consistency is measured on
CHAINED = 1000  # images that the whole chain is taken for: 10 minutes
WHOLE = f"teacher, {CHAINED:,} images"


class Entry(NamedTuple):
    """A row of the table: config.distill.method with changed settings, and its passes for an example of a batch.

    passes: of a step: forward 1, backward 2, by the networks in the method's file; shared: those of them that are of
    one network on one input, which the compiler makes once.
    """

    method: str
    passes: int
    settings: Mapping[str, Any] = MappingProxyType({})
    shared: int = 0


UPDATES = 4  # of the auxiliary network, for one of the student
# An update of the auxiliary network: student 1, auxiliary 3, the classifier's features of both images 2. One of the
# student: 3, teacher 1, auxiliary 1, classifier 1; for IBMD teacher and auxiliary 2 each: a backward pass to the input
# alone counts 1. The features of the student's image are the auxiliary network's, made for its own loss, too.
BREGMAN, SHARED = UPDATES * 6 + 6, UPDATES + 1
FEATURES = {"hidden": "features", "output_weight": 1.0}
LATENTS = {"hidden": "latents", "output_weight": 0.0, "chain": FINE}
ENTRIES = {
    "SFDDM, features": Entry("sfddm", 3 + 1, FEATURES),
    "SFDDM, features, random start": Entry("sfddm", 3 + 1, {**FEATURES, "start": "random"}),
    "SFDDM, latents of 64 steps": Entry("sfddm", 3 + FINE, LATENTS),
    "progressive, 6 folds": Entry("progressive", 3 + 2),
    "IBMD": Entry("ibmd", UPDATES * 4 + 7),
    **{
        f"Di-Bregman, {name.replace('_', ' ')}": Entry("dibregman", BREGMAN, {"divergence": name}, SHARED)
        for name in ("reverse_kl", "jensen_shannon", "softened_reverse_kl", "forward_kl", "hellinger", "pearson")
    },
}
# Di-Bregman with one thing changed: further passes, and settings.
TEACHER_STEPS = 16  # for a sample of the teacher
ABLATIONS: dict[str, tuple[int, dict[str, Any]]] = {
    "no normalisation": (0, {"normalise": False}),
    "no bounds of r": (0, {"ratio_clip": (0.0, float("inf"))}),  # that of the logit alone changes nothing beside them
    "no bounds of r, nor of the logit": (0, {"ratio_clip": (0.0, float("inf")), "logit_clip": 0.0}),
    "no mean of r": (0, {"ratio_mean": False}),
    "no mean of the weight": (0, {"weight_mean": False}),
    "own classifier network": (UPDATES * 4, {"classifier": "own"}),
    "teacher's samples for p": (UPDATES * TEACHER_STEPS, {"reference": "teacher", "reference_steps": TEACHER_STEPS}),
    "adversarial term 0.01": (1, {"adversarial": 0.01}),
}
BASE = "jensen_shannon"
ROWS = ENTRIES | {
    name: Entry("dibregman", BREGMAN + more, {"divergence": BASE, **given}, 0 if "classifier" in given else SHARED)
    for name, (more, given) in ABLATIONS.items()
}


@functools.cache
def generate_config(arg: str) -> ml_collections.ConfigDict:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "configs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


def config_of(method: str, seed: int) -> ml_collections.ConfigDict:
    config = generate_config(f"{method},fashion").copy_and_resolve_references()
    config.seed = seed
    config.schedule.update(picture_every=10_000, keep=1)
    return config


def file_name(label: str, number: int) -> str:
    return f"{label.replace(', ', '-').replace(' ', '_')}-{number}"


def steps_for(entry: Entry, config: ml_collections.ConfigDict) -> int:
    return round(BUDGET / (entry.passes * config.distill.batch_size))


def student(label: str, seed: int, teacher: str, runs: Path) -> tuple[Job, Any, float]:
    """A row's trained student: its job, its parameters, and the seconds of its training, nan if not all in one go."""
    entry = ROWS[label]
    config, folder = config_of(entry.method, seed), runs / file_name(label, seed)
    begin, steps = float("nan") if folder.exists() else time.perf_counter(), steps_for(entry, config)
    if entry.method != "progressive":
        settings = {"steps": steps, **entry.settings}
        job = trained(config, folder, "distill", teacher={"checkpoint": teacher}, distill=settings)
    else:
        for fold in FOLDS:
            settings = {"steps": steps // len(FOLDS), "student_steps": fold}
            job = trained(config, folder / str(fold), "distill", teacher={"checkpoint": teacher}, distill=settings)
            teacher = str(folder / str(fold) / "distill" / "export")
        folder = folder / str(FOLDS[-1])
    return job, load_student(job, folder)[0], time.perf_counter() - begin


def classify(
    features: Callable[[Array], Array], data: np.ndarray, labels: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """Images -> classes, by ridge regression of labels on features of real images."""
    seen = np.concatenate([np.asarray(features(x)) for x in np.array_split(data, 20)])
    mean = seen.mean(0)
    design = np.concatenate([seen - mean, np.ones((len(seen), 1))], 1)
    weights = np.linalg.solve(design.T @ design + 10 * np.eye(design.shape[1]), design.T @ np.eye(10)[labels])

    def classes(images: np.ndarray) -> np.ndarray:
        found = np.concatenate([np.asarray(features(x)) for x in np.array_split(images, 20)])
        return (np.concatenate([found - mean, np.ones((len(found), 1))], 1) @ weights).argmax(1)

    return classes


class Judge:
    """Measures samplers on the same noise: the table's metrics, class shares, and consistency with two teachers.

    known: the parameters of the students' teacher, and of one that none of them has seen.
    """

    def __init__(self, job: Job, known: dict[str, Any], examples: int):
        self.job, self.examples = job, examples
        self.size = job.config["evaluate"]["batch_size"]
        self.test = jax.tree.map(lambda x: x[:examples], job.test())
        train = build_data(config_of("sfddm", 0)).train
        rows = [train[i] for i in range(10_000)]
        images = np.stack([row["x_0"] for row in rows]).astype(np.float32) / 127.5 - 1
        self.classes = classify(job.features, images, np.array([row["label"] for row in rows]))
        self.real = self.shares(np.asarray(self.test.x_0))
        self.mean = np.asarray(job.features(self.test.x_0[:COMPARED])).mean(0)
        few = jax.tree.map(lambda x: x[:COMPARED], self.test)
        sample = jax.jit(functools.partial(job.teacher.sample, steps=STEPS))

        def shown(params: Any) -> np.ndarray:
            sampler = Sampler("teacher", STEPS, sample, params)
            images, _ = restore(sampler, lambda: split(few, self.size), len(few.x_T), jax.random.key(0))
            return np.asarray(job.features(images))

        self.known = {name: shown(params) for name, params in known.items()}

    def cosines(self, images: np.ndarray) -> dict[str, float]:
        mine = np.asarray(self.job.features(images[:COMPARED]))
        return {name: cosine(mine, others, self.mean) for name, others in self.known.items()}

    def shares(self, images: np.ndarray) -> np.ndarray:
        return np.bincount(self.classes(images), minlength=10) / len(images)

    def row(self, label: str, nfe: int, sample: Callable[..., Array], params: Any, seed: int) -> dict[str, Any]:
        key = stream(jax.random.key(seed), "evaluate")
        settings = {"batch_size": self.size, "key": key, "generates": True}
        sampler = Sampler(label, nfe, jax.jit(sample), params)
        (found,), images = evaluate([sampler], self.test, self.job.features, **settings)
        (self.images,) = images.values()
        share = self.shares(self.images) / self.real
        known = {"classes": share.tolist(), "cosine": self.cosines(self.images)}
        return {**found._asdict(), **known, "examples": self.examples, "seed": seed}


def kept(path: Path, examples: int, make: Callable[[], dict[str, Any]]) -> None:
    """Makes a row and writes it, unless it is there: then it must be of as many examples and of the same budget."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        found = make() | {"budget": BUDGET}
        path.write_text(json.dumps(found, indent=1))
        print({k: v for k, v in found.items() if k != "classes"}, flush=True)
    row = json.loads(path.read_text())
    made, wanted = (row["examples"], row["budget"]), (examples, BUDGET)
    if made != wanted:
        raise SystemExit(f"{path} has (examples, budget) = {made}, not {wanted}: take other --runs")


HEADS = ("model", "NFE", "FID", "over the teacher's at {}", "KID", "diversity", "classes", "cosine", "to the control")
HEADS += ("passes", "minutes", "seeds")


def markdown(rows: list[dict[str, Any]], passes: dict[str, int]) -> str:
    reference = min((r for r in rows if r["label"] == "teacher"), key=lambda r: -r["nfe"])
    lines = [
        "# Leaderboard: Fashion-MNIST from noise, 32 pixels\n",
        f"One teacher (cosine schedule, v, 6000 steps of 64); every student {BUDGET:,} network passes of one image,",
        "a backward pass counting two. Di-Bregman's features of the student's image are counted for its classifier and",
        "for its auxiliary network, but made once: its rows have a sixth less. By features from the teacher's weights",
        "SFDDM has nothing to learn (`methods/sfddm.py`): that row is the teacher on fewer steps.\n",
        f"{reference['examples']:,} generated images against as many of the test set, by the features of a small",
        "classifier (`fashion`): they compare with no other table. Sampling at 16 NFE and by the teacher is",
        "deterministic (DDIM). Diversity: deviation over the noise. Classes: the share of the class that deviates most",
        "in any seed, over its share in the test set, both by a linear classifier of the features.",
        "The reverse KL divergence pays for a classifier that its gradient does not use: that is its steps. Cosine: of",
        "features, with the teacher's image at 16 NFE from the same noise, and with that of the control, another",
        f"teacher, trained from another seed for only {CONTROL} steps. With several seeds mean ± standard deviation.",
        "By `python -m benchmarks.leaderboard`.\n",
        f"| {' | '.join(HEADS).format(reference['nfe'])} |",
        "|" + "---|" * len(HEADS),
    ]
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["label"], row["nfe"]), []).append(row)

    def text(values: list[float], digits: int) -> str:
        values = [v for v in values if v is not None and not np.isnan(v)]
        if not values:
            return ""
        spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
        return f"{np.mean(values):.{digits}f}{spread}"

    for (label, nfe), group in groups.items():
        metrics = [r["metrics"] for r in group]
        worst = [max((v for r in group for v in r["classes"]), key=lambda v: abs(v - 1))]
        cells = [
            f"{BASE.replace('_', ' ')}, {label}" if label in ABLATIONS else label,
            str(nfe),
            text([m["fid"] for m in metrics], 2),
            "" if label == WHOLE else f"{np.mean([m['fid'] for m in metrics]) / reference['metrics']['fid']:.2f}",
            text([m["kid"] for m in metrics], 2),
            text([m["diversity"] for m in metrics], 3),
            text(worst, 2),
            *(text([r["cosine"][name] for r in group], 3) for name in ("teacher", "control")),
            f"{passes[label]:,}" if label in passes else "",
            text([r.get("minutes") for r in group], 1),
            str(len(group)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["\n## What was claimed, and what this table says\n", *(f"- {claim}" for claim in claims(groups))]
    return "\n".join(lines) + "\n"


def paired(groups: dict[tuple[str, int], list[dict[str, Any]]], a: tuple[str, int], b: tuple[str, int]) -> str:
    """Whether row a is better than row b, by the seeds that both have."""
    first, second = ({r["seed"]: r["metrics"] for r in groups[row]} for row in (a, b))
    seeds, said = sorted(first.keys() & second.keys()), []
    for name in ("fid", "kid"):
        pairs = [(first[seed][name], second[seed][name]) for seed in seeds]
        better, values = sum(x < y for x, y in pairs), ", ".join(f"{x:.2f} against {y:.2f}" for x, y in pairs)
        word = "it is" if better == len(pairs) else "**it is not**" if not better else "**not with every seed**"
        said.append(f"{name.upper()} {values}, {word}")
    return "; ".join(said)


def claims(groups: dict[tuple[str, int], list[dict[str, Any]]]) -> list[str]:
    """A line for each claim whose rows are there, by the means over seeds."""

    def mean(label: str, nfe: int, *path: str) -> float:
        values = groups[label, nfe]
        for name in path:
            values = [v[name] for v in values]
        return float(np.mean(values))

    def verdict(holds: bool) -> str:
        return "it does" if holds else "**it does not**"

    finest, found = max(nfe for label, nfe in groups if label == "teacher"), []
    teacher = mean("teacher", finest, "metrics", "fid")
    if (WHOLE, CHAIN) in groups:
        few = [mean(WHOLE, nfe, "metrics", "fid") for nfe in (CHAIN, finest)]
        found.append(
            f"The teacher has {CHAIN} steps, and is taken at {finest} here. On {CHAINED:,} images, against as many "
            f"real ones, where an FID is larger, the whole chain has {few[0]:.2f}, {finest} steps {few[1]:.2f}."
        )
    students, folds = [label for label in ENTRIES if label.startswith("SFDDM")], ("progressive, 6 folds", FOLDS[-1])
    for label in students:
        if (label, STEPS) in groups:
            ratio = mean(label, STEPS, "metrics", "fid") / teacher
            found.append(
                f"{label}: at {STEPS} NFE at most 1.3 times the teacher's FID at {finest}: {ratio:.2f}, "
                f"{verdict(ratio <= 1.3)}."
            )
        if (label, STEPS) in groups and folds in groups:
            found.append(f"{label} better than progressive distillation: {paired(groups, (label, STEPS), folds)}.")
    reverse = "Di-Bregman, reverse kl", 1
    others = [(label, 1) for label in ENTRIES if label.startswith("Di-") and (label, 1) in groups]
    others = [row for row in others if row != reverse]
    if others and reverse in groups:
        best = min(others, key=lambda row: mean(*row, "metrics", "fid"))
        ratio = mean(*best, "metrics", "fid") / teacher
        found.append(
            f"The best h of {len(others) + 1} is better than the reverse KL divergence: {best[0]}: "
            f"{paired(groups, best, reverse)}; at most 1.5 times the teacher: {ratio:.2f}, {verdict(ratio <= 1.5)}."
        )
    base = groups.get((f"Di-Bregman, {BASE.replace('_', ' ')}", 1), [])
    known = {r["seed"]: r["metrics"]["fid"] for r in base}
    changed = [(label, r) for label in ABLATIONS for r in groups.get((label, 1), []) if r["seed"] in known]
    if changed:
        parts = [f"{label} {r['metrics']['fid'] / known[r['seed']]:.2f}" for label, r in changed]
        found.append(
            f"{base[0]['label']} with one thing changed, its FID over that of the same seed unchanged: "
            f"{', '.join(parts)}. Unchanged, seeds differ by {max(known.values()) / min(known.values()):.2f}: "
            "what is nearer to 1 says nothing."
        )
    off = {row: max(abs(v - 1) for r in group for v in r["classes"]) for row, group in groups.items()}
    inside = [f"{label} at {nfe}" for (label, nfe), worst in off.items() if worst <= 0.2]
    share = "only " + ", ".join(inside) if inside else "**no row**, the teacher included"
    students = {row: min(v for r in groups[row] for v in r["classes"]) for row in groups if row[0] in ENTRIES}
    few, nfe = min(students, key=lambda row: students[row])
    found.append(
        f"Every class has its share within 20 %: {share}. The least share of a class in a student, 0 for one "
        f"that it has lost: {students[few, nfe]:.2f} ({few})."
    )
    near, far = [], []
    for row in groups:
        if row[0] in ENTRIES:
            to = [mean(*row, "cosine", name) for name in ("teacher", "control")]
            (near if to[0] > to[1] else far).append(f"{row[0]} ({to[0]:.3f}, {to[1]:.3f})")
    found.append(
        "A student's images are nearer to its teacher's, from the same noise, than to the control's (cosines): "
        f"{', '.join(near) or 'none'}. **Not**: {', '.join(far) or 'none'}."
    )
    return found


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """FID against NFE, both logarithmic."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="network evaluations an image (NFE)", ylabel="FID", xscale="log", yscale="log")
    slow = sorted((r["nfe"], r["metrics"]["fid"]) for r in rows if r["label"] == "teacher")
    axes.plot(*zip(*slow, strict=True), "k.-", label="teacher, DDIM")
    for label in dict.fromkeys(r["label"] for r in rows if r["label"] not in ("teacher", WHOLE, *ABLATIONS)):
        found = [r for r in rows if r["label"] == label]
        axes.plot(found[0]["nfe"], np.mean([r["metrics"]["fid"] for r in found]), "o", label=label)
    axes.legend(fontsize="x-small")
    figure.savefig(path, dpi=120)


def write(runs: Path) -> None:
    """The results from every finished row, in the order of the tables above."""
    path = RESULTS / "leaderboard.json"
    before = json.loads(path.read_text()) if path.exists() else []
    found = [*before, *(json.loads(f.read_text()) for f in runs.glob("rows/*.json"))]
    rows = list({(r["label"], r["nfe"], r["seed"]): r for r in found}.values())
    order = ["teacher", WHOLE, "control", *ROWS]
    rows.sort(key=lambda r: (order.index(r["label"]), r["nfe"], r["seed"]))
    passes = {}
    for label, entry in ROWS.items():
        config = config_of(entry.method, 0)
        steps = steps_for(entry, config)
        if entry.method == "progressive":
            steps -= steps % len(FOLDS)
        passes[label] = steps * config.distill.batch_size * (entry.passes - entry.shared)
    path.write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / "leaderboard.md").write_text(markdown(rows, passes))
    plot(rows, RESULTS / "leaderboard.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/leaderboard"), help="folder of the trained models")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--teacher_nfe", type=int, nargs="+", default=[1, 4, 64])
    parser.add_argument("--examples", type=int, default=10_000, help="images to generate for each row")
    args = parser.parse_args()
    known = {}
    for seed, name, changed in ((1, "control", {"steps": CONTROL}), (0, "teacher", {})):
        job = trained(config_of("sfddm", seed), args.runs / name, "teacher", teacher=changed)
        known[name] = load_teacher(job, args.runs / name)[0]
    given, frozen = str(args.runs / "teacher" / "teacher" / "export"), known["teacher"]
    judge = Judge(job, known, args.examples)

    def teacher_row(label: str, nfe: int, params: Any, judge: Judge = judge) -> None:
        sample = functools.partial(job.teacher.sample, steps=nfe)
        path = args.runs / "rows" / f"{file_name(label, nfe)}.json"
        kept(path, judge.examples, lambda: judge.row(label, nfe, sample, params, 0))
        write(args.runs)

    for name in ("teacher", "control"):
        teacher_row(name, STEPS, known[name])
    shown = {}
    for seed in args.seeds:
        for label in args.rows:
            own, params, seconds = student(label, seed, given, args.runs)
            steps = own.student_steps[-1]

            def make(label=label, own=own, params=params, steps=steps, seconds=seconds, seed=seed) -> dict[str, Any]:
                row = judge.row(label, steps, own.distill.sample, params, seed)
                shown[f"{label} {steps}"] = judge.images[:8]
                return {**row, "minutes": seconds / 60}

            kept(args.runs / "rows" / f"{file_name(label, seed)}.json", args.examples, make)
            write(args.runs)
    for nfe in args.teacher_nfe:
        teacher_row("teacher", nfe, frozen)
    fewer = Judge(job, known, min(CHAINED, args.examples))
    for nfe in (max(args.teacher_nfe), CHAIN):
        teacher_row(WHOLE, nfe, frozen, fewer)
    if shown:
        save_grid(args.runs / "samples.png", {**shown, "data": np.asarray(judge.test.x_0[:8])})


if __name__ == "__main__":
    main()
