"""From a source to batches. The only file that imports Grain.

Example number n of a run depends on (seed, n) alone: which image, where it is cut, whether it is flipped, how it is
corrupted. Step k takes examples k B ... (k + 1) B - 1, and process p the p-th part of them, so a run resumes at any
step by number, and sees the same global batches, in the same order, on any number of processes and of workers.
"""

import collections
import functools
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import grain
import jax
import numpy as np
from absl import flags

from ibmd_jax.core.errors import UserError
from ibmd_jax.core.streams import stream
from ibmd_jax.core.types import Array, Batch, Conditioning, Key
from ibmd_jax.corruptions import Corrupted
from ibmd_jax.data.source import Example, Source

T = TypeVar("T")
NOTHING = Conditioning()


def examples(
    source: Source,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    crop: int = 0,
    flip: bool = False,
    workers: int = 0,
    process: int = 0,
    processes: int = 1,
) -> Iterator[tuple[Example, np.ndarray]]:
    """Shuffled, endless batches of one process, from step `start_step` on.

    Args:
        batch_size: global, divisible by `processes`.
        crop: side of a random square to cut out of every image; 0 leaves them whole.
        flip: mirror half of the images; a pair is cut and mirrored alike.
        workers: processes that read and decode; 0 leaves it to threads.
    Yields: (dict of arrays [batch_size / processes, ...], example numbers [...] int64).
    """

    count, size = len(source), batch_size // processes

    def read(batch: int) -> tuple[Example, np.ndarray]:
        numbers = batch * size + np.arange(size)
        # Random bits of an example's own: a counter for each, from the number of the first one on.
        bits = np.random.Philox(key=seed).advance(int(numbers[0])).random_raw(4 * len(numbers))[::4]
        found = [source[int(epoch_order(seed, n // count, count)[n % count])] for n in numbers.tolist()]
        if crop:
            found = [random_crop(e, crop, np.random.default_rng(b)) for e, b in zip(found, bits, strict=True)]
        stacked = {name: np.stack([example[name] for example in found]) for name in found[0]}
        if flip:
            mirror(stacked, bits % 2 == 1)
        return stacked, numbers

    # Grain shares out the numbers of batches, not of examples: it takes longer over a number than a small image does.
    numbers = range(start_step * processes + process, sys.maxsize, processes)
    dataset = grain.MapDataset.source(numbers).map(read)
    # A worker process needs no threads of its own.
    threads = 0 if workers else min(16, 2 * (os.cpu_count() or 1))
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain reads flags of its own, which only programs parse
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        dataset = dataset.mp_prefetch(options, worker_init_fn=begin_worker)
    return iter(dataset)


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order in which an epoch goes through `count` images: a permutation of 0 ... count - 1."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def begin_worker(*_: int) -> None:
    """In a worker process: a signal to all of a job is for the run to answer, which needs batches until it stops.

    A run that was killed stops no worker, so each watches it.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_run, daemon=True).start()


def _end_with_the_run() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def images_of(example: Example) -> Example:
    return {name: value for name, value in example.items() if name in ("x_0", "x_T")}


def random_crop(example: Example, size: int, rng: np.random.Generator) -> Example:
    """The same square of every image of an example."""
    (height, width), *others = {x.shape[:2] for x in images_of(example).values()}
    if others:
        raise UserError(f"config.data.fit = 'random-crop': x_T and x_0 are of {(height, width)} and {others[0]} pixels")
    top, left = rng.integers(height - size + 1), rng.integers(width - size + 1)
    square = np.s_[top : top + size, left : left + size]
    return {**example, **{name: x[square] for name, x in images_of(example).items()}}


def mirror(batch: Example, which: np.ndarray) -> None:
    """Mirrors those images of a batch that `which`, [B] bool, says, in place."""
    for x in images_of(batch).values():
        # np.take copies whole pixels: twice as fast as x[which, :, ::-1].
        x[which] = np.take(x[which], np.arange(x.shape[2])[::-1], axis=2)


def make_corrupt(
    corruption: Callable[[Key, Array], Corrupted] | None, seed: int, name: str, conditioning: Conditioning = NOTHING
) -> Callable[[Example, Array], Batch]:
    """A jitted function (batch of a source's examples, example numbers [B]) -> Batch.

    Example n is corrupted with the key (seed, name, n).

    Args:
        corruption: makes x_T from x_0; None where the source brings x_T.
        conditioning: what becomes Batch.cond: with classes the labels of the corruption where it gives some, else the
            source's; with an embedding the source's text.
    """
    base = stream(jax.random.key(seed), name)

    def image(x: Array | None) -> Array | None:
        return None if x is None else x.astype("float32") / 127.5 - 1

    @jax.jit
    def corrupt(example: Example, numbers: Array) -> Batch:
        x_0, x_T, mask, label = image(example.get("x_0")), image(example.get("x_T")), None, None
        if corruption is not None:
            keys = jax.vmap(lambda n: jax.random.fold_in(base, n))(numbers.astype("uint32"))
            x_T, mask, label = jax.vmap(corruption)(keys, x_0)
        if conditioning.embedding:
            return Batch(x_T, x_0, mask, example["text"])
        if conditioning.classes and label is None:
            label = example["label"]
        return Batch(x_T, x_0, mask, label if conditioning.classes else None)

    return corrupt


def check_example(example: Example, corrupts: bool, conditioning: Conditioning, where: str) -> None:
    """Raises UserError unless the examples of a source serve: x_T given or made, and what `conditioning` needs."""
    if corrupts and "x_0" not in example:
        raise UserError(
            f"{where} has no clean images to corrupt: take another source, or set config.data.corruption to none"
        )
    if not corrupts and "x_T" not in example:
        raise UserError(f"{where} has clean images alone: set config.data.corruption")
    if corrupts and "x_T" in example:
        raise UserError(f"{where} brings its own x_T: set config.data.corruption to none")
    classes, embedding = conditioning
    if classes and "label" not in example:
        raise UserError(f"{where} has no labels, which config.network.classes = {classes} asks for")
    if embedding and "text" not in example:
        raise UserError(
            f"{where} has no text, which config.network.embedding = {embedding} asks for: "
            "set it to 0, or config.data.source to emoji:names or an npz file with an array text"
        )
    if embedding and example["text"].shape != (embedding,):
        raise UserError(
            f"config.network.embedding = {embedding}: the text of {where} has shape {example['text'].shape}; "
            f"set it to {example['text'].size}"
        )


def check_labels(example: Example, classes: int) -> None:
    """Raises UserError for a label that the network does not have. example: of one or of a batch."""
    if classes and (np.min(example["label"]) < 0 or np.max(example["label"]) >= classes):
        bad = np.max(example["label"]) if np.max(example["label"]) >= classes else np.min(example["label"])
        raise UserError(f"label {bad} is out of range: config.network.classes = {classes} has 0 ... {classes - 1}")


def ahead(batches: Iterator[T], count: int) -> Iterator[T]:
    """The same items, with `count` of them asked for before they are needed: transfers and corruptions overlap."""
    queue = collections.deque(itertools.islice(batches, count))
    while queue:
        item = queue.popleft()
        queue.extend(itertools.islice(batches, 1))
        yield item
