"""I2SB as published: a table of `steps` indices n, t = n / (steps - 1), alpha = 1 (Liu et al., arXiv 2302.05872).

    beta_n = linspace(sqrt(1e-4), sqrt(beta_max / steps), steps)^2, first half, then its mirror image          (1)
    F_n    = sum_{k <= n} beta_k,   R_n = sum_{k >= n} beta_k,   S = sum beta,   so F_n + R_n = S + beta_n    (2)
    I2SB:  a = F/(F + R),  b = R/(F + R),  c^2 = F R/(F + R)                                                  (3)
    DBIM:  a = F/S,  b = R/S,  c^2 = F R/S                        (Zheng et al., arXiv 2405.15885; its code)  (4)
    both:  g^2 = (steps - 1) beta_n, per unit of t

Neither end is quite pinned: b_T = beta_0 / (S + beta_0) = 4e-4, and so is a_0. (4) is not even a bridge (a + b > 1):
it is for DBIM's checkpoints. Where no checkpoint fixes the table, use `I2SB`.
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

from ibmd_jax.bridges.base import Bridge, bridge
from ibmd_jax.core.errors import UserError
from ibmd_jax.core.types import Array, Coeffs


@functools.lru_cache
def table(beta_max: float, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(beta, F, R) of equations (1) and (2), each [steps] float64."""
    half = np.linspace(1e-4**0.5, (beta_max / steps) ** 0.5, steps)[: steps // 2] ** 2
    beta = np.concatenate([half, half[::-1]])
    return beta, np.cumsum(beta), np.cumsum(beta[::-1])[::-1]


def static(default):
    """A field that is part of the program, not an array in it."""
    return dataclasses.field(default=default, metadata={"static": True})


@bridge
class I2SBTable(Bridge):
    """beta_max: 0.3 or 1.0 where published. steps: even, 1000 where published. dbim: equation (4), not (3)."""

    beta_max: float = static(1.0)
    steps: int = static(1000)
    dbim: bool = static(False)

    def __post_init__(self):
        if self.steps < 2 or self.steps % 2:
            raise ValueError(f"I2SBTable.steps = {self.steps}: it must be even and at least 2")

    def _look_up(self, values: np.ndarray, t: Array) -> Array:
        t = jnp.asarray(t)
        return jnp.asarray(values, t.dtype)[jnp.rint(t * (self.steps - 1)).astype(jnp.int32)]

    def coeffs(self, t: Array) -> Coeffs:
        _, F, R = table(self.beta_max, self.steps)
        total = F[-1] if self.dbim else F + R
        return Coeffs(*(self._look_up(v, t) for v in (F / total, R / total, np.sqrt(F * R / total))))

    def alpha(self, t: Array) -> Array:
        return jnp.ones_like(t)

    def rho(self, t: Array) -> Array:
        return self._look_up(np.sqrt(table(self.beta_max, self.steps)[1]), t)

    def noise_level(self, t: Array) -> Array:
        return self._look_up(np.linspace(1e-4, 1.0, self.steps) * self.steps, t)

    def f_and_g2(self, t: Array) -> tuple[Array, Array]:
        return jnp.zeros_like(t), self._look_up(table(self.beta_max, self.steps)[0] * (self.steps - 1), t)

    def slopes(self, t: Array):
        raise UserError(
            "a table has no time derivative: take the bridge i2sb, or another parametrisation than velocity"
        )
