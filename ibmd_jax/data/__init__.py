"""Image sources and the input pipeline. A new source is one file and one line in SOURCES."""

from collections.abc import Callable

from ibmd_jax.data.emoji import emoji
from ibmd_jax.data.source import Source

SOURCES: dict[str, Callable[[str], Source]] = {"emoji": emoji}
