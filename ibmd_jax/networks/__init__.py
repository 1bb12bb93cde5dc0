"""Flax networks and what makes denoisers of them. A new one is one file, its import and its line in NETWORKS."""

import functools
from collections.abc import Callable

from flax import linen as nn

from ibmd_jax.networks.adm import ADM, PRESETS
from ibmd_jax.networks.dit import DiT
from ibmd_jax.networks.mlp import MLP
from ibmd_jax.networks.unet import UNet

# "i2sb-256" and the other presets are ADM with the settings of a published network.
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "adm": ADM,
    "dit": DiT,
    "mlp": MLP,
    "unet": UNet,
    **{name: functools.partial(ADM, **settings) for name, settings in PRESETS.items()},
}
