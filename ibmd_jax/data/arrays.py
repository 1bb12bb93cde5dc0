"""Arrays in a file: npz:FILE with x_0 and/or x_T [N, H, W, C] uint8, and optionally integers label [N], text [N, D]."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ibmd_jax.core.errors import UserError
from ibmd_jax.data.images import check_pair, from_array
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
    """A source of rows of equally long arrays under the names x_0, x_T, label and text.

    names: of what they are, as of a file of arrays; other rows have others.
    """

    def __init__(self, arrays: dict[str, np.ndarray], rows: np.ndarray, options: Options, names: Sequence[str] = ()):
        self.arrays, self.rows, self.options, self.names = arrays, rows, options, names

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
def _read_file(path: Path, changed: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """A file's arrays of KINDS, held in memory once for both splits, and the names of all with their checksums.

    changed: its time stamp.
    """
    with np.load(path, allow_pickle=False) as file:
        checksums = {info.filename.removesuffix(".npy"): f"{info.CRC:08x}" for info in file.zip.infolist()}
        return {name: file[name] for name in KINDS if name in file}, checksums


def npz(where: str, split: str, options: Options) -> Arrays:
    """Every 20th row is held out. Raises: UserError for a missing or foreign file, or arrays that are no examples."""
    path = Path(where).expanduser()
    try:
        arrays, checksums = _read_file(path, path.stat().st_mtime_ns)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except Exception as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not arrays.keys() & {"x_0", "x_T"}:
        raise UserError(f"{path} holds {', '.join(checksums) or 'nothing'}: expected x_0 and/or x_T, and label, text")
    for name, a in arrays.items():
        kind, ranks, words = KINDS[name]
        if not np.issubdtype(a.dtype, kind) or a.ndim not in ranks:
            raise UserError(f"{path}: {name} has shape {a.shape} and type {a.dtype}: expected {words}")
    if len({len(a) for a in arrays.values()}) > 1:
        raise UserError(f"{path}: its arrays differ in length: { {k: len(a) for k, a in arrays.items()} }")
    if arrays.keys() >= {"x_0", "x_T"}:
        (h_T, w_T), (h_0, w_0) = (arrays[name].shape[1:3] for name in ("x_T", "x_0"))
        check_pair((f"{path}: x_T", (w_T, h_T)), ("x_0", (w_0, h_0)), options)
    names = [f"{name} {checksums[name]}" for name in arrays]
    return Arrays(arrays, split_indices(len(next(iter(arrays.values()))), split), options, names)
