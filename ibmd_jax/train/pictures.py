"""Grids of images with a heading for each column; curves of what was logged."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ibmd_jax.core.arrays import to_uint8
from ibmd_jax.train.processes import is_first, to_host

log = logging.getLogger(__name__)
GAP, HEADING = 4, 16


@contextlib.contextmanager
def expendable(path: Path) -> Iterator[None]:
    """For what writes `path` and no more: where it cannot be written, that is logged, and costs no training.

    Only the first process writes, so nothing that the others wait for may be left out with it.
    """
    try:
        yield
    except OSError as error:
        log.error("no picture %s (%s): free some space, or make its folder writable", path, error)


def grid(columns: dict[str, np.ndarray], min_side: int = 96) -> Image.Image:
    """One column for each entry, one row for each example.

    Args:
        columns: heading -> images [N, H, W, C] in [-1, 1], C = 1 or 3.
        min_side: smaller images are enlarged by a whole factor to at least this height.
    """
    first = next(iter(columns.values()))
    n, h, w = first.shape[:3]
    factor = max(1, -(-min_side // h))
    cell_h, cell_w = h * factor + GAP, w * factor + GAP
    sheet = Image.new("RGB", (len(columns) * cell_w - GAP, HEADING + n * cell_h - GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (heading, images) in enumerate(columns.items()):
        draw.text((i * cell_w + 2, 2), heading, fill="black", font=ImageFont.load_default())
        for j, image in enumerate(to_uint8(images)):
            image = np.broadcast_to(image, (h, w, 3)).repeat(factor, 0).repeat(factor, 1)
            sheet.paste(Image.fromarray(np.ascontiguousarray(image)), (i * cell_w, HEADING + j * cell_h))
    return sheet


def save_grid(path: Path, columns: dict[str, np.ndarray]) -> None:
    """Writes `grid(columns)` as a PNG, whole or not at all. Every process must call it; the first writes."""
    columns = {name: to_host(x) for name, x in columns.items()}
    if not is_first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    grid(columns).save(temporary, format="PNG")
    temporary.replace(path)


def save_curves(events: Path, path: Path) -> None:
    """Draws every scalar in a folder of TensorBoard events over the steps, those named name/0, name/1, ... together.

    Of several processes only the first does.
    """
    if not (is_first() and events.exists()):
        return
    from matplotlib.figure import Figure  # slow to import, as is the next one
    from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    found = EventAccumulator(str(events), size_guidance={TENSORS: 0}).Reload()
    panels: dict[str, list[str]] = {}
    for tag in found.Tags()["tensors"]:
        panels.setdefault(tag.split("/")[0], []).append(tag)
    if not panels:  # of a run whose events are elsewhere
        return
    rows = -(-len(panels) // 3)
    figure = Figure(figsize=(12, 2.4 * rows), layout="constrained")
    for i, (name, tags) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, 3, i + 1, title=name)
        for tag in tags:
            points = sorted({e.step: float(make_ndarray(e.tensor_proto)) for e in found.Tensors(tag)}.items())
            axes.plot(*zip(*points, strict=True), lw=1, label=tag.partition("/")[2])
        if len(tags) > 1:
            axes.legend(fontsize="small")
    temporary = path.with_suffix(".tmp")
    figure.savefig(temporary, format="png")
    temporary.replace(path)
