"""What holds for every entry of the table, at several sizes."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ibmd_jax.core.errors import UserError
from ibmd_jax.corruptions import CORRUPTIONS, I2SB_TASKS, corruption

every_corruption = pytest.mark.parametrize("name", CORRUPTIONS)
RANDOM = {"noise", "pure-noise", "mixture"} | {name for name in CORRUPTIONS if name.startswith("inpaint")}
INSIDE = {"sr-pool", "sr2x-pool", "sr4x-pool", "sr8x-pool", "jpeg-5-libjpeg", "jpeg-10-libjpeg"}
INSIDE |= {"blur", "blur-uni-true", "blur-gauss-true", "grey", "sketch"}


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """name -> the corruption, with a file of 32 x 32 masks and a short mixture where it needs one."""
    path = str(tmp_path_factory.mktemp("masks") / "masks.npz")
    np.savez(path, **{"10-20% freeform": np.packbits(np.random.default_rng(0).random((5, 32, 32)) < 0.15)})
    settings = {
        "inpaint-freeform-file": {"path": path, "size": 32},
        "mixture": {"corruptions": ["grey", "inpaint-center", "noise"]},
    }
    return lambda name: partial(CORRUPTIONS[name], **settings.get(name, {}))


@every_corruption
@pytest.mark.parametrize("shape", [(32, 32, 3), (24, 40, 3), (16, 48, 1)])
def test_a_batch_of_any_size_keeps_its_shape_and_type(make, name, shape):
    keys, x_0 = jax.random.split(jax.random.key(1), 2), jnp.zeros((2, *shape))
    if name == "inpaint-freeform-file" and shape[:2] != (32, 32):
        with pytest.raises(UserError, match="32 x 32"):
            jax.eval_shape(jax.vmap(make(name)), keys, x_0)
        return
    x_T, mask, label = jax.eval_shape(jax.vmap(make(name)), keys, x_0)
    assert (x_T.shape, x_T.dtype) == (x_0.shape, jnp.float32)
    assert (mask is not None) == (name.startswith("inpaint") or name == "mixture")  # it has an inpainting here
    assert mask is None or (mask.shape, mask.dtype) == ((2, *shape[:2], 1), bool)
    assert (label is not None) == (name == "mixture")
    assert label is None or (label.shape, label.dtype) == ((2,), jnp.int32)


@every_corruption
def test_jit_and_vmap_change_nothing_and_the_key_alone_decides(make, name):
    noise = jnp.sign(jax.random.normal(jax.random.key(2), (32, 32, 3)))
    square = jnp.ones((32, 32, 3)).at[8:20, 8:20].set(-1)  # black, and white, as the extremes of the range
    x_0 = jnp.stack([noise, noise, noise, square, -square])
    keys = jax.random.key_data(jax.random.split(jax.random.key(3), 4))
    keys = jax.random.wrap_key_data(keys[jnp.array([0, 0, 1, 2, 3])])
    batch = jax.jit(jax.vmap(make(name)))(keys, x_0)
    first, same, other, *_ = batch.x_T
    np.testing.assert_array_equal(first, same)
    assert (first != other).any() == (name in RANDOM)
    for one, many in zip(make(name)(keys[0], noise), batch, strict=True):
        assert (one is None) == (many is None)
        if one is not None:
            np.testing.assert_allclose(one, many[0], atol=1e-5)
    assert jnp.isfinite(batch.x_T).all()
    assert (batch.x_T != x_0).any()
    assert (jnp.abs(batch.x_T).max() <= 1 + 1e-6) == (name in INSIDE)


@every_corruption
def test_every_setting_has_a_default_so_that_a_name_suffices(name):
    first, second, *settings = inspect.signature(CORRUPTIONS[name]).parameters.values()
    assert (first.name, second.name) == ("key", "x_0")
    assert all(p.default is not p.empty for p in settings)


@pytest.mark.parametrize(
    ("name", "general", "settings"),
    [
        *((f"sr{f}x-{kind}", f"sr-{kind}", {"factor": f}) for f in (2, 4, 8) for kind in ("pool", "bicubic")),
        *((f"jpeg-{q}", "jpeg", {"quality": q}) for q in (5, 10)),
        *((f"jpeg-{q}-libjpeg", "jpeg", {"quality": q, "libjpeg": True}) for q in (5, 10)),
        ("blur-uni-true", "blur", {"size": 9}),
        ("blur-gauss-true", "blur", {"size": 5, "sigma": 10.0}),
    ],
)
def test_a_preset_is_a_general_one_with_settings(name, general, settings):
    x_0 = jax.random.uniform(jax.random.key(0), (16, 16, 3))
    preset, same = (corruption(spec)(None, x_0).x_T for spec in (name, {"name": general, **settings}))
    np.testing.assert_array_equal(preset, same)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("jpeg-50", r"unknown corruption 'jpeg-50'.*Did you mean 'jpeg-5'"),
        ({"name": "jpeg", "qualty": 5}, "'jpeg' has no setting 'qualty': it takes quality, libjpeg"),
        ({"name": "grey", "x_0": 1}, "'grey' has no setting 'x_0': it takes none"),
    ],
)
def test_wrong_names_are_named(spec, message):
    with pytest.raises(UserError, match=message):
        corruption(spec)


def test_the_tasks_of_i2sb_have_its_numbers():
    assert [I2SB_TASKS.index(name) for name in ("jpeg-5", "jpeg-10", "blur-uni", "blur-gauss")] == [0, 1, 2, 3]
    assert [I2SB_TASKS.index(f"sr4x-{kind}") for kind in ("pool", "bicubic")] == [4, 5]
    assert [I2SB_TASKS.index(f"inpaint-{kind}") for kind in ("center", "freeform1020", "freeform2030")] == [6, 7, 8]
