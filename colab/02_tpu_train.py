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
# # A row of the paper on a TPU, that a lost session does not cost
#
# Trains in a process of its own, all in one folder: on Colab put that on Drive. When the session is gone, open the
# notebook again and run all of it: the run goes on from its last checkpoint, and ends with the same bits.
#
# Install: clone the repository, `pip install -e .[tpu]` in it, restart, and open this there (on Colab: `%cd` into the
# clone first). Without a TPU it does the quick variant of the embedded task, in a minute or two.

# %%
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image

ROOT = next(p for p in [Path.cwd(), *Path.cwd().parents] if (p / "configs").is_dir())
FOLDER = Path(os.environ.get("WORKDIR", ROOT / "runs" / "row"))
if "google.colab" in sys.modules:
    from google.colab import drive

    drive.mount("/content/drive")
    FOLDER = Path("/content/drive/MyDrive/ibmd_jax/row")

# In a process of its own: a TPU belongs to one at a time, and the training will want it.
count = "import jax; print(jax.default_backend(), jax.device_count())"
backend, devices = subprocess.run(
    [sys.executable, "-c", count], capture_output=True, text=True, check=True
).stdout.split()[-2:]
print(devices, backend)

# %% [markdown]
# ## What to train
# A row of `configs/paper.py`, which needs its converted teacher (`python -m ibmd_jax.convert latest.pt --to
# teachers/sr4x-bicubic`) and images. `accumulate`: parts of a batch, one after the other, so that activations fit;
# `python -m ibmd_jax.preflight --config=... --topology=v5e:2x4 --fit` finds the number beforehand.

# %%
TEACHER = ROOT / "teachers" / "sr4x-bicubic"
if backend == "tpu" and TEACHER.is_dir():
    config = "configs/paper.py:sr4x-bicubic"
    more = [
        f"--config.teacher.checkpoint={TEACHER}",
        f"--config.distill.auxiliary_start={TEACHER}-raw",
        "--config.data.source=folder:/content/imagenet",
        "--config.distill.accumulate=4",
        "--mode=distill",
    ]
else:
    config, more = "configs/inpaint.py:quicktest", []


def ibmd(*arguments):
    """python -m ibmd_jax.main; what it prints comes here as it comes."""
    command = [sys.executable, "-m", "ibmd_jax.main", f"--workdir={FOLDER}", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        print(line, end="")
    assert process.wait() == 0, "see above; the same cell goes on from the last checkpoint"


ibmd(f"--config={config}", *more)

# %% [markdown]
# ## How it goes
# What the loss does, and what the student makes of the same inputs while it learns. TensorBoard reads
# `FOLDER/distill/events`.

# %%
for path in (FOLDER / "distill" / "curves.png", sorted((FOLDER / "pictures").glob("distill_*.png"))[-1]):
    plt.figure(figsize=(12, 8))
    plt.imshow(Image.open(path))
    plt.axis("off")
    plt.show()

# %% [markdown]
# ## Using it
# The run knows its configuration: no more than its folder is needed, and here its data, for the test images. For images
# of your own (`--input=FOLDER`) `distill/export` and `config.json` are all of it.

# %%
ibmd("--mode=sample", f"--output={FOLDER}/restored")
made = sorted((FOLDER / "restored").glob("*.png"))
print(len(made), "images restored")
assert made
