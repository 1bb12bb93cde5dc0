"""The embedded demo set: 3,786 drawings of the same emoji in two styles, on white (licences: emoji/ATTRIBUTION.md).

`index.json` has one entry a drawing, in the order of the sheets' tiles (64 a row): its Unicode name, category and
split. Skin-tone variants of one emoji are always in the same split.
"""

import functools
import importlib.resources
import json

import numpy as np
from PIL import Image

from ibmd_jax.core.errors import UserError, lookup
from ibmd_jax.data.arrays import Arrays
from ibmd_jax.data.source import Options
from ibmd_jax.data.text import hashed_words

TILE, COLUMNS = 64, 64
SIZES = (16, 32, 64)


@functools.cache
def index() -> list[dict[str, str]]:
    """Entries {codepoints, base, name, skin, category, subcategory, split} in tile order."""
    return json.loads((importlib.resources.files(__package__) / "emoji" / "index.json").read_text("utf-8"))


@functools.cache
def tiles(style: str, size: int) -> np.ndarray:
    """All drawings of a style, "noto" or "twemoji": [3786, size, size, 3] uint8, smaller sizes by Lanczos filtering."""
    with (importlib.resources.files(__package__) / "emoji" / f"{style}_{TILE}.webp").open("rb") as file:
        sheet = np.asarray(Image.open(file).convert("RGB"))
    out = sheet.reshape(-1, TILE, COLUMNS, TILE, 3).swapaxes(1, 2).reshape(-1, TILE, TILE, 3)[: len(index())]
    if size == TILE:
        return out
    return np.stack([np.asarray(Image.fromarray(x).resize((size, size), Image.Resampling.LANCZOS)) for x in out])


def rows_of(split: str) -> np.ndarray:
    """Tile numbers of a split. Raises: UserError for a split other than train and test."""
    wanted = lookup({"train": "train", "test": "test"}, split, "split of the emoji set")
    return np.array([i for i, entry in enumerate(index()) if entry["split"] == wanted])


@functools.cache
def name_embeddings() -> np.ndarray:
    """The names of all drawings by a frozen text encoder: [3786, 128] float32 of mean square 1.

    128 principal axes of all-MiniLM-L6-v2's sentence embeddings, made once by benchmarks/embed_names.py. Skin-tone
    variants of one emoji share their name.
    """
    _, number = np.unique([entry["name"] for entry in index()], return_inverse=True)
    with (importlib.resources.files(__package__) / "emoji" / "names.npz").open("rb") as file:
        return np.load(file, allow_pickle=False)["text"].astype(np.float32)[number]


@functools.cache
def name_words() -> np.ndarray:
    """The names of all drawings as hashed words (data/text.py): [3786, 128] float32 of mean square 1."""
    return np.stack([hashed_words(entry["name"]) for entry in index()])


def emoji(where: str, split: str, options: Options) -> Arrays:
    """The Noto drawings of a split, 3388 for "train" and 398 for "test"; their labels are the categories.

    where: "", "pairs" for the Twemoji drawings of the same emoji as x_T, "names" for their names as text, by a text
    encoder, or "words", by the words alone (names say left and right, unlike config.data.flip).
    Raises: UserError for another size.
    """
    variants = {name: name for name in ("", "pairs", "names", "words")}
    variant = lookup(variants, where, "variant of the emoji set (emoji, or emoji: and pairs, names or words)")
    if options.size not in SIZES:
        raise UserError(f"config.data.size = {options.size}: the emoji come in {', '.join(map(str, SIZES))} pixels")
    categories = sorted({entry["category"] for entry in index()})
    arrays = {
        "x_0": tiles("noto", options.size),
        "label": np.array([categories.index(entry["category"]) for entry in index()], np.int32),
    }
    if variant == "pairs":
        arrays["x_T"] = tiles("twemoji", options.size)
    if variant in ("names", "words"):
        arrays["text"] = name_embeddings() if variant == "names" else name_words()
    return Arrays(arrays, rows_of(split), options)
