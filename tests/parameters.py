"""Parameters in which no layer is at its start."""

import jax
import numpy as np


def perturb(params, scale=0.1, seed=7):
    """Moves every parameter, so that zero-initialised layers take part.

    By NumPy: JAX would compile a program for each shape, which took longer than the tests.
    """
    random = np.random.default_rng(seed)
    noise = np.float32(scale)
    return jax.tree.map(lambda p: np.asarray(p) + noise * random.standard_normal(p.shape, np.float32), params)
