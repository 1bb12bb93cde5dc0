import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, sobel

from ibmd_jax.corruptions import CORRUPTIONS
from ibmd_jax.corruptions.simple import grey, noise, sketch


def image(*shape):
    return jax.random.uniform(jax.random.key(0), shape, minval=-1, maxval=1)


def test_noise_is_gaussian_with_the_deviation_asked_for():
    x_0 = image(128, 128, 3)
    n = np.asarray(noise(jax.random.key(1), x_0, 0.3).x_T - x_0)
    np.testing.assert_allclose([n.mean(), n.std(), (np.abs(n) < 0.3).mean()], [0, 0.3, 0.6827], atol=0.006)
    assert abs(np.corrcoef(n.ravel(), np.ravel(x_0))[0, 1]) < 0.02


def test_grey_is_the_luma_of_bt_601():
    x_0 = np.asarray(image(24, 40, 3), np.float64)
    expected = (x_0 @ [0.299, 0.587, 0.114])[..., None].repeat(3, -1)
    np.testing.assert_allclose(grey(None, jnp.asarray(x_0, jnp.float32)).x_T, expected, atol=1e-6)
    one = image(8, 8, 1)
    np.testing.assert_array_equal(grey(None, one).x_T, one)


@pytest.mark.parametrize("shape", [(24, 40, 3), (64, 64, 1)])
@pytest.mark.parametrize("sigma", [0.5, 1.3])
def test_a_sketch_is_sobels_operator_after_a_gaussian(shape, sigma):
    x_0 = image(*shape)
    y = np.asarray(grey(None, x_0).x_T[..., 0], np.float64) / 2
    y = gaussian_filter(y, sigma, radius=int(np.ceil(3 * sigma)))
    squared = (sobel(y, 0) / 8) ** 2 + (sobel(y, 1) / 8) ** 2
    expected = np.broadcast_to(2 * np.exp(-16 * squared)[..., None] - 1, shape)
    np.testing.assert_allclose(sketch(None, x_0, sigma, strength=4.0).x_T, expected, atol=1e-5)


def test_a_sketch_draws_a_dark_line_along_an_edge_and_nothing_else():
    x_0 = jnp.where(jnp.arange(32)[None, :, None] < 16, -1.0, 1.0) * jnp.ones((32, 1, 3))
    x_T = CORRUPTIONS["sketch"](None, x_0).x_T
    assert x_T[:, 15:17].max() < -0.9
    np.testing.assert_allclose(x_T[:, :12], 1, atol=1e-6)
    np.testing.assert_allclose(x_T[:, 20:], 1, atol=1e-6)
    np.testing.assert_allclose(sketch(None, x_0.swapaxes(0, 1)).x_T, x_T.swapaxes(0, 1), atol=1e-6)


def test_a_sketch_has_a_gradient_everywhere():
    flat = jnp.zeros((16, 16, 3))
    for x_0 in (flat, image(16, 16, 3)):
        assert jnp.isfinite(jax.grad(lambda x: sketch(None, x).x_T.sum())(x_0)).all()


@pytest.mark.parametrize("function", [grey, sketch])
def test_other_channels_are_refused(function):
    with pytest.raises(ValueError, match="1 or 3 channels, not 2"):
        function(None, jnp.zeros((8, 8, 2)))
