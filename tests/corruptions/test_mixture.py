import jax
import numpy as np
import pytest

from ibmd_jax.core.errors import UserError
from ibmd_jax.corruptions import CORRUPTIONS, I2SB_TASKS, corruption

X_0 = jax.random.uniform(jax.random.key(0), (16, 16, 3), minval=-1, maxval=1)


def draw(count, **settings):
    keys = jax.random.split(jax.random.key(1), count)
    return jax.jit(jax.vmap(lambda k: CORRUPTIONS["mixture"](k, X_0, **settings)))(keys)


def test_the_label_is_the_number_of_the_corruption():
    specs = ["grey", {"name": "sr-pool", "factor": 8}, "sketch", "blur-uni", {"name": "jpeg", "quality": 20}]
    x_T, mask, label = draw(200, corruptions=specs)
    assert mask is None
    assert set(np.asarray(label).tolist()) == set(range(5))
    expected = np.stack([corruption(spec)(None, X_0).x_T for spec in specs])
    np.testing.assert_allclose(x_T, expected[label], atol=1e-5)


def test_beside_a_hole_the_others_have_a_mask_of_all():
    x_T, mask, label = draw(60, corruptions=["inpaint-center", "grey"])
    hole, whole = (np.asarray(mask)[np.asarray(label) == n] for n in (0, 1))
    assert set(hole.mean((1, 2, 3))) == {0.25}
    assert whole.all()
    known = np.broadcast_to(X_0, x_T.shape)[np.asarray(label) == 0]
    np.testing.assert_array_equal(np.where(hole, 0, x_T[np.asarray(label) == 0]), np.where(hole, 0, known))


def test_the_tasks_of_i2sb_are_drawn_equally_often():
    x_T, _, label = draw(1800)
    counts = np.bincount(label, minlength=9)
    assert len(counts) == 9
    assert np.square(counts - 200).sum() / 200 < 21.9  # chi-squared of 8 degrees of freedom: exceeded 1 in 200 times
    for n, name in enumerate(I2SB_TASKS):
        same = np.asarray(x_T)[np.asarray(label) == n]
        if name.startswith("inpaint"):
            assert len({a.tobytes() for a in same}) == len(same)
        else:
            np.testing.assert_allclose(same, np.broadcast_to(corruption(name)(None, X_0).x_T, same.shape), atol=1e-5)


def test_wrong_names_inside_are_named():
    with pytest.raises(UserError, match=r"unknown corruption 'gray'.*Did you mean 'grey'"):
        draw(1, corruptions=["gray"])
