"""Every sampler on every bridge it is for: exactness, orders of convergence, and what all samplers promise."""

import functools
import itertools

import gaussian
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ibmd_jax.bridges import BRIDGES, DDBMVE, DDBMVP, I2SB, Brownian, Flow, I2SBTable, OtOde, diffusion
from ibmd_jax.bridges.times import TIME_GRIDS, karras_grid, uniform_grid
from ibmd_jax.samplers import (
    SAMPLERS,
    ancestral,
    dbim,
    dbim_high_order,
    euler_maruyama,
    few_step,
    heun,
    one_step,
)

X_T = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
TRUTH = jax.random.normal(jax.random.key(1), X_T.shape)
MASK = jnp.zeros((2, 4, 4, 1), bool).at[:, 1:3].set(True)
KEY = jax.random.key(2)
ALL = [*(make() for make in BRIDGES.values()), OtOde(I2SB())]
every_bridge = pytest.mark.parametrize("bridge", ALL, ids=repr)
every_sampler = pytest.mark.parametrize("name", SAMPLERS)


def fits(name, bridge):
    """Whether a sampler is for a bridge: see their docstrings."""
    if name == "heun":
        return not bridge.deterministic and bridge.pinned
    if name == "euler_maruyama":
        return not bridge.deterministic and not isinstance(bridge, diffusion.Cosine | diffusion.Sigmoid)
    return True


PAIRS = [(name, bridge) for name in SAMPLERS for bridge in ALL if fits(name, bridge)]
every_pair = pytest.mark.parametrize(("name", "bridge"), PAIRS, ids=[f"{n}-{b!r}" for n, b in PAIRS])


def grid(name, bridge, steps):
    t_min = {"t_min": 1e-4 * bridge.T} if SAMPLERS[name].grid == "ddbm" else {"t_min": 0.0}
    return TIME_GRIDS[SAMPLERS[name].grid](steps, bridge.T, **t_min)


# Exactness.


@every_pair
def test_a_point_mass_is_reproduced(name, bridge):
    """Exactly, by all that end in the estimate itself; DDBM's last Euler step leaves its bit of noise."""
    if name == "euler_maruyama":
        pytest.skip("its steps are not exact for any data")

    def D(x, t, x_T, cond):
        return TRUTH

    times = grid(name, bridge, 6)
    x = SAMPLERS[name].sample(D, bridge, KEY, X_T, times)
    if name == "dbim_high_order":
        second = SAMPLERS[name].sample(D, bridge, KEY, X_T, times, order=2)
        # The table does not end in the estimate itself, so that the last bit is the compiler's.
        np.testing.assert_allclose(x, second, rtol=0, atol=1e-6 if isinstance(bridge, I2SBTable) else 0)
    if isinstance(bridge, I2SBTable):
        np.testing.assert_allclose(x, TRUTH, atol=0.1)  # its first entry is not x_0: standard deviation 0.01
    elif name == "heun":
        ode = heun(D, bridge, KEY, X_T, grid(name, bridge, 60), churn=0.0)
        np.testing.assert_allclose(ode, TRUTH, atol=float(bridge.coeffs(times[-2]).c))
        np.testing.assert_allclose(x, TRUTH, atol=3 * float(bridge.coeffs(jnp.float32(0.02 * bridge.T)).c))
    else:
        np.testing.assert_array_equal(x, TRUTH)


def problem(bridge):
    """x_0 ~ N(m x_T, s^2) given x_T = 1 for pinned bridges; x_0 ~ N(0, s^2), x_T ~ N(0, sigma_T^2) for the others.

    Returns the exact denoiser and the exact mean and variance of x_t.
    """
    m, s2 = (0.4 if float(bridge.split(jnp.float32(bridge.T))[0]) > 0 else 0.0), 0.25

    def moments(t, x_T):
        k, b, n = bridge.split(t)
        return (k + b * m) * x_T, b**2 * s2 + n**2, b

    def denoise(x, t, x_T, cond):
        mean, variance, b = moments(t, x_T)
        return m * x_T + b * s2 / jnp.where(variance > 0, variance, 1) * (x - mean)

    return denoise, moments, m


def measured(monkeypatch, name, bridge, times, **settings):
    """Exact mean and variance of a sampler's result, by its response to a unit of noise in each step.

    With this denoiser a sampler is affine in its draws: row 0 of the batch has none, row j + 1 a 1 in step j, and the
    last row a unit of x_T where that is random.
    """
    denoise, moments, m = problem(bridge)
    n = len(times) - 1
    start = jnp.ones((n + 2, 1)) if m else jnp.zeros((n + 2, 1)).at[-1].set(bridge.sigma(jnp.asarray(float(bridge.T))))
    with monkeypatch.context() as patch:
        patch.setattr(jax.random, "split", lambda key, n: jnp.arange(n))
        patch.setattr(
            jax.random, "normal", lambda key, shape, dtype: (jnp.arange(n + 2)[:, None] == key + 1).astype(dtype)
        )
        out = SAMPLERS[name].sample(denoise, bridge, KEY, start, times, **settings)
    x = np.asarray(out)[:, 0]
    mean, variance, _ = moments(times[-1], x[0] * 0 + 1)
    return np.array([x[0], ((x[1:] - x[0]) ** 2).sum()]), np.array([mean if m else 0.0, variance])


def error(monkeypatch, name, bridge, times, **settings):
    found, exact = measured(monkeypatch, name, bridge, times, **settings)
    return np.abs(found - exact).max()


@every_pair
def test_gaussian_data_get_their_mean_and_variance(name, bridge, monkeypatch):
    """The exact denoiser and 100 steps give the exact distribution, up to the order of the method."""
    if isinstance(bridge, OtOde):
        pytest.skip("given x_T and x_t, x_0 has no distribution")
    with jax.enable_x64(True):
        karras = bridge.T > 1 or isinstance(bridge, diffusion.Diffusion)
        times = (karras_grid if karras else uniform_grid)(100, 1.0, 1e-3).astype(float) * bridge.T
        if name == "heun":
            times = times.at[0].add(-1e-3 * bridge.T)
        assert error(monkeypatch, name, bridge, times) < 0.05


def smoothstep(n, T, t_min):
    """A grid whose first and last steps are O(1/n^3): no order is lost to how a method starts and ends."""
    u = np.linspace(1, 0, n + 1)
    return jnp.asarray(t_min + (T - t_min) * u**3 * (10 - 15 * u + 6 * u**2))


ORDERS = [
    ("ancestral", {}, 1),
    ("euler_maruyama", {}, 1),
    ("dbim", {}, 1),
    ("dbim", {"eta": 0.5}, 1),
    ("dbim_high_order", {"order": 2}, 2),
    ("dbim_high_order", {"order": 3}, 3),
    ("heun", {"churn": 0.0}, 2),
    ("heun", {}, 1),
    ("probability_flow", {}, 2),
]


@pytest.mark.parametrize("bridge", [DDBMVP(), Brownian()], ids=repr)
def test_orders_of_convergence(bridge, monkeypatch, capsys):
    """Slope of the variance's error between 160 and 320 steps.

    heun has no limit to compare with, since DDBM starts it from x_T without noise: it is compared with itself, on a
    part of the path where its slope is smooth.
    """
    with jax.enable_x64(True):
        lines = ["", f"{bridge!r}: measured order, expected, error of the variance with 160 and 320 steps"]
        for name, settings, expected in ORDERS:
            if name == "heun":
                grids = [jnp.linspace(0.9 * bridge.T, 0.05 * bridge.T, n + 1) for n in (80, 160, 320)]
                found = [measured(monkeypatch, name, bridge, times, **settings)[0] for times in grids]
                errors = [np.abs(a - b).max() for a, b in itertools.pairwise(found)]
            else:
                grids = [smoothstep(n, bridge.T, 0.05) for n in (160, 320)]
                errors = [error(monkeypatch, name, bridge, times, **settings) for times in grids]
            order = np.log2(errors[0] / errors[1])
            label = " ".join([name, *(f"{k}={v}" for k, v in settings.items())])
            lines.append(f"    {label:28} {order:5.2f}  {expected}  {errors[0]:.1e} {errors[1]:.1e}")
            assert abs(order - expected) < 0.35, lines[-1]
    with capsys.disabled():
        print(*lines, sep="\n")


@every_bridge
def test_dbim_with_eta_1_is_ancestral(bridge):
    """With the same draws, in float64; the tables are not exact bridges, and differ."""
    with jax.enable_x64(True):

        def denoise(x, t, x_T, cond):
            return jnp.tanh(x) * (1 - 0.3 * t / bridge.T)

        x_T = jax.random.normal(jax.random.key(3), (5, 2))
        times = uniform_grid(5, bridge.T, 0.0).astype(float)
        one, other = (s(denoise, bridge, KEY, x_T, times) for s in (ancestral, functools.partial(dbim, eta=1.0)))
        np.testing.assert_allclose(one, other, atol=0.05 if isinstance(bridge, I2SBTable) else 1e-9)
        if not bridge.deterministic:
            assert np.abs(one - dbim(denoise, bridge, KEY, x_T, times)).max() > 0.01


def test_dbim_of_a_diffusion_is_ddim():
    bridge, s, t = diffusion.Linear(), jnp.float32(0.6), jnp.float32(0.3)
    x = dbim(lambda x, t, x_T, cond: TRUTH, bridge, KEY, X_T, jnp.stack([s, t]))
    eps = (X_T - bridge.alpha(s) * TRUTH) / bridge.sigma(s)
    np.testing.assert_allclose(x, bridge.alpha(t) * TRUTH + bridge.sigma(t) * eps, atol=1e-5)


def test_the_two_conventions_of_guidance_agree_at_1():
    with jax.enable_x64(True):
        bridge, x_T = DDBMVE(3.0), jax.random.normal(KEY, (4, 2))
        times = jnp.linspace(2.7, 0.1, 6)
        plain, other = (
            heun(lambda x, t, x_T, cond: jnp.tanh(x), bridge, KEY, x_T, times, guidance=w, guide_score=True)
            for w in (1.0, 0.5)
        )
        np.testing.assert_allclose(plain, heun(lambda x, t, x_T, cond: jnp.tanh(x), bridge, KEY, x_T, times), atol=1e-9)
        assert jnp.abs(plain - other).max() > 1e-3


def test_a_flow_takes_euler_steps():
    def denoise(x, t, x_T, cond):
        return jnp.tanh(x)

    x, times = X_T, uniform_grid(4)
    for s, t in itertools.pairwise(times):
        x = x + (t - s) * (x - jnp.tanh(x)) / s
    for sampler in (ancestral, dbim):
        np.testing.assert_allclose(sampler(denoise, Flow(), KEY, X_T, times), x, atol=1e-5)


def test_ancestral_recovers_the_coupling_of_an_unconditional_teacher():
    c, bridge = gaussian.TWO_D, I2SB()
    denoise = gaussian.make_denoise(bridge, c.S)
    x_T = gaussian.draw_x_T(c, jax.random.key(3), 30_000)
    V = np.asarray(gaussian.moments(c.params, jnp.asarray(c.S))[1])

    def gap(sampler, steps):
        def bound(x, t, x_T, cond):
            return denoise(c.params, x, t)

        x = jax.jit(lambda: sampler(bound, bridge, jax.random.key(4), x_T, uniform_grid(steps)))()
        return np.abs(np.cov(np.asarray(x).T) - V).max()

    fine = gap(ancestral, 100)
    assert fine < 0.05
    assert gap(ancestral, 4) > 3 * fine
    assert gap(euler_maruyama, 100) < 0.05


# What all samplers promise.


def counting():
    calls = []

    def denoise(x, t, x_T, cond):
        calls.append(float(t))
        return 0.3 * x

    return denoise, calls


@pytest.mark.parametrize("bridge", [DDBMVP(), diffusion.Linear(), Flow()], ids=repr)
@every_sampler
@pytest.mark.parametrize("steps", [1, 5])
def test_the_table_knows_the_network_evaluations(name, steps, bridge):
    if not fits(name, bridge):
        pytest.skip("not for this bridge")
    denoise, calls = counting()
    times = TIME_GRIDS[SAMPLERS[name].grid](steps)
    with jax.disable_jit():
        SAMPLERS[name].sample(denoise, bridge, KEY, X_T, times)
    assert len(calls) == SAMPLERS[name].evaluations(bridge, times)
    assert min(calls) > 0
    if name == "heun":
        denoise, calls = counting()
        with jax.disable_jit():
            heun(denoise, bridge, KEY, X_T, times, churn=0.0)
        assert len(calls) == SAMPLERS["heun"].evaluations(bridge, times, churn=0.0)


@every_sampler
def test_masks_clipping_conditions_and_trajectories(name):
    seen, bridge, steps = [], DDBMVP(), 3
    known = jnp.where(MASK, X_T, -0.0)
    hole = np.broadcast_to(MASK, X_T.shape)

    def denoise(x, t, x_T, cond):
        seen.append(cond)
        assert x_T is known
        return 5 * jnp.tanh(x) + 0.3 * t

    run = functools.partial(SAMPLERS[name].sample, denoise, bridge, KEY, known, TIME_GRIDS[SAMPLERS[name].grid](steps))
    x, path = run(mask=MASK, cond="label", clip=True, trajectory=True)
    assert set(seen) == {"label"}
    assert path.x.shape == path.x_0.shape == (steps, *X_T.shape)
    np.testing.assert_array_equal(np.abs(np.asarray(path.x_0)[:, hole]).max(), 1)
    first, clipped = run(trajectory=True)[1].x_0[0], run(trajectory=True, clip=True)[1].x_0[0]
    assert np.abs(first).max() > 1
    np.testing.assert_array_equal(clipped, jnp.clip(first, -1, 1))
    for estimate in (*path.x_0, x):
        known_again = np.asarray(estimate)[~hole]
        np.testing.assert_array_equal(known_again, 0)
    assert np.signbit(np.asarray(x)[~hole]).all()  # the very bits
    np.testing.assert_array_equal(np.asarray(x)[hole], np.asarray(path.x[-1])[hole])
    np.testing.assert_array_equal(x, run(mask=MASK, cond="label", clip=True))


@every_sampler
def test_memory_does_not_grow_with_the_steps(name):
    bridge = DDBMVP()

    def temporary(steps):
        times = TIME_GRIDS[SAMPLERS[name].grid](steps)

        def run(x_T, key):
            return SAMPLERS[name].sample(lambda x, t, x_T, cond: jnp.tanh(x), bridge, key, x_T, times)

        x_T = jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.float32)
        return jax.jit(run).lower(x_T, KEY).compile().memory_analysis().temp_size_in_bytes

    image = 8 * 32 * 32 * 3 * 4
    assert temporary(400) - temporary(10) < image / 2


def test_errors_name_the_fix():
    with pytest.raises(ValueError, match="order = 4, it must be 2 or 3"):
        dbim_high_order(None, DDBMVP(), KEY, X_T, uniform_grid(3), order=4)
    with pytest.raises(ValueError, match=r"eta = 2\.0, it must be from 0 to 1"):
        dbim(None, DDBMVP(), KEY, X_T, uniform_grid(3), eta=2.0)
    for bridge in (Flow(), diffusion.Linear()):
        with pytest.raises(ValueError, match="heun needs a pinned bridge with noise"):
            heun(None, bridge, KEY, X_T, uniform_grid(3))
    with pytest.raises(ValueError, match=r"churn = 1\.0"):
        heun(None, DDBMVP(), KEY, X_T, uniform_grid(3), churn=1.0)
    with pytest.raises(ValueError, match="Flow has none: use dbim"):
        euler_maruyama(None, Flow(), KEY, X_T, uniform_grid(3))


# Students.


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
    known = jnp.where(MASK, X_T, -0.0)
    once = one_step(lambda x, t, x_T, cond, z: x + 1, I2SB(), jax.random.key(0), known, mask=MASK)
    assert np.signbit(np.asarray(once)[~np.broadcast_to(MASK, X_T.shape)]).all()


@pytest.mark.parametrize("name", ["probability_flow", "dbim", "dbim_high_order"])
def test_a_step_within_one_index_of_a_table_changes_nothing(name):
    def D(x, t, x_T, cond):
        return jnp.tanh(x + 0.3 * x_T)

    times = uniform_grid(6)
    near = times[2] - 1e-5, times[2] - 2e-5
    repeated = jnp.concatenate([times[:3], jnp.stack(near), times[3:]])
    sample = SAMPLERS[name].sample
    plain = sample(D, I2SBTable(), KEY, X_T, times)  # the little noise that the table has at T is another draw's
    np.testing.assert_allclose(sample(D, I2SBTable(), KEY, X_T, repeated), plain, rtol=0, atol=3e-4)


@pytest.mark.parametrize("bridge", [I2SB(), Flow(), diffusion.Linear()], ids=repr)
def test_few_steps(bridge):
    """One step is G itself; more alternate G and a draw of x_t from x_s."""

    def G(x, t, x_T, cond, z=None):
        return jnp.tanh(x) + (0 if z is None else z.mean(-1, keepdims=True))

    whole = jnp.asarray([bridge.T, 0], jnp.float32)
    np.testing.assert_allclose(few_step(G, bridge, KEY, X_T, whole), jnp.tanh(X_T), atol=3e-7)
    noisy = few_step(G, bridge, KEY, X_T, whole, noise_channels=2, mask=MASK)
    assert (noisy != jnp.tanh(X_T))[:, 1:3].all()
    np.testing.assert_array_equal(noisy[:, 0], X_T[:, 0])

    times = jnp.asarray([bridge.T, 0.7 * bridge.T, 0.4 * bridge.T, 0.1 * bridge.T], jnp.float32)
    seen = []

    def with_z(x, t, x_T, cond, z):
        jax.debug.callback(lambda v: seen.append(float(v)), z.sum())
        return G(x, t, x_T, cond, z)

    few_step(with_z, bridge, KEY, X_T, times, noise_channels=2)
    jax.effects_barrier()
    assert len({*seen}) == 3  # new noise in every step

    _, path = few_step(G, bridge, KEY, X_T, times, trajectory=True)
    mean, std = bridge.posterior(path.x_0[1], path.x[0], times[1], times[2])
    deviation = float(jnp.abs(path.x[1] - mean).max())
    assert (deviation < 1e-6) == bridge.deterministic
    assert deviation < 5 * float(std.max()) + 1e-6
    last, _ = bridge.posterior(path.x_0[2], path.x[1], times[2], times[3])
    np.testing.assert_allclose(path.x[2], last, atol=1e-6)  # the last step draws nothing
