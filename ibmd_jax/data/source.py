"""What an image source is, and the settings that all sources share."""

from typing import NamedTuple, Protocol

import numpy as np

from ibmd_jax.core.errors import UserError

Example = dict[str, np.ndarray]


class Source(Protocol):
    """Random access to examples: source[i] for i in range(len(source)) is a dict of some of

    x_0:   the clean image, [H, W, C] uint8
    x_T:   the corrupted image, of the same shape, where the source brings its own
    label: class, an int32 scalar
    text:  embedding, [D] float32

    with the same names and shapes for all i.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Example: ...


class Options(NamedTuple):
    """How a source makes arrays of one shape from images of any.

    size: height and width of the result. channels: 3, or 1 for grey.
    fit: "resize-crop" resizes the short side to `size` and cuts out the centre (I2SB); "stretch" resizes both sides
        (DDBM); "crop" cuts out the centre and "random-crop" any place (in training; the centre in testing) without
        resizing; "pad" puts smaller images on black.
    filter: of resizing, a name of data.images.FILTERS; filter_T: that of a pair's x_T ("" for the same).
    on_error: "raise" stops at an unreadable image, "skip" takes the next one in its place and counts; for files
        and tfds: of arrays all images are readable.
    """

    size: int
    channels: int = 3
    fit: str = "resize-crop"
    filter: str = "bilinear"
    filter_T: str = ""
    on_error: str = "raise"


HELD_OUT = 20


def split_indices(count: int, split: str) -> np.ndarray:
    """Positions of a split where a source has none of its own: every 20th example is "test", the rest "train"."""
    if count < 2:
        raise UserError(f"{count} example cannot be split into train and test: a source needs at least two")
    everything = np.arange(count)
    test = everything % HELD_OUT == min(HELD_OUT, count) - 1
    return everything[test if split == "test" else ~test]
