"""Samplers: (denoise, bridge, key, x_T, times, ...) -> x_0, one function an algorithm; base.py has what they share."""

from collections.abc import Callable
from typing import Any, NamedTuple

from ibmd_jax.samplers.ancestral import ancestral
from ibmd_jax.samplers.base import Trajectory
from ibmd_jax.samplers.dbim import dbim, dbim_high_order
from ibmd_jax.samplers.euler_maruyama import euler_maruyama
from ibmd_jax.samplers.heun import heun
from ibmd_jax.samplers.probability_flow import probability_flow
from ibmd_jax.samplers.student import few_step, one_step


class Entry(NamedTuple):
    """evaluations(n, **options): network evaluations of n steps; grid: a name of TIME_GRIDS, the published one."""

    sample: Callable[..., Any]
    evaluations: Callable[..., int]
    grid: str


def one_a_step(n: int, **_: Any) -> int:
    return n


# How teachers are sampled; students have few_step and one_step.
SAMPLERS: dict[str, Entry] = {
    "ancestral": Entry(ancestral, one_a_step, "uniform"),
    "dbim": Entry(dbim, one_a_step, "dbim"),
    "dbim_high_order": Entry(dbim_high_order, one_a_step, "dbim"),
    "heun": Entry(heun, lambda n, churn=0.33, **_: (3 if churn else 2) * n - 1, "ddbm"),
    "euler_maruyama": Entry(euler_maruyama, one_a_step, "uniform"),
    "probability_flow": Entry(probability_flow, lambda n: max(1, 2 * (n - 1)), "uniform"),
}

__all__ = [
    "SAMPLERS",
    "Trajectory",
    "ancestral",
    "dbim",
    "dbim_high_order",
    "euler_maruyama",
    "few_step",
    "heun",
    "one_step",
    "probability_flow",
]
