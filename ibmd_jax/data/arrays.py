"""Arrays in a file: npz:FILE with x_0 and/or x_T [N, H, W, C] uint8, and optionally integers label [N], text [N, D]."""

import functools
from pathlib import Path

import numpy as np

from ibmd_jax.core.errors import UserError
from ibmd_jax.data.images import from_array
from ibmd_jax.data.source import Example, Options, split_indices

# What the arrays of a file must be: their type, their rank, and both in words.
IMAGES = np.uint8, (3, 4), "uint8 [N, H, W, C]"  # or without C
KINDS = {
    "x_0": IMAGES,
    "x_T": IMAGES,
    "label": (np.integer, (1,), "integers [N]"),
    "text": (np.number, (2,), "numbers [N, D]"),
}


class Arrays:
    """A source of rows of equally long arrays under the names x_0, x_T, label and text."""

    def __init__(self, arrays: dict[str, np.ndarray], rows: np.ndarray, options: Options):
        self.arrays, self.rows, self.options = arrays, rows, options

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        row = {name: a[self.rows[index]] for name, a in self.arrays.items()}
        return {name: self._read(name, value) for name, value in row.items()}

    def _read(self, name: str, value: np.ndarray) -> np.ndarray:
        if name == "label":
            return np.int32(value)
        if name == "text":
            return value.astype(np.float32)
        return from_array(value, self.options, self.options.filter_T if name == "x_T" else "")


@functools.lru_cache(maxsize=1)
def _read_file(path: Path, changed: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """A file's arrays of KINDS, held in memory once for both splits, and the names of all. changed: its time stamp."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in KINDS if name in file}, list(file)


def npz(where: str, split: str, options: Options) -> Arrays:
    """Every 20th row is held out. Raises: UserError for a missing or foreign file, or arrays that are no examples."""
    path = Path(where).expanduser()
    try:
        arrays, names = _read_file(path, path.stat().st_mtime_ns)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except Exception as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not arrays.keys() & {"x_0", "x_T"}:
        raise UserError(f"{path} holds {', '.join(names) or 'nothing'}: expected x_0 and/or x_T, and label, text")
    for name, a in arrays.items():
        kind, ranks, words = KINDS[name]
        if not np.issubdtype(a.dtype, kind) or a.ndim not in ranks:
            raise UserError(f"{path}: {name} has shape {a.shape} and type {a.dtype}: expected {words}")
    if len({len(a) for a in arrays.values()}) > 1:
        raise UserError(f"{path}: its arrays differ in length: { {k: len(a) for k, a in arrays.items()} }")
    return Arrays(arrays, split_indices(len(next(iter(arrays.values()))), split), options)
