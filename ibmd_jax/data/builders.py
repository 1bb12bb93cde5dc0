"""Builders for TensorFlow Datasets of pairs, from the original archives; importing this file registers them.

edges2handbags  pix2pix's files [edges | photograph] of 512 x 256 pixels, train and val
diode_normals   DIODE's outdoor images and surface normals as DDBM prepares them, 256 x 256 pixels, train and val

Both have the features x_0 (the photograph) and x_T (edges, normals).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from ibmd_jax.data.folder import images_in
from ibmd_jax.data.images import read_image


class _Pairs(tfds.core.GeneratorBasedBuilder):
    """What both have in common: two images, and splits of which at least "train" must be there."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        images = {name: tfds.features.Image(shape=(None, None, 3)) for name in ("x_0", "x_T")}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(images))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        root = Path(dl_manager.manual_dir)
        archives = sorted(p for p in root.iterdir() if p.name.endswith((".tar", ".tar.gz", ".tgz", ".zip")))
        roots = [Path(p) for p in dl_manager.extract(archives)] if archives else [root]
        folders = {name: [p for r in roots for p in sorted(r.rglob(name)) if p.is_dir()] for name in ("train", "val")}
        return {name: self._generate_examples(found) for name, found in folders.items() if found}


class Edges2handbags(_Pairs):
    """pix2pix's edges2handbags (Isola et al., arXiv 1611.07004)."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "edges2handbags.tar.gz of pix2pix, or its extracted folders train and val."

    def _generate_examples(self, folders: list[Path]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        for folder in folders:
            for file in images_in(folder):
                both = np.asarray(read_image(file, 3))
                half = both.shape[1] // 2
                yield str(file.relative_to(folder)), {"x_0": both[:, half:], "x_T": both[:, :half]}


SIDE = 256


class DiodeNormals(_Pairs):
    """DIODE outdoor (Vasiljevic et al., arXiv 1908.00463), as DDBM (arXiv 2309.16948) translates it."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "train.tar.gz, train_normals.tar.gz, val.tar.gz and val_normals.tar.gz of DIODE."

    def _generate_examples(self, folders: list[Path]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        normals = {
            str(file.relative_to(folder)).removesuffix("_normal.npy"): file
            for folder in folders
            for file in sorted(folder.rglob("*_normal.npy"))
        }
        for folder in folders:
            for file in sorted(folder.rglob("outdoor/**/*.png")):
                name = str(file.relative_to(folder).with_suffix(""))
                if name in normals:  # some images have none
                    photo = read_image(file, 3).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                    yield name, {"x_0": np.asarray(photo), "x_T": draw_normals(np.load(normals[name]))}


def draw_normals(normals: np.ndarray) -> np.ndarray:
    """Surface normals [H, W, 3] float as DDBM draws them: [256, 256, 3] uint8.

    Nearest neighbour, unknown normals (of sum 0) at the least value, shifted by the image's own minimum and halved.
    """
    rows, columns = (np.arange(SIDE) * n // SIDE for n in normals.shape[:2])
    small = normals[rows][:, columns].astype(np.float64)
    small = small + small.min() * (small.sum(-1, keepdims=True) == 0)
    return (np.clip((small - small.min()) / 2, 0, 1) * 255).astype(np.uint8)
