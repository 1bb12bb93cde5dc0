import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import convolve1d

from ibmd_jax.corruptions.blur import blur, blur_peers, kernel

settings = pytest.mark.parametrize("settings", [(9, None), (5, 10.0), (7, 1.2)])


def image(*shape):
    return jax.random.uniform(jax.random.key(0), shape, minval=-1, maxval=1)


@settings
@pytest.mark.parametrize("shape", [(256, 256, 3), (24, 40, 1), (5, 3, 2)])
def test_the_true_blur_is_scipys(shape, settings):
    size, sigma = settings
    x_0, taps = image(*shape), np.ones(size)
    if sigma:
        taps = np.exp(-np.square(np.arange(size) - size // 2) / (2 * sigma**2))
    expected = np.asarray(x_0, np.float64)
    for axis in (0, 1):
        expected = convolve1d(expected, taps / taps.sum(), axis, mode="reflect")  # scipy's name for symmetric
    np.testing.assert_allclose(blur(None, x_0, size, sigma).x_T, expected, atol=1e-5)


def peers_matrix(n, taps):
    """The peers' loop: the range of taps leaves out the last one."""
    matrix, half = np.zeros((n, n)), len(taps) // 2
    for i in range(n):
        for j in range(max(i - half, 0), min(i + half, n)):
            matrix[i, j] = taps[j - i + half]
    return matrix


def svd(matrix):
    u, s, vt = np.linalg.svd(matrix)
    return u, np.where(s < 0.03, 0, s), vt


@settings
@pytest.mark.parametrize("shape", [(12, 12, 3), (16, 11, 2)])
def test_the_peers_blur_scales_interleaved_coefficients_by_tiled_singular_values(shape, settings):
    h, w, channels = shape
    x_0 = image(*shape)
    (u_h, s_h, vt_h), (u_w, s_w, vt_w) = (svd(peers_matrix(n, kernel(*settings))) for n in (h, w))
    s = np.kron(s_h, s_w)
    order = np.argsort(-s, kind="stable")
    u, vt = np.kron(u_h, u_w)[:, order], np.kron(vt_h, vt_w)[order]  # of images as vectors of h w numbers
    coefficients = vt @ ((np.asarray(x_0, np.float64) + 1) / 2).reshape(h * w, channels)
    interleaved = coefficients.reshape(-1) * np.tile(s[order], channels)
    expected = (u @ interleaved.reshape(h * w, channels)).reshape(shape) * 2 - 1
    np.testing.assert_allclose(blur_peers(None, x_0, *settings).x_T, expected, atol=1e-5)


@settings
def test_one_channel_is_blurred_as_the_peers_intended(settings):
    x_0 = image(32, 24, 1)
    rows, columns = ((u * s) @ vt for u, s, vt in (svd(peers_matrix(n, kernel(*settings))) for n in (32, 24)))
    expected = rows @ (np.asarray(x_0[..., 0], np.float64) + 1) @ columns.T - 1
    np.testing.assert_allclose(blur_peers(None, x_0, *settings).x_T[..., 0], expected, atol=1e-5)


@pytest.mark.parametrize(("settings", "gain"), [((9, None), 0.790), ((5, 10.0), 0.643)])
def test_the_peers_blur_darkens_the_middle_of_a_white_image(settings, gain):
    x_T = blur_peers(None, jnp.ones((64, 64, 1)), *settings).x_T
    np.testing.assert_allclose((x_T[24:40, 24:40].mean() + 1) / 2, gain, atol=2e-3)


@pytest.mark.parametrize("function", [blur, blur_peers])
def test_an_even_size_is_refused(function):
    with pytest.raises(ValueError, match="odd number of pixels, at least 3, not 4"):
        function(None, jnp.zeros((8, 8, 3)), 4)
