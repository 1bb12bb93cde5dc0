"""Flax networks and what makes denoisers of them. A new architecture is one file and one line in NETWORKS."""

from flax import linen as nn

from ibmd_jax.networks.mlp import MLP
from ibmd_jax.networks.unet import UNet

NETWORKS: dict[str, type[nn.Module]] = {"mlp": MLP, "unet": UNet}
