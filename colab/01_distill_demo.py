# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From a bridge of a hundred steps to a generator of one
#
# The main job of the library on the emoji that come with it: a teacher learns to fill holes, a student is distilled
# from it, both are measured, and the student fills holes in drawings of yours. On a GPU or TPU this takes minutes; a
# CPU gets the quick variant, a minute or two, whose images are blurs.
#
# Install: clone the repository, `pip install -e .` in it (`.[cuda]` on a GPU, `.[tpu]` on a TPU), and open this there
# (on Colab: `%cd` into the clone first).

# %%
import importlib
import json
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from ibmd_jax.build import build
from ibmd_jax.core.types import Batch
from ibmd_jax.train.job import Restoring, load_student, run

ROOT = next(p for p in [Path.cwd(), *Path.cwd().parents] if (p / "configs").is_dir())
sys.path.append(str(ROOT / "configs"))
QUICK = jax.default_backend() == "cpu"
FOLDER = Path(os.environ.get("WORKDIR", ROOT / "runs" / f"demo{'-quick' * QUICK}"))
print(jax.devices())


def show(path):
    plt.figure(figsize=(12, 8))
    plt.imshow(Image.open(path))
    plt.axis("off")
    plt.show()


# %% [markdown]
# ## The job
# A configuration says what to do (`configs/inpaint.py` explains every field; change any here), `build` makes all parts
# of it and finds mistakes before work begins. Whatever is finished in the folder is not done again: interrupt a cell
# when you like, and run it once more.

# %%
config = importlib.import_module("inpaint").get_config("quicktest" if QUICK else "default")
job = build(config)
run(job, FOLDER, "teacher")
show(sorted((FOLDER / "pictures").glob("teacher_*.png"))[-1])

# %% [markdown]
# ## Distillation
# From corrupted images alone. The curves: both terms of the loss, the auxiliary network's, the student's variety.

# %%
run(job, FOLDER, "distill")
show(FOLDER / "distill" / "curves.png")

# %% [markdown]
# ## Numbers
# FID and KID are over the features of a small network for these images: they compare with each other alone.

# %%
run(job, FOLDER, "evaluate")
show(FOLDER / "samples.png")
rows = json.loads((FOLDER / "report.json").read_text())["rows"]
speed = rows[0]["images_per_second"] / min(row["images_per_second"] for row in rows if row["label"] == "teacher")
print(f"the student makes {speed:.0f} times the images of its slowest teacher")
assert rows[0]["label"] == "student"
assert rows[0]["nfe"] == 1

# %% [markdown]
# ## Your own images
# Any folder will do. The hole is cut where the student has learned to fill it; `draws` are different fillings of it.

# %%
given = FOLDER / "mine"
given.mkdir(exist_ok=True)
y, x = np.mgrid[-1:1:128j, -1:1:128j]
Image.fromarray((255 * np.stack([x**2, y**2, x * y + 1], -1) / 2).astype(np.uint8)).save(given / "waves.png")
run(job._replace(restoring=Restoring(input=str(given), draws=4)), FOLDER, "sample")
made = [np.asarray(Image.open(FOLDER / "samples" / f"waves_{i}.png")) for i in range(4)]
plt.figure(figsize=(8, 2))
plt.imshow(np.concatenate(made, axis=1))
plt.axis("off")
plt.show()
assert (made[0] != made[1]).any()

# %% [markdown]
# ## As a function
# The student is a pure function of its parameters, a key and a batch: `jit`, `vmap` and `pmap` it, or serve it.

# %%
params, _ = load_student(job, FOLDER)
restore = jax.jit(job.distill.sample)
batch = jax.tree.map(lambda v: jnp.asarray(v[:4]), job.test()._replace(x_0=None))
restored = restore(params, jax.random.key(0), batch)
print(restored.shape, restored.dtype)
assert isinstance(batch, Batch)
assert bool(jnp.isfinite(restored).all())
