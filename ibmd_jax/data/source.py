"""What an image source is."""

from typing import Protocol

import numpy as np


class Source(Protocol):
    """Random access to images: source[i] is [H, W, C] uint8, one shape for all i in range(len(source))."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> np.ndarray: ...
