"""The methods of a configuration: how the teacher is trained and sampled, and how it is distilled."""

import functools
import inspect
import logging
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ibmd_jax import methods
from ibmd_jax.bridges import Bridge
from ibmd_jax.bridges.times import TIME_GRIDS, TIME_SAMPLERS, karras_grid, uniform_grid
from ibmd_jax.build.fields import check_names, make
from ibmd_jax.core.errors import UserError, lookup, named
from ibmd_jax.core.streams import stream
from ibmd_jax.core.types import Array, Batch, Conditioning, Denoise, Key, Params
from ibmd_jax.methods.base import WEIGHTS, Method, product, ten_to
from ibmd_jax.methods.dibregman import DIVERGENCES, Divergence, power
from ibmd_jax.networks.generator import told_earlier
from ibmd_jax.networks.head import Head
from ibmd_jax.samplers import SAMPLERS, dbim
from ibmd_jax.samplers.dbim import boots
from ibmd_jax.train.optim import make_optimizer

log = logging.getLogger(__name__)


class Sampling(NamedTuple):
    """How the teacher is sampled: the algorithm, its time grid, and its network evaluations for a number of steps."""

    sample: Callable[..., Array]
    grid: Callable[..., Array]
    evaluations: Callable[[int], int]


def sampling_of(settings: dict[str, Any], bridge: Bridge) -> Sampling:
    settings = dict(settings)
    entry = lookup(SAMPLERS, settings.pop("name"), "sampler")
    name, of_grid = named(settings.pop("time_grid", entry.grid), "time grid")
    grid = lookup(TIME_GRIDS, name, "time grid")
    known = [n for n in inspect.signature(grid).parameters if n not in ("steps", "T")]
    check_names("evaluate.sampler.time_grid", known, of_grid)
    grid = functools.partial(grid, **of_grid)
    own = [p.name for p in inspect.signature(entry.sample).parameters.values() if p.kind is p.KEYWORD_ONLY]
    check_names("evaluate.sampler", [*(n for n in own if n != "mask"), "clip", "time_grid"], settings)
    own_settings = {k: v for k, v in settings.items() if k != "clip"}
    return Sampling(
        functools.partial(entry.sample, **settings),
        grid,
        lambda steps: entry.evaluations(bridge, grid(steps, bridge.T), **own_settings),
    )


def steps_of(wanted: list[int], evaluations: Callable[[int], int]) -> dict[int, int]:
    """NFE -> steps: for each wanted NFE the most steps that it pays for, at least one."""
    found = {}
    for nfe in wanted:
        steps = next((n for n in range(nfe, 1, -1) if evaluations(n) <= nfe), 1)
        found[evaluations(steps)] = steps
    return found


class Parts(NamedTuple):
    """What methods are made of.

    denoise: the student's network; init_params(key, noise_channels) its parameters. teacher_denoise: the teacher's
    where that is another one. native: the weight of the parametrisation. conditioning: what the network takes as cond.
    """

    denoise: Denoise
    init_params: Callable[..., Params]
    teacher_denoise: Denoise | None
    bridge: Bridge
    native: Callable[..., Array]
    sampling: Sampling
    image_shape: tuple[int, int, int]
    conditioning: Conditioning
    dropout: bool


def teacher_of(c: dict[str, Any], parts: Parts) -> Method:
    """Bridge matching with the settings of config.teacher."""
    t = c["teacher"]
    return methods.teacher(
        parts.teacher_denoise or parts.denoise,
        parts.bridge,
        _optimizer(c, "teacher", "optimizer", t["steps"]),
        weight=_weight(c, "teacher", "weight", parts.native),
        ema_decay=t["ema_decay"],
        t_min=t["t_min"],
        time_sampler=lookup(TIME_SAMPLERS, t["time_sampler"], "time sampler"),
        sampler=parts.sampling.sample,
        time_grid=parts.sampling.grid,
        dropout=parts.dropout,
        accumulate=t["accumulate"],
    )


def student_of(c: dict[str, Any], parts: Parts) -> tuple[Method, tuple[int, ...]]:
    """The method that config.distill.method names, and the numbers of steps that its student can be sampled with."""
    d = c["distill"]
    entry = lookup(METHODS, d["method"], "method")
    check_names(f"distill (method {d['method']})", entry.fields, d)
    for name in entry.fields:
        if name not in d:
            raise UserError(f"config.distill lacks {name!r}, a field of the method {d['method']}: see configs/")
    if parts.teacher_denoise and not entry.several_teachers:
        others = ", ".join(name for name, other in METHODS.items() if other.several_teachers)
        raise UserError(f"config.distill.method = {d['method']!r} takes one teacher: several are for {others}")
    try:
        return entry.make(c, parts)
    except (TypeError, ValueError) as error:
        raise UserError(f"config.distill: {error}") from error


def _optimizer(c: dict[str, Any], section: str, field: str, steps: int):
    return make(f"{section}.{field}", make_optimizer, {"steps": steps, **c[section][field]})


def _weight(c: dict[str, Any], section: str, field: str, native: Callable[..., Array]) -> Callable[..., Array]:
    """lambda(t) by name; ten_to_k for any number k."""
    if found := re.fullmatch(r"ten_to_(-?\d+(\.\d+)?)", c[section][field]):
        return ten_to(float(found[1]))
    known = {**WEIGHTS, "native": native, "native_ten_to_1": product(native, WEIGHTS["ten_to_1"])}
    return lookup(known, c[section][field], f"weight in config.{section}.{field}")


def is_noise(corruption: str | dict[str, Any]) -> bool:
    """Whether x_T is noise alone, so that images are generated, and not restored."""
    return named(corruption, "corruption")[0] == "pure-noise"


def _with_auxiliary(c: dict[str, Any], parts: Parts) -> tuple[tuple, dict[str, Any]]:
    """What ibmd and dibregman have in common: their arguments by place and by name."""
    d = c["distill"]
    # Pre-training leaves the student and its schedule where they are.
    student = _optimizer(c, "distill", "student_optimizer", d["steps"] - d.get("pretraining", 0))
    auxiliary = _optimizer(c, "distill", "auxiliary_optimizer", d["steps"] * d["auxiliary_updates"])
    if parts.bridge.deterministic and c["network"].get("conditional"):
        raise UserError(
            f"config.distill.method = {d['method']!r}: {parts.bridge} has no noise, so that x_t and x_T tell x_0 to a "
            "network that sees both, and nothing is left to match: take a bridge with noise, or "
            "config.network.conditional = False where the method does not need x_T"
        )
    corruption, settings = named(c["data"]["corruption"], "corruption")
    noisy = corruption.startswith(("inpaint", "noise", "pure-noise")) and settings.get("fill") != "grey"
    if d["noise_channels"] == d["t_start"] == 0 and (c["network"]["conditional"] or not noisy):
        log.warning(
            "config.distill.noise_channels = 0: this student gives one x_0 for an x_T in one step, where its teacher "
            "draws from many; %s would let it draw, too",
            f"t_start = {0.9 * parts.bridge.T:g}" if c["network"]["conditional"] else c["data"]["channels"],
        )
    names = ("auxiliary_updates", "normalise", "noise_channels", "ema_decay", "t_min", "accumulate")
    return (parts.denoise, parts.bridge, student, auxiliary), {
        **{name: d[name] for name in names},
        "student_weight": _weight(c, "distill", "student_weight", parts.native),
        "auxiliary_weight": _weight(c, "distill", "auxiliary_weight", parts.native),
        "time_sampler": lookup(TIME_SAMPLERS, d["time_sampler"], "time sampler"),
        **_start(c, parts),
    }


def _start(c: dict[str, Any], parts: Parts) -> dict[str, Any]:
    """What a student has that is told t_start at its first evaluation (0: T), and one of noise beside the others."""
    d, T, from_noise = c["distill"], parts.bridge.T, is_noise(c["data"]["corruption"])
    start, found = d["t_start"], {"from_noise": True} if from_noise else {}
    if not start:
        return found
    if not 0 < start <= T:
        raise UserError(f"config.distill.t_start = {start}: it must be from 0, which stands for T, to {T}")
    second = T - T / d["student_steps"]
    if start <= second:
        raise UserError(
            f"config.distill.t_start = {start}: the second step of this student is told {second:g}: it must be later"
        )
    if not from_noise:
        if parts.bridge.deterministic or start == T:
            raise UserError(f"config.distill.t_start = {start}: {parts.bridge} has no noise at that time: set 0.0")
        if d["noise_channels"]:
            raise UserError(
                "config.distill.noise_channels and .t_start are both set: z enters in one way: set one to 0"
            )
        found["noise_channels"] = parts.image_shape[-1]
    return {**found, "student_denoise": told_earlier(parts.denoise, parts.bridge, start, from_noise)}


def _ibmd(c: dict[str, Any], parts: Parts) -> tuple[Method, tuple[int, ...]]:
    d = c["distill"]
    if d["pretraining"] >= d["steps"]:
        raise UserError(f"config.distill.pretraining = {d['pretraining']} leaves none of {d['steps']} steps: lower it")
    classes = parts.conditioning.classes
    if d["blind"] and classes < 2:
        raise UserError(
            "config.distill.blind needs a network with classes: the last label is what a blind student sees"
        )
    first, settings = _with_auxiliary(c, parts)
    settings |= {name: d[name] for name in ("multistep", "rollout", "same_z", "pretraining")}
    settings |= {
        "steps": d["student_steps"],
        "dropout": parts.dropout,
        "real_data": tuple(d["real_data"]),
        "teacher_denoise": parts.teacher_denoise,
        "student_label": classes - 1 if d["blind"] else None,
    }
    made = make("distill", functools.partial(methods.ibmd, *first), settings)
    return made, tuple(range(1, d["student_steps"] + 1))


def _student_times(d: dict[str, Any], T: float) -> Array:
    """The student's chain, from T down to 0. Raises: UserError unless config.distill.times can be one."""
    try:
        steps, times = d["student_steps"], [float(t) for t in d.get("times", ())]
    except (TypeError, ValueError) as error:
        raise UserError(f"config.distill.times = {d['times']!r}: it must hold numbers") from error
    if not times:
        return uniform_grid(steps, T)
    rising = all(a < b for a, b in zip([0.0, *times], times, strict=False))
    if len(times) != steps or not rising or times[-1] != T:
        raise UserError(f"config.distill.times = {tuple(times)}: {steps} increasing times, from above 0 to {T}")
    return jnp.asarray([*reversed(times), 0.0], jnp.float32)


def _one_network(c: dict[str, Any], parts: Parts, method: Callable[..., Method], settings: dict[str, Any]):
    """SFDDM or progressive distillation: they train the student alone, on its own times."""
    d, steps, sampler = c["distill"], c["distill"]["student_steps"], c["evaluate"]["sampler"]
    follows = d.get("hidden", "latents") == "latents"  # a chain of deterministic steps
    if follows and (sampler["name"] != "dbim" or sampler.get("eta")):
        log.warning(
            "config.distill.method = %r makes a student of deterministic steps of first order%s, and "
            "config.evaluate.sampler has others: take dbim with eta 0",
            d["method"],
            " by hidden = 'latents'" if "hidden" in d else "",
        )
    if follows and boots(parts.bridge, parts.bridge.T):
        log.warning(
            "config.distill.method = %r follows a chain of DBIM, whose step from T draws noise that this student does "
            "not see: it learns the mean over it, the more so the fewer steps it has%s",
            d["method"],
            ""
            if c["network"].get("conditional")
            else "; and the chain is one of networks that see x_T (config.network.conditional = True)",
        )
    if parts.sampling.evaluations(steps + 2) != steps + 2:  # samplers of two evaluations a step may have one for one
        raise UserError(
            f"config.evaluate.sampler: a student of {d['method']} has one evaluation a step: take ancestral or dbim"
        )
    settings |= {
        "times": _student_times(d, parts.bridge.T),
        "weight": _weight(c, "distill", "student_weight", parts.native),
        "sampler": parts.sampling.sample,
        **{name: d[name] for name in ("ema_decay", "accumulate")},
    }
    first = parts.denoise, parts.bridge, _optimizer(c, "distill", "student_optimizer", d["steps"])
    made = make("distill", functools.partial(method, *first), settings)
    return made._replace(init=lambda start: made.init(start[0])), (steps,)


def _sfddm(c: dict[str, Any], parts: Parts) -> tuple[Method, tuple[int, ...]]:
    if c["distill"]["hidden"] == "features":
        _features_shape(parts)  # a network without them is told before its teacher is trained
    names = ("hidden", "output_weight", "hidden_weight", "chain", "distance")
    return _one_network(c, parts, methods.sfddm, {name: c["distill"][name] for name in names})


def _progressive(c: dict[str, Any], parts: Parts) -> tuple[Method, tuple[int, ...]]:
    return _one_network(c, parts, methods.progressive, {})


def _divergence(spec: str | dict[str, Any]) -> Divergence:
    name, settings = named(spec, "divergence")
    found = lookup({**DIVERGENCES, "power": power}, name, "divergence")
    if found is power:
        return make("distill.divergence", lambda exponent=0.5: power(float(exponent)), settings)
    check_names("distill.divergence", (), settings)
    return found


def _dibregman(c: dict[str, Any], parts: Parts) -> tuple[Method, tuple[int, ...]]:
    d = c["distill"]
    if d["student_steps"] != 1:
        raise UserError(f"config.distill.student_steps = {d['student_steps']}: a student of dibregman has 1")
    own = lookup({"auxiliary": False, "own": True}, d["classifier"], "value of config.distill.classifier")
    taught = lookup({"data": False, "teacher": True}, d["reference"], "value of config.distill.reference")
    if not (is_noise(c["data"]["corruption"]) or c["network"].get("conditional")):
        raise UserError(
            "config.distill.method = 'dibregman' on a bridge between images needs config.network.conditional"
        )
    first, settings = _with_auxiliary(c, parts)
    settings |= {name: d[name] for name in ("logit_clip", "ratio_mean", "weight_mean", "adversarial")}
    settings |= {"divergence": _divergence(d["divergence"]), "ratio_clip": tuple(d["ratio_clip"])}
    if taught:
        settings["reference"] = _teacher_samples(parts, d["reference_steps"])
    judge = methods.on_features(parts.denoise, *_head(parts, stream(jax.random.key(c["seed"]), "head")), own)
    return make("distill", functools.partial(methods.dibregman, *first, judge), settings), (1,)


def _head(parts: Parts, key: Key) -> tuple[Callable[[], Params], Callable[..., Array]]:
    """The classifier's own layers: what makes their parameters, and (parameters, features) -> logit."""
    head, shape = Head(), _features_shape(parts)
    return lambda: head.init(key, jnp.zeros(shape))["params"], lambda params, h: head.apply({"params": params}, h)


def _features_shape(parts: Parts) -> tuple[int, ...]:
    """Of one image's features. Raises: UserError for a network without."""

    def features() -> Array:
        x, cond = jnp.zeros((1, *parts.image_shape)), parts.conditioning.example(1)
        return parts.denoise(parts.init_params(jax.random.key(0), 0), x, jnp.ones(1), x, cond, features=True)[1]

    return jax.eval_shape(features).shape


def _teacher_samples(parts: Parts, steps: int) -> Callable[[Params, Key, Batch], Array]:
    """The teacher's own images for a batch, by so many deterministic steps.

    Not by config.evaluate.sampler, which may change between the runs of a workdir.
    """

    def sample(params: Params, key: Key, batch: Batch) -> Array:
        def bound(x_t: Array, t: Array, x_T: Array, cond=None) -> Array:
            return parts.denoise(params, x_t, t, x_T, cond)

        T = parts.bridge.T
        times = uniform_grid(steps) if T == 1 else karras_grid(steps, T)  # equal steps from 80 end where images begin
        settings = {"mask": batch.mask, "cond": batch.cond}
        return dbim(bound, parts.bridge, stream(key, "reference"), batch.x_T, times, **settings)

    return sample


class _Entry(NamedTuple):
    """make: (config, parts) -> (method, numbers of steps). fields: all of config.distill.

    needs_clean: config.distill -> which setting of it needs a source with clean images, "" if none does.
    """

    make: Callable[[dict[str, Any], Parts], tuple[Method, tuple[int, ...]]]
    fields: tuple[str, ...]
    needs_clean: Callable[[dict[str, Any]], str]
    several_teachers: bool = False


def _always(d: dict[str, Any]) -> str:
    return f"method = {d['method']!r}"


COMMON = (
    "method",
    "steps",
    "batch_size",
    "accumulate",
    "start",
    "student_steps",
    "student_optimizer",
    "student_weight",
    "ema_decay",
)
AUXILIARY = (
    "auxiliary_start",
    "auxiliary_updates",
    "auxiliary_optimizer",
    "auxiliary_weight",
    "noise_channels",
    "t_start",
    "normalise",
    "t_min",
    "time_sampler",
)
METHODS = {
    "ibmd": _Entry(
        _ibmd,
        (*COMMON, *AUXILIARY, "multistep", "rollout", "same_z", "blind", "pretraining", "real_data"),
        lambda d: "" if tuple(d["real_data"]) == (1, 1) else "real_data other than (1.0, 1.0)",
        several_teachers=True,
    ),
    "sfddm": _Entry(
        _sfddm, (*COMMON, "times", "hidden", "output_weight", "hidden_weight", "chain", "distance"), _always
    ),
    "progressive": _Entry(_progressive, COMMON, _always),
    "dibregman": _Entry(
        _dibregman,
        (
            *COMMON,
            *AUXILIARY,
            "divergence",
            "classifier",
            "reference",
            "reference_steps",
            "logit_clip",
            "ratio_clip",
            "ratio_mean",
            "weight_mean",
            "adversarial",
        ),
        lambda d: "reference = 'data'" if d["reference"] == "data" else "",
    ),
}
