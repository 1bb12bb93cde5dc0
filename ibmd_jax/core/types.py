"""The contracts that the other folders share."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp

Array = jax.Array
Key = chex.PRNGKey
Params = chex.ArrayTree


class Coeffs(NamedTuple):
    """x_t = a x_T + b x_0 + c eps; three arrays of the shape of t."""

    a: Array
    b: Array
    c: Array


class Batch(NamedTuple):
    """What a method trains on and a sampler restores. Images are [B, H, W, C] float32 in [-1, 1].

    x_T:  the corrupted image. Only this one is always there.
    x_0:  the clean image, or None where no clean images exist.
    mask: [B, H, W, 1] bool, True where x_T is unknown (the hole), or None.
    cond: further conditioning (labels [B] int32, embeddings [B, D] float32), or None.
    """

    x_T: Array
    x_0: Array | None = None
    mask: Array | None = None
    cond: Any = None


class Conditioning(NamedTuple):
    """What a network takes as cond: labels [B] int32, embeddings [B, embedding] float32, or None where both are 0."""

    classes: int = 0
    embedding: int = 0

    def example(self, batch: int = 1) -> jax.Array | None:
        """Zeros in the shape and dtype of cond."""
        if self.embedding:
            return jnp.zeros((batch, self.embedding), jnp.float32)
        return jnp.zeros((batch,), jnp.int32) if self.classes else None


class Network(NamedTuple):
    """An architecture as two pure functions. One architecture serves many parameter trees.

    init(key, x, t, cond, z) -> params: x [B, H, W, C_in] and t [B] only give shapes; a non-None z
        [B, H, W, C_z] adds noise-input weights, zero at the start.
    apply(params, x, t, cond, z) -> [B, H, W, C_out]. A network with dropout takes a key after them, and drops
        nothing without one.
    features(params, x, t, cond, z) -> (the same, the activations [B, h, w, C] that its last layer sees), or None.
    """

    init: Callable[..., Params]
    apply: Callable[..., Array]
    features: Callable[..., tuple[Array, Array]] | None = None


class Denoise(Protocol):
    """x_0 estimate of the image from x_t: the only view that methods and samplers have of a network.

    key is for dropout, and only given in bridge matching with `dropout`. With features=True it returns
    (x_0, Network.features' activations); only the methods that name them in their docstring ask for it.
    """

    def __call__(
        self,
        params: Params,
        x_t: Array,
        t: Array,
        x_T: Array | None = None,
        cond: Any = None,
        z: Array | None = None,
        key: Key | None = None,
        features: bool = False,
    ) -> Any: ...
