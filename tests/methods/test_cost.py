"""An iteration of IBMD computes its network passes and nothing else."""

import numpy as np

from benchmarks.iteration import flops, programs
from ibmd_jax.networks.unet import UNet


def test_the_operations_of_an_iteration_are_those_of_its_passes():
    whole, passes = programs(UNet(channels=(32,), attention=(), groups=8), size=16, batch=4, L=2)
    np.testing.assert_allclose(flops(whole), sum(n * flops(p) for n, p in passes.values()), rtol=0.03)
