"""Quality and speed of samplers on the same test images, measured side by side in one run."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from ibmd_jax.core.streams import step_key
from ibmd_jax.core.types import Array, Batch, Key, Params
from ibmd_jax.metrics import PIXEL_METRICS, SET_METRICS
from ibmd_jax.train.processes import to_host
from ibmd_jax.train.sharding import batch_sharding, make_mesh


class Sampler(NamedTuple):
    """What to measure: a jitted function (params, key, batch) -> x_0 that evaluates the network nfe times."""

    label: str
    nfe: int
    sample: Callable[[Params, Key, Batch], Array]
    params: Params


class Row(NamedTuple):
    """One line of the table. metrics: name -> value; images_per_second counts sampling alone, compiled."""

    label: str
    nfe: int
    metrics: dict[str, float]
    images_per_second: float


DIVERSITY_EXAMPLES, DIVERSITY_DRAWS = 50, 4


def diversity(restorations: list[Array]) -> float:
    """Root mean square deviation of several restorations [N, H, W, C] of the same inputs, averaged over the inputs."""
    draws = np.stack([to_host(x) for x in restorations])
    return float(np.sqrt(draws.var(0, ddof=1).mean((1, 2, 3))).mean())


def other_inputs(batch: Batch, number: int, generates: bool) -> Batch:
    """The same examples with other noise in x_T, where it is noise: all of it, or the hole of an inpainting task.

    Args: batch: NumPy leaves. generates: x_T is noise alone; then each example has that of another one.
    """
    if generates:
        return batch._replace(x_T=np.roll(batch.x_T, number, axis=0))
    if batch.mask is None or number == 0:
        return batch
    noise = np.random.default_rng(number).standard_normal(batch.x_T.shape, np.float32)
    whole = batch.mask.all(axis=(1, 2, 3), keepdims=True)  # of another task than inpainting, in a mixture
    hole = batch.mask & ~whole & (batch.x_T != 0)  # a grey hole is 0
    return batch._replace(x_T=np.where(hole, noise, batch.x_T))


def split(batch: Batch, size: int) -> Iterator[Batch]:
    """Batches of exactly `size` examples, over all devices; the last one is filled up with the first examples again.

    Each comes to the devices when it is asked for.

    Args: batch: NumPy leaves. size: a multiple of the number of devices.
    """
    n, sharding = batch.x_T.shape[0], batch_sharding(make_mesh())

    def place(x: np.ndarray) -> Array:
        return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)

    rows = np.arange(-(-n // size) * size) % n
    return (jax.tree.map(lambda x, r=r: place(x[r]), batch) for r in rows.reshape(-1, size))


def restore(sampler: Sampler, parts: Callable[[], Iterable[Batch]], count: int, key: Key) -> tuple[np.ndarray, float]:
    """Samples every part; returns the first `count` images and images per second, compilation included if it is due.

    One part at a time is on the devices; moving it there and back is not counted. Quick samplers are repeated for at
    least a second, slow ones run once; so do several processes, whose clocks would not agree on a number.

    Args: parts: makes them anew.
    """
    images, made, seconds = [], 0, 0.0
    while not made or (jax.process_count() == 1 and seconds < 1):
        again = made > 0
        for i, part in enumerate(parts()):
            jax.block_until_ready(part)
            begin = time.perf_counter()
            restored = jax.block_until_ready(sampler.sample(sampler.params, step_key(key, "evaluate", i), part))
            seconds += time.perf_counter() - begin
            made += len(restored)
            images += [] if again else [to_host(restored)]
    return np.concatenate(images)[:count], made / seconds


def evaluate(
    samplers: list[Sampler],
    test: Batch,
    features: Callable[[Array], Array] | None,
    *,
    batch_size: int,
    key: Key,
    generates: bool = False,
    report: Callable[[Row], None] = lambda row: None,
    shown: np.ndarray | slice = slice(None),
) -> tuple[list[Row], dict[str, np.ndarray]]:
    """Measures samplers against test.x_0, and how much their restorations of one input differ.

    Args:
        test: all test images with x_0, NumPy leaves. features: for FID and KID, or None to leave these out.
        generates: x_T is noise that has nothing to do with x_0: no metrics of pairs, diversity over x_T.
        report: called with each row as it is ready.
        shown: which images to return: many large ones, of each row, are more than a host may hold.
    Returns: the rows, and the restored images [N, H, W, C] of each, or those `shown`, under "label NFE".
    """
    n, truth = test.x_T.shape[0], test.x_0

    def by_parts(function: Callable[..., Array], *images: np.ndarray) -> np.ndarray:
        parts = ([x[i : i + batch_size] for x in images] for i in range(0, n, batch_size))
        return np.concatenate([np.asarray(function(*part)) for part in parts])

    reference = None if features is None else by_parts(features, truth)
    rows, images = [], {}
    count = min(n, DIVERSITY_EXAMPLES)
    few = jax.tree.map(lambda x: x[:count], test)
    inputs = [other_inputs(few, i, generates) for i in range(DIVERSITY_DRAWS)]
    draws = list(split(jax.tree.map(lambda *x: np.concatenate(x), *inputs), batch_size))
    for sampler in samplers:
        first = next(split(test, batch_size))
        sample = sampler.sample.lower(sampler.params, key, first).compile()  # once for all, and before the clock
        restored, rate = restore(sampler._replace(sample=sample), lambda: split(test, batch_size), n, key)
        made = [to_host(sample(sampler.params, step_key(key, "draws", i), part)) for i, part in enumerate(draws)]
        drawn = np.split(np.concatenate(made)[: DIVERSITY_DRAWS * count], DIVERSITY_DRAWS)
        found = None if features is None else by_parts(features, restored)
        metrics = {} if features is None else {name: fn(found, reference) for name, fn in SET_METRICS.items()}
        if not generates:
            metrics |= {name: float(by_parts(fn, restored, truth).mean()) for name, fn in PIXEL_METRICS.items()}
        metrics["diversity"] = diversity(drawn)
        rows.append(Row(sampler.label, sampler.nfe, metrics, rate))
        images[f"{sampler.label} {sampler.nfe}"] = restored[shown]
        report(rows[-1])
    return rows, images


def table(rows: list[Row]) -> str:
    """The rows as aligned text."""
    names = list(rows[0].metrics)
    head = ["model", "NFE", *(name.upper() for name in names), "images/s"]
    body = [
        [
            row.label,
            str(row.nfe),
            *(f"{value:.3f}" for value in row.metrics.values()),
            f"{row.images_per_second:.1f}",
        ]
        for row in rows
    ]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in [head, *body])
