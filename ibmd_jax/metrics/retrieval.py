"""Does an image show what its text says? The share of images whose own text is the nearest of all.

    accuracy = mean_n [ argmax_m  f(x_n) . e_m / |e_m|  =  own(n) ],   e_1, e_2, ... the distinct texts of the set

f is a small image encoder, trained by benchmarks/train_features.py against the hashed words of emoji names
(data/text.py; the Noto drawings of the training split), whatever the model that drew the images is conditioned on.
Chance is one in the number of distinct texts, and only values from the same set of texts compare. Of real drawings it
finds

    train   0.60 of 3388 drawings, 1692 names (the right one is among the nearest five for 0.92)
    test    0.28 of 398 drawings, 218 names, by the words that they share with others: hardly any object or flag

Names leave out the skin tone, so that its variants count as one; most of the rest are people who do similar things.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ibmd_jax.core.types import Array, Params
from ibmd_jax.metrics.features.classifier import Classifier, bundled

NETWORK = Classifier(classes=128, units=192)
PART = 256  # images at a time


def directions(params: Params, x: Array) -> Array:
    """f: x [B, 32, 32, 3] in [-1, 1] -> unit vectors [B, 128]."""
    found = NETWORK.apply({"params": params}, jnp.clip(x, -1, 1))
    return found / jnp.linalg.norm(found, axis=-1, keepdims=True)


@functools.cache
def name_encoder() -> Callable[[Array], Array]:
    """f with the bundled weights, jitted."""
    params = bundled("names")
    return jax.jit(lambda x: directions(params, x))


def retrieval_accuracy(images: Array, texts: Array, encode: Callable[[Array], Array] | None = None) -> float:
    """The fraction of images [N, 32, 32, 3] in [-1, 1] whose nearest text is their own of texts [N, D].

    Equal texts count once, so that of several images with one text each may find it. encode: f, by default the bundled
    one for emoji names, D = 128. Raises: ValueError for shapes that do not fit.
    """
    if len(images) != len(texts) or not len(images):
        raise ValueError(f"retrieval needs a text for each image, got {len(images)} images and {len(texts)} texts")
    if encode is None:
        if images.shape[1:] != (32, 32, 3) or texts.shape[1:] != (128,):
            raise ValueError(
                f"name retrieval takes images [N, 32, 32, 3] and texts [N, 128], got {images.shape} and {texts.shape}"
            )
        encode = name_encoder()
    distinct, own = np.unique(np.asarray(texts), axis=0, return_inverse=True)
    distinct = distinct / np.maximum(np.linalg.norm(distinct, axis=-1, keepdims=True), 1e-12)
    found = np.concatenate([np.asarray(encode(images[i : i + PART])) for i in range(0, len(images), PART)])
    return float(((found @ distinct.T).argmax(-1) == own).mean())
