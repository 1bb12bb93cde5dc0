"""Feature functions for FID and KID: images [B, H, W, C] float32 in [-1, 1] -> [B, D] float32."""

import functools
from collections.abc import Callable

from ibmd_jax.core.types import Array
from ibmd_jax.metrics.features.classifier import classifier_features

FEATURES: dict[str, Callable[[], Callable[[Array], Array]]] = {
    name: functools.partial(classifier_features, name) for name in ("emoji", "fashion")
}
