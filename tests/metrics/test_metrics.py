import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg, ndimage

from ibmd_jax.data.emoji import rows_of, tiles
from ibmd_jax.metrics import feature_statistics, fid, kid, psnr, ssim
from ibmd_jax.metrics.features import FEATURES

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.uniform(-1, 1, (3, 24, 20, 3)), jnp.float32)
NOISY = jnp.clip(X + jnp.asarray(RNG.normal(0, 0.2, X.shape), jnp.float32), -1, 1)


def test_psnr_of_a_constant_error():
    y = jnp.zeros((2, 4, 4, 1))
    np.testing.assert_allclose(psnr(y + 0.2, y), -20 * np.log10(0.1), rtol=1e-5)
    np.testing.assert_allclose(psnr(y + 3, y + 1), 100)  # clipped as a file would be; a mean over images is finite


def test_ssim_against_its_definition_with_scipy():
    def mean(v):
        return ndimage.gaussian_filter(v, 1.5, truncate=3.5)[5:-5, 5:-5]

    for i in range(3):
        scores = []
        for c in range(3):
            x, y = ((np.asarray(v[i, :, :, c], np.float64) + 1) / 2 for v in (X, NOISY))
            mx, my = mean(x), mean(y)
            vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
            scores.append(
                ((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))).mean()
            )
        np.testing.assert_allclose(ssim(X, NOISY)[i], np.mean(scores), atol=1e-5)
    np.testing.assert_allclose(ssim(X, X), 1, atol=1e-6)
    with pytest.raises(ValueError, match="at least 11 x 11"):
        ssim(X[:, :8], X[:, :8])


def test_ssim_asks_for_exact_products():
    """It subtracts squares of nearly equal numbers; TPUs would otherwise round the images to 8 bits."""
    x = jnp.zeros((1, 16, 16, 3))
    assert str(jax.make_jaxpr(ssim)(x, x)).count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 5


def test_fid_is_the_frechet_distance_with_scipy_sqrtm():
    x, y = RNG.normal(size=(300, 6)), RNG.normal(size=(200, 6)) @ RNG.normal(size=(6, 6)) + 1
    p, q = feature_statistics(x), feature_statistics(y)
    root = linalg.sqrtm(p.covariance @ q.covariance).real
    expected = np.square(p.mean - q.mean).sum() + np.trace(p.covariance + q.covariance - 2 * root)
    np.testing.assert_allclose(fid(x, y), expected, rtol=1e-8)
    np.testing.assert_allclose(fid(x, x), 0, atol=1e-8)


def test_fid_of_one_dimensional_gaussians():
    x = np.array([-1.0, 1.0, -1.0, 1.0]).reshape(-1, 1)
    sigma = x.std(ddof=1)
    np.testing.assert_allclose(fid(3 * x + 2, x), 4 + (2 * sigma) ** 2)


def test_kid_is_the_u_statistic_over_all_pairs():
    x, y = RNG.normal(size=(5, 3)), RNG.normal(size=(5, 3)) + 0.5

    def k(a, b):
        return (a @ b / 3 + 1) ** 3

    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    expected = np.mean([k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i]) for i, j in pairs])
    np.testing.assert_allclose(kid(x, y), expected)
    np.testing.assert_allclose(kid(x, x), 0, atol=1e-12)


def test_kid_is_unbiased_for_sets_of_different_sizes():
    values = [kid(RNG.normal(size=(30, 4)), RNG.normal(size=(50, 4))) for _ in range(300)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 300**0.5


@pytest.mark.parametrize("name", FEATURES)
def test_features_are_deterministic_finite_and_see_blur(name):
    features = FEATURES[name]()
    clean = jnp.asarray(tiles("noto", 32)[rows_of("test")], jnp.float32) / 127.5 - 1
    clean = clean[..., :1] if name == "fashion" else clean
    reference = np.asarray(features(clean))
    np.testing.assert_array_equal(features(clean), reference)
    assert np.isfinite(reference).all()
    distances = []
    for sigma in (0.5, 1.0, 2.0):
        blurred = ndimage.gaussian_filter(np.asarray(clean), (0, sigma, sigma, 0))
        distances.append(fid(np.asarray(features(jnp.asarray(blurred))), reference))
    assert 0 < distances[0] < distances[1] < distances[2]


def test_fashion_features_take_one_channel():
    features = FEATURES["fashion"]()
    assert features(jnp.zeros((2, 32, 32, 1))).shape == (2, 128)
    with pytest.raises(ValueError, match="32, 32, 1"):
        features(jnp.zeros((2, 32, 32, 3)))


def test_emoji_features_are_standardised_and_refuse_other_sizes():
    features = FEATURES["emoji"]()
    f = np.asarray(features(jnp.asarray(tiles("noto", 32)[rows_of("train")], jnp.float32) / 127.5 - 1))
    assert f.shape[1] == 128
    np.testing.assert_allclose(f.std(0), 1, atol=0.02)
    with pytest.raises(ValueError, match="32, 32, 3"):
        features(jax.numpy.zeros((1, 16, 16, 3)))
