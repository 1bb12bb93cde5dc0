"""Features for the embedded demo set: a small classifier of emoji subcategories. NOT Inception.

Distances over these features rank models on 32 x 32 emoji and mean nothing beside published FID values.
`emoji.npz` is made by benchmarks/train_features.py from the training split.
"""

import functools
import importlib.resources
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import unflatten_dict

from ibmd_jax.core.types import Array


class EmojiNet(nn.Module):
    """x [B, 32, 32, 3] -> (features [B, 64], logits [B, classes])."""

    classes: int = 99

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        for i, (width, stride) in enumerate(((32, 1), (64, 2), (64, 1), (96, 2), (128, 2))):
            x = nn.Conv(width, (3, 3), strides=(stride, stride), padding="SAME", name=f"conv{i}")(x)
            x = nn.relu(nn.GroupNorm(num_groups=8, epsilon=1e-5, name=f"norm{i}")(x))
        features = nn.Dense(64, name="features")(x.mean((1, 2)))
        return features, nn.Dense(self.classes, name="logits")(nn.relu(features))


@functools.cache
def emoji_features() -> Callable[[Array], Array]:
    """The bundled network as a jitted function [B, 32, 32, 3] -> [B, 64]. Raises ValueError for other image sizes."""
    with (importlib.resources.files(__package__) / "emoji.npz").open("rb") as file:
        flat = {tuple(name.split("/")): jnp.asarray(v, jnp.float32) for name, v in np.load(file).items()}
    params = unflatten_dict(flat)
    net = EmojiNet()

    @jax.jit
    def features(x: Array) -> Array:
        if x.shape[1:] != (32, 32, 3):
            raise ValueError(f"emoji features take images [B, 32, 32, 3], got {x.shape}")
        return net.apply({"params": params}, jnp.clip(x, -1, 1))[0]

    return features
