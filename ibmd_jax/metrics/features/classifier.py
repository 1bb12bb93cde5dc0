"""Features of small classifiers of 32-pixel images, bundled with their weights. NOT Inception.

    emoji    3 channels: subcategories of the embedded demo set
    fashion  1 channel: the classes of Fashion-MNIST on a black border ("pad")

Two scales side by side: 64 channels of the third layer (strokes, edges, blur) and the 64 units before the class scores
(what is drawn), each averaged over the image and divided by its standard deviation on the training split.
Distances over these features rank models of one data set and mean nothing beside published FID values.
The weights are made by benchmarks/train_features.py from the training splits.
"""

import functools
import importlib.resources
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import unflatten_dict

from ibmd_jax.core.types import Array

LAYERS = ((32, 1), (64, 2), (64, 1), (96, 2), (128, 2))  # (channels, stride)
FINE_LAYER = 2


class Classifier(nn.Module):
    """x [B, 32, 32, C] -> features [B, 64 + units]; with classes > 0 their scores [B, classes] instead."""

    classes: int = 0
    units: int = 64

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i, (width, stride) in enumerate(LAYERS):
            x = nn.Conv(width, (3, 3), strides=(stride, stride), padding="SAME", name=f"conv{i}")(x)
            x = nn.relu(nn.GroupNorm(num_groups=8, epsilon=1e-5, name=f"norm{i}")(x))
            if i == FINE_LAYER:
                fine = x.mean((1, 2))
        coarse = nn.Dense(self.units, name="features")(x.mean((1, 2)))
        if self.classes:
            return nn.Dense(self.classes, name="logits")(nn.relu(coarse))
        return jnp.concatenate([fine, coarse], axis=-1)


def bundled(name: str) -> dict[str, Any]:
    """The tree of arrays in NAME.npz, as float32."""
    with (importlib.resources.files(__package__) / f"{name}.npz").open("rb") as file:
        return unflatten_dict({tuple(key.split("/")): jnp.asarray(v, jnp.float32) for key, v in np.load(file).items()})


@functools.cache
def classifier_features(name: str) -> Callable[[Array], Array]:
    """The bundled network NAME.npz as a jitted function [B, 32, 32, C] -> [B, 128].

    It raises ValueError for images of another shape.
    """
    params = bundled(name)
    scale, channels = params.pop("scale"), params["conv0"]["kernel"].shape[2]

    @jax.jit
    def features(x: Array) -> Array:
        if x.shape[1:] != (32, 32, channels):
            raise ValueError(f"{name} features take images [B, 32, 32, {channels}], got {x.shape}")
        return Classifier().apply({"params": params}, jnp.clip(x, -1, 1)) / scale[None, :]

    return features
