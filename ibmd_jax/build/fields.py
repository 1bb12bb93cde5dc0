"""Reading a configuration: names, values and ranges of its fields, each mistake with one clear error."""

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ibmd_jax.core.errors import UserError
from ibmd_jax.train.loop import Schedule


@contextlib.contextmanager
def naming_fields() -> Iterator[None]:
    """While it lasts, a field that a configuration lacks is a UserError with its name."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"the configuration lacks the field {error}: compare it with configs/inpaint.py") from error


def check_names(kind: str, known: Iterable[str], settings: dict[str, Any]) -> None:
    for name in settings:
        if name not in known:
            section = f"config.{kind}" if kind else "the configuration"
            raise UserError(f"{section} has no field {name!r}: it takes {', '.join(known) or 'none'}")


# Sections whose fields no function's parameters tell, "" for the whole. A run adds data.files and teacher.models;
# what to profile is a flag.
SECTIONS = {
    "": "name seed data bridge network parametrisation teacher distill evaluate schedule",
    "data": "source corruption flip size channels fit filter filter_T on_error workers files",
    "teacher": "checkpoint combine weights start steps batch_size accumulate optimizer weight ema_decay t_min "
    "time_sampler models",
    "evaluate": "nfe sampler batch_size examples features",
    "schedule": " ".join(name for name in Schedule._fields if name != "profile"),
}


def make(kind: str, factory: Callable[..., Any], settings: dict[str, Any]) -> Any:
    """factory(**settings), with wrong names and values reported as UserError."""
    check_names(kind, list(inspect.signature(factory).parameters), settings)
    try:
        return factory(**settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"config.{kind}: {error}") from error


# Smallest and largest value of the numbers that a run would otherwise trip over late; whole ones where these are.
RANGES = {
    "seed": (0, 2**32 - 1),
    **{
        f"{stage}.{name}": (1, float("inf"))
        for stage in ("teacher", "distill")
        for name in ("steps", "batch_size", "accumulate")
    },
    **{f"{stage}.ema_decay": (0.0, 1.0) for stage in ("teacher", "distill")},
    **{f"{stage}.t_min": (1e-6, 0.5) for stage in ("teacher", "distill")},
    "distill.auxiliary_updates": (1, float("inf")),
    "distill.noise_channels": (0, float("inf")),
    "distill.student_steps": (1, 1000),
    "distill.pretraining": (0, float("inf")),
    "distill.logit_clip": (0.0, float("inf")),
    "distill.adversarial": (0.0, float("inf")),
    "distill.output_weight": (0.0, float("inf")),
    "distill.hidden_weight": (0.0, float("inf")),
    "distill.chain": (1, 1024),
    "distill.reference_steps": (1, 1000),
    "data.size": (1, float("inf")),
    "data.workers": (0, 1000),
    "evaluate.batch_size": (1, float("inf")),
    "evaluate.examples": (0, float("inf")),
    **{f"schedule.{name}": (1, float("inf")) for name in Schedule._fields if name != "profile"},
}


# Names and folders, which a number cannot be; and sections with a name of their own.
TEXTS = (
    "data.source",
    "teacher.checkpoint",
    "teacher.start",
    "teacher.weight",
    "distill.start",
    "distill.auxiliary_start",
    "distill.student_weight",
    "distill.auxiliary_weight",
)
NAMED = ("bridge", "network", "parametrisation", "evaluate.sampler")


def check_fields(config: dict[str, Any]) -> None:
    """Raises UserError for a field that is unknown, as a misspelt one is, of another type, or out of range."""
    for section, known in SECTIONS.items():
        check_names(section, known.split(), config[section] if section else config)

    def value_of(field: str, default: Any) -> Any:
        section, _, name = field.rpartition(".")
        fields = config[section] if section else config
        return fields.get(name, default) if section == "distill" else fields[name]  # methods differ in these

    for field in TEXTS:
        if not isinstance(value := value_of(field, ""), str):
            raise UserError(f"config.{field} = {value!r}: it must be text, in quotes")
    for field in NAMED:
        if not isinstance(value := value_of(field, None), dict):
            raise UserError(f"config.{field} = {value!r}: it must be {{'name': ..., a setting: ...}}")
    for field, (low, high) in RANGES.items():
        value, whole = value_of(field, low), isinstance(low, int)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise UserError(f"config.{field} = {value!r}: it must be a {'whole ' * whole}number")
        if not low <= value <= high:
            raise UserError(
                f"config.{field} = {value}: it must be "
                + (f"at least {low:.10g}" if high == float("inf") else f"from {low:.10g} to {high:.10g}")
            )
    steps = config["evaluate"]["nfe"]
    steps = tuple(steps) if isinstance(steps, list) else steps
    if not isinstance(steps, tuple) or not steps or not all(isinstance(n, int) and n >= 1 for n in steps):
        raise UserError(f"config.evaluate.nfe = {steps!r}: it must hold whole numbers of at least 1")
