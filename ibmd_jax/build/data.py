"""The data of a configuration: its source, corruption and batches."""

import logging
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ibmd_jax.core.arrays import from_uint8
from ibmd_jax.core.errors import UserError
from ibmd_jax.core.types import Array, Batch, Conditioning
from ibmd_jax.corruptions import Corrupted, corruption, label_count, reduction
from ibmd_jax.data import open_source
from ibmd_jax.data.folder import TO_SKIP, check_stems, images_in
from ibmd_jax.data.images import fit_any, read_image
from ibmd_jax.data.pipeline import ahead, check_example, check_labels, examples, make_corrupt
from ibmd_jax.data.source import Example, Options, Source
from ibmd_jax.train.sharding import batch_sharding, check_divisible, make_mesh

log = logging.getLogger(__name__)
AHEAD = 2  # steps whose batches wait on the devices beside the one in use


class Data(NamedTuple):
    """The data of a configuration.

    train, test: the sources, empty if not opened. files: how many images of folders or rows of a file they have, and a
    checksum of which; "" of other sources. clean: whether they have x_0. test_batch(count): so many test images,
    evenly spaced in the source, all for 0; leaves are NumPy arrays. inputs(folder, blind): images of a user's to
    restore, see `_inputs`. batches(stage, size, clean=True)(step): an iterator over training batches from that step on,
    sharded over the mesh; without x_0 unless clean.
    """

    train: Source
    test: Source
    files: str
    clean: bool
    mesh: jax.sharding.Mesh
    batches: Callable[..., Callable[[int], Iterator[Batch]]]
    test_batch: Callable[[int], Batch]
    inputs: Callable[[str, bool], tuple[int, Iterator[tuple[list[str], Batch]]]]


def data_of(
    c: dict[str, Any], image_shape: tuple[int, int, int], conditioning: Conditioning, opened: bool = True
) -> Data:
    """Checks and opens the data of a plain configuration. conditioning: what its network takes as cond.

    opened: whether it is needed; if not, its folders may be elsewhere, and Data.inputs is of use alone.
    """
    mesh, data = make_mesh(), c["data"]
    for section in ("teacher", "distill", "evaluate") if opened else ("evaluate",):
        size = c[section]["batch_size"]
        check_divisible(f"config.{section}.batch_size", size, mesh, c[section].get("accumulate", 1))
    corrupts = make_corruption(data["corruption"], image_shape)
    tasks = label_count(data["corruption"]) if corrupts else 0
    blind = bool(c["distill"].get("blind", False))  # a label of the network that no example has
    labels = conditioning.classes - blind
    if conditioning.classes > 0 and labels < tasks:
        raise UserError(
            f"config.network.classes = {conditioning.classes}: config.data.corruption gives {tasks} labels"
            + ", and a blind student takes one more" * blind
        )
    given = conditioning._replace(classes=0) if tasks else conditioning  # what the source has to bring
    options = Options(**{name: data[name] for name in Options._fields})
    sources = {split: open_source(data["source"], split, options) for split in ("train", "test") if opened}
    for split, source in sources.items():
        check_example(source[0], corrupts is not None, given, f"{data['source']} ({split})")
    train, test = (sources.get(split, ()) for split in ("train", "test"))
    names = [name for source in sources.values() for name in getattr(source, "names", ())]
    checksum = zlib.crc32(os.fsencode("\n".join(names)))

    def corrupt(stage: str) -> Callable[[Example, Array], Batch]:
        return make_corrupt(corrupts, c["seed"], stage, conditioning)

    def check(example: Example) -> None:
        check_labels(example, labels if given.classes else 0)

    def inputs(folder: str, blind: bool) -> tuple[int, Iterator[tuple[list[str], Batch]]]:
        if conditioning != Conditioning() and not blind:
            raise UserError(
                f"--input={folder}: this student is told a label or text of each image, and files have none"
            )
        # A mixture with an inpainting has a mask, too; what its tasks have made of the images is not known.
        makes_hole = not tasks and corrupts and _hole(corrupts, image_shape)
        fitting = options._replace(fit="crop") if options.fit == "random-crop" else options
        if not corrupts:  # the images are x_T as the source has it
            fitting = fitting._replace(filter=options.filter_T or options.filter)
        factor = reduction(data["corruption"]) if corrupts else 1
        if factor > 1:  # small images; of those that were enlarged before, the means are what they were
            fitting = fitting._replace(size=options.size // factor, fit="resize-crop", filter="box")
        cut = corrupt("input") if makes_hole else None
        return _inputs(folder, fitting, factor, cut, c["evaluate"]["batch_size"])

    return Data(
        train,
        test,
        f"{len(train)} + {len(test)}, {checksum:08x}" if names else "",
        opened and "x_0" in train[0],
        mesh,
        lambda stage, size, clean=True: _batches(train, corrupt(stage), check, c, size, clean, mesh),
        lambda count: _test_batch(test, corrupt("test"), check, count, c["evaluate"]["batch_size"]),
        inputs,
    )


def make_corruption(spec: str | dict[str, Any], image_shape: tuple[int, int, int]) -> Callable[..., Corrupted] | None:
    """The corruption that a name, or a name with settings, stands for, tried for its shape; None for "none"."""
    if spec == "none":
        return None
    function = corruption(spec)
    try:
        made = jax.eval_shape(function, jax.random.key(0), jnp.zeros(image_shape)).x_T.shape
    except (TypeError, ValueError) as error:
        raise UserError(f"config.data.corruption = {spec!r} for images of {image_shape}: {error}") from error
    if made != image_shape:
        raise UserError(f"config.data.corruption = {spec!r} makes {made} of images of {image_shape}")
    return function


def _hole(corrupts: Callable[..., Corrupted], image_shape: tuple[int, int, int]) -> bool:
    return jax.eval_shape(corrupts, jax.random.key(0), jnp.zeros(image_shape)).mask is not None


def _test_batch(
    source: Source, corrupt: Callable[[Example, Array], Batch], check: Callable[[Example], None], count: int, size: int
) -> Batch:
    """`count` examples, or all for 0, corrupted part by part; each is corrupted alike whatever the others."""
    parts, total = [], len(source)
    chosen = np.arange(total) if count in (0, total) else np.linspace(0, total - 1, min(count, total)).astype(int)
    for numbers in np.array_split(chosen, -(-len(chosen) // size)):
        rows = [source[int(i)] for i in numbers]
        example = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        check(example)
        parts.append(jax.tree.map(np.asarray, corrupt(example, numbers)))
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def _inputs(
    folder: str, options: Options, factor: int, cut: Callable[[Example, Array], Batch] | None, size: int
) -> tuple[int, Iterator[tuple[list[str], Batch]]]:
    """How many images a folder has, and batches of at most `size` of them as x_T, with their names.

    Args:
        factor: how often each pixel is repeated, along both sides.
        cut: the corruption where it makes a hole; the images are then whole, and get one.
    Raises: UserError without a folder, without images, or for two images that differ in their suffix alone; and, when
        it comes to it, for an unreadable one, if options.on_error is not "skip".
    """
    root = Path(folder).expanduser()
    files = images_in(root)
    names = [str(f.relative_to(root).with_suffix("")) for f in files]
    check_stems(root, names)

    def readable(numbers: range) -> Iterator[tuple[int, np.ndarray]]:
        for i in numbers:
            try:
                yield i, fit_any(read_image(files[i], options.channels), options)
            except UserError as error:
                if options.on_error == "raise":
                    raise UserError(
                        f"{error}. {TO_SKIP} (without --config: on_error in WORKDIR/config.json)"
                    ) from error
                log.warning("skipped: %s", error)

    def parts() -> Iterator[tuple[list[str], Batch]]:
        for begin in range(0, len(files), size):
            found = dict(readable(range(begin, min(begin + size, len(files)))))
            if not found:
                continue
            numbers, images = np.asarray(list(found)), np.stack(list(found.values()))
            images = images.repeat(factor, axis=1).repeat(factor, axis=2)
            batch = jax.tree.map(np.asarray, cut({"x_0": images}, numbers)) if cut else Batch(from_uint8(images))
            yield [names[i] for i in found], batch

    return len(files), parts()


def _batches(
    source: Source,
    corrupt: Callable[[Example, Array], Batch],
    check: Callable[[Example], None],
    c: dict[str, Any],
    size: int,
    clean: bool,
    mesh: jax.sharding.Mesh,
) -> Callable[[int], Iterator[Batch]]:
    sharding = batch_sharding(mesh)

    def iterate(step: int) -> Iterator[Batch]:
        stream = examples(
            source,
            seed=c["seed"],
            batch_size=size,
            start_step=step,
            crop=c["data"]["size"] if c["data"]["fit"] == "random-crop" else 0,
            flip=c["data"]["flip"],
            workers=c["data"]["workers"],
            process=jax.process_index(),
            processes=jax.process_count(),
        )
        for example, numbers in stream:
            check(example)
            local = jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), (example, numbers))
            batch = corrupt(*local)
            yield batch if clean else batch._replace(x_0=None)

    return lambda step: ahead(iterate(step), AHEAD)
