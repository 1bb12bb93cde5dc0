import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ibmd_jax.corruptions import CORRUPTIONS
from ibmd_jax.corruptions.inpaint import inpaint_freeform

every_corruption = pytest.mark.parametrize("name", CORRUPTIONS)


@every_corruption
@pytest.mark.parametrize("shape", [(32, 32, 3), (20, 28, 1)])
def test_outside_the_mask_nothing_changes_and_inside_is_standard_normal(name, shape):
    x_0 = jax.random.uniform(jax.random.key(0), shape, minval=-1, maxval=1)
    keys = jax.random.split(jax.random.key(1), 200)
    x_T, mask = jax.jit(jax.vmap(lambda k: CORRUPTIONS[name](k, x_0)))(keys)
    assert mask.shape == (200, *shape[:2], 1)
    assert mask.dtype == bool
    hole = np.broadcast_to(mask, x_T.shape)
    np.testing.assert_array_equal(np.asarray(x_T)[~hole], np.broadcast_to(x_0, x_T.shape)[~hole])
    inside = np.asarray(x_T)[hole]
    assert abs(inside.mean()) < 0.03
    np.testing.assert_allclose(inside.std(), 1, atol=0.03)


@every_corruption
def test_the_key_alone_decides(name):
    x_0 = jnp.zeros((16, 16, 3))
    a, b, c = (CORRUPTIONS[name](jax.random.key(i), x_0) for i in (0, 0, 1))
    np.testing.assert_array_equal(a.x_T, b.x_T)
    assert (a.x_T != c.x_T).any()


def test_the_centre_hole_is_half_of_each_side():
    mask = np.asarray(CORRUPTIONS["inpaint-center"](jax.random.key(0), jnp.zeros((32, 32, 3))).mask)[..., 0]
    assert mask[8:24, 8:24].all()
    assert mask.sum() == 256


def test_a_free_form_hole_has_the_share_asked_for_and_is_one_stroke():
    masks = jax.vmap(lambda k: inpaint_freeform(k, jnp.zeros((32, 32, 1)), 0.1, 0.3).mask)(
        jax.random.split(jax.random.key(0), 300)
    )
    share = np.asarray(masks).mean((1, 2, 3))
    assert share.min() >= 0.1 - 1 / 1024
    assert share.max() <= 0.3 + 1 / 1024
    np.testing.assert_allclose(share.mean(), 0.2, atol=0.02)
    assert len({m.tobytes() for m in np.asarray(masks)}) == 300
    from scipy.ndimage import label

    pieces = [label(m[..., 0])[1] for m in np.asarray(masks)]
    assert np.median(pieces) == 1
