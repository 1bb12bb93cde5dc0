import gaussian
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ibmd_jax.bridges import BRIDGES, I2SB
from ibmd_jax.bridges.times import uniform_grid
from ibmd_jax.samplers import ancestral, one_step

every_bridge = pytest.mark.parametrize("bridge", [make() for make in BRIDGES.values()], ids=repr)
X_T = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
TRUTH = jax.random.normal(jax.random.key(1), X_T.shape)
MASK = jnp.zeros((2, 4, 4, 1), bool).at[:, 1:3].set(True)


@every_bridge
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_a_point_mass_is_reproduced_exactly(bridge, steps):
    x = ancestral(lambda x, t, x_T, cond: TRUTH, bridge, jax.random.key(2), X_T, uniform_grid(steps))
    np.testing.assert_array_equal(x, TRUTH)


@every_bridge
@pytest.mark.parametrize("steps", [1, 3])
def test_known_pixels_keep_their_bits(bridge, steps):
    known = jnp.where(MASK, X_T, -0.0)
    x = jax.jit(
        lambda: ancestral(
            lambda x, t, x_T, cond: 0.3 * x + t, bridge, jax.random.key(2), known, uniform_grid(steps), mask=MASK
        )
    )()
    hole = np.broadcast_to(MASK, X_T.shape)
    np.testing.assert_array_equal(np.asarray(x)[~hole], 0)
    assert (np.asarray(x)[hole] != np.asarray(known)[hole]).all()
    once = one_step(lambda x, t, x_T, cond, z: x + 1, bridge, jax.random.key(0), known, mask=MASK)
    assert np.signbit(np.asarray(once)[~hole]).all()


@every_bridge
def test_ancestral_evaluates_the_network_at_the_grid(bridge):
    seen = []
    ancestral(
        lambda x, t, x_T, cond: jax.debug.callback(lambda v: seen.append(float(v)), t) or x * 0,
        bridge,
        jax.random.key(0),
        X_T,
        uniform_grid(4),
    )
    jax.effects_barrier()
    np.testing.assert_allclose(sorted(seen, reverse=True), [1, 0.75, 0.5, 0.25])


@every_bridge
def test_ancestral_with_the_exact_denoiser_converges_to_the_coupling(bridge):
    """Gaussian data, analytic denoiser: the covariance of the samples tends to the truth as steps grow."""
    c = gaussian.TWO_D
    denoise = gaussian.make_denoise(bridge, c.S)
    x_T = gaussian.draw_x_T(c, jax.random.key(3), 100_000)
    V = np.asarray(gaussian.moments(c.params, jnp.asarray(c.S))[1])

    def error(steps):
        def bound(x, t, x_T, cond):
            return denoise(c.params, x, t)

        x = jax.jit(lambda: ancestral(bound, bridge, jax.random.key(4), x_T, uniform_grid(steps)))()
        return np.abs(np.cov(np.asarray(x).T) - V).max()

    assert error(100) < 0.05
    assert error(4) > 3 * error(100)


def test_one_step_is_the_denoiser_at_T_with_noise():
    seen = []

    def denoise(x, t, x_T, cond, z):
        seen.append((t, cond, None if z is None else np.asarray(z)))
        return 2 * x_T

    out = one_step(denoise, I2SB(), jax.random.key(0), X_T, noise_channels=5, cond="label")
    np.testing.assert_array_equal(out, 2 * X_T)
    assert seen[0][:2] == (1.0, "label")
    assert seen[0][2].shape == (2, 4, 4, 5)
    assert abs(seen[0][2].std() - 1) < 0.2
    one_step(denoise, I2SB(), jax.random.key(0), X_T)
    assert seen[1][2] is None
