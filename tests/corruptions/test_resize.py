import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ibmd_jax.corruptions.resize import keys_cubic, sr_bicubic, sr_pool

CASES = [(64, 64, 3, 4), (256, 192, 1, 8), (24, 40, 2, 2), (24, 42, 1, 3), (8, 16, 3, 8)]
cases = pytest.mark.parametrize(("h", "w", "channels", "factor"), CASES)


def image(h, w, channels):
    return jax.random.uniform(jax.random.key(0), (h, w, channels), minval=-1, maxval=1)


def bicubic_rows(x, f):
    """The definition, in float64: the cubic around the middle of each f rows; rows beyond the edge are mirrored."""
    n = len(x)
    out = np.zeros((n // f, *x.shape[1:]))
    for m in range(n // f):
        total = 0
        for j in range(f * m - 3 * f, f * m + 4 * f):
            u = abs(j - (f * m + (f - 1) / 2)) / f
            weight = 1.5 * u**3 - 2.5 * u**2 + 1 if u < 1 else -0.5 * u**3 + 2.5 * u**2 - 4 * u + 2 if u < 2 else 0
            mirrored = j
            while not 0 <= mirrored < n:
                mirrored = -1 - mirrored if mirrored < 0 else 2 * n - 1 - mirrored
            out[m] += weight * x[mirrored]
            total += weight
        out[m] /= total
    return out


@cases
def test_pooling_is_the_mean_of_each_square(h, w, channels, factor):
    x_0 = image(h, w, channels)
    x, y = (np.asarray(a, np.float64) for a in (x_0, sr_pool(None, x_0, factor).x_T))
    for i in range(0, h, factor):
        for j in range(0, w, factor):
            square = np.s_[i : i + factor, j : j + factor]
            expected = np.broadcast_to(x[square].mean((0, 1)), y[square].shape)
            np.testing.assert_allclose(y[square], expected, atol=5e-7)


@cases
def test_bicubic_is_its_definition(h, w, channels, factor):
    x_0 = image(h, w, channels)
    low = bicubic_rows(np.asarray(x_0, np.float64), factor)
    low = bicubic_rows(low.transpose(1, 0, 2), factor).transpose(1, 0, 2)
    expected = np.kron(low, np.ones((factor, factor, 1)))
    np.testing.assert_allclose(sr_bicubic(None, x_0, factor).x_T, expected, atol=2e-6)


@pytest.mark.parametrize("factor", [2, 8])
def test_inside_bicubic_is_the_antialiased_one_of_jax(factor):
    x_0 = image(64, 128, 3)
    low = sr_bicubic(None, x_0, factor).x_T[::factor, ::factor]
    expected = jax.image.resize(x_0, low.shape, "cubic")
    np.testing.assert_allclose(low[2:-2, 2:-2], expected[2:-2, 2:-2], atol=2e-6)


def test_the_cubic_interpolates_and_sums_to_one():
    np.testing.assert_array_equal(keys_cubic(np.arange(-3, 4)), [0, 0, 0, 1, 0, 0, 0])
    u = np.linspace(0, 1, 11)
    np.testing.assert_allclose(sum(keys_cubic(u + i) for i in range(-2, 2)), 1, atol=1e-12)
    np.testing.assert_allclose(sum(keys_cubic(u + i) * (u + i) for i in range(-2, 2)), 0, atol=1e-12)


@pytest.mark.parametrize("reduce", [sr_pool, sr_bicubic])
def test_a_size_that_the_factor_does_not_divide_is_refused(reduce):
    with pytest.raises(ValueError, match="24 x 30 cannot be reduced 4 times"):
        reduce(None, jnp.zeros((24, 30, 3)), 4)
