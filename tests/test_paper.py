"""The rows of configs/paper.py: at full size by their shapes, in their quick versions for real."""

import config_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ibmd_jax.build import build, build_model
from ibmd_jax.core.errors import UserError
from ibmd_jax.core.types import Batch
from ibmd_jax.train.job import run

pytestmark = pytest.mark.usefixtures("one_device")
PAPER = config_files.load("paper")
# Parameters of the teacher; what the noise input adds: 3 x 3 weights for each channel of noise and each of the network.
SIZES = {
    **dict.fromkeys(["sr4x-bicubic", "sr4x-pool", "jpeg-5", "jpeg-10"], (552_807_171, 9 * 3 * 256)),
    "inpaint-center": (552_807_171, 0),
    **dict.fromkeys(["e2h-1", "e2h-2"], (295_136_451, 9 * 192)),
    **dict.fromkeys(["diode-1", "diode-2"], (552_814_083, 9 * 256)),
    "inpaint-dbim": (553_838_083, 9 * 256),
}
# Table 7 of the paper: student steps, L, learning rate, updates.
TABLE_7 = {
    "sr4x-bicubic": (1, 5, 5e-5, 3000),
    "sr4x-pool": (1, 5, 5e-5, 3000),
    "jpeg-5": (1, 5, 5e-5, 2000),
    "jpeg-10": (1, 5, 5e-5, 3000),
    "inpaint-center": (4, 5, 5e-5, 2000),
    "e2h-2": (2, 5, 1e-5, 300),
    "e2h-1": (1, 5, 1e-5, 14000),
    "diode-2": (2, 5, 1e-5, 500),
    "diode-1": (1, 5, 1e-5, 3700),
    "inpaint-dbim": (4, 1, 3e-6, 3000),
}


def full_size(row):
    config = PAPER.get_config(row)
    assert config.teacher.checkpoint == f"teachers/{row}"
    config.teacher.checkpoint = ""
    return config, build_model(config)


def test_the_rows_are_those_of_the_paper():
    assert PAPER.ROWS.keys() == TABLE_7.keys() == SIZES.keys()
    raw = {"inpaint-center": ("start", "auxiliary_start")}  # begin without averaging; of the others of I2SB the second
    for row, (steps, updates, rate, total) in TABLE_7.items():
        d = PAPER.get_config(row).distill
        given = raw.get(row, ("auxiliary_start",) if row.startswith(("sr4x", "jpeg")) else ())
        assert [d[name] for name in ("start", "auxiliary_start") if d[name]] == [f"teachers/{row}-raw"] * len(given)
        assert (d.student_steps, d.auxiliary_updates, d.steps, d.batch_size) == (steps, updates, total, 256)
        assert d.student_optimizer.learning_rate == d.auxiliary_optimizer.learning_rate == rate


@pytest.mark.usefixtures("lenient")  # attention in bfloat16
@pytest.mark.parametrize("row", PAPER.ROWS)
def test_a_row_builds_at_full_size(row):
    config, model = full_size(row)
    student = jax.eval_shape(lambda: model.init_params(jax.random.key(0), config.distill.noise_channels))
    added = {"noise_in": student["noise_in"]} if config.distill.noise_channels else {}
    teacher = {name: layer for name, layer in student.items() if name not in added}
    assert tuple(sum(x.size for x in jax.tree.leaves(tree)) for tree in (teacher, added)) == SIZES[row]
    state = jax.eval_shape(model.distill.init, (student, teacher))
    assert sum(x.size for x in jax.tree.leaves(state)) > 7 * SIZES[row][0]  # student, EMA, auxiliary, four moments


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("row", ["inpaint-center", "e2h-2"])
def test_a_step_traces_at_full_size(row):
    """One of each kind: I2SB's ODE bridge in four steps, DDBM in two."""
    config, model = full_size(row)
    key = jax.random.key(0)
    teacher = jax.eval_shape(model.init_params, key)
    student = jax.eval_shape(lambda: model.init_params(key, config.distill.noise_channels))
    state = jax.eval_shape(model.distill.init, (student, teacher))
    n, (h, w, c) = config.distill.batch_size * model.distill.batches, model.image_shape
    x_T = jax.ShapeDtypeStruct((n, h, w, c), jnp.float32)
    mask = jax.ShapeDtypeStruct((n, h, w, 1), bool) if row.startswith("inpaint") else None
    cond = model.conditioning.example(n)
    after, info = jax.eval_shape(model.distill.step, state, teacher, Batch(x_T, None, mask, cond), key)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert info.loss.shape == ()


@pytest.mark.parametrize("row", PAPER.ROWS)
def test_a_quick_version_builds_with_data(row):
    config = PAPER.get_config(f"{row}-quicktest")
    job = build(config)
    batch = next(job.batches("distill")(0))
    assert batch.x_T.shape == (config.distill.batch_size * job.distill.batches, 32, 32, 3)
    assert (batch.cond is not None) == (row == "inpaint-dbim")
    assert (batch.mask is not None) == row.startswith("inpaint")
    assert bool(jnp.isfinite(batch.x_T).all())


@pytest.mark.usefixtures("lenient")
def test_the_quick_version_with_labels_runs(tmp_path):
    config = PAPER.get_config("inpaint-dbim-quicktest")
    config.teacher.steps = config.distill.steps = 1
    config.data.size, config.distill.student_steps = 16, 2
    config.network.update(multipliers=(1,), attention=(1,))
    config.evaluate.update(nfe=(1,), examples=8, batch_size=8, features="none")
    run(build(config), tmp_path, "all")
    report = (tmp_path / "report.json").read_text()
    assert report.count('"label": "student"') == 2  # 1 and 2 NFE


def test_without_its_teacher_a_row_says_what_is_missing():
    with pytest.raises(UserError, match=r"no checkpoint at .*teachers/jpeg-5"):
        build(PAPER.get_config("jpeg-5"))
    with pytest.raises(ValueError, match=r"configs/paper.py has the rows .*, not 'jpeg-7'"):
        PAPER.get_config("jpeg-7")
    np.testing.assert_equal(PAPER.get_config().name, "paper-jpeg-5")
