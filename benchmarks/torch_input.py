"""Images a second of a PyTorch DataLoader with Pillow, for benchmarks/input.py, which runs it by itself.

    TORCH_PYTHON benchmarks/torch_input.py FOLDER SIZE BATCH WORKERS BATCHES

Needs torch, numpy and pillow. Reads the images of FOLDER in random order, resizes the short side to SIZE (bilinear),
cuts out the centre, mirrors half of them, and prints images a second, start-up left out.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image


class Images(torch.utils.data.Dataset):
    def __init__(self, folder: str, size: int):
        self.files, self.size = sorted(Path(folder).iterdir()), size

    def __len__(self) -> int:
        return 10**6  # round and round

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.files[index % len(self.files)]) as image:
            image = image.convert("RGB")
        short, size = min(image.size), self.size
        if short != size:
            image = image.resize((size * image.width // short, size * image.height // short), Image.BILINEAR)
        left, top = (image.width - size) // 2, (image.height - size) // 2
        x = np.array(image.crop((left, top, left + size, top + size)))
        return torch.from_numpy(np.ascontiguousarray(x[:, ::-1] if index % 2 else x))


def main() -> None:
    folder, size, batch, workers, batches = sys.argv[1], *map(int, sys.argv[2:])
    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(Images(folder, size), batch, shuffle=True, num_workers=workers)
    stream = iter(loader)
    for _ in range(4):
        next(stream)
    begin = time.perf_counter()
    for _ in range(batches):
        next(stream)
    print(batches * batch / (time.perf_counter() - begin))


if __name__ == "__main__":
    main()
