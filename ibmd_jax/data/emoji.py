"""The embedded demo set: 3,786 Noto Emoji drawings on white, 32 x 32 RGB (licence: emoji/ATTRIBUTION.md).

`index.json` has one entry a drawing, in the order of the sheet's tiles (64 a row): its Unicode name, category and
split. Skin-tone variants of one emoji are always in the same split.
"""

import functools
import importlib.resources
import json

import numpy as np
from PIL import Image

from ibmd_jax.core.errors import lookup

TILE, COLUMNS = 32, 64


@functools.cache
def index() -> list[dict[str, str]]:
    """Entries {codepoints, base, name, skin, category, subcategory, split} in tile order."""
    return json.loads((importlib.resources.files(__package__) / "emoji" / "index.json").read_text("utf-8"))


@functools.cache
def _tiles() -> np.ndarray:
    with (importlib.resources.files(__package__) / "emoji" / "noto_32.webp").open("rb") as file:
        sheet = np.asarray(Image.open(file).convert("RGB"))
    rows = sheet.shape[0] // TILE
    tiles = sheet.reshape(rows, TILE, COLUMNS, TILE, 3).transpose(0, 2, 1, 3, 4).reshape(-1, TILE, TILE, 3)
    return tiles[: len(index())]


def emoji(split: str) -> np.ndarray:
    """The images of a split, [N, 32, 32, 3] uint8: N = 3388 for "train", 398 for "test"."""
    wanted = lookup({"train": "train", "test": "test"}, split, "split of the emoji set")
    return _tiles()[[i for i, entry in enumerate(index()) if entry["split"] == wanted]]
