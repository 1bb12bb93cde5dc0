"""Writes files in the format of torch.save without PyTorch, for checkpoints of random weights and for tests."""

import collections
import io
import pickle
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

KINDS = {"<f4": "Float", "<f8": "Double", "<f2": "Half", "<i8": "Long", "|u1": "Byte"}


def _fake_torch() -> dict[str, types.ModuleType]:
    """Modules in which pickle finds the names that torch's files refer to."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2(*_: Any) -> None:
        """Only its name is written."""

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    for name in (f"{kind}Storage" for kind in KINDS.values()):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    torch._utils = utils
    return {"torch": torch, "torch._utils": utils}


class _Storage:
    def __init__(self, array: np.ndarray, key: str):
        self.array, self.key = array, key


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, modules: dict[str, types.ModuleType]):
        super().__init__(file, protocol=2)
        self.modules, self.storages = modules, []

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return NotImplemented
        storage = _Storage(np.ascontiguousarray(value), str(len(self.storages)))
        self.storages.append(storage)
        strides = tuple(s // value.itemsize for s in storage.array.strides)
        rest = (0, value.shape, strides, False, collections.OrderedDict())
        return self.modules["torch._utils"]._rebuild_tensor_v2, (storage, *rest)

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _Storage):
            return None
        kind = getattr(self.modules["torch"], f"{KINDS[value.array.dtype.str]}Storage")
        return ("storage", kind, value.key, "cpu", value.array.size)


def save(path: Path, value: Any) -> None:
    """torch.save for containers, numbers, strings and NumPy arrays, which become tensors."""
    modules, data = _fake_torch(), io.BytesIO()
    kept = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        pickler = _Pickler(data, modules)
        pickler.dump(value)
    finally:
        for name, module in kept.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", data.getvalue())
        archive.writestr("archive/byteorder", "little")
        for storage in pickler.storages:
            with archive.open(f"archive/data/{storage.key}", "w", force_zip64=True) as file:
                file.write(storage.array.data)
        archive.writestr("archive/version", "3\n")
