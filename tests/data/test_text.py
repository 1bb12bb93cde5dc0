"""Names as embeddings: the same everywhere, apart for different words, near for shared ones."""

import subprocess
import sys

import numpy as np
import pytest

from ibmd_jax.core.errors import UserError
from ibmd_jax.data import open_source
from ibmd_jax.data.emoji import emoji, index, name_embeddings, name_words, rows_of
from ibmd_jax.data.source import Options
from ibmd_jax.data.text import hashed_words


def cosine(a, b, features=128):
    return float(hashed_words(a, features) @ hashed_words(b, features)) / features


def test_an_embedding_is_pinned_and_does_not_depend_on_the_process():
    e = hashed_words("Grinning face!")
    assert e.dtype == np.float32
    expected = np.zeros(128)
    expected[[38, 44, 63, 85, 87, 96, 106, 109]] = [4, -4, 4, -4, 4, 4, -4, -4]
    np.testing.assert_array_equal(e, expected)
    code = "from ibmd_jax.data.text import hashed_words; print(hashed_words('grinning face').tobytes().hex())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == e.tobytes().hex()


def test_embeddings_have_mean_square_1():
    for text, features in (("cat", 128), ("woman and man holding hands", 128), ("kiss: woman, woman", 100)):
        np.testing.assert_allclose(np.square(hashed_words(text, features)).mean(), 1, rtol=1e-5)
        assert hashed_words(text, features).shape == (features,)
    assert not hashed_words(" ... ").any()


def test_different_words_are_nearly_orthogonal_also_those_of_one_length():
    """A hash whose positions collide together would have pairs with cosine 1 or -1 among these."""
    words = sorted({w for entry in index() for w in entry["name"].split() if w.isalpha() and len(w) == 5})
    e = np.stack([hashed_words(w) for w in words])
    cosines = (e @ e.T / 128)[~np.eye(len(words), dtype=bool)]
    assert len(words) > 150
    assert abs(cosines.mean()) < 0.01
    assert 0.07 < cosines.std() < 0.11  # 1 / sqrt(128) = 0.088
    assert np.abs(cosines).max() < 0.9


def test_names_are_near_where_they_share_words():
    assert cosine("grinning face", "crying face") > 0.3
    assert cosine("grinning face", "Face, grinning") == pytest.approx(1)
    assert cosine("kyrgyzstan flag", "romania flag") > cosine("kyrgyzstan flag", "guitar") + 0.2
    assert cosine("kiss woman woman", "kiss woman") < 0.99  # words are counted


@pytest.mark.parametrize(("variant", "texts"), [("names", name_embeddings), ("words", name_words)])
def test_the_emoji_bring_their_names(variant, texts):
    assert len(np.unique(texts(), axis=0)) == len({entry["name"] for entry in index()})
    assert (texts().dtype, texts().shape) == (np.float32, (3786, 128))
    np.testing.assert_allclose(np.square(texts()).mean(-1), 1, rtol=1e-3)
    source, plain = (emoji(where, "test", Options(16)) for where in (variant, ""))
    row = source[5]
    assert row.keys() == {"x_0", "label", "text"}
    np.testing.assert_array_equal(row["text"], texts()[rows_of("test")[5]])
    np.testing.assert_array_equal(row["x_0"], plain[5]["x_0"])
    assert plain[5].keys() == {"x_0", "label"}
    with pytest.raises(UserError, match="unknown variant of the emoji set"):
        emoji("texts", "test", Options(16))


def test_words_are_those_of_the_name():
    entry = index()[rows_of("test")[5]]
    np.testing.assert_array_equal(name_words()[rows_of("test")[5]], hashed_words(entry["name"]))


@pytest.mark.parametrize(("name", "near", "far"), [("dog", "poodle", "guitar"), ("ship", "sailboat", "grinning face")])
def test_the_text_encoder_knows_what_words_mean(name, near, far):
    """Of names without a common word those of similar things are near: rows in another order would not be."""
    names = [entry["name"] for entry in index()]
    words, meant = (
        [float(text[names.index(name)] @ text[names.index(other)]) / 128 for other in (near, far)]
        for text in (name_words(), name_embeddings())
    )
    assert abs(words[0]) < 0.3
    assert meant[0] > meant[1] + 0.3


def test_a_file_may_bring_embeddings(tmp_path):
    text = np.arange(40, dtype=np.float64).reshape(5, 8)
    np.savez(tmp_path / "x.npz", x_0=np.zeros((5, 4, 4, 3), np.uint8), text=text)
    row = open_source(f"npz:{tmp_path}/x.npz", "train", Options(4))[1]
    assert row["text"].dtype == np.float32
    np.testing.assert_array_equal(row["text"], text[1])
