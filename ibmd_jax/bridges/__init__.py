"""Bridges x_t = a_t x_T + b_t x_0 + c_t eps. A new bridge is one file, its import and its line in BRIDGES."""

from ibmd_jax.bridges import diffusion
from ibmd_jax.bridges.base import Bridge, bridge
from ibmd_jax.bridges.brownian import Brownian
from ibmd_jax.bridges.ddbm import DDBMVE, DDBMVP
from ibmd_jax.bridges.flow import Flow, OtOde
from ibmd_jax.bridges.i2sb import I2SB
from ibmd_jax.bridges.i2sb_table import I2SBTable

# A pinned one becomes deterministic as OtOde(bridge).
BRIDGES: dict[str, type[Bridge]] = {
    "brownian": Brownian,
    "i2sb": I2SB,
    "i2sb_table": I2SBTable,
    "ddbm_vp": DDBMVP,
    "ddbm_ve": DDBMVE,
    "flow": Flow,
    "diffusion_linear": diffusion.Linear,
    "diffusion_cosine": diffusion.Cosine,
    "diffusion_sigmoid": diffusion.Sigmoid,
    "diffusion_ve": diffusion.VE,
    "edm": diffusion.EDM,
}

__all__ = ["BRIDGES", "DDBMVE", "DDBMVP", "I2SB", "Bridge", "Brownian", "Flow", "I2SBTable", "OtOde", "bridge"]
