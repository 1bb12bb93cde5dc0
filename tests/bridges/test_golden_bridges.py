"""Schedules, processes and scalings as the public PyTorch code of I2SB, DDBM and DBIM computes them.

The files of tests/golden hold inputs and outputs of that code on fixed inputs; every case they hold is tried.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ibmd_jax.bridges import DDBMVE, DDBMVP, I2SBTable, OtOde
from ibmd_jax.bridges.parametrisations import ddbm, eps, estimate, native_weight, target, x_0
from ibmd_jax.bridges.times import dbim_grid, ddbm_grid, i2sb_grid
from ibmd_jax.core.arrays import ema_update
from ibmd_jax.networks.blocks import timestep_embedding

GOLDEN = Path(__file__).parents[1] / "golden"


def load(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def cases(name, pattern):
    return sorted({m[1] for key in load(name) if (m := re.match(pattern, key))})


@pytest.mark.parametrize("case", cases("i2sb_schedule", r"(n\d+_b[\d.]+)/"))
def test_i2sb_tables(case):
    g = {k.split("/")[1]: v for k, v in load("i2sb_schedule").items() if k.startswith(case + "/")}
    steps, beta_max = re.match(r"n(\d+)_b([\d.]+)", case).groups()
    bridge = I2SBTable(float(beta_max), int(steps))
    t = jnp.float32(np.arange(int(steps)) / (int(steps) - 1))
    a, b, c = bridge.coeffs(t)
    np.testing.assert_allclose(bridge.f_and_g2(t)[1] / (int(steps) - 1), g["betas_f64"], rtol=2e-6)
    np.testing.assert_allclose(a, g["mu_x1"], rtol=2e-5)
    np.testing.assert_allclose(b, g["mu_x0"], rtol=2e-5)
    np.testing.assert_allclose(c, g["std_sb"], rtol=2e-5)
    np.testing.assert_allclose(bridge.rho(t), g["std_fwd"], rtol=2e-6)
    np.testing.assert_allclose(bridge.rho(t[::-1]), g["std_bwd"], rtol=2e-6)
    np.testing.assert_allclose(bridge.noise_level(t), g["noise_levels"], rtol=2e-6)


def test_i2sb_grids():
    g = load("i2sb_schedule")
    for nfe in cases("i2sb_schedule", r"steps_nfe(\d+)$"):
        index = np.rint(np.asarray(i2sb_grid(int(nfe)), np.float64) * 999)
        np.testing.assert_array_equal(index[::-1], g[f"steps_nfe{nfe}"], err_msg=nfe)


def test_timestep_embeddings():
    g = load("i2sb_schedule")
    for dim in cases("i2sb_schedule", r"temb_(\d+)$"):
        found = timestep_embedding(jnp.asarray(g["temb_t"]), int(dim))
        np.testing.assert_allclose(found, g[f"temb_{dim}"], atol=2e-4)  # cos(1000) in float32


def test_i2sb_processes(monkeypatch):
    g = load("i2sb_processes")
    bridge, t, key = I2SBTable(0.3), jnp.float32(g["step"] / 999), jax.random.key(0)
    monkeypatch.setattr(jax.random, "normal", lambda key, shape, dtype: jnp.asarray(g["noise_000"]))
    x_t = bridge.sample(key, g["x0"], g["x1"], t)
    np.testing.assert_allclose(x_t, g["xt"], atol=2e-5)
    np.testing.assert_allclose(OtOde(bridge).sample(key, g["x0"], g["x1"], t), g["xt_ode"], atol=2e-5)
    label = target(eps(bridge, t), g["x0"], x_t)
    np.testing.assert_allclose(label, g["label"], rtol=2e-5, atol=2e-4)  # divides by 0.01
    pred = estimate(eps(bridge, t), 0.9 * g["label"], jnp.asarray(g["xt"]))
    np.testing.assert_allclose(pred, g["pred"], atol=2e-5)
    np.testing.assert_allclose(jnp.clip(pred, -1, 1), g["pred_clip"], atol=2e-5)

    def posterior(of, low, high):
        return of.posterior(jnp.asarray(g["x0"]), jnp.asarray(g["x1"]), jnp.float32(high / 999), jnp.float32(low / 999))

    x_0_like = {"post": (100, 400), "post_ode": (100, 400), "post_to0": (0, 100)}
    for name, (low, high) in x_0_like.items():
        mean, std = posterior(OtOde(bridge) if name == "post_ode" else bridge, low, high)
        found = mean + (0 if name == "post_to0" else std * g["noise_001"])
        np.testing.assert_allclose(found, g[name], atol=2e-5, err_msg=name)


@pytest.mark.parametrize("case", cases("ddbm_scalings", r"(v[ep].*)/sigma$"))
def test_ddbm_scalings(case):
    """The peer computes in float32, which costs it 3e-4 near T."""
    g = {k.split("/")[1]: v for k, v in load("ddbm_scalings").items() if k.startswith(case + "/")}
    mode, sigma_max, covariance = re.match(r"(v[ep])(?:_simple)?_smax(\d+)_cov([\d.]+)", case).groups()
    bridge = DDBMVE(float(sigma_max)) if mode == "ve" else DDBMVP()

    def parametrisation(bridge, t):
        s = ddbm(bridge, t, covariance=float(covariance))
        return x_0(bridge, t)._replace(c_noise=s.c_noise) if "simple" in case else s

    t = jnp.asarray(g["sigma"])
    s = parametrisation(bridge, t)
    for name in ("c_skip", "c_out", "c_in"):
        np.testing.assert_allclose(getattr(s, name), g[name], rtol=5e-3, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(s.c_noise, g["rescaled_t"], rtol=2e-6, atol=1e-3)
    np.testing.assert_allclose(native_weight(parametrisation)(bridge, t), g["weight"], rtol=5e-3)
    np.testing.assert_allclose(bridge.rho(t) ** -2, g["snr"], rtol=5e-3)
    t_min = 0.002 if mode == "ve" and sigma_max == "80" else 1e-4 if mode == "vp" else float(t[0])
    for n in cases("ddbm_scalings", re.escape(case) + r"/sigmas_karras_(\d+)$"):
        expected = g[f"sigmas_karras_{n}"]
        np.testing.assert_allclose(ddbm_grid(int(n), bridge.T, float(expected[-2])), expected, rtol=2e-5)
        np.testing.assert_allclose(expected[-2], t_min, rtol=1e-3)


BRIDGES = {"vp": DDBMVP(), "ve": DDBMVE(80.0), "i2sb": I2SBTable(1.0, dbim=True)}


@pytest.mark.parametrize("mode", cases("dbim_schedules", r"(\w+)/t$"))
def test_dbim_schedules(mode):
    """To 1e-9 where the peer computes in float64."""
    g = {k.split("/")[1]: v for k, v in load("dbim_schedules").items() if k.startswith(mode + "/")}
    bridge = BRIDGES[mode]
    with jax.enable_x64(True):
        t = jnp.asarray(np.float64(g["t"]))
        end = jnp.full_like(t, bridge.T)
        a, b, c = bridge.coeffs(t)
        s = (eps if mode == "i2sb" else ddbm)(bridge, t)
        f, g2 = bridge.f_and_g2(t)
        found = {
            "a": a,
            "b": b,
            "c": c,
            "alpha": bridge.alpha(t),
            "alpha_bar": bridge.alpha(t) / bridge.alpha(end),
            "rho": bridge.rho(t),
            "rho_T": bridge.rho(end)[0],
            "rho_bar": jnp.sqrt(b / bridge.alpha(t)) * bridge.rho(end),
            "f": f,
            "g2": g2 / 999 if mode == "i2sb" else g2,  # the peer has it per index, and its Heun multiplies
            "c_in": s.c_in,
            "c_out": s.c_out,
            "c_skip": s.c_skip,
            "c_noise": s.c_noise,
            "weight": 1 / s.c_out**2,
        }
    for name, value in found.items():
        expected = g[name]
        double = expected.dtype == np.float64
        # The peer subtracts nearly equal numbers: 1e-9 of the largest value is what it has there.
        atol = 1e-9 * np.abs(expected).max() if double else 2e-5
        np.testing.assert_allclose(value, expected, rtol=1e-9 if double else 2e-5, atol=atol, err_msg=name)
    for n in cases("dbim_schedules", rf"{mode}/ts_uniform_(\d+)$"):
        expected = g[f"ts_uniform_{n}"]
        np.testing.assert_allclose(dbim_grid(len(expected), bridge.T, expected[-1])[1:], expected, rtol=2e-6)


def test_radam(lenient):
    """optax's RAdam is PyTorch's: lr 1e-2 on sum w (p - c)^2, twelve updates."""
    expected = load("radam_toy")["p"]
    w, c, p = jnp.float32([1, 3, 0.01]), jnp.float32([0.5, 0.25, -0.125]), jnp.float32([1, -2, 3])
    optimizer = optax.radam(1e-2)
    state = optimizer.init(p)
    for row in expected:
        updates, state = optimizer.update(2 * w * (p - c), state)
        p = optax.apply_updates(p, updates)
        np.testing.assert_allclose(p, row, rtol=2e-5)


def test_moving_average():
    shadow = jnp.zeros(3)
    for n, row in enumerate(load("torch_ema_toy")["shadow"], 1):
        shadow = ema_update(shadow, jnp.full(3, float(n)), jnp.int32(n), 0.99)
        np.testing.assert_allclose(shadow, row, rtol=2e-6)
