"""Feature functions for FID and KID: images [B, H, W, 3] float32 in [-1, 1] -> [B, D] float32."""

from collections.abc import Callable

from ibmd_jax.core.types import Array
from ibmd_jax.metrics.features.emoji import emoji_features

FEATURES: dict[str, Callable[[], Callable[[Array], Array]]] = {"emoji": emoji_features}
