"""Corruptions x_0 -> x_T (, mask). A new one is one function and one line in CORRUPTIONS.

Each is a pure function (key, x_0) -> Corrupted of one image [H, W, C] float32 in [-1, 1], for jit and vmap.
"""

from collections.abc import Callable

from ibmd_jax.core.types import Array, Key
from ibmd_jax.corruptions.inpaint import Corrupted, inpaint_center, inpaint_freeform

CORRUPTIONS: dict[str, Callable[[Key, Array], Corrupted]] = {
    "inpaint-center": inpaint_center,
    "inpaint-freeform": inpaint_freeform,
}
