"""Identities that hold for every bridge of the table, and what is special to each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ibmd_jax.bridges import BRIDGES, I2SB, Brownian
from ibmd_jax.bridges.times import TIME_GRIDS, TIME_SAMPLERS

INSTANCES = [*(make() for make in BRIDGES.values()), Brownian(0.3), I2SB(beta_max=0.3)]
every_bridge = pytest.mark.parametrize("bridge", INSTANCES, ids=repr)
T_EDGES = np.array([1e-6, 1e-4, 0.2, 0.5, 0.8, 1 - 1e-4, 1 - 2e-6])


def reference(bridge, t):
    """Equation (3) of bridges/base.py from alpha and rho, in float64."""
    with jax.enable_x64(True):
        t = jnp.asarray(t, jnp.float64)
        end = jnp.full_like(t, bridge.T)
        alpha, rho2 = bridge.alpha(t), bridge.rho(t) ** 2
        ratio, rest = rho2 / bridge.rho(end) ** 2, bridge.rho(end) ** 2 - rho2
        b = alpha * rest / bridge.rho(end) ** 2
        return [np.asarray(v) for v in (alpha / bridge.alpha(end) * ratio, b, jnp.sqrt(alpha * b * rho2))]


@every_bridge
def test_coefficients_follow_from_alpha_and_rho(bridge):
    t = np.float32(T_EDGES).astype(np.float64)
    with jax.enable_x64(True):
        exact = bridge.coeffs(jnp.asarray(t))
    for value, expected in zip(exact, reference(bridge, t), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-9)


@every_bridge
def test_float32_coefficients_are_accurate_near_both_ends(bridge):
    t = np.float32(T_EDGES)
    with jax.enable_x64(True):
        exact = bridge.coeffs(jnp.asarray(t, jnp.float64))
    for value, expected in zip(bridge.coeffs(jnp.asarray(t)), exact, strict=True):
        np.testing.assert_allclose(value, np.asarray(expected), rtol=1e-5)


@every_bridge
def test_the_ends_are_pinned(bridge):
    start, end = (np.array(bridge.coeffs(jnp.float32(t))) for t in (0, bridge.T))
    np.testing.assert_array_equal(start, [0, 1, 0])
    np.testing.assert_array_equal(end, [1, 0, 0])


@every_bridge
@pytest.mark.parametrize(("s", "t"), [(0.9, 0.4), (0.5, 0.1), (1.0, 0.7)])
def test_posterior_after_marginal_is_the_marginal(bridge, s, t):
    x_0, x_T = jnp.float32(0.3).reshape(1, 1), jnp.float32(-1.2).reshape(1, 1)
    s, t = jnp.float32(s), jnp.float32(t)
    a, b, c = bridge.coeffs(s)
    mean, std = bridge.posterior(x_0, a * x_T + b * x_0, s, t)
    slope = bridge.posterior(x_0 * 0, jnp.ones((1, 1)), s, t)[0]
    a, b, c_t = bridge.coeffs(t)
    np.testing.assert_allclose(mean, a * x_T + b * x_0, atol=2e-6)
    np.testing.assert_allclose(slope**2 * c**2 + std**2, c_t.reshape(1, 1) ** 2, rtol=1e-4)


@every_bridge
def test_posterior_to_zero_is_x_0_exactly(bridge):
    x_0, x_s = jax.random.normal(jax.random.key(0), (2, 4, 3))
    mean, std = bridge.posterior(x_0, x_s, jnp.float32(0.6), jnp.float32(0))
    np.testing.assert_array_equal(mean, x_0)
    assert not std.any()


@every_bridge
def test_samples_have_the_stated_moments(bridge):
    n, t = 200_000, jnp.float32(0.3)
    x = bridge.sample(jax.random.key(1), jnp.full((n, 1), 0.5), jnp.full((n, 1), -1.0), t)
    a, b, c = (float(v) for v in bridge.coeffs(t))
    assert abs(float(x.mean()) - (0.5 * b - a)) < 5 * c / n**0.5
    np.testing.assert_allclose(x.std(), c, rtol=0.01)


@every_bridge
def test_score_is_the_gradient_of_the_log_density(bridge):
    x_0, x_T, x_t, t = (
        jnp.float32([[0.3, -0.2]]),
        jnp.float32([[1.0, 0.5]]),
        jnp.float32([[0.1, 0.9]]),
        jnp.float32(0.4),
    )

    def log_density(x):
        a, b, c = bridge.coeffs(t)
        return -0.5 * jnp.square((x - a * x_T - b * x_0) / c).sum()

    np.testing.assert_allclose(bridge.score(x_0, x_t, x_T, t), jax.grad(log_density)(x_t), rtol=1e-5)


@every_bridge
def test_v_and_x_0_are_inverse(bridge):
    x_0, x_t = jax.random.normal(jax.random.key(0), (2, 5, 3))
    t = jnp.linspace(0.2, 1.0, 5, dtype=jnp.float32)
    np.testing.assert_allclose(bridge.x_0_from_v(bridge.v(x_0, x_t, t), x_t, t), x_0, atol=2e-6)


@every_bridge
def test_drift_and_diffusion_give_the_posterior_of_a_small_step(bridge):
    """mean(t - h | x_t) = x_t - h drift + O(h^2) and its variance is h g^2 + O(h^2)."""
    with jax.enable_x64(True):
        x_0, x_t, t, h = jnp.array([[0.3]]), jnp.array([[-0.8]]), jnp.array(0.7), 1e-5
        mean, std = bridge.posterior(x_0, x_t, t, t - h)
        np.testing.assert_allclose((x_t - mean) / h, bridge.drift(x_0, x_t, t), rtol=1e-3)
        np.testing.assert_allclose(std**2 / h, bridge.f_and_g2(t)[1], rtol=1e-3)


@every_bridge
def test_velocity_is_the_time_derivative_of_the_path(bridge):
    with jax.enable_x64(True):
        x_0, x_T, eps, h = jnp.array([[0.3]]), jnp.array([[-0.8]]), 0.7, 1e-6

        def path(t):
            a, b, c = bridge.coeffs(jnp.array(t))
            return a * x_T + b * x_0 + c * eps

        slope = (path(0.4 + h) - path(0.4 - h)) / (2 * h)
        np.testing.assert_allclose(bridge.velocity(x_0, path(0.4), x_T, jnp.array(0.4)), slope, rtol=1e-6)


@every_bridge
def test_a_bridge_is_a_pytree_that_passes_through_jit(bridge):
    a = jax.jit(lambda b, t: b.coeffs(t).c)(bridge, jnp.float32(0.3))
    np.testing.assert_allclose(a, bridge.coeffs(jnp.float32(0.3)).c, rtol=1e-6)


def test_gradients_reach_x_0_through_the_sample():
    bridge, t = I2SB(), jnp.float32(0.4)
    g = jax.grad(lambda x: bridge.sample(jax.random.key(0), x, jnp.zeros((1, 2)), t).sum())(jnp.ones((1, 2)))
    np.testing.assert_allclose(g, jnp.full((1, 2), bridge.coeffs(t).b), rtol=1e-6)


@pytest.mark.parametrize(("beta_max", "total"), [(1.0, 0.246929), (0.3, 0.141027)])
def test_continuous_i2sb_is_the_limit_of_the_published_table(beta_max, total):
    bridge = I2SB(beta_max=beta_max)
    np.testing.assert_allclose(bridge.rho(jnp.float32(1)) ** 2, total, rtol=2e-3)
    half = np.linspace(1e-4**0.5, (beta_max / 1000) ** 0.5, 1000)[:500] ** 2
    table = np.cumsum(np.concatenate([half, half[::-1]]))
    t = (np.arange(1000) + 1) / 1000
    np.testing.assert_allclose(bridge.rho(jnp.float32(t)) ** 2, table, rtol=3e-3)


@pytest.mark.parametrize("name", TIME_SAMPLERS)
def test_time_samplers_are_uniform(name):
    t = np.concatenate([TIME_SAMPLERS[name](jax.random.key(i), 64, 0.25, 1.0) for i in range(200)])
    assert t.min() >= 0.25
    assert t.max() <= 1
    np.testing.assert_allclose(np.histogram(t, 5, (0.25, 1))[0] / t.size, 0.2, atol=0.02)


def test_stratified_times_fill_every_stratum_in_random_order():
    t = TIME_SAMPLERS["stratified"](jax.random.key(0), 32, 0.0, 1.0)
    np.testing.assert_array_equal(np.sort(np.floor(t * 32)), np.arange(32))
    assert not np.all(np.diff(t) > 0)


@pytest.mark.parametrize("name", TIME_GRIDS)
def test_grids_descend_from_T_to_t_min(name):
    grid = TIME_GRIDS[name](10, 1.0, 0.01)
    assert grid.shape == (11,)
    np.testing.assert_allclose(grid[jnp.array([0, -1])], [1, 0.01], rtol=1e-6)
    assert np.all(np.diff(grid) < 0)
