"""Whether the text of an image can be told from it: by hand, for the embedded drawings, and for texts of others."""

import numpy as np
import pytest

from ibmd_jax.core.arrays import from_uint8
from ibmd_jax.data.emoji import name_words, rows_of, tiles
from ibmd_jax.metrics.retrieval import PART, name_encoder, retrieval_accuracy

RNG = np.random.default_rng(0)


def drawings(split, step=1):
    rows = rows_of(split)[::step]
    return from_uint8(tiles("noto", 32)[rows]), name_words()[rows]


def test_images_that_show_their_text_are_all_found_whatever_its_length():
    """The "images" are texts of other lengths than the ones they are compared with, in more parts than one."""
    texts = RNG.normal(size=(PART + 7, 12)).astype(np.float32)
    images = (texts * RNG.uniform(1, 9, (len(texts), 1))).astype(np.float32)
    assert retrieval_accuracy(images, texts * RNG.uniform(1, 9, (len(texts), 1)), lambda x: x) == 1
    assert retrieval_accuracy(images, -texts, lambda x: x) == 0
    assert retrieval_accuracy(images, np.roll(texts, 1, axis=0), lambda x: x) == 0


def test_equal_texts_count_once():
    """By hand: two texts; the second image is nearer to the other one."""
    texts = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    images = np.array([[1, 0], [0.1, 0.2], [0, 3], [1, 2]], np.float32)
    assert retrieval_accuracy(images, texts, lambda x: x) == 0.75


@pytest.mark.parametrize(("split", "step", "bar"), [("train", 8, 0.5), ("test", 1, 0.2)])
def test_names_are_found_from_real_drawings_and_not_from_others(split, step, bar):
    images, texts = drawings(split, step)
    names = len(np.unique(texts, axis=0))
    assert retrieval_accuracy(images, texts) > bar
    by_chance = [retrieval_accuracy(images, RNG.permutation(texts)) for _ in range(4)]
    assert np.mean(by_chance) < 6 / names + 0.01
    np.testing.assert_allclose(np.linalg.norm(name_encoder()(images[:9]), axis=-1), 1, rtol=1e-5)


def test_what_retrieval_cannot_compare_is_named():
    images, texts = np.zeros((2, 32, 32, 3), np.float32), np.zeros((2, 128), np.float32)
    for x, e, message in (
        (images[:1], texts, "1 images and 2 texts"),
        (images[:0], texts[:0], "0 images"),
        (images[:, :16], texts, r"\[N, 32, 32, 3\] and texts \[N, 128\], got \(2, 16, 32, 3\)"),
        (images, texts[:, :64], r"got \(2, 32, 32, 3\) and \(2, 64\)"),
    ):
        with pytest.raises(ValueError, match=message):
            retrieval_accuracy(x, e)
