"""Trains the classifier behind metrics/features/emoji.npz (3 minutes on 2 cores).

    python -m benchmarks.train_features

Classes are the emoji's Unicode subcategories; only the training split is used, mirrored and shifted by up to 2 pixels.
Weights are stored as float16. Training is deterministic given the machine's arithmetic.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from ibmd_jax.core.arrays import from_uint8
from ibmd_jax.data.emoji import index, rows_of, tiles
from ibmd_jax.metrics.features.emoji import EmojiNet


def labels(split: str) -> np.ndarray:
    names = sorted({entry["subcategory"] for entry in index()})
    return np.array([names.index(entry["subcategory"]) for entry in index() if entry["split"] == split], np.int32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="ibmd_jax/metrics/features/emoji.npz")
    parser.add_argument("--steps", type=int, default=1500)
    args = parser.parse_args()

    x, y = from_uint8(tiles("noto", 32)[rows_of("train")]), labels("train")
    x_test, y_test = from_uint8(tiles("noto", 32)[rows_of("test")]), labels("test")
    net = EmojiNet(classes=int(y.max()) + 1)
    params = net.init(jax.random.key(0), x[:1])["params"]
    optimizer = optax.adamw(optax.warmup_cosine_decay_schedule(0, 2e-3, 100, args.steps), weight_decay=1e-2)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, images, targets):
        def loss_fn(params):
            logits = net.apply({"params": params}, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    rng = np.random.default_rng(0)
    for i in range(args.steps):
        rows = rng.integers(len(x), size=64)
        images = np.where(rng.random((64, 1, 1, 1)) < 0.5, x[rows], x[rows][:, :, ::-1])
        padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=1)
        top, left = rng.integers(5, size=2)
        params, state, loss = step(params, state, padded[:, top : top + 32, left : left + 32], y[rows])
        if (i + 1) % 100 == 0:
            logits = jax.jit(lambda p: net.apply({"params": p}, x_test))(params)
            accuracy = float((jnp.argmax(logits, -1) == y_test).mean())
            print(f"step {i + 1} loss {float(loss):.3f} test accuracy {accuracy:.3f}", flush=True)
    save(args.out, params, x)


def save(path: str, params: dict, x: np.ndarray) -> None:
    """Writes the weights without the class scores, as float16, and the features' standard deviations on x."""
    flat = {k: np.asarray(v, np.float16) for k, v in flatten_dict(params).items() if k[0] != "logits"}
    rounded = unflatten_dict({k: jnp.asarray(v, jnp.float32) for k, v in flat.items()})
    net = jax.jit(lambda images: EmojiNet().apply({"params": rounded}, images))
    features = np.concatenate([np.asarray(net(x[i : i + 242])) for i in range(0, len(x), 242)])
    np.savez_compressed(path, scale=features.std(0), **{"/".join(k): v for k, v in flat.items()})


if __name__ == "__main__":
    main()
