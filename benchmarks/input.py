"""Images a second of the input pipeline, beside a PyTorch DataLoader with Pillow; and what corruptions cost.

    python -m benchmarks.input --torch_python torch_venv/bin/python

256-pixel images from JPEGs of 12 megapixels, JPEGs of 500 x 375, and PNGs of 256 pixels in ArrayRecord (for PyTorch:
the same PNGs as files). Both run with the same number of worker processes, in turns. Then the time of every corruption
at 256 pixels. Writes benchmarks/results/input.{json,md}. The torch environment needs torch, numpy and pillow.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from ibmd_jax.corruptions import CORRUPTIONS
from ibmd_jax.data import open_source
from ibmd_jax.data.pipeline import examples
from ibmd_jax.data.source import Options, Source

RESULTS = Path(__file__).parent / "results"
SIZE, BATCH = 256, 16
# Name: (width, height), files, suffix, batches to time.
KINDS = {
    "JPEG, 12 megapixels": ((4000, 3000), 24, "jpg", 16),
    "JPEG, 500 x 375": ((500, 375), 64, "jpg", 200),
    "ArrayRecord of PNG, 256 x 256": ((256, 256), 64, "png", 200),
}
COPIES = 16  # links to every file: Grain's shuffling of very few examples is slow


def photograph(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Something with the spectrum of a photograph: noise of many scales."""
    total = np.zeros((*size[::-1], 3), np.float32)
    for scale in (4, 16, 64, 256, 1024):
        small = rng.normal(size=(size[1] // scale + 2, size[0] // scale + 2, 3)).astype(np.float32)
        bands = [Image.fromarray(small[..., c]).resize(size, Image.Resampling.BICUBIC) for c in range(3)]
        total += scale**0.5 * np.stack([np.asarray(b) for b in bands], -1)
    return Image.fromarray(np.clip(128 + 4 * total, 0, 255).astype(np.uint8))


def array_record(folder: Path) -> str:
    """Prepares the PNGs of a folder as a dataset, and returns its URI."""
    import tensorflow_datasets as tfds

    IMAGE = tfds.features.Image()

    class Pngs(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = folder.parent  # a program is not a package, where it would look for more about the data

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"image": IMAGE}))

        def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for file in sorted(folder.iterdir()):
                yield file.name, {"image": np.asarray(Image.open(file))}

    os.environ["TFDS_DATA_DIR"] = str(folder.parent / "records")
    Pngs(data_dir=os.environ["TFDS_DATA_DIR"], file_format="array_record").download_and_prepare()
    return "tfds:pngs"


def ours(source: Source, workers: int, batches: int) -> float:
    stream = examples(source, seed=0, batch_size=BATCH, flip=True, workers=workers)
    for _ in range(4):
        next(stream)
    begin = time.perf_counter()
    for _ in range(batches):
        next(stream)
    return batches * BATCH / (time.perf_counter() - begin)


def corruption_seconds() -> dict[str, float]:
    """Seconds of an image at 256 pixels, compiled, in batches of 8."""
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (8, SIZE, SIZE, 3)).astype(np.float32))
    keys, seconds = jax.random.split(jax.random.key(0), 8), {}
    for name, function in CORRUPTIONS.items():
        if name == "inpaint-freeform-file":  # needs a file; its cost is that of inpaint-center
            continue
        run = jax.jit(jax.vmap(function))
        jax.block_until_ready(run(keys, x))
        begin = time.perf_counter()
        for _ in range(5):
            jax.block_until_ready(run(keys, x))
        seconds[name] = (time.perf_counter() - begin) / 40
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch_python", required=True, help="Python of an environment with torch, numpy and pillow")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    rng, rows = np.random.default_rng(0), []
    with tempfile.TemporaryDirectory() as place:
        for i, (kind, (size, count, suffix, batches)) in enumerate(KINDS.items()):
            folder = Path(place, str(i), "images")
            folder.mkdir(parents=True)
            for j in range(count):
                photograph(rng, size).save(folder / f"{j:03d}.{suffix}", quality=90)
                for k in range(1, COPIES):
                    os.link(folder / f"{j:03d}.{suffix}", folder / f"{j:03d}_{k}.{suffix}")
            uri = array_record(folder) if suffix == "png" else f"folder:{folder}"
            source = open_source(uri, "train", Options(SIZE))
            found = {"ours": [], "threads": [], "torch": []}
            for _ in range(args.repeats):
                found["ours"].append(ours(source, args.workers, batches))
                found["threads"].append(ours(source, 0, batches))
                script = [Path(__file__).parent / "torch_input.py", folder, SIZE, BATCH, args.workers, batches]
                command = [args.torch_python, *map(str, script)]
                found["torch"].append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            ratio = float(np.median(np.divide(found["ours"], found["torch"])))
            rows.append({"kind": kind, "ratio": ratio, **{k: float(np.median(v)) for k, v in found.items()}})
            print(rows[-1], flush=True)
    summary = {"workers": args.workers, "cpus": os.cpu_count(), "rows": rows, "corruptions": corruption_seconds()}
    (RESULTS / "input.json").write_text(json.dumps(summary, indent=1) + "\n")
    (RESULTS / "input.md").write_text(markdown(summary))
    print(markdown(summary))


def markdown(summary: dict) -> str:
    lines = [
        f"# Input pipeline, {summary['workers']} worker processes, {summary['cpus']} CPU cores\n",
        "Images a second, 256 pixels; made by `python -m benchmarks.input --torch_python torch_venv/bin/python`.\n",
        "| files | ours | PyTorch DataLoader | ratio | ours, threads in place of workers (default) |",
        "|---|---|---|---|---|",
        *(
            f"| {r['kind']} | {r['ours']:.1f} | {r['torch']:.1f} | {r['ratio']:.2f} | {r['threads']:.1f} |"
            for r in summary["rows"]
        ),
        "\nTime of a corruption, 256 x 256 pixels, batches of 8, compiled:\n",
        "| corruption | ms an image |",
        "|---|---|",
        *(f"| {name} | {1000 * s:.2f} |" for name, s in summary["corruptions"].items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
