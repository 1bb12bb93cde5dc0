"""Shows what a model will see: a grid of inputs and targets, their ranges, and how fast they come.

python -m ibmd_jax.data.preview --config=configs/inpaint.py --out=preview.png
python -m ibmd_jax.data.preview --config=configs/paper.py:jpeg-5 --config.data.source=folder:photos
"""

import logging
import sys
import time
from pathlib import Path

import numpy as np
from absl import app, flags
from ml_collections import config_flags

from ibmd_jax.core.cli import parse
from ibmd_jax.core.errors import UserError

ROWS = 8


def preview(config, out: Path, batches: int) -> str:
    """Writes the grid of the first images; returns the ranges and rates as text. Raises: UserError."""
    from ibmd_jax.build import build_data
    from ibmd_jax.train.pictures import save_grid

    data = build_data(config)
    stream = data.batches("distill", 4 * ROWS + -4 * ROWS % data.mesh.size)(0)
    begin = time.perf_counter()
    batch = next(stream)
    first = time.perf_counter() - begin
    columns = {"x_T": batch.x_T, "x_0": batch.x_0}
    if batch.mask is not None:
        columns["mask"] = 2.0 * np.broadcast_to(batch.mask, batch.x_T.shape) - 1
    try:
        save_grid(out, {name: np.asarray(x[:ROWS]) for name, x in columns.items() if x is not None})
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}. Choose another --out") from error
    begin = time.perf_counter()
    for _ in range(batches):
        np.asarray(next(stream).x_T[0, 0, 0, 0])
    rate = batches * len(batch.x_T) / (time.perf_counter() - begin)
    lines = [f"{len(data.train)} training examples, {len(data.test)} test examples"]
    for name, x in columns.items():
        if x is not None and name != "mask":
            lines.append(f"{name:5} {x.shape} {x.dtype}: {x.min():.3f} to {x.max():.3f}, mean {x.mean():.3f}")
    if batch.mask is not None:
        lines.append(f"mask  unknown: {np.mean(batch.mask):.1%} of the pixels")
    if batch.cond is not None and batch.cond.ndim == 1:
        lines.append(f"label {np.min(batch.cond)} to {np.max(batch.cond)} in this batch")
    elif batch.cond is not None:
        distinct = len(np.unique(np.asarray(batch.cond), axis=0))
        lines.append(f"text  {batch.cond.shape} {batch.cond.dtype}: {distinct} different in this batch")
    lines.append(f"first batch after {first:.1f} s, then {rate:.0f} images/s, corruption included")
    return "\n".join([*lines, f"wrote {out}"])


def main(argv: list[str]) -> int:
    for noisy in ("absl", "jax"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        given = flags.FLAGS
        print(preview(given.config, Path(given.out), given.batches))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Configuration file.", lock_config=True)
    flags.DEFINE_string("out", "preview.png", "Where to write the grid.")
    flags.DEFINE_integer("batches", 20, "Batches to time.", lower_bound=1)
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse)
