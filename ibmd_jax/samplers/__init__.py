"""Samplers: (denoise, bridge, key, x_T, times, ...) -> x_0, one function an algorithm.

`denoise` has its parameters bound: denoise(x_t, t, x_T, cond, z) -> x_0_hat.
"""

from ibmd_jax.samplers.ancestral import ancestral
from ibmd_jax.samplers.student import one_step

__all__ = ["ancestral", "one_step"]
