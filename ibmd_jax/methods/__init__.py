"""Training methods, each a Method (see base.py) of pure functions. README.md has the table."""

from ibmd_jax.methods.base import Method
from ibmd_jax.methods.dibregman import dibregman, on_features
from ibmd_jax.methods.ibmd import ibmd
from ibmd_jax.methods.progressive import progressive
from ibmd_jax.methods.sfddm import sfddm
from ibmd_jax.methods.teacher import teacher
from ibmd_jax.methods.teachers import by_label, ensemble

__all__ = [
    "Method",
    "by_label",
    "dibregman",
    "ensemble",
    "ibmd",
    "on_features",
    "progressive",
    "sfddm",
    "teacher",
]
