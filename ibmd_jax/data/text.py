"""Text as a vector that conditions a network: a hashed, signed bag of words.

e(text) = sqrt(D) s / |s|,   s = sum over words w and k = 1 ... 4 of sign_k(w) one_hot(index_k(w))        (1)

A fixed map, the same in every process and version, without weights, and for any text: what `emoji:words` conditions on,
and what metrics/retrieval.py looks for. It knows nothing of what words mean; `emoji:names` has the same names by a text
encoder (benchmarks/embed_names.py). Embeddings of one's own texts go into `npz:FILE` as an array text [N, D].
"""

import hashlib
import re

import numpy as np

# Over several positions words that collide in one still differ. CRC32 would not do here: it is linear, so that words of
# the same length which collide in one position collide in all.
POSITIONS = 4


def hashed_words(text: str, features: int = 128) -> np.ndarray:
    """(1): [features] float32 of mean square 1; zeros for a text without a word. Case, order, punctuation are lost."""
    out = np.zeros(features, np.float32)
    for word in re.findall(r"\w+", text.lower()):
        digest = hashlib.blake2b(word.encode(), digest_size=4 * POSITIONS).digest()
        for number in np.frombuffer(digest, "<u4").tolist():
            out[number % features] += 1 if number >> 31 else -1
    norm = np.linalg.norm(out)
    return out if norm == 0 else out * np.float32(np.sqrt(features) / norm)
