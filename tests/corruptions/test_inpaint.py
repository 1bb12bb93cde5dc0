import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ibmd_jax.core.errors import UserError
from ibmd_jax.corruptions import CORRUPTIONS
from ibmd_jax.corruptions.inpaint import freeform_file, inpaint_freeform


@pytest.mark.parametrize("name", ["inpaint-center", "inpaint-freeform"])
@pytest.mark.parametrize("shape", [(32, 32, 3), (20, 28, 1)])
def test_outside_the_mask_nothing_changes_and_inside_is_standard_normal(name, shape):
    x_0 = jax.random.uniform(jax.random.key(0), shape, minval=-1, maxval=1)
    keys = jax.random.split(jax.random.key(1), 200)
    x_T, mask, _ = jax.jit(jax.vmap(lambda k: CORRUPTIONS[name](k, x_0)))(keys)
    assert mask.shape == (200, *shape[:2], 1)
    assert mask.dtype == bool
    hole = np.broadcast_to(mask, x_T.shape)
    np.testing.assert_array_equal(np.asarray(x_T)[~hole], np.broadcast_to(x_0, x_T.shape)[~hole])
    inside = np.asarray(x_T)[hole]
    assert abs(inside.mean()) < 0.03
    np.testing.assert_allclose(inside.std(), 1, atol=0.03)


def test_the_centre_hole_is_half_of_each_side():
    mask = np.asarray(CORRUPTIONS["inpaint-center"](jax.random.key(0), jnp.zeros((32, 32, 3))).mask)[..., 0]
    assert mask[8:24, 8:24].all()
    assert mask.sum() == 256


def test_the_centre_can_be_filled_with_grey():
    x_0 = jax.random.uniform(jax.random.key(0), (16, 24, 3), minval=0.5)
    x_T, mask, _ = CORRUPTIONS["inpaint-center"](jax.random.key(1), x_0, fill="grey")
    np.testing.assert_array_equal(x_T == 0, np.broadcast_to(mask, x_0.shape))
    np.testing.assert_array_equal(x_T, jnp.where(mask, 0, x_0))
    with pytest.raises(UserError, match="unknown fill of the hole 'gray'"):
        CORRUPTIONS["inpaint-center"](jax.random.key(1), x_0, fill="gray")


@pytest.mark.parametrize(
    ("name", "low", "high"), [("", 0.1, 0.3), ("1020", 0.1, 0.2), ("2030", 0.2, 0.3), ("3040", 0.3, 0.4)]
)
def test_a_free_form_hole_has_the_share_asked_for_and_is_one_stroke(name, low, high):
    masks = strokes(**getattr(CORRUPTIONS[f"inpaint-freeform{name}"], "keywords", {}))
    share = masks.mean((1, 2))
    assert share.min() >= low - 1 / 1024
    assert share.max() <= high + 1 / 1024
    np.testing.assert_allclose(share.mean(), (low + high) / 2, atol=(high - low) / 10)
    assert len({m.tobytes() for m in masks}) == 300
    from scipy.ndimage import label

    assert np.median([label(m)[1] for m in masks]) == 1


def strokes(low=0.1, high=0.3):
    return np.asarray(_strokes(jax.random.split(jax.random.key(0), 300), low, high))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _strokes(keys, low, high):
    return jax.vmap(lambda k: inpaint_freeform(k, jnp.zeros((32, 32, 1)), low, high).mask[..., 0])(keys)


@pytest.mark.parametrize(("low", "high"), [(10, 20), (0.4, 0.1), (-0.1, 0.2)])
def test_shares_that_are_none_are_refused(low, high):
    with pytest.raises(ValueError, match="needs 0 <= low <= high < 1"):
        inpaint_freeform(jax.random.key(0), jnp.zeros((8, 8, 1)), low, high)


@pytest.fixture
def file(tmp_path):
    """Three packed masks of 12 x 12 pixels under the name that Palette gives them, and three that are not packed."""
    masks = np.random.default_rng(0).random((3, 12, 12)) < 0.5
    np.savez(tmp_path / "masks.npz", **{"10-20% freeform": np.packbits(masks), "30-40% freeform": masks})
    return str(tmp_path / "masks.npz"), masks


def test_the_masks_of_a_file_are_drawn_equally_often_and_filled(file):
    path, masks = file
    x_0 = jax.random.uniform(jax.random.key(0), (12, 12, 2))
    x_T, mask, _ = jax.jit(jax.vmap(freeform_file(path, "10-20%", 12), (0, None)))(
        jax.random.split(jax.random.key(1), 600), x_0
    )
    same = (np.asarray(mask)[:, None, :, :, 0] == masks[None]).all((2, 3))
    assert (same.sum(1) == 1).all()
    assert (np.abs(same.sum(0) - 200) < 40).all()
    hole = np.broadcast_to(mask, x_T.shape)
    np.testing.assert_array_equal(np.asarray(x_T)[~hole], np.broadcast_to(x_0, x_T.shape)[~hole])
    np.testing.assert_allclose(np.asarray(x_T)[hole].std(), 1, atol=0.02)


def test_what_is_wrong_with_a_file_is_said(file, tmp_path):
    path, masks = file
    np.save(tmp_path / "masks.npy", masks)
    np.savez(tmp_path / "pickle.npz", **{"10-20% freeform": np.array([None])})
    (tmp_path / "text.npz").write_text("masks")
    cases = [
        (str(tmp_path / "none.npz"), "10-20%", 12, "No such file"),
        (str(tmp_path / "text.npz"), "10-20%", 12, "cannot read the free-form masks of .*text.npz"),
        (str(tmp_path / "masks.npy"), "10-20%", 12, "cannot read the free-form masks of .*masks.npy"),
        (str(tmp_path / "pickle.npz"), "10-20%", 12, "allow_pickle"),
        (path, "20-30%", 12, "no array '20-30% freeform': it has '10-20% freeform', '30-40% freeform'"),
        (path, "30-40%", 12, "does not hold packed masks"),
        (path, "10-20%", 16, "does not hold packed masks of 16 x 16"),
    ]
    for *args, message in cases:
        with pytest.raises(UserError, match=message):
            freeform_file(*args)
    with pytest.raises(UserError, match=re.escape("12 x 12 pixels, not (12, 16)")):
        freeform_file(path, "10-20%", 12)(jax.random.key(0), jnp.zeros((12, 16, 3)))
