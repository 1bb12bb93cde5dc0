"""Several teachers as one: a Denoise function whose parameters are the tuple of theirs.

    ensemble    x_0_hat = sum_k w_k x_0_k(x_t, t)         teachers of one task; w sums to 1
    by_label    x_0_hat = x_0_{cond}(x_t, t)              a teacher for each task, cond its number

In IBMD the auxiliary network then matches the weighted mean, or every task's own teacher.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from ibmd_jax.core.types import Array, Denoise, Params


def ensemble(denoisers: Sequence[Denoise], weights: Sequence[float] | None = None) -> Denoise:
    """The weighted mean of teachers of one task. weights: positive, scaled to sum 1; None for equal ones.

    Raises: ValueError for another number of weights, or one that is not a positive number.
    """
    weights = [1.0] * len(denoisers) if weights is None else list(weights)
    if len(weights) != len(denoisers) or not all(isinstance(w, (int, float)) and 0 < w < math.inf for w in weights):
        raise ValueError(f"weights = {weights}: {len(denoisers)} teachers need as many positive weights")
    shares = [w / sum(weights) for w in weights]

    def denoise(params: tuple[Params, ...], x_t: Array, t: Array, *others: Any) -> Array:
        found = (d(p, x_t, t, *others) for d, p in zip(denoisers, params, strict=True))
        return sum(w * x for w, x in zip(shares, found, strict=True))

    return denoise


def by_label(denoisers: Sequence[Denoise]) -> Denoise:
    """The teacher whose number is the example's label, cond [B] int32; the teachers themselves see no labels.

    Every teacher is evaluated on every example.
    """

    def denoise(params: tuple[Params, ...], x_t: Array, t: Array, x_T: Array | None = None, cond: Any = None) -> Array:
        found = jnp.stack([d(p, x_t, t, x_T) for d, p in zip(denoisers, params, strict=True)])
        number = cond.reshape(1, -1, *(1,) * (x_t.ndim - 1))
        return jnp.take_along_axis(found, number, axis=0)[0]

    return denoise
