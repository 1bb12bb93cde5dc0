"""Trains the classifiers behind metrics/features/*.npz (3 and 8 minutes on 2 cores).

    python -m benchmarks.train_features emoji
    python -m ibmd_jax.data.prepare fashion_mnist --from FOLDER && python -m benchmarks.train_features fashion

Classes are the emoji's Unicode subcategories, or those of Fashion-MNIST; only the training split is used, mirrored and
shifted by up to 2 pixels. Weights are stored as float16. Training is deterministic given the machine's arithmetic.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from ibmd_jax.core.arrays import from_uint8
from ibmd_jax.data import Options, open_source
from ibmd_jax.data.emoji import index, rows_of, tiles
from ibmd_jax.metrics.features.classifier import Classifier

STEPS = {"emoji": 1500, "fashion": 4000}


def emoji(split: str) -> tuple[np.ndarray, np.ndarray]:
    names = sorted({entry["subcategory"] for entry in index()})
    labels = [names.index(entry["subcategory"]) for entry in index() if entry["split"] == split]
    return from_uint8(tiles("noto", 32)[rows_of(split)]), np.array(labels, np.int32)


def fashion(split: str) -> tuple[np.ndarray, np.ndarray]:
    source = open_source("tfds:fashion_mnist", split, Options(32, channels=1, fit="pad"))
    rows = [source[i] for i in range(len(source))]
    return from_uint8(np.stack([row["x_0"] for row in rows])), np.stack([row["label"] for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=STEPS)
    args = parser.parse_args()
    load, steps = {"emoji": emoji, "fashion": fashion}[args.name], STEPS[args.name]
    (x, y), (x_test, y_test) = load("train"), load("test")
    border = float(x[0, 0, 0, 0])
    net = Classifier(classes=int(y.max()) + 1)
    params = net.init(jax.random.key(0), x[:1])["params"]
    optimizer = optax.adamw(optax.warmup_cosine_decay_schedule(0, 2e-3, 100, steps), weight_decay=1e-2)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, images, targets):
        def loss_fn(params):
            logits = net.apply({"params": params}, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    scores = jax.jit(lambda params, images: net.apply({"params": params}, images))
    rng = np.random.default_rng(0)
    for i in range(steps):
        rows = rng.integers(len(x), size=64)
        images = np.where(rng.random((64, 1, 1, 1)) < 0.5, x[rows], x[rows][:, :, ::-1])
        padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=border)
        top, left = rng.integers(5, size=2)
        params, state, loss = step(params, state, padded[:, top : top + 32, left : left + 32], y[rows])
        if (i + 1) % 200 == 0:
            parts = [scores(params, x_test[j : j + 500]) for j in range(0, len(x_test), 500)]
            accuracy = float((np.concatenate(parts).argmax(-1) == y_test).mean())
            print(f"step {i + 1} loss {float(loss):.3f} test accuracy {accuracy:.3f}", flush=True)
    save(f"ibmd_jax/metrics/features/{args.name}.npz", params, x)


def save(path: str, params: dict, x: np.ndarray) -> None:
    """Writes the weights without the class scores, as float16, and the features' standard deviations on x."""
    flat = {k: np.asarray(v, np.float16) for k, v in flatten_dict(params).items() if k[0] != "logits"}
    rounded = unflatten_dict({k: jnp.asarray(v, jnp.float32) for k, v in flat.items()})
    net = jax.jit(lambda images: Classifier().apply({"params": rounded}, images))
    features = np.concatenate([np.asarray(net(x[i : i + 242])) for i in range(0, len(x), 242)])
    np.savez_compressed(path, scale=features.std(0), **{"/".join(k): v for k, v in flat.items()})


if __name__ == "__main__":
    main()
