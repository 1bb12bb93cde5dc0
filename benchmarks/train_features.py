"""Trains the networks behind metrics/features/*.npz (3 and 8 minutes on 2 cores, the last 6 on one).

    python -m benchmarks.train_features emoji
    python -m ibmd_jax.data.prepare fashion_mnist --from FOLDER && python -m benchmarks.train_features fashion
    python -m benchmarks.train_features names

Classes are the emoji's Unicode subcategories, or those of Fashion-MNIST. "names" maps drawings onto the words of
their names (metrics/retrieval.py): of 128 drawings with different names, each has to find its name and each name its
drawing (InfoNCE with a learned temperature). Only the training split is used, mirrored and shifted by up to 2 pixels.
Weights are stored as float16. Training is deterministic given the machine's arithmetic.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from ibmd_jax.core.arrays import from_uint8
from ibmd_jax.data import Options, open_source
from ibmd_jax.data.emoji import index, name_words, rows_of, tiles
from ibmd_jax.metrics.features.classifier import Classifier
from ibmd_jax.metrics.retrieval import NETWORK, directions, retrieval_accuracy

STEPS = {"emoji": 1500, "fashion": 4000, "names": 1000}


def emoji(split: str) -> tuple[np.ndarray, np.ndarray]:
    names = sorted({entry["subcategory"] for entry in index()})
    labels = [names.index(entry["subcategory"]) for entry in index() if entry["split"] == split]
    return from_uint8(tiles("noto", 32)[rows_of(split)]), np.array(labels, np.int32)


def fashion(split: str) -> tuple[np.ndarray, np.ndarray]:
    source = open_source("tfds:fashion_mnist", split, Options(32, channels=1, fit="pad"))
    rows = [source[i] for i in range(len(source))]
    return from_uint8(np.stack([row["x_0"] for row in rows])), np.stack([row["label"] for row in rows])


def names(split: str) -> tuple[np.ndarray, np.ndarray]:
    return from_uint8(tiles("noto", 32)[rows_of(split)]), name_words()[rows_of(split)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=STEPS)
    args = parser.parse_args()
    load = {"emoji": emoji, "fashion": fashion, "names": names}[args.name]
    train = train_names if args.name == "names" else train_classes
    train(args.name, load("train"), load("test"))


def train_classes(name: str, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> None:
    (x, y), (x_test, y_test) = train, test
    net, rng = Classifier(classes=int(y.max()) + 1), np.random.default_rng(0)
    scores = jax.jit(lambda params, images: net.apply({"params": params}, images))

    def loss(params: dict, images: jax.Array, targets: jax.Array) -> jax.Array:
        logits = net.apply({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    def draw() -> tuple[np.ndarray, np.ndarray]:
        rows = rng.integers(len(x), size=64)
        return augmented(x[rows], rng, float(x[0, 0, 0, 0])), y[rows]

    def report(params: dict) -> str:
        parts = [scores(params, x_test[j : j + 500]) for j in range(0, len(x_test), 500)]
        return f"test accuracy {(np.concatenate(parts).argmax(-1) == y_test).mean():.3f}"

    params = fit(net.init(jax.random.key(0), x[:1])["params"], loss, draw, STEPS[name], report)
    save_features(name, params, x)


def train_names(name: str, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> None:
    (x, text), rng = train, np.random.default_rng(0)
    _, number = np.unique(text, axis=0, return_inverse=True)
    drawings = [np.flatnonzero(number == n) for n in range(number.max() + 1)]
    # A mirrored drawing keeps its name, unless that names a side.
    words = [entry["name"].split() for entry in index() if entry["split"] == "train"]
    mirrors = np.array([not {"left", "right"} & set(w) for w in words])[:, None, None, None]
    encode = jax.jit(directions)

    def loss(params: dict, images: jax.Array, texts: jax.Array) -> jax.Array:
        cosines = directions(params["network"], images) @ texts.T / texts.shape[-1] ** 0.5
        logits, own = jnp.exp(params["log_scale"]) * cosines, jnp.arange(len(images))
        return sum(optax.softmax_cross_entropy_with_integer_labels(m, own).mean() for m in (logits, logits.T)) / 2

    def draw() -> tuple[np.ndarray, np.ndarray]:
        rows = np.array([rng.choice(drawings[n]) for n in rng.choice(len(drawings), 128, replace=False)])
        return augmented(x[rows], rng, float(x[0, 0, 0, 0]), mirrors[rows]), text[rows]

    def report(params: dict) -> str:
        found = [retrieval_accuracy(*split, lambda part: encode(params["network"], part)) for split in (train, test)]
        return "retrieval accuracy {:.3f} (train), {:.3f} (test)".format(*found)

    start = {"network": NETWORK.init(jax.random.key(0), x[:1])["params"], "log_scale": jnp.log(jnp.float32(10))}
    save(name, fit(start, loss, draw, STEPS[name], report)["network"])


def augmented(
    images: np.ndarray, rng: np.random.Generator, border: float, mirrors: bool | np.ndarray = True
) -> np.ndarray:
    """Half of the images mirrored where `mirrors`, and all shifted by up to 2 pixels."""
    mirrored = mirrors & (rng.random((len(images), 1, 1, 1)) >= 0.5)
    images = np.where(mirrored, images[:, :, ::-1], images)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=border)
    top, left = rng.integers(5, size=2)
    return padded[:, top : top + 32, left : left + 32]


def fit(
    params: dict, loss_fn: Callable[..., jax.Array], draw: Callable[[], tuple], steps: int, report: Callable[..., str]
) -> dict:
    """The parameters after `steps` of AdamW on loss_fn(params, *draw())."""
    optimizer = optax.adamw(optax.warmup_cosine_decay_schedule(0, 2e-3, 100, steps), weight_decay=1e-2)
    state = optimizer.init(params)

    @jax.jit
    def step(params: dict, state: Any, images: jax.Array, targets: jax.Array) -> tuple[dict, Any, jax.Array]:
        loss, grads = jax.value_and_grad(loss_fn)(params, images, targets)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    for i in range(steps):
        params, state, loss = step(params, state, *draw())
        if (i + 1) % 200 == 0 or i + 1 == steps:
            print(f"step {i + 1} loss {float(loss):.3f} {report(params)}", flush=True)
    return params


def save_features(name: str, params: dict, x: np.ndarray) -> None:
    """Writes the weights without the class scores, and the features' standard deviations on x."""
    params = {key: layer for key, layer in params.items() if key != "logits"}
    rounded = jax.tree.map(lambda v: v.astype(jnp.float16).astype(jnp.float32), params)
    net = jax.jit(lambda images: Classifier().apply({"params": rounded}, images))
    features = np.concatenate([np.asarray(net(x[i : i + 242])) for i in range(0, len(x), 242)])
    save(name, params, scale=features.std(0))


def save(name: str, params: dict, **more: np.ndarray) -> None:
    """Writes the weights as float16."""
    flat = {"/".join(key): np.asarray(v, np.float16) for key, v in flatten_dict(params).items()}
    np.savez_compressed(f"ibmd_jax/metrics/features/{name}.npz", **more, **flat)


if __name__ == "__main__":
    main()
