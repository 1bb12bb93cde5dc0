"""Reads checkpoint files without PyTorch, and without running anything that they contain.

A PyTorch file (torch.save, version 1.6 and later) is a zip of one pickle and one raw file for each storage. The
pickle is read by an unpickler that can build tensors, containers, numbers, strings, argparse.Namespace and paths, and
nothing else; tensors are views into the file, mapped to memory and read when they are used.
"""

import argparse
import collections
import contextlib
import io
import mmap
import pathlib
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ibmd_jax.core.errors import UserError

# The names of torch's storages; their elements are little-endian on every machine that torch runs on today.
STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class _Kind(NamedTuple):
    """What a storage's name stands for; a pickle cannot change it."""

    dtype: np.dtype


class Storage(NamedTuple):
    """What persistent_load gives for a storage: a flat array over the mapped file, which a pickle cannot exchange."""

    array: np.ndarray


def _rebuild_tensor(storage: Storage, offset: int, size: tuple, stride: tuple, *_: Any) -> np.ndarray:
    """torch._utils._rebuild_tensor_v2: a strided view, checked against the storage's end."""
    if not isinstance(storage, Storage) or not all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride)):
        raise pickle.UnpicklingError("a tensor is not made of a storage, an offset, a size and strides")
    if len(size) != len(stride):
        raise pickle.UnpicklingError(f"a tensor of size {size} has strides {stride}")
    end = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) + 1 if all(size) else offset
    if end > storage.array.size:
        raise pickle.UnpicklingError(
            f"a tensor of size {size} ends beyond its storage of {storage.array.size} elements"
        )
    width = storage.array.itemsize
    return np.lib.stride_tricks.as_strided(storage.array[offset:], size, [s * width for s in stride], writeable=False)


def release(array: np.ndarray) -> None:
    """Gives the memory of a tensor's file back; it is read again if it is needed again."""
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = getattr(base, "base", None)
    if base is not None and hasattr(base, "madvise"):
        base.madvise(mmap.MADV_DONTNEED)


def _rebuild_parameter(data: np.ndarray, *_: Any) -> np.ndarray:
    return data


def _path(*parts: str) -> pathlib.PurePosixPath:
    return pathlib.PurePosixPath(*parts)


# The whole of what a pickle may call.
ALLOWED: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("argparse", "Namespace"): argparse.Namespace,
    **{
        (module, name): _path
        for module in ("pathlib", "pathlib._local")  # the second is Python 3.13's
        for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
    },
    **{("torch", name): _Kind(dtype) for name, dtype in STORAGES.items()},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, storages: "_Storages | None" = None):
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self.storages = storages

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not read from a checkpoint") from None

    def persistent_load(self, pid: Any) -> Storage:
        if self.storages is None or not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            raise pickle.UnpicklingError("it refers to something that is not a storage")
        _, kind, key, _, count = pid
        if not isinstance(kind, _Kind) or not isinstance(count, int):
            raise pickle.UnpicklingError(f"its storage {key!r} is of an unknown type")
        return self.storages.get(str(key), kind.dtype, count)


class _Storages:
    """The raw files of the zip, each mapped once."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, root: str):
        self.path, self.archive, self.root = path, archive, root
        self.known: dict[str, Storage] = {}

    def get(self, key: str, dtype: np.dtype, count: int) -> Storage:
        if key not in self.known:
            name = f"{self.root}/data/{key}"
            try:
                entry = self.archive.getinfo(name)
            except KeyError:
                raise pickle.UnpicklingError(f"its storage {name} is missing") from None
            if entry.compress_type != zipfile.ZIP_STORED:
                raise pickle.UnpicklingError(f"its storage {name} is compressed, which torch.save never does")
            if entry.file_size < count * dtype.itemsize:
                raise pickle.UnpicklingError(
                    f"its storage {name} has {entry.file_size} bytes instead of {count * dtype.itemsize}"
                )
            array = np.memmap(self.path, dtype, "r", self._offset(entry), (count,)) if count else np.empty(0, dtype)
            self.known[key] = Storage(np.asarray(array))
        return self.known[key]

    def _offset(self, entry: zipfile.ZipInfo) -> int:
        """Where an entry's bytes start: after its local header of 30 bytes, its name and its extra field."""
        with open(self.path, "rb") as file:
            file.seek(entry.header_offset)
            header = file.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise pickle.UnpicklingError(f"the header of {entry.filename} is damaged")
        name, extra = struct.unpack("<HH", header[26:30])
        return entry.header_offset + 30 + name + extra


@contextlib.contextmanager
def _reading(path: Path):
    """Whatever a damaged or foreign file does to the reader becomes one UserError that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except (
        OSError,
        zipfile.BadZipFile,
        zlib.error,
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        RuntimeError,
    ) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    except (TypeError, AttributeError, KeyError, IndexError, UnicodeError, OverflowError, MemoryError) as error:
        raise UserError(f"cannot read {path}: its pickle is damaged ({type(error).__name__}: {error})") from error


def load_torch(path: str | Path) -> Any:
    """What torch.load would return, with read-only NumPy arrays in the place of tensors.

    Raises: UserError for a file that is missing, damaged, of another format, or that asks for anything but data.
    """
    path = Path(path)
    with _reading(path):
        with open(path, "rb") as file:
            magic = file.read(4)
        if magic != b"PK\x03\x04":
            raise ValueError(
                "it is not a zip. A file of PyTorch before 1.6 becomes one by "
                "torch.save(torch.load(FILE, weights_only=True), NEW_FILE)"
            )
        with zipfile.ZipFile(path) as archive:
            pickles = [n for n in archive.namelist() if n.endswith("/data.pkl") and n.count("/") == 1]
            if len(pickles) != 1:
                raise ValueError("it is a zip, but not one of torch.save: it has no data.pkl")
            root = pickles[0].removesuffix("/data.pkl")
            if f"{root}/byteorder" in archive.namelist() and archive.read(f"{root}/byteorder") != b"little":
                raise ValueError("its bytes are in big-endian order")
            return _Unpickler(archive.read(pickles[0]), _Storages(path, archive, root)).load()


def load_pickle(path: str | Path) -> Any:
    """A plain pickle of options (argparse.Namespace, containers, numbers, strings, paths). Raises: UserError."""
    path = Path(path)
    with _reading(path):
        return _Unpickler(path.read_bytes()).load()
