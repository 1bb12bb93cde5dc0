"""The whole job in one workdir: teacher, distillation, evaluation; each stage is skipped where its result is there.

WORKDIR/config.json              the configuration that owns the folder
        teacher/, distill/       checkpoints/, events/ (TensorBoard), curves.png, export/ (the parameters to deploy)
        teacher/raw/             the teacher's parameters without averaging, for config.distill.start
        pictures/                image grids made while training
        report.json, samples.png the evaluation
        samples/                 restored images, one file each (--mode=sample), of the test set or of --input
        consistency.{json,png}   student and teacher from the same noise, and
        interpolation.png        the student on lines in it (--mode=compare)
"""

import contextlib
import functools
import json
import logging
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from ibmd_jax.core.arrays import to_uint8
from ibmd_jax.core.errors import UserError, lookup, named
from ibmd_jax.core.streams import step_key, stream
from ibmd_jax.core.types import Array, Batch, Params
from ibmd_jax.methods.base import Method
from ibmd_jax.networks.generator import with_new_inputs
from ibmd_jax.train.checkpoint import NotNow, check_params, load_params
from ibmd_jax.train.compare import cosine, spherical, straight
from ibmd_jax.train.evaluate import Row, Sampler, diversity, evaluate, other_inputs, split, table
from ibmd_jax.train.loop import Schedule, fit
from ibmd_jax.train.pictures import expendable, save_curves, save_grid
from ibmd_jax.train.processes import end_on_sigterm, highest, is_first, progress, say, to_host
from ibmd_jax.train.sharding import abstract_state
from ibmd_jax.train.workdir import check_workdir, locked

log = logging.getLogger(__name__)


class Restoring(NamedTuple):
    """What --mode=sample is asked for. input: a folder of images; "": the test images. output: a folder; "": samples/
    in the workdir. steps: of the student; 0 for as many as it can take. draws: restorations of each image."""

    input: str = ""
    output: str = ""
    steps: int = 0
    draws: int = 1


class Job(NamedTuple):
    """All that a run is made of; build/ makes it from a configuration.

    init_params(key, noise_channels) -> parameters; init_teachers: such a function for each of several given teachers,
    whose parameters are a tuple. batches(stage)(step) -> iterator over batches from that step on.
    teacher_steps: NFE -> sampling steps of the teacher's rows in the table; student_steps: all numbers of steps that
    the student can take, one NFE a step. generates: x_T is noise, which has nothing to do with x_0. test(): the test
    images, made once.
    clean: whether batches have x_0; a teacher's training and the evaluation need it.
    features: for FID and KID, or None.
    """

    config: dict[str, Any]
    mesh: Mesh
    init_params: Callable[..., Params]
    init_teachers: tuple[Callable[..., Params], ...]
    teacher: Method
    distill: Method
    teacher_steps: dict[int, int]
    student_steps: tuple[int, ...]
    generates: bool
    test: Callable[[], Batch]
    few: Callable[[], Batch]
    inputs: Callable[[str], tuple[int, Iterator[tuple[list[str], Batch]]]]
    clean: bool
    features: Callable[[Array], Array] | None
    schedule: Schedule
    batches: Callable[[str], Callable[[int], Iterator[Batch]]]
    restoring: Restoring = Restoring()


def run(job: Job, folder: Path, mode: str) -> None:
    """Runs the stages of a mode, a name of MODES.

    Raises: UserError for bad input, before any work; train.loop.Stopped on a signal.
    """
    stages = lookup(MODES, mode, "mode")
    asked = job.restoring
    for name, value in asked._asdict().items():
        if sample not in stages and value != Restoring._field_defaults[name]:
            raise UserError(f"--{name}={value} is for --mode=sample")
    if job.schedule.profile and not {train_teacher, distill} & {*stages}:
        raise UserError(f"--profile={job.schedule.profile} is of training, which --mode={mode} has none of")
    if asked.input and job.generates:
        raise UserError(f"--input={asked.input} is for students that restore: this one makes images of noise")
    if asked.steps and asked.steps not in job.student_steps:
        raise UserError(f"--steps={asked.steps}: this student takes {', '.join(map(str, job.student_steps))}")
    if asked.input:
        source, out = (path.expanduser().resolve() for path in (Path(asked.input), _restored(asked, folder)))
        if source in (out, *out.parents):
            raise UserError(
                f"{out} is in the folder of --input={asked.input}: images there could be overwritten, and what is "
                "restored would be input of the next run. Set --output to a folder elsewhere"
            )
    trains = train_teacher in stages and not job.config["teacher"]["checkpoint"]
    if not job.clean and (trains or evaluate_both in stages):
        raise UserError(
            f"config.data.source = {job.config['data']['source']!r} has no clean images, which --mode={mode} needs: "
            "set config.teacher.checkpoint, and use --mode=distill or --mode=sample"
        )
    if distill in stages:
        for name, given in _starts(job).items():
            if given in _folders({name: given}):
                try:
                    _abstract_start(job, given)
                except UserError as error:
                    raise UserError(f"config.distill.{name}: {error}") from error
    seconds: dict[str, float] = {}
    with locked(folder) if {train_teacher, distill} & {*stages} else contextlib.nullcontext():
        check_workdir(folder, job.config, written=not asked.output)
        for stage in stages:
            if stage not in (train_teacher, distill):
                end_on_sigterm()  # nothing to save
            begin = time.perf_counter()
            stage(job, folder, seconds)
            seconds[stage.__name__] = time.perf_counter() - begin


MODEL_SECTIONS = ("network", "bridge", "parametrisation")  # what parameters belong to, saved with them
PICTURE_EXAMPLES = 8
TEACHER_STEPS_IN_PICTURES = 10
STUDENT_STEPS = (1, 2, 4)  # of the rows in the table, and the most that a student takes


def teacher_folders(config: dict[str, Any]) -> list[str]:
    """The folders in config.teacher.checkpoint: none, one, or several with commas between them."""
    given = (folder.strip() for folder in config["teacher"]["checkpoint"].split(","))
    return [str(Path(folder).expanduser()) for folder in given if folder]


def _abstract(job: Job, noise_channels: int = 0, init_params: Callable[..., Params] | None = None) -> Params:
    def init() -> Params:
        return (init_params or job.init_params)(jax.random.key(0), noise_channels)

    return abstract_state(job.mesh, job.schedule.fsdp_min_size, init)


def _key(job: Job, name: str) -> Array:
    return stream(jax.random.key(job.config["seed"]), name)


def _hash(meta: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(meta['fingerprint']).encode()):08x}"


def _finished(job: Job, folder: Path, steps: int, noise_channels: int = 0) -> tuple[Params, dict[str, Any]] | None:
    """A stage's exported parameters and metadata, or None if the stage has to run (again). Raises: NotNow."""
    if highest(not (folder / "export").is_dir()):
        return None
    try:
        params, meta = load_params(folder / "export", _abstract(job, noise_channels))
    except NotNow:  # to train again would replace a good export
        raise
    except UserError as error:
        log.warning("%s", error)
        return None
    return (params, meta) if meta["step"] == steps else None


def load_teacher(job: Job, folder: Path) -> tuple[Params, dict[str, Any]]:
    """The frozen teacher and its metadata: config.teacher.checkpoint if it is set, else the workdir's own.

    Of several teachers, the tuple of their parameters. Raises: UserError if there is none, or one of another network.
    """
    given = teacher_folders(job.config)
    if job.init_teachers:
        loaded = [
            load_params(f, _abstract(job, init_params=init)) for f, init in zip(given, job.init_teachers, strict=True)
        ]
        return tuple(p for p, _ in loaded), {"fingerprint": [meta["fingerprint"] for _, meta in loaded]}
    if given:
        return load_params(given[0], _abstract(job))
    found = _finished(job, folder / "teacher", job.config["teacher"]["steps"])
    if found is None:
        raise UserError(
            f"no finished teacher in {folder}: run --mode=teacher first, or set --config.teacher.checkpoint=FOLDER"
        )
    return found


def load_student(job: Job, folder: Path) -> tuple[Params, dict[str, Any]]:
    """The distilled student and its metadata. Raises UserError if there is none."""
    c = job.config["distill"]
    found = _finished(job, folder / "distill", c["steps"], _noise_channels(job))
    if found is None:
        raise UserError(f"no finished student in {folder}: run --mode=distill (or the default mode) first")
    return found


def _check_teacher(folder: Path, student: dict[str, Any], teacher: dict[str, Any]) -> None:
    """Raises UserError, of both's metadata, unless the student was distilled from this teacher."""
    if student["identity"]["teacher"] != _hash(teacher):
        raise UserError(
            f"the student in {folder} was distilled from another teacher than the present one: bring that one back, or "
            "distil in another --workdir"
        )


def _noise_channels(job: Job) -> int:
    """Channels of the student's noise input, which some methods have none of."""
    return job.config["distill"].get("noise_channels", 0)


def _model_sections(job: Job) -> dict[str, Any]:
    return {section: job.config[section] for section in MODEL_SECTIONS}


# How a student is to be called, of what its method has.
CALLED = ("method", "student_steps", "multistep", "t_start", "noise_channels", "same_z", "blind")


def _between(job: Job, batch: Batch, columns: dict[str, Array]) -> dict[str, Array]:
    """Columns of a picture between inputs and truths, where there are these: generated images have neither."""
    if job.generates:
        return columns if batch.x_0 is None else {**columns, "data": batch.x_0}
    return {"input": batch.x_T, **columns, **({} if batch.x_0 is None else {"truth": batch.x_0})}


def _starts(job: Job) -> dict[str, str]:
    """Where config.distill.start, and .auxiliary_start if it is set, begin: "teacher", "random" or a folder."""
    c = job.config["distill"]
    return {name: c[name] or "teacher" for name in ("start", "auxiliary_start") if name == "start" or c.get(name)}


def _abstract_start(job: Job, folder: str) -> Params:
    """Of the parameters in a folder to start from, which may be those of a network that is not told the task.

    Raises: UserError if they are of neither network.
    """
    try:
        check_params(folder, _abstract(job))
        return _abstract(job)
    except UserError:
        if not job.init_teachers:
            raise
    abstract = _abstract(job, init_params=job.init_teachers[0])
    check_params(folder, abstract)
    return abstract


def _folders(starts: dict[str, str]) -> list[str]:
    """Those among `starts`, in an order that all processes have."""
    return sorted(set(starts.values()) - {"teacher", "random"})


def train_teacher(job: Job, folder: Path, seconds: dict[str, float]) -> None:
    """Bridge matching, unless the teacher is given or already there."""
    if teacher_folders(job.config):
        load_teacher(job, folder)
        return
    if _finished(job, folder / "teacher", job.config["teacher"]["steps"]):
        log.info("teacher: already trained")
        return
    few, key = job.few(), _key(job, "pictures")
    one, many = (jax.jit(functools.partial(job.teacher.sample, steps=n)) for n in (1, TEACHER_STEPS_IN_PICTURES))

    def picture(params: Params, label: str) -> dict[str, float]:
        columns = {"1 step": one(params, key, few), f"{TEACHER_STEPS_IN_PICTURES} steps": many(params, key, few)}
        path = folder / "pictures" / f"{label}.png"
        with expendable(path):
            save_grid(path, _between(job, few, columns))
        return {}

    given = job.config["teacher"]["start"]
    first = load_params(given, _abstract(job))[0] if given else None

    def start(frozen: None, given: Params | None) -> Any:
        return job.teacher.init(job.init_params(_key(job, "init")) if given is None else given)

    fit(
        "teacher",
        job.teacher,
        start,
        None,
        job.batches("teacher"),
        steps=job.config["teacher"]["steps"],
        seed=job.config["seed"],
        folder=folder / "teacher",
        mesh=job.mesh,
        identity={},
        schedule=job.schedule,
        model=_model_sections(job),
        given=first,
        picture=picture,
        also_export={"raw": lambda state: state.params},
    )
    curves = folder / "teacher" / "curves.png"
    with expendable(curves):
        save_curves(folder / "teacher" / "events", curves)


def distill(job: Job, folder: Path, seconds: dict[str, float]) -> None:
    """Distils the teacher into the student, unless it is already there."""
    c = job.config["distill"]
    teacher, meta = load_teacher(job, folder)
    identity = {"teacher": _hash(meta)}
    starts = _starts(job)
    loaded = {given: load_params(given, _abstract_start(job, given)) for given in _folders(starts)}
    identity |= {name: _hash(loaded[where][1]) for name, where in starts.items() if where in loaded}
    found = _finished(job, folder / "distill", c["steps"], _noise_channels(job))
    if found and found[1]["identity"] == identity:
        log.info("distill: already done")
        return
    few, key = job.few(), _key(job, "pictures")
    many = jax.jit(functools.partial(job.teacher.sample, steps=TEACHER_STEPS_IN_PICTURES))
    known = {f"teacher, {TEACHER_STEPS_IN_PICTURES}": many(teacher, key, few)}
    sample, steps = jax.jit(job.distill.sample), c["student_steps"]

    def picture(params: Params, label: str) -> dict[str, float]:
        restored = sample(params, key, few)
        columns = _between(job, few, {f"student, {steps}": restored, **known})
        path = folder / "pictures" / f"{label}.png"
        with expendable(path):
            save_grid(path, columns)
        another = other_inputs(few, 1, job.generates)
        varied = diversity([restored, sample(params, stream(key, "another"), another)])
        return {"diversity": varied, "outside": float(np.maximum(np.abs(to_host(restored)) - 1, 0).mean())}

    def start(frozen: Params, given: dict[str, Params]) -> Any:
        known = {"teacher": frozen[0] if job.init_teachers else frozen, **given}

        def first(where: str, channels: int) -> Params:
            params = job.init_params(_key(job, "student"), channels)
            return params if where == "random" else with_new_inputs(known[where], params)

        student = starts["start"]
        return job.distill.init(
            (first(student, _noise_channels(job)), first(starts.get("auxiliary_start", student), 0))
        )

    fit(
        "distill",
        job.distill,
        start,
        teacher,
        job.batches("distill"),
        steps=c["steps"],
        seed=job.config["seed"],
        folder=folder / "distill",
        mesh=job.mesh,
        identity=identity,
        schedule=job.schedule,
        model={**_model_sections(job), "student": {name: c[name] for name in CALLED if name in c}},
        given={where: params for where, (params, _) in loaded.items()},
        picture=picture,
    )
    curves = folder / "distill" / "curves.png"
    with expendable(curves):
        save_curves(folder / "distill" / "events", curves)


def evaluate_both(job: Job, folder: Path, seconds: dict[str, float]) -> None:
    """Teacher and, if there is one, student on the test images: a table on the terminal, report.json, samples.png."""
    c = job.config["evaluate"]
    (teacher, teacher_meta), rows = load_teacher(job, folder), []
    if (folder / "distill" / "export").exists():
        student, student_meta = load_student(job, folder)
        _check_teacher(folder, student_meta, teacher_meta)
        measured = {*STUDENT_STEPS, max(job.student_steps)} & {*job.student_steps}
        rows = [("student", n, n, job.distill, student) for n in sorted(measured)]
    else:
        say(f"No finished student in {folder}: this is its teacher alone.")
    rows += [("teacher", nfe, steps, job.teacher, teacher) for nfe, steps in job.teacher_steps.items()]
    samplers = [
        Sampler(label, nfe, jax.jit(functools.partial(method.sample, steps=steps)), params)
        for label, nfe, steps, method, params in rows
    ]

    def report(row: Row) -> None:
        found = ", ".join(f"{name} {value:.4g}" for name, value in row.metrics.items())
        log.info("%s with %d NFE: %s; %.1f images/s", row.label, row.nfe, found, row.images_per_second)

    few = np.linspace(0, job.test().x_T.shape[0] - 1, PICTURE_EXAMPLES).astype(int)
    rows, images = evaluate(
        samplers,
        job.test(),
        job.features,
        batch_size=c["batch_size"],
        key=_key(job, "evaluate"),
        generates=job.generates,
        report=report,
        shown=few,
    )
    say(f"\n{table(rows)}\n")
    first, slowest = rows[0], max((row for row in rows if row.label == "teacher"), key=lambda row: row.nfe)
    speed_up = None
    if first.label == "student":
        speed_up = first.images_per_second / slowest.images_per_second
        fast, slow = first.nfe, slowest.nfe
        say(f"The student at {fast} NFE makes {speed_up:.3g} times the images/s of the teacher at {slow} NFE.")
    if job.features is not None:
        say(f"FID and KID use the features {c['features']!r}: they compare with no published number.")
    content = {
        "rows": [row._asdict() for row in rows],
        "speed_up": speed_up,
        "seconds": seconds,
        "test_images": int(job.test().x_T.shape[0]),
        "devices": [d.device_kind for d in jax.devices()],
        "jax": jax.__version__,
        "config": job.config,
    }
    path = folder / "report.json"
    try:
        if is_first():
            path.write_text(json.dumps(content, indent=1))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; the table above is all of its numbers") from error
    picture = folder / "samples.png"
    with expendable(picture):
        save_grid(picture, _between(job, jax.tree.map(lambda x: x[few], job.test()), images))
    say(f"Wrote {path} and {picture}.")


def sample(job: Job, folder: Path, seconds: dict[str, float]) -> None:
    """Restores images with the student, as job.restoring asks: one PNG each, written batch by batch."""
    (student, _), asked = load_student(job, folder), job.restoring
    steps = {"steps": asked.steps} if asked.steps else {}
    restore, key = jax.jit(functools.partial(job.distill.sample, **steps)), _key(job, "sample")
    out = _restored(asked, folder)
    if asked.input:
        count, batches = job.inputs(asked.input)
    else:
        count, batches = len(job.test().x_T), [([f"{i:05d}" for i in range(len(job.test().x_T))], job.test())]
    size, written, before = job.config["evaluate"]["batch_size"], set(), set(out.rglob("*.png"))
    parts = (
        (names[i * size : (i + 1) * size], draw, part)
        for number, (names, batch) in enumerate(batches)
        for draw in range(asked.draws)
        for i, part in enumerate(split(_drawn(job, batch, draw, number)._replace(x_0=None), size))
    )
    with progress(count * asked.draws, "sample", "image") as bar:
        for number, (names, draw, part) in enumerate(parts):
            images = to_uint8(to_host(restore(student, step_key(key, "part", number), part)))
            files = [out / (f"{name}_{draw}.png" if asked.draws > 1 else f"{name}.png") for name in names]
            for file, image in zip(files, images, strict=False):  # beyond the last name, a part is filled up
                if is_first():
                    _write_image(file, image)
            written |= {*files}
            bar.update(len(names))
    others = len(before - written)
    say(f"Wrote {len(written)} restored images to {out}" + (f", where {others} of other runs are." if others else "."))


def _restored(asked: Restoring, folder: Path) -> Path:
    """Where restored images go."""
    return Path(asked.output).expanduser() if asked.output else folder / "samples"


def _drawn(job: Job, batch: Batch, draw: int, number: int) -> Batch:
    """The `number`-th batch with new noise in x_T, where that is noise, for each draw after the first."""
    another = draw + number * job.restoring.draws
    if draw and job.generates:
        std = named(job.config["data"]["corruption"], "corruption")[1].get("std", 1.0)
        noise = np.random.default_rng(another).standard_normal(batch.x_T.shape, np.float32)
        return batch._replace(x_T=np.float32(std) * noise)
    return other_inputs(batch, another, False) if draw else batch


def _write_image(path: Path, image: np.ndarray) -> None:
    """Raises: UserError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


INTERPOLATED = 9  # images of a line, both ends among them


def compare(job: Job, folder: Path, seconds: dict[str, float]) -> None:
    """What teacher and student make of the same noise: a picture and their consistency; the student on lines in it."""
    if not job.generates:
        raise UserError("--mode=compare is for models that generate: config.data.corruption is not 'pure-noise'")
    if job.features is None:
        raise UserError("--mode=compare needs features: set config.evaluate.features")
    sampler = job.config["evaluate"]["sampler"]
    if sampler["name"] in ("ancestral", "euler_maruyama") or sampler.get("eta"):
        raise UserError(
            "--mode=compare needs images that x_T alone decides: set config.evaluate.sampler to dbim, eta 0"
        )
    if _noise_channels(job):
        raise UserError(
            "--mode=compare needs images that x_T alone decides: this student draws noise in config.distill."
            "noise_channels"
        )
    (teacher, teacher_meta), (student, student_meta) = load_teacher(job, folder), load_student(job, folder)
    _check_teacher(folder, student_meta, teacher_meta)
    nfe = max(job.teacher_steps)
    slow = functools.partial(jax.jit(functools.partial(job.teacher.sample, steps=job.teacher_steps[nfe])), teacher)
    steps = min(job.student_steps)  # one where it draws noise between several
    fast = functools.partial(jax.jit(functools.partial(job.distill.sample, steps=steps)), student)
    key, n, size = _key(job, "compare"), job.test().x_T.shape[0], job.config["evaluate"]["batch_size"]

    def made(sample: Callable[..., Array], test: Batch) -> np.ndarray:
        return np.concatenate([to_host(sample(key, part)) for part in split(test, size)])[:n]

    def seen(images: np.ndarray) -> np.ndarray:
        return np.concatenate([np.asarray(job.features(images[i : i + size])) for i in range(0, n, size)])

    images = {"student": made(fast, job.test()), f"teacher {nfe}": made(slow, job.test())}
    ours, theirs = (seen(x) for x in images.values())
    mean, others = seen(job.test().x_0).mean(0), seen(made(slow, other_inputs(job.test(), 1, True)))
    found = {"same noise": cosine(ours, theirs, mean), "other noise": cosine(ours, others, mean)}
    say("Cosine of the features of student and teacher, from " + ", ".join(f"{k}: {v:.3f}" for k, v in found.items()))
    rows = np.linspace(0, n - 1, PICTURE_EXAMPLES).astype(int)
    ends, lines = jax.tree.map(lambda x: x[:PICTURE_EXAMPLES], job.test()), {}
    for name, line in (("straight", straight), ("slerp", spherical)):
        for i in range(INTERPOLATED):
            x_T = line(ends.x_T, other_inputs(ends, 1, True).x_T, i / (INTERPOLATED - 1))
            lines[f"{name} {i}/{INTERPOLATED - 1}"] = fast(key, ends._replace(x_T=x_T))
    try:
        if is_first():
            content = {**found, "images": n, "teacher NFE": nfe, "student NFE": steps}
            (folder / "consistency.json").write_text(json.dumps(content, indent=1))
        save_grid(folder / "consistency.png", {name: x[rows] for name, x in images.items()})
        save_grid(folder / "interpolation.png", lines)
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror}; the cosines above are all of its numbers"
        ) from error
    say(f"Wrote consistency.json, consistency.png and interpolation.png in {folder}.")


MODES: dict[str, tuple[Callable[[Job, Path, dict[str, float]], None], ...]] = {
    "all": (train_teacher, distill, evaluate_both),
    "teacher": (train_teacher,),
    "distill": (distill,),
    "evaluate": (evaluate_both,),
    "sample": (sample,),
    "compare": (compare,),
}
