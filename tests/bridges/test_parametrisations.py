"""What a network predicts: definitions, conversions and weights, for every bridge and parametrisation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ibmd_jax.bridges import BRIDGES, DDBMVE, I2SB, I2SBTable, OtOde, diffusion
from ibmd_jax.bridges.parametrisations import (
    PARAMETRISATIONS,
    data_moments,
    ddbm,
    edm,
    estimate,
    native_weight,
    target,
    velocity,
)

every_bridge = pytest.mark.parametrize("bridge", [*(make() for make in BRIDGES.values()), OtOde(I2SB())], ids=repr)
X_0, X_T, NOISE = (np.random.default_rng(i).normal(size=(3, 2)) for i in range(3))


def names(bridge):
    return [n for n in PARAMETRISATIONS if not (n == "velocity" and isinstance(bridge, I2SBTable))]


def setting(bridge):
    t = jnp.array([0.1, 0.5, 0.9]) * bridge.T
    k, b, n = (v[:, None] for v in bridge.split(t))
    return t, jnp.asarray(X_0), jnp.asarray(X_T), k * X_T + b * X_0 + n * NOISE


@every_bridge
def test_the_targets_are_what_the_table_says(bridge):
    with jax.enable_x64(True):
        t, x_0, x_T, x_t = setting(bridge)
        alpha, sigma = bridge.alpha(t)[:, None], bridge.sigma(t)[:, None]
        eps = (x_t - alpha * x_0) / sigma
        expected = {
            "x_0": x_0,
            "eps": eps,
            "i2sb": eps,
            "score": bridge.score(x_0, x_t, t),
            "v": alpha * eps - sigma * x_0,
            "bridge_eps": NOISE,
            "bridge_score": bridge.bridge_score(x_0, x_t, x_T, t),
        }
        if not isinstance(bridge, I2SBTable):
            expected["velocity"] = bridge.velocity(x_0, x_t, x_T, t)
        for name, value in expected.items():
            found = target(PARAMETRISATIONS[name](bridge, t), x_0, x_t, x_T)
            np.testing.assert_allclose(found, value, rtol=1e-7, atol=1e-9, err_msg=name)


@every_bridge
def test_every_conversion_there_and_back_is_the_identity(bridge):
    with jax.enable_x64(True):
        t, x_0, x_T, x_t = setting(bridge)
        scalings = {name: PARAMETRISATIONS[name](bridge, t) for name in names(bridge)}
        for first, A in scalings.items():
            output = target(A, x_0, x_t, x_T)
            for second, B in scalings.items():
                other = target(B, estimate(A, output, x_t, x_T), x_t, x_T)
                back = target(A, estimate(B, other, x_t, x_T), x_t, x_T)
                np.testing.assert_allclose(back, output, rtol=1e-7, atol=1e-7, err_msg=f"{first} -> {second}")


@every_bridge
def test_the_loss_of_an_output_is_the_weighted_loss_of_x_0(bridge):
    with jax.enable_x64(True):
        t, x_0, x_T, x_t = setting(bridge)
        guess = x_0 + 0.1 * jnp.asarray(NOISE)
        for name in names(bridge):
            s = PARAMETRISATIONS[name](bridge, t)
            native = jnp.square(target(s, guess, x_t, x_T) - target(s, x_0, x_t, x_T)).mean(1)
            weight = native_weight(PARAMETRISATIONS[name])(bridge, t)
            np.testing.assert_allclose(native, weight * jnp.square(guess - x_0).mean(1), rtol=1e-8, err_msg=name)


@pytest.mark.parametrize("bridge", [I2SB(), DDBMVE(2.0)], ids=repr)
def test_ddbm_has_unit_variance_at_input_and_target_with_the_estimated_moments(bridge):
    n, t = 400_000, jnp.float32(0.4)
    k = jax.random.split(jax.random.key(0), 3)
    x_0 = 0.7 * jax.random.normal(k[0], (n,))
    x_T = 0.6 * x_0 + 0.3 * jax.random.normal(k[1], (n,))
    moments = data_moments(x_0, x_T)
    np.testing.assert_allclose(list(moments.values()), [0.7, 0.516, 0.294], rtol=0.01)
    x_t = bridge.sample(k[2], x_0, x_T, t)
    s = ddbm(bridge, t, **moments)
    np.testing.assert_allclose((s.c_in * x_t).std(), 1, rtol=0.01)
    np.testing.assert_allclose(target(s, x_0, x_t).std(), 1, rtol=0.01)
    error = target(s, x_0, x_t) * x_t
    np.testing.assert_allclose(error.mean(), 0, atol=0.01)  # c_skip x_t is the best linear estimate


def test_edm_is_the_published_preconditioning():
    sigma, d = jnp.float32([0.02, 1.0, 40.0]), 0.5
    s = edm(diffusion.EDM(), sigma, d)
    norm = sigma**2 + d**2
    np.testing.assert_allclose(s.c_skip, d**2 / norm, rtol=1e-6)
    np.testing.assert_allclose(s.c_out, sigma * d / jnp.sqrt(norm), rtol=1e-6)
    np.testing.assert_allclose(s.c_in, 1 / jnp.sqrt(norm), rtol=1e-6)
    np.testing.assert_allclose(s.c_noise, jnp.log(sigma) / 4, rtol=1e-6)


def test_the_velocity_of_a_flow_is_x_T_minus_x_0():
    bridge = BRIDGES["flow"]()
    x_0, x_T, t = jnp.float32(X_0), jnp.float32(X_T), jnp.float32([0.0, 0.3, 1.0])  # finite at the ends, too
    x_t = bridge.sample(jax.random.key(0), x_0, x_T, t)
    np.testing.assert_allclose(target(velocity(bridge, t), x_0, x_t, x_T)[1:], (x_T - x_0)[1:], rtol=2e-5)
    np.testing.assert_allclose(estimate(velocity(bridge, t), x_T - x_0, x_t, x_T), x_0, atol=1e-6)


def test_settings_are_bound_by_partial():
    bridge, t = I2SB(), jnp.float32([0.4])
    bound = functools.partial(ddbm, sigma_0=0.7)
    np.testing.assert_array_equal(bound(bridge, t)[:4], ddbm(bridge, t, 0.7, 0.5, 0.0)[:4])
