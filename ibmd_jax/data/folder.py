"""Image files in folders: clean ones, pairs, or corrupted ones alone.

A folder may have the subfolders train, and test, val or validation; otherwise every 20th file, by name, is held out.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ibmd_jax.core.errors import UserError
from ibmd_jax.data.images import SUFFIXES, check_pair, fit_image, read_image
from ibmd_jax.data.source import Example, Options, split_indices

log = logging.getLogger(__name__)
TO_SKIP = "To pass such images over, set config.data.on_error=skip"
SPLITS = {"train": ("train",), "test": ("test", "val", "validation")}


class Files:
    """A source of one example a file (or a pair, or a record of a dataset): load(item) makes it.

    names: of the files, in this order, which decides what is drawn, and what is held out.
    """

    def __init__(self, items: Sequence, load: Callable[..., Example], on_error: str, names: Sequence[str] = ()):
        self.items, self.load, self.on_error, self.names = items, load, on_error, names
        self.skipped: set[int] = set()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Example:
        """Raises: UserError for an unreadable image, or, where those are skipped, if no image is readable.

        What the file system refuses is not skipped: the image may be there again for the next run, which is to draw
        the same ones.
        """
        for i in range(index, index + len(self)):
            try:
                return self.load(self.items[i % len(self)])
            except UserError as error:
                if isinstance(error.__cause__, OSError) and error.__cause__.errno:
                    raise
                if self.on_error == "raise":
                    raise UserError(f"{error}. {TO_SKIP}") from error
                if i % len(self) not in self.skipped:
                    self.skipped.add(i % len(self))
                    log.warning("skipped image no. %d of %d: %s", len(self.skipped), len(self), error)
        raise UserError(f"none of the {len(self)} images is readable")


def _images(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The image files of a folder and its subfolders, links among them, but for names that begin with a dot."""
    real = folder.resolve()
    if real in above:  # a link to a folder that holds it
        return
    for entry in os.scandir(folder):
        path = folder / entry.name
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _images(path, (*above, real))
        elif path.suffix.lower() in SUFFIXES and entry.is_file():
            yield path


def images_in(folder: Path) -> list[Path]:
    """All image files of a folder and its subfolders, by name. Raises: UserError if none, or one unreadable."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    try:
        found = sorted(_images(folder))
    except OSError as error:  # a subfolder of another user's, or a link to itself
        raise UserError(f"cannot read {error.filename}: {error.strerror}; it is in the folder {folder}") from error
    if not found:
        raise UserError(f"the folder {folder} holds no images (of {', '.join(sorted(SUFFIXES))})")
    return found


def _split(folder: Path, split: str) -> tuple[Path, bool]:
    """The folder of a split, and whether it is one of its own."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    if not (folder / "train").is_dir():
        return folder, False
    for name in SPLITS[split]:
        if (folder / name).is_dir():
            return folder / name, True
    raise UserError(f"{folder} has a folder train, but none of {', '.join(SPLITS[split])}")


def _files(where: str, split: str) -> tuple[Path, list[str]]:
    """The folder of a split, and the names of its files in it: of a million, processes are sent them, not Paths."""
    root, own = _split(Path(where).expanduser(), split)
    names = [str(file.relative_to(root)) for file in images_in(root)]
    return root, names if own else [names[i] for i in split_indices(len(names), split)]


def folder(where: str, split: str, options: Options) -> Files:
    """Clean images. Where all are in subfolders, those that hold images are the classes, in the order of their names.

    Of a folder with its own splits those of train count. Raises: UserError if another split has one that train lacks.
    """
    root, names = _files(where, split)
    train = _split(Path(where).expanduser(), "train")[0]
    flat = any(p.suffix.lower() in SUFFIXES and not p.name.startswith(".") for p in (*root.iterdir(), *train.iterdir()))
    if flat:
        return Files(names, lambda name: {"x_0": fit_named(root / name, options)}, options.on_error, names)
    folders = sorted(p for p in train.iterdir() if p.is_dir() and not p.name.startswith("."))
    classes = {p.name: i for i, p in enumerate(p for p in folders if next(_images(p), None))}
    of_files = [Path(name).parts[0] for name in names]
    unknown = sorted(set(of_files) - classes.keys())
    if unknown:
        raise UserError(f"{root} has the class {unknown[0]!r}, which {train} lacks")

    def load(name: str) -> Example:
        return {"x_0": fit_named(root / name, options), "label": np.int32(classes[Path(name).parts[0]])}

    return Files(names, load, options.on_error, names)


def corrupted(where: str, split: str, options: Options) -> Files:
    """Corrupted images alone, which are all that distillation needs."""

    root, names = _files(where, split)

    def load(name: str) -> Example:
        return {"x_T": fit_named(root / name, options, options.filter_T)}

    return Files(names, load, options.on_error, names)


def paired(where: str, split: str, options: Options) -> Files:
    """Pairs: "A,B", two folders whose files match by name without suffix (A is x_T, B is x_0), or one folder of
    files that hold both side by side, [A | B], as pix2pix has them.

    Raises: UserError that lists files without a partner, or of one name, and for two images of different sizes that
        config.data.fit would take from different places.
    """
    if options.fit == "random-crop":
        raise UserError("config.data.fit: random-crop is for single images; pairs take crop, resize-crop or stretch")
    places = where.split(",")
    if len(places) == 1:
        root, names = _files(where, split)
        return Files(names, lambda name: _halves(root / name, options), options.on_error, names)
    if len(places) != 2:
        raise UserError(f"paired:{where}: give one folder, or two with a comma between them")
    sides, owns = [], []
    for place in places:
        root, own = _split(Path(place).expanduser(), split)
        names = [(str(p.relative_to(root).with_suffix("")), p) for p in images_in(root)]
        check_stems(root, [name for name, _ in names])
        sides.append(dict(names))
        owns.append(own)
    if owns[0] != owns[1]:
        raise UserError(f"of {places[0]} and {places[1]} only one has a folder train: give both one, or neither")
    alone = sorted(sides[0].keys() ^ sides[1].keys())
    if alone:
        more = f" and {len(alone) - 10} more" if len(alone) > 10 else ""
        raise UserError(f"these images of {places[0]} and {places[1]} have no partner: {', '.join(alone[:10])}{more}")
    names = sorted(sides[0])
    names = names if own else [names[i] for i in split_indices(len(names), split)]

    def load(name: str) -> Example:
        files = sides[0][name], sides[1][name]
        x_T, x_0 = (read_image(file, options.channels) for file in files)
        check_pair((str(files[0]), x_T.size), (str(files[1]), x_0.size), options)
        return {"x_0": _fit(files[1], x_0, options), "x_T": _fit(files[0], x_T, options, options.filter_T)}

    return Files(names, load, options.on_error, names)


def check_stems(folder: Path, stems: Sequence[str]) -> None:
    """Raises UserError if two files of a folder have one name without suffix."""
    name, count = Counter(stems).most_common(1)[0]
    if count > 1:
        raise UserError(f"{folder} has {count} images named {name!r}, which differ in their suffix alone: rename them")


def fit_named(file: Path, options: Options, filter_name: str = "", content: bytes | None = None) -> np.ndarray:
    """read_image and fit_image, with the file named in whatever goes wrong."""
    return _fit(file, read_image(file, options.channels, content), options, filter_name)


def _fit(file: Path, image: Image.Image, options: Options, filter_name: str = "") -> np.ndarray:
    try:
        return fit_image(image, options, filter_name)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def _halves(file: Path, options: Options) -> Example:
    image = read_image(file, options.channels)
    if image.width % 2:
        raise UserError(f"{file} is {image.width} pixels wide, which cannot be halved into a pair")
    half = image.width // 2
    A, B = image.crop((0, 0, half, image.height)), image.crop((half, 0, image.width, image.height))
    return {"x_0": _fit(file, B, options), "x_T": _fit(file, A, options, options.filter_T)}
