"""Corruptions x_0 -> x_T (, mask). A new one is one function and one line in CORRUPTIONS; README.md lists them.

Each is a pure function (key, x_0, **settings) -> Corrupted of one image [H, W, C] float32 in [-1, 1], for jit and vmap.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ibmd_jax.core.errors import UserError, lookup, named
from ibmd_jax.core.types import Array, Key
from ibmd_jax.corruptions.base import Corrupted
from ibmd_jax.corruptions.blur import blur, blur_peers
from ibmd_jax.corruptions.inpaint import inpaint_center, inpaint_freeform, inpaint_freeform_file
from ibmd_jax.corruptions.jpeg import jpeg
from ibmd_jax.corruptions.mixture import mixture
from ibmd_jax.corruptions.resize import sr_bicubic, sr_pool
from ibmd_jax.corruptions.simple import grey, noise, pure_noise, sketch

# I2SB's nine tasks, in the order of its labels.
I2SB_TASKS = (
    "jpeg-5",
    "jpeg-10",
    "blur-uni",
    "blur-gauss",
    "sr4x-pool",
    "sr4x-bicubic",
    "inpaint-center",
    "inpaint-freeform1020",
    "inpaint-freeform2030",
)


def corruption(spec: str | Mapping[str, Any]) -> Callable[[Key, Array], Corrupted]:
    """A name of CORRUPTIONS, or {"name": one of them, and its settings}, as a function (key, x_0) -> Corrupted."""
    name, settings = named(spec, "corruption")
    function = lookup(CORRUPTIONS, name, "corruption")
    known = list(inspect.signature(function).parameters)[2:]
    if unknown := settings.keys() - known:
        raise UserError(f"corruption {name!r} has no setting {min(unknown)!r}: it takes {', '.join(known) or 'none'}")
    return partial(function, **settings)


def named_mixture(key: Key, x_0: Array, corruptions: Sequence[str | Mapping[str, Any]] = I2SB_TASKS) -> Corrupted:
    """`mixture` of corruptions that are given by name, or by name and settings."""
    return mixture(key, x_0, [corruption(spec) for spec in corruptions])


def label_count(spec: str | Mapping[str, Any]) -> int:
    """How many labels a corruption gives: the length of a mixture, 0 for every other one."""
    function = corruption(spec)
    return len(function.keywords.get("corruptions", I2SB_TASKS)) if function.func is named_mixture else 0


def reduction(spec: str | Mapping[str, Any]) -> int:
    """How many times smaller super-resolution takes an image to be than it is shown; 1 of every other corruption."""
    function = corruption(spec)
    reduces = function.func in (sr_pool, sr_bicubic)
    return inspect.signature(function).parameters["factor"].default if reduces else 1


CORRUPTIONS: dict[str, Callable[..., Corrupted]] = {
    "inpaint-center": inpaint_center,
    "inpaint-freeform": inpaint_freeform,
    "inpaint-freeform1020": partial(inpaint_freeform, low=0.1, high=0.2),
    "inpaint-freeform2030": partial(inpaint_freeform, low=0.2, high=0.3),
    "inpaint-freeform3040": partial(inpaint_freeform, low=0.3, high=0.4),
    "inpaint-freeform-file": inpaint_freeform_file,
    "sr-pool": sr_pool,
    "sr-bicubic": sr_bicubic,
    **{f"sr{f}x-pool": partial(sr_pool, factor=f) for f in (2, 4, 8)},
    **{f"sr{f}x-bicubic": partial(sr_bicubic, factor=f) for f in (2, 4, 8)},
    "jpeg": jpeg,
    **{f"jpeg-{q}": partial(jpeg, quality=q) for q in (5, 10)},
    **{f"jpeg-{q}-libjpeg": partial(jpeg, quality=q, libjpeg=True) for q in (5, 10)},
    "blur": blur,
    "blur-uni": partial(blur_peers, size=9),
    "blur-gauss": partial(blur_peers, size=5, sigma=10.0),
    "blur-uni-true": partial(blur, size=9),
    "blur-gauss-true": partial(blur, size=5, sigma=10.0),
    "noise": noise,
    "pure-noise": pure_noise,
    "grey": grey,
    "sketch": sketch,
    "mixture": named_mixture,
}
