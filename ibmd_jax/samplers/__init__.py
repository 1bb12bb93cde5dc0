"""Samplers: (denoise, bridge, key, x_T, times, ...) -> x_0, one function an algorithm; base.py has what they share."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ibmd_jax.bridges import Bridge
from ibmd_jax.core.types import Array
from ibmd_jax.samplers.ancestral import ancestral
from ibmd_jax.samplers.base import Trajectory
from ibmd_jax.samplers.dbim import boots, dbim, dbim_high_order
from ibmd_jax.samplers.euler_maruyama import euler_maruyama
from ibmd_jax.samplers.heun import heun
from ibmd_jax.samplers.probability_flow import probability_flow
from ibmd_jax.samplers.student import few_step, one_step


class Entry(NamedTuple):
    """evaluations(bridge, times, **options): of the network; grid: a name of TIME_GRIDS, the published one."""

    sample: Callable[..., Any]
    evaluations: Callable[..., int]
    grid: str


def one_a_step(bridge: Bridge, times: Array, **_: Any) -> int:
    return len(times) - 1


def of_heun(bridge: Bridge, times: Array, churn: float = 0.33, **_: Any) -> int:
    return (3 if churn else 2) * (len(times) - 1) - 1


def of_probability_flow(bridge: Bridge, times: Array, **_: Any) -> int:
    return sum(1 if boots(bridge, s) or t <= 0 else 2 for s, t in itertools.pairwise(np.asarray(times)))


# How teachers are sampled; students have few_step and one_step.
SAMPLERS: dict[str, Entry] = {
    "ancestral": Entry(ancestral, one_a_step, "uniform"),
    "dbim": Entry(dbim, one_a_step, "dbim"),
    "dbim_high_order": Entry(dbim_high_order, one_a_step, "dbim"),
    "heun": Entry(heun, of_heun, "ddbm"),
    "euler_maruyama": Entry(euler_maruyama, one_a_step, "uniform"),
    "probability_flow": Entry(probability_flow, of_probability_flow, "uniform"),
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
