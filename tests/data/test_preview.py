"""The command that shows what a model will see."""

import re
import subprocess
import sys

import config_files
import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from PIL import Image

from ibmd_jax.core.errors import UserError
from ibmd_jax.data.preview import preview


def test_a_preview_of_photographs_shows_ranges_and_pictures(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(3):
        (tmp_path / "photos").mkdir(exist_ok=True)
        blocks = 255 * rng.integers(0, 2, (20, 25, 3), dtype=np.uint8)
        Image.fromarray(blocks.repeat(16, 0).repeat(16, 1)).save(tmp_path / "photos" / f"{i}.jpg")
    config = config_files.load("paper").get_config("jpeg-5")
    config.data.source = f"folder:{tmp_path}/photos"
    text = preview(config, tmp_path / "out.png", 2)
    assert "2 training examples, 1 test examples" in text
    low, high = map(float, re.search(r"x_T   \(32, 256, 256, 3\) float32: (\S+) to (\S+),", text).groups())
    assert low < -1.05  # JPEG's overshoot, which the published corruption does not clip
    assert high > 1.05
    assert re.search(r"then \d+ images/s", text)
    assert Image.open(tmp_path / "out.png").width > 2 * 256


def test_a_preview_shows_masks_and_labels(tmp_path):
    config = config_files.load("paper").get_config("inpaint-dbim-quicktest")
    text = preview(config, tmp_path / "out.png", 1)
    assert "mask  unknown: 25.0% of the pixels" in text
    assert re.search(r"label \d to \d in this batch", text)


def test_a_preview_counts_texts(tmp_path):
    config = config_files.load("inpaint").get_config("quicktest")
    config.data.source = "emoji:names"
    config.network.embedding = 128
    text = preview(config, tmp_path / "out.png", 1)
    assert re.search(r"text  \(32, 128\) float32: (2\d|3[012]) different in this batch", text)
    assert "label" not in text


def test_the_images_divide_by_any_number_of_devices(tmp_path, monkeypatch):
    mesh = jax.make_mesh((3,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:3])
    monkeypatch.setattr("ibmd_jax.build.data.make_mesh", lambda: mesh)
    config = config_files.load("inpaint").get_config("quicktest")
    for section in (config.teacher, config.distill, config.evaluate):
        section.batch_size = 6
    assert "x_T   (33, 32, 32, 3) float32" in preview(config, tmp_path / "out.png", 1)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config=configs/inpaint.py", "--config.data.sorce=emoji"], "unknown field 'sorce'.*source"),
        (["--config=configs/inpaint.py:fast"], "not 'fast'"),
        (["--config=nowhere.py"], "nowhere.py"),
        ([], "--config must have a value"),
        (["--config=configs/inpaint.py", "stray"], "unexpected argument 'stray'"),
    ],
)
def test_a_wrong_command_is_one_clear_error(args, message):
    command = [sys.executable, "-m", "ibmd_jax.data.preview", *args]
    done = subprocess.run(command, cwd=config_files.ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(f"error: .*{message}.*\n", done.stderr), done.stderr


def test_a_full_disk_is_named(tmp_path):
    (tmp_path / "out.tmp").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot write .*out.png: No space left on device. Choose another --out"):
        preview(config_files.load("inpaint").get_config("quicktest"), tmp_path / "out.png", 1)
