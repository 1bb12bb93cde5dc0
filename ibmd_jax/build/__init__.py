"""From a configuration to objects: the only folder that reads a ConfigDict. Everything is checked before any work."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from ibmd_jax.build.data import Data, data_of
from ibmd_jax.build.fields import check_fields, make, naming_fields
from ibmd_jax.build.methods import METHODS, is_noise
from ibmd_jax.build.model import Model, conditioning_of, make_network, model_of, with_given_model
from ibmd_jax.core.errors import UserError, lookup
from ibmd_jax.core.types import Array
from ibmd_jax.metrics import PIXEL_METRICS
from ibmd_jax.metrics.features import FEATURES
from ibmd_jax.train.job import PICTURE_EXAMPLES, Job, teacher_folders
from ibmd_jax.train.loop import Schedule
from ibmd_jax.train.workdir import read_config


def build(config: ml_collections.ConfigDict, trained: Path | None = None) -> Job:
    """Builds everything a configuration asks for.

    Args: trained: a workdir whose student is to restore given images, which takes neither its data nor its teacher.
    Raises: UserError for whatever is unknown, missing or wrong.
    """
    found = config_of(trained).to_dict() if trained else None
    with naming_fields():
        c = with_given_model(_plain(config), found)
        files = (found or {}).get("data", {}).get("files", "")
        return _job(c, model_of(c), files, opened=not trained)


def config_of(folder: Path) -> ml_collections.ConfigDict:
    """The configuration that a workdir belongs to. Raises: UserError if it has none."""
    found = read_config(folder)
    if found is None:
        raise UserError(f"{folder} has no config.json: set --workdir to the folder of a run")
    return ml_collections.ConfigDict(found)


def build_model(config: ml_collections.ConfigDict) -> Model:
    """The part of `build` that needs no data. Raises: UserError."""
    with naming_fields():
        return model_of(with_given_model(_plain(config)))


def build_data(config: ml_collections.ConfigDict) -> Data:
    """The part of `build` that needs no parameters; a given teacher may be elsewhere yet. Raises: UserError."""
    with naming_fields():
        c = _plain(config)
        given = [*teacher_folders(c), *filter(None, [c["teacher"]["start"]])]
        if all(Path(folder).expanduser().is_dir() for folder in given):
            c = with_given_model(c)
        shape = (c["data"]["size"], c["data"]["size"], c["data"]["channels"])
        return data_of(c, shape, conditioning_of(make_network(c["network"])[0]))


def _plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """A configuration as it is saved, its fields checked. Raises: UserError."""
    c = json.loads(config.to_json_best_effort())
    check_fields(c)
    return c


def _job(c: dict[str, Any], model: Model, files: str, opened: bool) -> Job:
    data = data_of(c, model.image_shape, model.conditioning, opened)
    if files := data.files or files:  # so that a workdir is refused when the files are others
        c = {**c, "data": {**c["data"], "files": files}}
    d = c["distill"]
    what = METHODS[d["method"]].needs_clean(d)
    if what and opened and not data.clean:
        raise UserError(f"config.distill.{what} needs clean images, and config.data.source has none")
    generates, e = is_noise(c["data"]["corruption"]), c["evaluate"]
    if data.clean:
        _check_metrics(e, len(data.test), None if generates else model.image_shape)
    batches = {  # x_0 that a method does not read would lie in a chip's memory
        "teacher": (c["teacher"]["batch_size"] * model.teacher.batches, True),
        "distill": (c["distill"]["batch_size"] * model.distill.batches, bool(what)),
    }
    return Job(
        config=c,
        mesh=data.mesh,
        init_params=model.init_params,
        init_teachers=model.init_teachers,
        teacher=model.teacher,
        distill=model.distill,
        teacher_steps=model.teacher_steps,
        student_steps=model.student_steps,
        generates=generates,
        test=functools.cache(lambda: data.test_batch(e["examples"])),
        few=functools.cache(lambda: data.test_batch(PICTURE_EXAMPLES)),
        inputs=lambda folder: data.inputs(folder, d.get("blind", False)),
        clean=data.clean,
        features=_features(e["features"], model.image_shape),
        schedule=make("schedule", Schedule, c["schedule"]),
        batches=lambda stage: data.batches(stage, *batches[stage]),
    )


def _check_metrics(e: dict[str, Any], examples: int, image_shape: tuple[int, int, int] | None) -> None:
    """Raises UserError where the evaluation could not end. image_shape: of metrics of pairs; None: there are none."""
    if e["features"] != "none" and min(e["examples"] or examples, examples) < 2:
        raise UserError("config.evaluate.features: FID needs two test images at least; none leaves FID and KID out")
    if image_shape:
        images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        for metric in PIXEL_METRICS.values():
            try:
                jax.eval_shape(metric, images, images)
            except ValueError as error:
                raise UserError(f"config.data.size: {error}") from error


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
