"""What all samplers share: one compiled loop over a time grid.

A sampler is (denoise, bridge, key, x_T, times, ...) -> x_0. `denoise` has its parameters bound:
denoise(x_t, t, x_T, cond[, z]) -> x_0_hat. `times` descends, [steps + 1]; the last step adds no noise (but heun's).
Every sampler also takes, by keyword:

    mask        [B, H, W, 1] bool, True where x_T is unknown: outside it every x_0_hat and the result are x_T
    cond        passed on to the network: labels [B], embeddings [B, D], ...
    clip        True: every x_0_hat is clipped to [-1, 1]
    trajectory  True: returns (x_0, Trajectory), for pictures and tests; otherwise memory does not grow with the steps
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ibmd_jax.core.arrays import composite
from ibmd_jax.core.streams import normal, split
from ibmd_jax.core.types import Array, Key


class Step(NamedTuple):
    """One step of the loop, from s down to t, with its own key; `last` is a bool."""

    s: Array
    t: Array
    key: Key
    last: Array


class Trajectory(NamedTuple):
    """x: the state after every step; x_0: the estimate that the step started with. Both [steps, B, ...]."""

    x: Array
    x_0: Array


def march(
    step: Callable[..., Any],
    denoise: Callable[..., Array],
    key: Key,
    x_T: Array,
    times: Array,
    *,
    start: tuple = (),
    mask: Array | None = None,
    cond: Any = None,
    clip: bool = False,
    trajectory: bool = False,
) -> Any:
    """Scans step(D, carry, Step) -> (carry, x_0_hat) over the grid, D(x_t, t) being the masked and clipped denoiser.

    carry is (x, *start); x begins as x_T. Returns x_0 [B, ...], or (x_0, Trajectory).
    """

    def D(x_t: Array, t: Array, *z: Array | None) -> Array:
        x_0 = denoise(x_t, t, x_T, cond, *z)
        return composite(jnp.clip(x_0, -1, 1) if clip else x_0, x_T, mask)

    def body(carry: tuple, inputs: tuple) -> tuple[tuple, Trajectory | None]:
        carry, x_0 = step(D, carry, Step(*inputs))
        return carry, Trajectory(carry[0], x_0) if trajectory else None

    n = times.shape[0] - 1
    steps = (times[:-1], times[1:], split(key, n), jnp.arange(n) == n - 1)
    (x, *_), path = jax.lax.scan(body, (x_T, *start), steps)
    x = composite(x, x_T, mask)
    return (x, path) if trajectory else x


def noise(step: Step, x: Array) -> Array:
    """N(0, I) of the shape of x; zero in the last step."""
    return jnp.where(step.last, 0, 1).astype(x.dtype) * normal(step.key, x.shape, x.dtype)
