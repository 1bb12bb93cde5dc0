"""From a source to batches. The only file that imports Grain.

Example number n of a run depends on (seed, n) alone: which image, whether it is flipped, how it is corrupted. Step k
takes examples k B ... (k + 1) B - 1, and process p of P every P-th of them, so a run resumes at any step by number,
and sees the same global batches on any number of processes.
"""

from collections.abc import Callable, Iterator

import grain
import jax
import numpy as np

from ibmd_jax.core.streams import stream
from ibmd_jax.core.types import Array, Batch, Key
from ibmd_jax.data.source import Source


def examples(
    source: Source,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    flip: bool = False,
    process: int = 0,
    processes: int = 1,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Shuffled, endless batches of one process, from step `start_step` on.

    Args: batch_size: global, divisible by `processes`. flip: mirror half of the images.
    Yields: (images [batch_size / processes, H, W, C] uint8, example numbers [...] int64).
    """

    def mirror(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return image[:, ::-1] if flip and rng.random() < 0.5 else image

    dataset = (
        grain.MapDataset.source(source)
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(mirror)
        .map_with_index(lambda n, image: (image, np.int64(n)))
    )
    dataset = dataset[start_step * batch_size + process :: processes]
    return iter(dataset.to_iter_dataset().batch(batch_size // processes))


def make_corrupt(corruption: Callable[[Key, Array], tuple], seed: int, name: str):
    """A jitted function (images uint8 [B, H, W, C], example numbers [B]) -> Batch with x_0.

    Example n is corrupted with the key (seed, name, n).
    """
    base = stream(jax.random.key(seed), name)

    @jax.jit
    def corrupt(images: Array, numbers: Array) -> Batch:
        x_0 = images.astype("float32") / 127.5 - 1
        keys = jax.vmap(lambda n: jax.random.fold_in(base, n))(numbers.astype("uint32"))
        x_T, mask = jax.vmap(corruption)(keys, x_0)
        return Batch(x_T, x_0, mask)

    return corrupt
