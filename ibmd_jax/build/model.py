"""The networks, bridge, methods and samplers of a configuration: all of it that needs no data."""

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ibmd_jax import methods
from ibmd_jax.bridges import BRIDGES, Bridge, Flow, OtOde
from ibmd_jax.bridges.parametrisations import PARAMETRISATIONS, native_weight
from ibmd_jax.build.fields import check_names, make
from ibmd_jax.build.methods import Parts, Sampling, is_noise, sampling_of, steps_of, student_of, teacher_of
from ibmd_jax.core.errors import UserError, lookup, named
from ibmd_jax.core.types import Array, Conditioning, Denoise, Network
from ibmd_jax.methods.base import Method
from ibmd_jax.networks import NETWORKS
from ibmd_jax.networks.adapters import from_linen
from ibmd_jax.networks.denoiser import init_denoiser, make_denoiser
from ibmd_jax.networks.generator import with_new_inputs
from ibmd_jax.samplers import SAMPLERS
from ibmd_jax.train.checkpoint import read_meta
from ibmd_jax.train.job import MODEL_SECTIONS, teacher_folders

log = logging.getLogger(__name__)


class Model(NamedTuple):
    """All of a configuration that needs no data. Its functions can be lowered, or evaluated for their shapes alone.

    conditioning: what its network takes as cond. teacher_steps: NFE -> steps of the teacher's sampler;
    student_steps: numbers of steps that the student can take.
    init_teachers: one function like init_params for each of several given teachers; empty for a single one.
    """

    init_params: Callable[..., Any]
    teacher: Method
    distill: Method
    image_shape: tuple[int, int, int]
    conditioning: Conditioning
    teacher_steps: dict[int, int]
    student_steps: tuple[int, ...]
    init_teachers: tuple[Callable[..., Any], ...]


# How a network is computed: not part of what a checkpoint says about it.
COMPUTING = ("dtype", "dropout", "remat")


def with_given_model(c: dict[str, Any], trained: dict[str, Any] | None = None) -> dict[str, Any]:
    """The configuration with network, bridge and parametrisation of the given teacher, where that brings its own.

    Parameters to start from bring their network. Of several teachers, config.teacher.models keeps each one's sections,
    and the student is built like the first, with labels where every teacher has its own task.

    Args: trained: what this gave when the student was trained; then no teacher is read, which may be gone.
    """
    t = c["teacher"]
    if trained and (t["checkpoint"] or t["start"]):
        models = {name: value for name, value in trained["teacher"].items() if name == "models"}
        sections = {name: trained[name] for name in MODEL_SECTIONS}
        return _with_sections({**c, "teacher": {**t, **models}}, sections, "the student")
    if t["checkpoint"] and t["start"]:
        raise UserError("config.teacher.checkpoint and .start are both set: a given teacher is not trained")
    given = teacher_folders(c)
    if len(given) > 1:
        return _with_given_models(c, given)
    given = given[0] if given else t["start"]
    model = _model_of(given) if given else {}
    if t["start"]:
        model = {name: section for name, section in model.items() if name == "network"}
    return _with_sections(c, model, given)


def _model_of(folder: str) -> dict[str, Any]:
    """The sections that an export brings; what it says of a student's calls is for others."""
    found = read_meta(folder).get("model", {})
    return {name: found[name] for name in MODEL_SECTIONS if name in found}


def _with_sections(c: dict[str, Any], model: dict[str, Any], where: str) -> dict[str, Any]:
    for section in model:
        if section == "network":
            kept = {name: c[section][name] for name in COMPUTING if name in c[section]}
            model[section] = {**model[section], **kept}
        if c[section] != model[section]:
            log.info("config.%s is that of %s: %s", section, where, model[section])
    return {**c, **model}


def _with_given_models(c: dict[str, Any], folders: list[str]) -> dict[str, Any]:
    models = [_model_of(folder) for folder in folders]
    for folder, model in zip(folders, models, strict=True):
        missing = {*MODEL_SECTIONS} - model.keys()
        if missing:
            raise UserError(f"{folder} does not say its {min(missing)}, which one of several teachers has to")
        if model["bridge"] != models[0]["bridge"]:
            raise UserError(f"the bridge of {folder} is {model['bridge']}, that of {folders[0]} {models[0]['bridge']}")
        for field in ("conditional", *Conditioning._fields):
            one, other = (m["network"].get(field) or 0 for m in (model, models[0]))
            if one != other:
                raise UserError(
                    f"network.{field} is {one} of {folder} and {other} of {folders[0]}: several teachers get one input"
                )
    computing = {name: c["network"][name] for name in COMPUTING if name in c["network"]}
    for model in models:
        model["network"] = {**model["network"], **computing}
    network = dict(models[0]["network"])
    if c["teacher"]["combine"] == "by_label":
        for folder, model in zip(folders, models, strict=True):
            for field in Conditioning._fields:
                if model["network"].get(field, 0):
                    raise UserError(f"{folder} has network.{field}: teachers that are combined by_label see no cond")
        network["classes"] = len(folders) + bool(c["distill"].get("blind", False))
    return {**c, **models[0], "network": network, "teacher": {**c["teacher"], "models": models}}


class Denoiser(NamedTuple):
    """A Denoise function, and what makes parameters for it: init(key, noise_channels) -> parameters."""

    denoise: Denoise
    init: Callable[..., Any]
    conditioning: Conditioning
    dropout: bool


def _denoiser(
    network: dict[str, Any], parametrisation: Callable[..., Any], bridge: Bridge, image_shape: tuple[int, int, int]
) -> Denoiser:
    module, conditional = make_network(network)
    conditioning, linen = conditioning_of(module), from_linen(module)

    def init_params(key: Array, noise_channels: int = 0) -> Any:
        return init_denoiser(linen, key, image_shape, conditional, noise_channels, conditioning.example())

    denoise = make_denoiser(linen, bridge, parametrisation, conditional)
    return Denoiser(denoise, init_params, conditioning, getattr(module, "dropout", 0.0) > 0)


def model_of(c: dict[str, Any]) -> Model:
    """Builds and checks the model of a plain configuration, after `with_given_model`."""
    bridge = make_bridge(c["bridge"])
    _check_noise(c["data"]["corruption"], bridge)
    if is_noise(c["data"]["corruption"]) and c["network"].get("conditional"):
        raise UserError("config.network.conditional: x_T is noise that has nothing to do with x_0: set it to False")
    parametrisation = make_parametrisation(c["parametrisation"])
    image_shape = (c["data"]["size"], c["data"]["size"], c["data"]["channels"])
    denoise, init_params, conditioning, dropout = _denoiser(c["network"], parametrisation, bridge, image_shape)
    sampling = sampling_of(c["evaluate"]["sampler"], bridge)
    _check_numbers(bridge, parametrisation, sampling, c["teacher"]["t_min"])
    _check_sees_x_T(c, bridge)

    def output(params: Any) -> Array:
        x = jnp.zeros((1, *image_shape))
        return denoise(params, x, jnp.ones(1), x, conditioning.example())

    try:
        made = jax.eval_shape(lambda: output(init_params(jax.random.key(0))))
    except (TypeError, ValueError, AssertionError, IndexError, ZeroDivisionError) as error:
        raise UserError(f"config.network does not fit images of {image_shape}: {error}") from error
    if made.shape[1:] != image_shape:
        raise UserError(f"config.network: its output is {made.shape[1:]} for images of {image_shape}: set out_channels")

    if channels := c["distill"].get("noise_channels", 0):
        key = jax.random.key(0)
        try:
            jax.eval_shape(lambda: with_new_inputs(init_params(key, 0), init_params(key, channels)))
        except UserError as error:
            raise UserError(
                f"config.distill.noise_channels = {channels}: {error}. z has to enter by a layer of its own, which "
                "begins at 0"
            ) from error
    given = [
        _denoiser(model["network"], make_parametrisation(model["parametrisation"]), bridge, image_shape)
        for model in c["teacher"].get("models", [])
    ]
    combined, native = _combined(c, given), native_weight(parametrisation)
    parts = Parts(denoise, init_params, combined, bridge, native, sampling, image_shape, conditioning, dropout)
    student, student_steps = student_of(c, parts)
    return Model(
        init_params,
        teacher_of(c, parts),
        student,
        image_shape,
        conditioning,
        steps_of(c["evaluate"]["nfe"], sampling.evaluations),
        student_steps,
        tuple(d.init for d in given),
    )


def _combined(c: dict[str, Any], given: list[Denoiser]) -> Denoise | None:
    """Several teachers as one Denoise function; None where there is one teacher, of the student's own network.

    Raises: UserError for what combines teachers where there are not several, or does not fit them.
    """
    t = c["teacher"]
    lookup({"mean": 0, "by_label": 0}, t["combine"], "value of config.teacher.combine")
    if not given:
        if t["combine"] != "mean" or t["weights"]:
            field = "combine" if t["combine"] != "mean" else "weights"
            raise UserError(
                f"config.teacher.{field} = {t[field]!r} is for several teachers in config.teacher.checkpoint"
            )
        return None
    denoisers = [d.denoise for d in given]
    if t["combine"] == "by_label":
        if t["weights"]:
            raise UserError("config.teacher.weights are for combine = mean")
        return methods.by_label(denoisers)
    try:
        return methods.ensemble(denoisers, t["weights"] or None)
    except ValueError as error:
        raise UserError(f"config.teacher.{error}") from error


def make_network(settings: dict[str, Any]) -> tuple[Any, bool]:
    """The Flax module, and whether it also sees x_T."""
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    conditional = settings.pop("conditional")
    return make("network", lookup(NETWORKS, settings.pop("name"), "network"), settings), conditional


def conditioning_of(module: Any) -> Conditioning:
    """What a module takes as cond: its fields `classes` and `embedding`. Raises: UserError where both are set."""
    found = Conditioning(*(getattr(module, field, 0) for field in Conditioning._fields))
    if all(found):
        raise UserError("config.network.classes and .embedding are both set: a network takes labels or embeddings")
    return found


def make_bridge(settings: dict[str, Any]) -> Bridge:
    """The bridge that is named, or its deterministic version where ot_ode is set."""
    settings = dict(settings)
    ot_ode = settings.pop("ot_ode", False)
    bridge = make("bridge", lookup(BRIDGES, settings.pop("name"), "bridge"), settings)
    bridge = make("bridge", OtOde, {"of": bridge}) if ot_ode else bridge
    return bridge


def _check_noise(corruption: str | dict[str, Any], bridge: Bridge) -> None:
    """Raises UserError unless a bridge from noise gets noise, of its own standard deviation, and no other one does."""
    if bridge.pinned and not isinstance(bridge, Flow):
        if is_noise(corruption):
            raise UserError(
                f"config.data.corruption = 'pure-noise': {type(bridge).__name__} is a bridge between images"
            )
        return
    if bridge.pinned and not is_noise(corruption):
        return
    name, wanted = type(bridge).__name__, float(bridge.sigma(jnp.float32(bridge.T)))
    std = named(corruption, "corruption")[1].get("std", 1.0) if is_noise(corruption) else None
    if not isinstance(std, int | float) or abs(std / wanted - 1) > 1e-3:
        raise UserError(
            f"config.bridge: {name} starts from noise of deviation {wanted:.6g}: set config.data.corruption = "
            f"{{'name': 'pure-noise', 'std': {wanted:.6g}}}"
        )


def _check_sees_x_T(c: dict[str, Any], bridge: Bridge) -> None:
    """Warns of a sampler whose steps take E[x_0 | x_t, x_T] on a network that estimates E[x_0 | x_t]."""
    sampler, noisy = c["evaluate"]["sampler"], bridge.pinned and not bridge.deterministic
    deterministic = sampler["name"] not in ("ancestral", "euler_maruyama") and sampler.get("eta") != 1
    if noisy and deterministic and not c["network"].get("conditional"):
        log.warning(
            "config.evaluate.sampler = %r is for networks that see x_T (config.network.conditional): with this one the "
            "images' distribution is not the bridge's, however many the steps; take ancestral or euler_maruyama",
            sampler["name"],
        )


def make_parametrisation(settings: dict[str, Any]) -> Callable[..., Any]:
    settings = dict(settings)
    function = lookup(PARAMETRISATIONS, settings.pop("name"), "parametrisation")
    check_names("parametrisation", list(inspect.signature(function).parameters)[2:], settings)
    return functools.partial(function, **settings)


def _check_numbers(bridge: Bridge, parametrisation: Callable[..., Any], sampling: Sampling, t_min: float) -> None:
    """Finds settings that cannot work by trying them on a few numbers, with a network that answers 0."""
    times = jnp.asarray([t_min, bridge.T / 2, bridge.T], jnp.float32)

    def finite(section: str, make: Callable[[], Any], what: str) -> None:
        try:
            good = all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(make()))
        except (TypeError, ValueError, ArithmeticError) as error:
            raise UserError(f"config.{section}: {error}") from error
        if not good:
            raise UserError(f"config.{section}: {what}")

    finite("bridge", lambda: bridge.coeffs(times), f"{bridge} has coefficients that are not finite")
    finite(
        "parametrisation",
        lambda: parametrisation(bridge, times),
        f"it is not finite on all of [t_min, T] of {bridge}: take x_0, v or ddbm, or i2sb where alpha_T is not 0",
    )
    finite("evaluate.sampler", lambda: sampling.grid(3, bridge.T), "its time grid is not finite")
    grid = np.asarray(sampling.grid(3, bridge.T))
    if (np.diff(grid) >= 0).any() or not 0 <= grid[-1] <= bridge.T / 10:
        made = ", ".join(f"{t:g}" for t in grid)
        raise UserError(
            f"config.evaluate.sampler: its times, {made} for 3 steps, must fall to 0 or near it: lower t_min"
        )
    zero = Network(lambda *_: None, lambda params, x, *_: 0 * x[..., :1])
    denoise = functools.partial(make_denoiser(zero, bridge, parametrisation), None)
    finite(
        "evaluate.sampler",
        lambda: sampling.sample(denoise, bridge, jax.random.key(0), jnp.ones((1, 2, 2, 1)), jnp.asarray(grid)),
        f"its result is not finite with {bridge} and this time grid: leave out time_grid, or take another sampler",
    )
    booted = sampling.sample.func is not SAMPLERS["heun"].sample
    if booted and grid[0] != np.float32(bridge.T):
        raise UserError("config.evaluate.sampler: its time grid must start at T; the grid ddbm is for the sampler heun")
