"""Bridges x_t = a_t x_T + b_t x_0 + c_t eps. A new bridge is one file and one line in BRIDGES."""

from ibmd_jax.bridges.base import Bridge
from ibmd_jax.bridges.brownian import Brownian
from ibmd_jax.bridges.i2sb import I2SB

BRIDGES: dict[str, type[Bridge]] = {"brownian": Brownian, "i2sb": I2SB}

__all__ = ["BRIDGES", "I2SB", "Bridge", "Brownian"]
