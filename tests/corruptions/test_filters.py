import jax
import numpy as np
import pytest
from scipy.ndimage import correlate1d

from ibmd_jax.corruptions.filters import filter_matrix, gaussian, separable

TAPS = [0.1, -0.4, 0.7, 0.2, 0.5]  # no symmetry


@pytest.mark.parametrize("n", [2, 3, 12, 31])
def test_a_matrix_is_the_correlation_with_symmetric_padding(n):
    x = np.random.default_rng(0).normal(size=n)
    np.testing.assert_allclose(filter_matrix(n, TAPS, -2) @ x, correlate1d(x, TAPS, mode="reflect"), atol=1e-12)


def test_a_stride_keeps_every_so_many_th_row():
    np.testing.assert_array_equal(filter_matrix(12, TAPS, -1, 3), filter_matrix(12, TAPS, -1)[::3])


def test_rows_filter_the_height_and_columns_the_width():
    x = jax.random.normal(jax.random.key(0), (12, 20, 2))
    rows, columns = filter_matrix(12, TAPS, -2), filter_matrix(20, [1, 2, -1], 0, 2)
    expected = np.stack([rows @ np.asarray(x[..., c]) @ columns.T for c in range(2)], -1)
    np.testing.assert_allclose(separable(x, rows, columns), expected, atol=1e-5)


def test_a_gaussian_has_unit_sum_and_its_ratios():
    taps = gaussian(1.5, 4)
    np.testing.assert_allclose(taps.sum(), 1)
    np.testing.assert_allclose(taps[[0, 5]] / taps[4], np.exp([-16 / 4.5, -1 / 4.5]))


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan")])
def test_a_gaussian_without_width_is_refused(sigma):
    with pytest.raises(ValueError, match=r"sigma = .*: a Gaussian filter needs one above 0"):
        gaussian(sigma, 2)
