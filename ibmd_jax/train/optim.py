"""Optimisers and learning rates by name."""

import math
from collections.abc import Callable

import optax

from ibmd_jax.core.errors import lookup

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": optax.adam,
    "adamw": optax.adamw,
    "radam": optax.radam,
}


def make_optimizer(
    name: str,
    learning_rate: float,
    steps: int,
    *,
    b1: float,
    b2: float,
    clip: float,
    warmup: int,
    decay: bool,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """An optimiser of OPTIMIZERS after clipping by the global norm.

    Args:
        steps: length of the run, in updates of this optimiser.
        clip: largest gradient norm; 0 does not clip.
        warmup: updates of linear warm-up from 0.
        decay: whether the rate then falls to 0 along a cosine; otherwise it stays.
        weight_decay: AdamW's; optax has another default.
    Raises: ValueError for weight_decay with another optimiser, and for numbers that cannot be.
    """
    for field, value, good in (
        ("learning_rate", learning_rate, 0 <= learning_rate < math.inf),
        ("b1", b1, 0 <= b1 < 1),
        ("b2", b2, 0 <= b2 < 1),
        ("clip", clip, 0 <= clip < math.inf),
        ("warmup", warmup, warmup >= 0),
        ("weight_decay", weight_decay, 0 <= weight_decay < math.inf),
    ):
        if not good:
            limit = "from 0, and less than 1" if field in ("b1", "b2") else "a number of at least 0"
            raise ValueError(f"{field} = {value}: it must be {limit}")
    if weight_decay and name != "adamw":
        raise ValueError(f"weight_decay = {weight_decay} is for adamw, not {name}")
    own = {"weight_decay": weight_decay} if name == "adamw" else {}
    rate = optax.linear_schedule(0.0, learning_rate, warmup)
    if decay:
        rest = optax.cosine_decay_schedule(learning_rate, max(steps - warmup, 1))
        rate = optax.join_schedules([rate, rest], [warmup])
    base = lookup(OPTIMIZERS, name, "optimizer")(rate if warmup or decay else learning_rate, b1=b1, b2=b2, **own)
    return optax.chain(optax.clip_by_global_norm(clip), base) if clip else base
