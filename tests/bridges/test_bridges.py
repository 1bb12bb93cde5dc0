"""Identities that hold for every bridge of the table, against textbook formulas written apart from the code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ibmd_jax.bridges import BRIDGES, DDBMVE, DDBMVP, I2SB, Brownian, Flow, I2SBTable, OtOde, diffusion
from ibmd_jax.bridges.times import TIME_GRIDS, TIME_SAMPLERS, i2sb_grid
from ibmd_jax.core.errors import UserError

FROM_TABLE = [make() for make in BRIDGES.values()]
INSTANCES = [
    *FROM_TABLE,
    Brownian(0.3),
    I2SB(beta_max=0.3),
    DDBMVE(3.0),
    DDBMVP(1.0, 0.5),
    OtOde(I2SB()),
    OtOde(DDBMVP()),
]
SMOOTH = [b for b in INSTANCES if not isinstance(b, I2SBTable)]
PINNED = [b for b in SMOOTH if not isinstance(b, diffusion.Diffusion)]
every_bridge = pytest.mark.parametrize("bridge", INSTANCES, ids=repr)
smooth = pytest.mark.parametrize("bridge", SMOOTH, ids=repr)


def i2sb_variance(bridge, t):
    """The integral of beta by Gauss quadrature, exact for these quadratics."""
    m, d = bridge.beta_min**0.5, bridge.beta_max**0.5 - bridge.beta_min**0.5
    x, w = np.polynomial.legendre.leggauss(3)

    def integral(low, high):
        u = (low + high) / 2 + (high - low) / 2 * x[:, None]
        return (w[:, None] * (m + d * np.minimum(u, 1 - u)) ** 2).sum(0) * (high - low) / 2

    return integral(0 * t, np.minimum(t, 0.5)) + integral(np.full_like(t, 0.5), np.maximum(t, 0.5))


def sigmoid_bar(b, t):
    def curve(u):
        return 1 / (1 + np.exp(-(b.start + (b.end - b.start) * u) / b.tau))

    return (curve(1.0) - curve(t)) / (curve(1.0) - curve(0.0))


def cosine_bar(b, t):
    return (np.cos((t + b.s) / (1 + b.s) * np.pi / 2) / np.cos(b.s / (1 + b.s) * np.pi / 2)) ** 2


def rate(low, high):
    return lambda t: low * t + (high - low) * t**2 / 2


# alpha(t) and rho(t)^2 as the papers print them, in float64.
TEXTBOOK = {
    Brownian: lambda b, t: (np.ones_like(t), b.epsilon * t),
    I2SB: lambda b, t: (np.ones_like(t), i2sb_variance(b, t)),
    DDBMVP: lambda b, t: (
        np.exp(-rate(b.beta_min, b.beta_min + b.beta_d)(t) / 2),
        np.exp(rate(b.beta_min, b.beta_min + b.beta_d)(t)) - 1,
    ),
    DDBMVE: lambda b, t: (np.ones_like(t), t**2),
    Flow: lambda b, t: (1 - t, (t / (1 - t)) ** 2),
    OtOde: lambda b, t: TEXTBOOK[type(b.of)](b.of, t),
    diffusion.Linear: lambda b, t: (
        np.exp(-rate(b.beta_min, b.beta_max)(t) / 2),
        np.exp(rate(b.beta_min, b.beta_max)(t)) - 1,
    ),
    diffusion.Cosine: lambda b, t: (cosine_bar(b, t) ** 0.5, 1 / cosine_bar(b, t) - 1),
    diffusion.Sigmoid: lambda b, t: (sigmoid_bar(b, t) ** 0.5, 1 / sigmoid_bar(b, t) - 1),
    diffusion.VE: lambda b, t: (np.ones_like(t), b.sigma_min**2 * ((b.sigma_max / b.sigma_min) ** (2 * t) - 1)),
    diffusion.EDM: lambda b, t: (np.ones_like(t), t**2),
}


def own(bridge, t):
    """For a new bridge without an entry above: its own alpha and rho, in float64."""
    with jax.enable_x64(True):
        return np.asarray(bridge.alpha(t)), np.asarray(bridge.rho(t)) ** 2


def reference(bridge, t):
    """(alpha, rho, a, b, c) in float64, by equation (3) of bridges/base.py where both ends are pinned."""
    textbook = TEXTBOOK.get(type(bridge), own)
    alpha, rho2 = textbook(bridge, t)
    rho = rho2**0.5
    if isinstance(bridge, Flow):
        return alpha, rho, t, 1 - t, 0 * t
    if isinstance(bridge, diffusion.Diffusion):
        return alpha, rho, 0 * t, alpha, alpha * rho
    alpha_T, rho2_T = (v[0] for v in textbook(bridge, np.array([float(bridge.T)])))
    a, b = alpha / alpha_T * rho2 / rho2_T, alpha * (1 - rho2 / rho2_T)
    return alpha, rho, a, b, 0 * t if bridge.deterministic else np.sqrt(alpha * b * rho2)


@smooth
def test_float32_coefficients_are_the_textbook_s_to_1e_5_up_to_both_ends(bridge):
    near = np.geomspace(1e-5, 0.5, 200)
    t = np.float32(np.concatenate([near, 1 - near]) * bridge.T)
    t = t[(t > 1e-5 * bridge.T) & (t < (1 - 1e-5) * bridge.T)]
    found = (bridge.alpha(t), bridge.rho(t), *bridge.coeffs(jnp.asarray(t)))
    for name, value, expected in zip(
        ("alpha", "rho", "a", "b", "c"), found, reference(bridge, np.float64(t)), strict=True
    ):
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, expected, rtol=1e-5, err_msg=name)


@every_bridge
def test_float64_is_exact(bridge):
    if isinstance(bridge, I2SBTable):
        a, b, c = bridge.coeffs(jnp.linspace(0, 1, 7))
        np.testing.assert_allclose(a + b, 1, rtol=1e-6)
        np.testing.assert_allclose(c**2, a * b * (0.246929 + 4e-4), rtol=2e-3)
        return
    with jax.enable_x64(True):
        t = np.array([1e-4, 0.1, 0.37, 0.5, 0.8, 1 - 1e-4]) * bridge.T
        found = (bridge.alpha(t), bridge.rho(t), *bridge.coeffs(jnp.asarray(t)))
    for value, expected in zip(found, reference(bridge, t), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-10)


@smooth
def test_the_ends_are_pinned(bridge):
    start, end = (np.array(bridge.coeffs(jnp.float32(t))) for t in (0, bridge.T))
    np.testing.assert_array_equal(start, [0, 1, 0])
    if bridge in PINNED:
        np.testing.assert_array_equal(end, [1, 0, 0])
    else:
        assert end[0] == 0
        assert end[2] >= 49 * end[1]  # x_T says next to nothing of x_0


@every_bridge
@pytest.mark.parametrize(("s", "t"), [(0.9, 0.4), (0.5, 0.1), (0.999, 0.7)])
def test_posterior_after_marginal_is_the_marginal(bridge, s, t):
    """Mean and variance: E[x_t] from x_s ~ (3) and x_t | x_s ~ (4) are those of (3) at t."""
    s, t = jnp.float32(s * bridge.T), jnp.float32(t * bridge.T)
    x_0, x_T, one = jnp.float32(0.3).reshape(1, 1), jnp.float32(-1.2).reshape(1, 1), jnp.ones((1, 1))
    k, b, n = bridge.split(s)
    mean, std = bridge.posterior(x_0, k * x_T + b * x_0, s, t)
    slope = bridge.posterior(0 * x_0, one, s, t)[0]
    k, b, n_t = bridge.split(t)
    # Neither the published table nor its ODE is pinned exactly.
    tolerance = 2e-3 if isinstance(bridge, I2SBTable) else 2e-5
    np.testing.assert_allclose(mean, k * x_T + b * x_0, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(slope**2 * n**2 + std**2, n_t.reshape(1, 1) ** 2, rtol=2 * tolerance)


@every_bridge
def test_samples_through_the_posterior_have_the_distribution_of_the_marginal(bridge):
    """Kolmogorov-Smirnov, 20,000 draws."""
    if bridge.deterministic:
        pytest.skip("nothing is drawn")
    n, s, t = 20_000, jnp.float32(0.8 * bridge.T), jnp.float32(0.3 * bridge.T)
    x_0, x_T = jnp.full((n, 1), 0.5), jnp.full((n, 1), -1.0)
    k_s, k_t = jax.random.split(jax.random.key(1))
    mean, std = bridge.posterior(x_0, bridge.sample(k_s, x_0, x_T, s), s, t)
    x_t = mean + std * jax.random.normal(k_t, (n, 1))
    a, b, c = (float(v) for v in bridge.coeffs(t))
    for x in (x_t, bridge.sample(k_t, x_0, x_T, t)):
        assert stats.kstest(np.asarray(x)[:, 0], "norm", (0.5 * b - a, c)).pvalue > 1e-3


@smooth
def test_posterior_to_zero_is_x_0_exactly(bridge):
    x_0, x_s = jax.random.normal(jax.random.key(0), (2, 4, 3))
    mean, std = bridge.posterior(x_0, x_s, jnp.float32(0.6 * bridge.T), jnp.float32(0))
    np.testing.assert_array_equal(mean, x_0)
    assert not std.any()


@every_bridge
def test_scores_are_gradients_of_log_densities(bridge):
    t = jnp.float32(0.4 * bridge.T)
    x_0, x_T, x_t = jnp.float32([[0.3, -0.2]]), jnp.float32([[1.0, 0.5]]), jnp.float32([[0.1, 0.9]])
    k, b, n = bridge.split(t)
    alpha, sigma = bridge.alpha(t), bridge.sigma(t)

    def log_normal(x, mean, std):
        return -0.5 * jnp.square((x - mean) / std).sum()

    pinned = jax.grad(lambda x: log_normal(x, k * x_T + b * x_0, n))(x_t)
    free = jax.grad(lambda x: log_normal(x, alpha * x_0, sigma))(x_t)
    np.testing.assert_allclose(bridge.bridge_score(x_0, x_t, x_T, t), pinned, rtol=1e-5)
    np.testing.assert_allclose(bridge.score(x_0, x_t, t), free, rtol=1e-5)


@pytest.mark.parametrize("bridge", [b for b in PINNED if not b.deterministic], ids=repr)
def test_the_scores_of_bayes_rule_add_up(bridge):
    """p(x_t | x_0, x_T) ~ p(x_t | x_0) p(x_T | x_t), so score = v + h."""
    with jax.enable_x64(True):
        x_0, x_t, x_T = jax.random.normal(jax.random.key(0), (3, 4, 2))
        t = jnp.array([0.1, 0.4, 0.9, 0.999]) * bridge.T
        total = bridge.score(x_0, x_t, t) + bridge.h(x_t, x_T, t)
        np.testing.assert_allclose(bridge.bridge_score(x_0, x_t, x_T, t), total, rtol=1e-8)


@smooth
def test_drift_and_diffusion_give_the_posterior_of_a_small_step(bridge):
    """mean(t - h | x_t) = x_t - h drift + O(h^2) and its variance is h g^2 + O(h^2)."""
    if bridge.deterministic:
        pytest.skip("no SDE")
    with jax.enable_x64(True):
        x_0, x_t, t, h = jnp.array([[0.3]]), jnp.array([[-0.8]]), jnp.array(0.7 * bridge.T), 1e-6 * bridge.T
        mean, std = bridge.posterior(x_0, x_t, t, t - h)
        np.testing.assert_allclose((x_t - mean) / h, bridge.drift(x_0, x_t, t), rtol=1e-3)
        np.testing.assert_allclose(std**2 / h, bridge.f_and_g2(t)[1].reshape(1, 1), rtol=1e-3)


def test_the_diffusion_of_an_ode_bridge_is_that_of_its_sde():
    """What the weight g2 is made of; of a table, no derivative of its entries."""
    t = jnp.array([0.1, 0.5, 0.9])
    for of in (I2SB(), I2SBTable()):
        for ours, theirs in zip(OtOde(of).f_and_g2(t), of.f_and_g2(t), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert (OtOde(of).f_and_g2(t)[1] > 0.1).all()


@every_bridge
def test_the_posterior_of_the_same_time_draws_nothing(bridge):
    """Nor is it NaN where rounding puts t an ulp above s."""
    x_0, x_s, s = jnp.ones((1, 1)), -jnp.ones((1, 1)), jnp.float32(0.7 * bridge.T)
    for t in (s, jnp.nextafter(s, jnp.float32(jnp.inf))):
        mean, std = bridge.posterior(x_0, x_s, s, t)
        np.testing.assert_allclose(mean, x_s, atol=1e-5)
        np.testing.assert_allclose(std, 0, atol=2e-3 * bridge.T)


@pytest.mark.parametrize("of", [I2SB(), Brownian(), DDBMVP()], ids=repr)
def test_slopes_without_noise_are_finite_at_T(of):
    assert jnp.isfinite(jnp.stack([*OtOde(of).slopes(jnp.float32(1))[0], *OtOde(of).slopes(jnp.float32(1))[1]])).all()


@smooth
def test_velocity_is_the_time_derivative_of_the_path(bridge):
    with jax.enable_x64(True):
        x_0, x_T, z, h = jnp.array([[0.3]]), jnp.array([[-0.8]]), 0.7, 1e-6 * bridge.T

        def path(t):
            k, b, n = bridge.split(jnp.array(t))
            return k * x_T + b * x_0 + n * z

        t = 0.4 * bridge.T
        slope = (path(t + h) - path(t - h)) / (2 * h)
        np.testing.assert_allclose(bridge.velocity(x_0, path(t), x_T, jnp.array(t)), slope, rtol=1e-6)


def test_a_table_has_no_velocity_and_says_so():
    with pytest.raises(UserError, match="no time derivative: take the bridge i2sb"):
        I2SBTable().velocity(*jnp.ones((3, 1, 1)), jnp.float32(0.5))
    with pytest.raises(ValueError, match="steps = 7: it must be even"):
        I2SBTable(steps=7)


@every_bridge
def test_a_bridge_is_a_pytree_that_passes_through_jit(bridge):
    b = jax.jit(lambda b, t: b.coeffs(t).b)(bridge, jnp.float32(0.3))
    np.testing.assert_allclose(b, bridge.coeffs(jnp.float32(0.3)).b, rtol=1e-6)


def test_networks_are_told_times_from_0_to_1000():
    t = jnp.float32([0, 0.5, 1])
    for bridge in (I2SB(), DDBMVE(80.0), OtOde(DDBMVE(3.0))):
        np.testing.assert_allclose(bridge.noise_level(t * bridge.T), [0, 500, 1000], rtol=1e-6)
    published = OtOde(I2SBTable())
    np.testing.assert_allclose(published.noise_level(jnp.float32([0, 0.2504, 1])), [0.1, 250.325, 1000], rtol=1e-5)


def test_only_pinned_bridges_with_noise_have_an_ode_version():
    for bridge in (Flow(), diffusion.Linear(), OtOde(I2SB())):
        with pytest.raises(ValueError, match="there is no ODE version of"):
            OtOde(bridge)
    with pytest.raises(UserError, match="no time derivative"):
        OtOde(I2SBTable()).slopes(jnp.float32(0.5))


def test_gradients_reach_x_0_through_the_sample():
    bridge, t = I2SB(), jnp.float32(0.4)
    g = jax.grad(lambda x: bridge.sample(jax.random.key(0), x, jnp.zeros((1, 2)), t).sum())(jnp.ones((1, 2)))
    np.testing.assert_allclose(g, jnp.full((1, 2), bridge.coeffs(t).b), rtol=1e-6)


@pytest.mark.parametrize("beta_max", [1.0, 0.3])
def test_continuous_i2sb_is_the_limit_of_the_published_table(beta_max):
    bridge, published = I2SB(beta_max=beta_max), I2SBTable(beta_max=beta_max)
    n = np.arange(1000)
    np.testing.assert_allclose(
        bridge.rho(jnp.float32((n + 1) / 1000)) ** 2, published.rho(jnp.float32(n / 999)) ** 2, rtol=3e-3
    )


@pytest.mark.parametrize("name", sorted(TIME_SAMPLERS.keys() - {"end", "log_normal"}))
def test_time_samplers_are_uniform(name):
    t = np.concatenate([TIME_SAMPLERS[name](jax.random.key(i), 64, 0.25, 1.0) for i in range(200)])
    assert t.min() >= 0.25
    assert t.max() <= 1
    np.testing.assert_allclose(np.histogram(t, 5, (0.25, 1))[0] / t.size, 0.2, atol=0.02)


def test_log_normal_times_are_those_of_edm():
    t = TIME_SAMPLERS["log_normal"](jax.random.key(0), 20_000, 0.05, 3.0)
    assert (float(t.min()), float(t.max())) == (np.float32(0.05), 3.0)
    levels = [0.1, np.exp(-1.2), 1.0]  # deviations -0.919, 0 and 1 of the normal distribution
    np.testing.assert_allclose([(t < level).mean() for level in levels], [0.179, 0.5, 0.841], atol=0.01)


def test_stratified_times_fill_every_stratum_in_random_order():
    t = TIME_SAMPLERS["stratified"](jax.random.key(0), 32, 0.0, 1.0)
    np.testing.assert_array_equal(np.sort(np.floor(t * 32)), np.arange(32))
    assert not np.all(np.diff(t) > 0)


@pytest.mark.parametrize("name", TIME_GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_grids_descend_from_T_to_t_min(name, steps):
    grid = TIME_GRIDS[name](steps, 80.0, 0.01)
    assert grid.shape == (steps + 1,)
    assert grid.dtype == jnp.float32
    np.testing.assert_allclose(grid[0], 80, atol=2e-4)
    np.testing.assert_allclose(grid[-1], 0 if name == "ddbm" else 0.01, rtol=1e-6)
    assert np.all(np.diff(grid) < 0)


def test_the_i2sb_grid_rounds_half_to_even():
    np.testing.assert_array_equal(np.rint(np.asarray(i2sb_grid(2)) * 999), [999, 500, 0])
