"""Image files of any kind as arrays of one shape, by Pillow."""

import contextlib
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ibmd_jax.core.errors import UserError
from ibmd_jax.data.source import Options

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
MAX_PIXELS = 80_000_000  # a file that declares more is taken for a decompression bomb
FITS = ("resize-crop", "stretch", "crop", "random-crop", "pad")


def read_image(path: Path, channels: int, content: bytes | None = None) -> Image.Image:
    """The first frame of a file, upright, as RGB or grey of 8 bits; transparency is put on white.

    Args: content: the file's bytes, where they are at hand; path is then but a name.
    Raises: UserError that names the file, for whatever is wrong with it, pixels of 32 bits included.
    """
    try:
        with Image.open(path if content is None else io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UserError(f"{path} declares {width} x {height} pixels, more than the limit of {MAX_PIXELS:,}")
            image.load()
            with contextlib.suppress(Exception):  # damaged EXIF tells no rotation; Pillow's parser raises many kinds
                ImageOps.exif_transpose(image, in_place=True)
            return _plain(image, channels)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except Exception as error:  # Pillow's decoders raise a dozen kinds of errors on damaged files
        raise UserError(f"cannot read the image {path}: {error}") from error


def _plain(image: Image.Image, channels: int) -> Image.Image:
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        raise ValueError("its pixels have 32 bits, and no file tells their range: save it with 8 or 16")
    if image.mode.startswith("I"):  # 16 bits, also those of PGM
        image = Image.fromarray(np.clip(np.asarray(image) / 257, 0, 255).round().astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "RGB" if channels == 3 else "L"
    if image.mode == mode:
        image.load()  # convert would copy it, too
        return image
    return image.convert(mode)


def fit_image(image: Image.Image, options: Options, filter_name: str = "") -> np.ndarray:
    """[size, size, channels] uint8, by options.fit; "random-crop" leaves the whole image to the pipeline.

    Raises: UserError for an image smaller than a crop, or larger than a padded one.
    """
    size, (width, height) = options.size, image.size
    filtering = FILTERS[filter_name or options.filter]
    if options.fit == "stretch":
        image = image.resize((size, size), filtering)
    elif options.fit == "resize-crop":  # the long side is cut off as torchvision does
        short = min(width, height)
        image = image.resize((size * width // short, size * height // short), filtering)
        image = center(image, size)
    elif options.fit == "pad":
        if max(width, height) > size:
            raise UserError(f"an image of {width} x {height} pixels is larger than {size}: set config.data.fit")
        padded = Image.new(image.mode, (size, size))
        padded.paste(image, ((size - width) // 2, (size - height) // 2))
        image = padded
    else:
        if min(width, height) < size:
            raise UserError(f"an image of {width} x {height} pixels is smaller than the crop of {size}")
        image = center(image, size) if options.fit == "crop" else image
    array = np.asarray(image)
    return array if array.ndim == 3 else array[:, :, None]


def fit_any(image: Image.Image, options: Options) -> np.ndarray:
    """fit_image, but what options.fit refuses, being too small to cut or too large to pad, is resized and cut."""
    refused = {"crop": min(image.size) < options.size, "pad": max(image.size) > options.size}
    return fit_image(image, options._replace(fit="resize-crop") if refused.get(options.fit) else options)


def check_pair(x_T: tuple[str, tuple[int, int]], x_0: tuple[str, tuple[int, int]], options: Options) -> None:
    """Raises UserError where options.fit would take two images, (name, (width, height)), from different places.

    Those that the pipeline crops are left to it.
    """
    (_, (w_T, h_T)), (_, (w_0, h_0)) = x_T, x_0
    size, short_T, short_0 = options.size, min(w_T, h_T), min(w_0, h_0)
    alike = (
        abs(size * w_T // short_T - size * w_0 // short_0) < 2
        and abs(size * h_T // short_T - size * h_0 // short_0) < 2
    )
    if (
        options.fit in ("stretch", "random-crop")
        or (w_T, h_T) == (w_0, h_0)
        or (options.fit == "resize-crop" and alike)
    ):
        return
    raise UserError(
        f"{x_T[0]} has {w_T, h_T} pixels, {x_0[0]} {w_0, h_0}: config.data.fit = {options.fit!r} would take them from "
        f"different places; take {'resize-crop or ' * alike}stretch"
    )


def center(image: Image.Image, size: int) -> Image.Image:
    """The central square."""
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)  # half to even, as torchvision
    return image.crop((left, top, left + size, top + size))


def from_array(image: np.ndarray, options: Options, filter_name: str = "") -> np.ndarray:
    """An array [H, W] or [H, W, C] uint8 in the same way. Raises: UserError for another dtype or rank."""
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[-1] not in (1, 3, 4)):
        raise UserError(f"an image of shape {image.shape} and type {image.dtype}: expected uint8 [H, W, 1, 3 or 4]")
    if image.shape == (options.size, options.size, options.channels):
        return image
    plain = image[:, :, 0] if image.ndim == 3 and image.shape[-1] == 1 else image
    return fit_image(_plain(Image.fromarray(plain), options.channels), options, filter_name)
