"""From a configuration to objects: the only file that reads a ConfigDict. Everything is checked before any work."""

import contextlib
import functools
import inspect
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from ibmd_jax import methods
from ibmd_jax.bridges import BRIDGES, Bridge, OtOde
from ibmd_jax.bridges.parametrisations import PARAMETRISATIONS, native_weight
from ibmd_jax.bridges.times import TIME_GRIDS, TIME_SAMPLERS
from ibmd_jax.core.errors import UserError, lookup
from ibmd_jax.core.types import Array, Batch, Denoise, Network
from ibmd_jax.corruptions import Corrupted, corruption
from ibmd_jax.data import open_source
from ibmd_jax.data.pipeline import ahead, check_example, check_labels, examples, make_corrupt
from ibmd_jax.data.source import Options, Source
from ibmd_jax.methods.base import WEIGHTS, Method, product
from ibmd_jax.metrics.features import FEATURES
from ibmd_jax.networks import NETWORKS
from ibmd_jax.networks.adapters import from_linen
from ibmd_jax.networks.denoiser import init_denoiser, make_denoiser
from ibmd_jax.samplers import SAMPLERS
from ibmd_jax.train.checkpoint import read_meta
from ibmd_jax.train.job import Job
from ibmd_jax.train.loop import Schedule
from ibmd_jax.train.optim import make_optimizer
from ibmd_jax.train.sharding import batch_sharding, check_divisible, make_mesh

log = logging.getLogger(__name__)


def _check_names(kind: str, known: Iterable[str], settings: dict[str, Any]) -> None:
    for name in settings:
        if name not in known:
            raise UserError(f"config.{kind} has no field {name!r}: it takes {', '.join(known) or 'none'}")


def _make(kind: str, factory: Callable[..., Any], settings: dict[str, Any]) -> Any:
    """factory(**settings), with wrong names and values reported as UserError."""
    _check_names(kind, list(inspect.signature(factory).parameters), settings)
    try:
        return factory(**settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"config.{kind}: {error}") from error


def _named(config: dict[str, Any], section: str, table: dict[str, Any]) -> Any:
    """The entry of `table` that config[section]["name"] names, made from the section's other fields."""
    settings = dict(config[section])
    return _make(section, lookup(table, settings.pop("name"), section), settings)


# Smallest and largest value of the numbers that a run would otherwise trip over late.
RANGES = {
    "seed": (0, 2**32 - 1),
    **{f"{stage}.{name}": (1, float("inf")) for stage in ("teacher", "distill") for name in ("steps", "batch_size")},
    **{f"{stage}.ema_decay": (0, 1) for stage in ("teacher", "distill")},
    **{f"{stage}.t_min": (1e-6, 0.5) for stage in ("teacher", "distill")},
    "distill.auxiliary_updates": (1, float("inf")),
    "distill.noise_channels": (0, float("inf")),
    "distill.student_steps": (1, 1000),
    "data.size": (1, float("inf")),
    "data.workers": (0, 1000),
    "evaluate.batch_size": (1, float("inf")),
    "evaluate.examples": (0, float("inf")),
    **{f"schedule.{name}": (1, float("inf")) for name in Schedule._fields},
}


def _check_ranges(config: dict[str, Any]) -> None:
    for field, (low, high) in RANGES.items():
        section, _, name = field.rpartition(".")
        value = (config[section] if section else config)[name]
        if not low <= value <= high:
            raise UserError(
                f"config.{field} = {value}: it must be "
                + (f"at least {low}" if high == float("inf") else f"from {low} to {high}")
            )
    steps = config["evaluate"]["nfe"]
    if not steps or min(steps) < 1:
        raise UserError(f"config.evaluate.nfe = {tuple(steps)}: it must hold numbers of at least 1")


class Model(NamedTuple):
    """All of a configuration that needs no data. Its functions can be lowered, or evaluated for their shapes alone.

    labels: number of classes of the network, 0 for none. teacher_steps: NFE -> steps of the teacher's sampler.
    """

    init_params: Callable[..., Any]
    teacher: Method
    distill: Method
    image_shape: tuple[int, int, int]
    labels: int
    teacher_steps: dict[int, int]


def build(config: ml_collections.ConfigDict) -> Job:
    """Builds everything a configuration asks for. Raises UserError for whatever is unknown, missing or wrong."""
    with _naming_fields():
        c = _with_model(json.loads(config.to_json_best_effort()))
        return _job(c, _model(c))


def build_model(config: ml_collections.ConfigDict) -> Model:
    """The part of `build` that needs no data. Raises: UserError."""
    with _naming_fields():
        return _model(_with_model(json.loads(config.to_json_best_effort())))


@contextlib.contextmanager
def _naming_fields():
    try:
        yield
    except KeyError as error:
        raise UserError(f"the configuration lacks the field {error}: compare it with configs/inpaint.py") from error


# How a network is computed: not part of what a checkpoint says about it.
COMPUTING = ("dtype", "dropout", "remat")


def _with_model(c: dict[str, Any]) -> dict[str, Any]:
    """The configuration with network, bridge and parametrisation of the given teacher, where that brings its own.

    Parameters to start from bring their network.
    """
    t = c["teacher"]
    if t["checkpoint"] and t["start"]:
        raise UserError("config.teacher.checkpoint and .start are both set: a given teacher is not trained")
    given = t["checkpoint"] or t["start"]
    model = dict(read_meta(given).get("model", {})) if given else {}
    if t["start"]:
        model = {name: section for name, section in model.items() if name == "network"}
    for section in model:
        if section == "network":
            kept = {name: c[section][name] for name in COMPUTING if name in c[section]}
            model[section] = {**model[section], **kept}
        if c[section] != model[section]:
            log.info("config.%s is that of %s: %s", section, given, model[section])
    return {**c, **model}


def _model(c: dict[str, Any]) -> Model:
    _check_ranges(c)
    bridge = _bridge(c["bridge"])
    parametrisation = _parametrisation(c["parametrisation"])
    module, conditional = _network(c["network"])
    labels, dropout = getattr(module, "classes", 0), getattr(module, "dropout", 0.0) > 0
    network = from_linen(module)
    denoise = make_denoiser(network, bridge, parametrisation, conditional)
    image_shape = (c["data"]["size"], c["data"]["size"], c["data"]["channels"])

    def init_params(key: Array, noise_channels: int = 0) -> Any:
        return init_denoiser(network, key, image_shape, conditional, noise_channels, labels > 0)

    sampling = _sampling(c["evaluate"]["sampler"], bridge)
    _check_numbers(bridge, parametrisation, sampling, c["teacher"]["t_min"])

    def output(params: Any) -> Array:
        x = jnp.zeros((1, *image_shape))
        return denoise(params, x, jnp.ones(1), x, jnp.zeros(1, jnp.int32) if labels else None)

    try:
        made = jax.eval_shape(lambda: output(init_params(jax.random.key(0))))
    except (TypeError, ValueError, AssertionError, ZeroDivisionError) as error:
        raise UserError(f"config.network does not fit images of {image_shape}: {error}") from error
    if made.shape[1:] != image_shape:
        raise UserError(f"config.network: its output is {made.shape[1:]} for images of {image_shape}: set out_channels")

    native = native_weight(parametrisation)
    weights = {**WEIGHTS, "native": native, "native_ten_to_1": product(native, WEIGHTS["ten_to_1"])}
    teacher, distill = _methods(c, denoise, bridge, weights, sampling, dropout)
    return Model(init_params, teacher, distill, image_shape, labels, _steps(c["evaluate"]["nfe"], sampling.evaluations))


def _network(settings: dict[str, Any]) -> tuple[Any, bool]:
    """The Flax module, and whether it also sees x_T."""
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    conditional = settings.pop("conditional")
    return _make("network", lookup(NETWORKS, settings.pop("name"), "network"), settings), conditional


def _job(c: dict[str, Any], model: Model) -> Job:
    data = _data(c, model.image_shape, model.labels)
    sizes = {
        "teacher": c["teacher"]["batch_size"] * model.teacher.batches,
        "distill": c["distill"]["batch_size"] * model.distill.batches,
    }
    return Job(
        config=c,
        mesh=data.mesh,
        init_params=model.init_params,
        teacher=model.teacher,
        distill=model.distill,
        teacher_steps=model.teacher_steps,
        test=functools.cache(data.test_batch),
        clean=data.clean,
        features=_features(c["evaluate"]["features"], model.image_shape),
        schedule=_make("schedule", Schedule, c["schedule"]),
        batches=lambda stage: data.batches(stage, sizes[stage]),
    )


class Data(NamedTuple):
    """The data of a configuration.

    train, test: the sources. clean: whether they have x_0. test_batch(): all test images that are evaluated on.
    batches(stage, size)(step): an iterator over training batches from that step on, sharded over the mesh.
    """

    train: Source
    test: Source
    clean: bool
    mesh: jax.sharding.Mesh
    batches: Callable[[str, int], Callable[[int], Iterator[Batch]]]
    test_batch: Callable[[], Batch]


def build_data(config: ml_collections.ConfigDict) -> Data:
    """The part of `build` that needs no parameters, and so no given teacher. Raises: UserError."""
    with _naming_fields():
        c = json.loads(config.to_json_best_effort())
        shape = (c["data"]["size"], c["data"]["size"], c["data"]["channels"])
        return _data(c, shape, getattr(_network(c["network"])[0], "classes", 0))


def _data(c: dict[str, Any], image_shape: tuple[int, int, int], labels: int) -> Data:
    mesh, data = make_mesh(), c["data"]
    for field in ("teacher.batch_size", "distill.batch_size", "evaluate.batch_size"):
        section, name = field.split(".")
        check_divisible(f"config.{field}", c[section][name], mesh)
    corrupts = _corruption(data["corruption"], image_shape)
    options = Options(**{name: data[name] for name in Options._fields})
    train, test = (open_source(data["source"], split, options) for split in ("train", "test"))
    for split, source in (("train", train), ("test", test)):
        check_example(source[0], corrupts is not None, labels, f"{data['source']} ({split})")
    return Data(
        train,
        test,
        "x_0" in train[0],
        mesh,
        lambda stage, size: _batches(train, corrupts, c, stage, size, labels, mesh),
        lambda: _test_batch(test, corrupts, c, labels),
    )


def _features(name: str, image_shape: tuple[int, int, int]) -> Callable[[Array], Array] | None:
    """The feature network of a name; None for "none"."""
    if name == "none":
        return None
    features = lookup({**FEATURES, "none": None}, name, "feature network")()
    try:
        jax.eval_shape(features, jnp.zeros((1, *image_shape)))
    except ValueError as error:
        raise UserError(f"config.evaluate.features: {error}; none leaves FID and KID out") from error
    return features


def _corruption(spec: str | dict[str, Any], image_shape: tuple[int, int, int]) -> Callable[..., Corrupted] | None:
    """The corruption that a name, or a name with settings, stands for, tried for its shape; None for "none"."""
    if spec == "none":
        return None
    function = corruption(spec)
    try:
        made = jax.eval_shape(function, jax.random.key(0), jnp.zeros(image_shape)).x_T.shape
    except (TypeError, ValueError) as error:
        raise UserError(f"config.data.corruption = {spec!r} for images of {image_shape}: {error}") from error
    if made != image_shape:
        raise UserError(f"config.data.corruption = {spec!r} makes {made} of images of {image_shape}")
    return function


def _test_batch(source: Source, corrupts: Callable[..., Corrupted] | None, c: dict[str, Any], labels: int) -> Batch:
    """All test images that the configuration evaluates on, corrupted part by part."""
    corrupt = make_corrupt(corrupts, c["seed"], "test", labels)
    count, size = min(c["evaluate"]["examples"] or len(source), len(source)), c["evaluate"]["batch_size"]
    parts = []
    for begin in range(0, count, size):
        numbers = np.arange(begin, min(begin + size, count))
        rows = [source[int(i)] for i in numbers]
        example = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        check_labels(example, labels)
        parts.append(corrupt(example, numbers))
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def _bridge(settings: dict[str, Any]) -> Bridge:
    """The bridge that is named, or its deterministic version where ot_ode is set."""
    settings = dict(settings)
    ot_ode = settings.pop("ot_ode", False)
    bridge = _named({"bridge": settings}, "bridge", BRIDGES)
    bridge = _make("bridge", OtOde, {"of": bridge}) if ot_ode else bridge
    if not bridge.pinned:
        raise UserError(
            f"config.bridge: {type(bridge).__name__} starts from pure noise, which no corruption makes: "
            "use it through the functional API, as colab/00_bridge_2d.py does"
        )
    return bridge


def _parametrisation(settings: dict[str, Any]) -> Callable[..., Any]:
    settings = dict(settings)
    function = lookup(PARAMETRISATIONS, settings.pop("name"), "parametrisation")
    _check_names("parametrisation", list(inspect.signature(function).parameters)[2:], settings)
    return functools.partial(function, **settings)


class _Sampling(NamedTuple):
    """How the teacher is sampled: the algorithm, its time grid, and its network evaluations for a number of steps."""

    sample: Callable[..., Array]
    grid: Callable[..., Array]
    evaluations: Callable[[int], int]


def _sampling(settings: dict[str, Any], bridge: Bridge) -> _Sampling:
    settings = dict(settings)
    entry = lookup(SAMPLERS, settings.pop("name"), "sampler")
    named = settings.pop("time_grid", entry.grid)
    named = dict(named) if isinstance(named, dict) else {"name": named}
    grid = lookup(TIME_GRIDS, named.pop("name"), "time grid")
    _check_names(
        "evaluate.sampler.time_grid", [n for n in inspect.signature(grid).parameters if n not in ("steps", "T")], named
    )
    grid = functools.partial(grid, **named)
    own = [p.name for p in inspect.signature(entry.sample).parameters.values() if p.kind is p.KEYWORD_ONLY]
    _check_names("evaluate.sampler", [*(n for n in own if n != "mask"), "clip", "time_grid"], settings)
    own_settings = {k: v for k, v in settings.items() if k != "clip"}
    return _Sampling(
        functools.partial(entry.sample, **settings),
        grid,
        lambda steps: entry.evaluations(bridge, grid(steps, bridge.T), **own_settings),
    )


def _check_numbers(bridge: Bridge, parametrisation: Callable[..., Any], sampling: _Sampling, t_min: float) -> None:
    """Finds settings that cannot work by trying them on a few numbers, with a network that answers 0."""
    times = jnp.asarray([t_min, bridge.T / 2, bridge.T], jnp.float32)

    def finite(section: str, make: Callable[[], Any], what: str) -> None:
        try:
            good = all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(make()))
        except (TypeError, ValueError) as error:
            raise UserError(f"config.{section}: {error}") from error
        if not good:
            raise UserError(f"config.{section}: {what}")

    finite("bridge", lambda: bridge.coeffs(times), f"{bridge} has coefficients that are not finite")
    finite(
        "parametrisation",
        lambda: parametrisation(bridge, times),
        f"it is not finite on all of [t_min, T] of {bridge}: take x_0, v or ddbm, or i2sb where alpha_T is not 0",
    )
    zero = Network(lambda *_: None, lambda params, x, *_: 0 * x[..., :1])
    denoise = functools.partial(make_denoiser(zero, bridge, parametrisation), None)
    finite(
        "evaluate.sampler",
        lambda: sampling.sample(denoise, bridge, jax.random.key(0), jnp.ones((1, 2, 2, 1)), sampling.grid(3, bridge.T)),
        f"its result is not finite with {bridge} and this time grid: leave out time_grid, or take another sampler",
    )
    booted = sampling.sample.func is not SAMPLERS["heun"].sample
    if booted and float(sampling.grid(3, bridge.T)[0]) != bridge.T:
        raise UserError("config.evaluate.sampler: its time grid must start at T; the grid ddbm is for the sampler heun")


def _steps(wanted: list[int], evaluations: Callable[[int], int]) -> dict[int, int]:
    """NFE -> steps: for each wanted NFE the most steps that it pays for, at least one."""
    found = {}
    for nfe in wanted:
        steps = next((n for n in range(nfe, 1, -1) if evaluations(n) <= nfe), 1)
        found[evaluations(steps)] = steps
    return found


def _methods(
    c: dict[str, Any],
    denoise: Denoise,
    bridge: Bridge,
    weights: dict[str, Callable[..., Array]],
    sampling: _Sampling,
    dropout: bool,
) -> tuple[Method, Method]:
    def optimizer(section: str, field: str, steps: int):
        return _make(f"{section}.{field}", make_optimizer, {"steps": steps, **c[section][field]})

    def weight(section: str, field: str):
        return lookup(weights, c[section][field], f"weight in config.{section}.{field}")

    t, d = c["teacher"], c["distill"]
    teacher = methods.teacher(
        denoise,
        bridge,
        optimizer("teacher", "optimizer", t["steps"]),
        weight=weight("teacher", "weight"),
        ema_decay=t["ema_decay"],
        t_min=t["t_min"],
        time_sampler=lookup(TIME_SAMPLERS, t["time_sampler"], "time sampler"),
        sampler=sampling.sample,
        time_grid=sampling.grid,
        dropout=dropout,
    )
    lookup({"marginal": 0, "posterior": 0}, d["multistep"], "value of config.distill.multistep")
    distill = methods.ibmd(
        denoise,
        bridge,
        optimizer("distill", "student_optimizer", d["steps"]),
        optimizer("distill", "auxiliary_optimizer", d["steps"] * d["auxiliary_updates"]),
        steps=d["student_steps"],
        multistep=d["multistep"],
        auxiliary_updates=d["auxiliary_updates"],
        student_weight=weight("distill", "student_weight"),
        auxiliary_weight=weight("distill", "auxiliary_weight"),
        noise_channels=d["noise_channels"],
        ema_decay=d["ema_decay"],
        t_min=d["t_min"],
        time_sampler=lookup(TIME_SAMPLERS, d["time_sampler"], "time sampler"),
        dropout=dropout,
    )
    return teacher, distill


def _batches(
    source: Source,
    corrupts: Callable[..., Corrupted] | None,
    c: dict[str, Any],
    stage: str,
    size: int,
    labels: int,
    mesh: jax.sharding.Mesh,
) -> Callable[[int], Iterator[Batch]]:
    corrupt = make_corrupt(corrupts, c["seed"], stage, labels)
    sharding = batch_sharding(mesh)

    def iterate(step: int) -> Iterator[Batch]:
        stream = examples(
            source,
            seed=c["seed"],
            batch_size=size,
            start_step=step,
            crop=c["data"]["size"] if c["data"]["fit"] == "random-crop" else 0,
            flip=c["data"]["flip"],
            workers=c["data"]["workers"],
            process=jax.process_index(),
            processes=jax.process_count(),
        )
        for example, numbers in stream:
            check_labels(example, labels)
            local = jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), (example, numbers))
            yield corrupt(*local)

    return lambda step: ahead(iterate(step))
