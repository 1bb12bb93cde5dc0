"""Image sources and the input pipeline. A new source is one file, its import and its line in SOURCES."""

from collections.abc import Callable

from ibmd_jax.core.errors import UserError, lookup
from ibmd_jax.data.arrays import npz
from ibmd_jax.data.emoji import emoji
from ibmd_jax.data.folder import Files, corrupted, folder, paired
from ibmd_jax.data.images import FILTERS, FITS
from ibmd_jax.data.source import Options, Source
from ibmd_jax.data.tfds import tfds

# The part of config.data.source before the colon: a function (rest, split, options) -> Source.
SOURCES: dict[str, Callable[[str, str, Options], Source]] = {
    "emoji": emoji,
    "folder": folder,
    "paired": paired,
    "corrupted": corrupted,
    "npz": npz,
    "tfds": tfds,
}


def open_source(uri: str, split: str, options: Options) -> Source:
    """The source that a URI such as "folder:photos" names.

    Args: split: "train" or "test". Raises: UserError for an unknown or unreadable source, or wrong options.
    """
    scheme, _, where = uri.partition(":")
    make = lookup(SOURCES, scheme, "data source")
    lookup(dict.fromkeys(FITS), options.fit, "value of config.data.fit")
    lookup(dict.fromkeys(["raise", "skip"]), options.on_error, "value of config.data.on_error")
    for name in (options.filter, options.filter_T or options.filter):
        lookup(FILTERS, name, "filter in config.data")
    if options.channels not in (1, 3):
        raise UserError(f"config.data.channels = {options.channels}: it must be 1 or 3")
    if not where and scheme != "emoji":
        raise UserError(f"config.data.source = {uri!r} names nothing after {scheme}: write {scheme}:PLACE")
    if split == "test" and options.fit == "random-crop":
        options = options._replace(fit="crop")
    source = make(where, split, options)
    if options.on_error == "skip" and not isinstance(source, Files):
        raise UserError(f"config.data.on_error = skip: {scheme} has no files to pass over; set raise")
    return source
