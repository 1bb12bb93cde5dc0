"""TensorFlow Datasets by name, read at random from their ArrayRecord files; TensorFlow is loaded here only."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from ibmd_jax.core.errors import UserError
from ibmd_jax.data.folder import Files, fit_named
from ibmd_jax.data.source import Example, Options

FEATURES = {"x_0": ("x_0", "image"), "x_T": ("x_T",), "label": ("label",)}


def open_builder(name: str) -> Any:
    """The library's builder of a dataset, prepared or not, in $TFDS_DATA_DIR as it is now, or the library's default.

    Raises: UserError if it is unknown, or was prepared in another format.
    """
    import tensorflow_datasets as library

    import ibmd_jax.data.builders  # noqa: F401  registers ours

    try:
        return library.builder(name, data_dir=os.environ.get("TFDS_DATA_DIR"), file_format="array_record")
    except (library.core.registered.DatasetNotFoundError, ValueError) as error:
        reason = str(error).splitlines()[0]
        if "format is already set" in reason:
            reason = (
                "it was prepared in another format than ArrayRecord, which random access needs: set TFDS_DATA_DIR to "
                "another folder, and prepare it there with python -m ibmd_jax.data.prepare"
            )
        raise UserError(f"dataset {name}: {reason}") from error


def tfds(where: str, split: str, options: Options) -> Files:
    """A split of a dataset that was prepared before: see data/prepare.py. Its feature "image" is x_0.

    Raises: UserError if it is unknown, not prepared, has no such split, or no images.
    """
    import tensorflow_datasets as library

    builder = open_builder(where)
    command = f"python -m ibmd_jax.data.prepare {where} --from FOLDER_OF_THE_ORIGINAL_FILES"
    if not builder.data_path.exists():
        raise UserError(f"the dataset {where} is not prepared in {builder.data_path}: run {command}")
    names = {"train": ("train",), "test": ("test", "validation", "val")}[split]
    found = next((n for n in names if n in builder.info.splits), None)
    if found is None:
        raise UserError(f"tfds:{where} has the splits {', '.join(builder.info.splits)}, none of {', '.join(names)}")
    known = {key for name in ("x_0", "x_T") for key in FEATURES[name]}
    images = {key for key, kind in builder.info.features.items() if isinstance(kind, library.features.Image)} & known
    if not images:
        raise UserError(
            f"tfds:{where} has the features {', '.join(builder.info.features)}: an image must be called "
            + ", ".join(sorted(known))
        )
    raw = {key: library.decode.SkipDecoding() for key in images}  # Pillow's decoder does, as for files
    data = builder.as_data_source(split=found, decoders=raw)

    def load(index: int) -> Example:
        row, out = data[index], {}
        for name, keys in FEATURES.items():
            key = next((k for k in keys if k in row), None)
            if key and name == "label":
                out[name] = np.int32(row[key])
            elif key:
                place, filter_name = Path(f"example {index} of tfds:{where}"), options.filter_T if name == "x_T" else ""
                out[name] = fit_named(place, options, filter_name, row[key])
        return out

    return Files(range(len(data)), load, options.on_error)
