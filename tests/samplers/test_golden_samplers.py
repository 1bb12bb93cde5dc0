"""Samplers against the public PyTorch code of I2SB, DDBM and DBIM, with the Gaussian draws that it made.

Every case in the files is tried. `jax.disable_jit` turns the loop into Python's, so that the stored draws can be given
in order in the place of jax.random.normal.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ibmd_jax.bridges import DDBMVE, DDBMVP, I2SBTable, OtOde
from ibmd_jax.bridges.times import ddbm_grid, i2sb_grid
from ibmd_jax.samplers import ancestral, dbim, dbim_high_order, heun

GOLDEN = Path(__file__).parents[1] / "golden"


def load(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def cases(name):
    return sorted({key.split("/")[0] for key in load(name) if "/" in key})


def case_of(name, case):
    """The shared inputs, and the arrays of one case."""
    every = load(name)
    return every, {k.split("/")[1]: v for k, v in every.items() if k.startswith(case + "/")}


def draws(g):
    return [g[k] for k in sorted(g) if k.startswith("noise_")]


@pytest.fixture
def play(monkeypatch):
    """play(draws, sampler, *args) runs a sampler with these draws; a None is a draw that is multiplied by 0."""

    def run(given, sampler, *args, **settings):
        given = iter(given)

        def normal(key, shape, dtype):
            value = next(given)
            return jnp.zeros(shape, dtype) if value is None else jnp.asarray(value, dtype)

        monkeypatch.setattr(jax.random, "normal", normal)
        with jax.disable_jit():
            out = sampler(*args, trajectory=True, **settings)
        assert next(given, "end") == "end"
        return out

    return run


@pytest.mark.parametrize("case", cases("i2sb_sampler"))
def test_i2sb(case, play):
    every, g = case_of("i2sb_sampler", case)
    nfe, ode, masked = map(int, re.match(r"nfe(\d+)_ode(\d)_mask(\d)", case).groups())
    bridge = OtOde(I2SBTable(0.3)) if ode else I2SBTable(0.3)
    mask = jnp.asarray(every["mask"] > 0) if masked else None
    stored = iter(draws(g))
    order = []
    for step in range(nfe):  # the posterior's draw, none in the last step, then that of the known pixels
        order.append(None if ode or step == nfe - 1 else next(stored))
        if masked:
            order.append(None if ode else next(stored))

    def denoise(x, t, x_T, cond):
        return 0.8 * jnp.tanh(x) + 0.1 * jnp.cos(0.01 * jnp.rint(t * 999))

    x_1 = jnp.asarray(every["x1"])
    out, path = play(order, ancestral, denoise, bridge, jax.random.key(0), x_1, i2sb_grid(nfe), mask=mask)
    np.testing.assert_allclose(path.x, g["xs"].swapaxes(0, 1)[::-1], atol=2e-5)
    hole = np.broadcast_to(every["mask"] > 0, x_1.shape) if masked else np.ones(x_1.shape, bool)
    expected = g["pred_x0s"].swapaxes(0, 1)[::-1]
    np.testing.assert_allclose(np.asarray(path.x_0)[:, hole], expected[:, hole], atol=2e-5)
    np.testing.assert_array_equal(np.asarray(out)[~hole], np.asarray(x_1)[~hole])


@pytest.mark.parametrize("case", cases("ddbm_heun"))
def test_ddbm(case, play):
    """The peer runs in float32, with cancellations near T: 5e-3 of each state's largest value."""
    every, g = case_of("ddbm_heun", case)
    mode, churn, guidance = re.match(r"(v[ep])_churn([\d.]+)_w([\d.]+)", case).groups()
    bridge = DDBMVE(80.0) if mode == "ve" else DDBMVP()
    times = ddbm_grid(len(g["sigmas"]) - 1, bridge.T, float(g["sigmas"][-2]))
    np.testing.assert_allclose(times, g["sigmas"], rtol=2e-5)
    calls = []

    def denoise(x, t, x_T, cond):
        calls.append(t)
        return jnp.tanh(0.8 * x - 0.3 * x_T + 0.05 * jnp.log(t))

    with jax.enable_x64(True):
        x_T = jnp.asarray(np.float64(every["x_T"]))
        settings = {"churn": float(churn), "guidance": float(guidance), "guide_score": mode == "ve"}
        times = jnp.asarray(np.float64(g["sigmas"]))
        key = jax.random.key(0)
        out, path = play(draws(g), heun, denoise, bridge, key, x_T, times, **settings)
    assert len(calls) == g["nfe"]
    expected = g["path"][2::2] if float(churn) else g["path"][1:]
    for found, value in zip((*path.x, out), (*expected, g["x"]), strict=True):
        np.testing.assert_allclose(found, value, atol=5e-3 * np.abs(value).max())


@pytest.mark.parametrize("case", cases("dbim_samplers"))
def test_dbim(case, play):
    """The peer's state is float64, its network float32."""
    every, g = case_of("dbim_samplers", case)
    mode, algorithm = re.match(r"(\w+?)_(.*)", case).groups()
    bridge = {"vp": DDBMVP(), "ve": DDBMVE(80.0), "i2sb": I2SBTable(1.0, dbim=True)}[mode]
    mask = jnp.asarray(every["mask"] > 0) if case.endswith("_mask") else None
    calls, stored = [], draws(g)

    def denoise(x, t, x_T, cond):
        calls.append(t)
        x, t = x.astype(jnp.float32), t.astype(jnp.float32)
        return jnp.tanh(0.8 * x + 0.05 * jnp.log(t)).astype(jnp.float64)

    with jax.enable_x64(True):
        x_T, key = jnp.asarray(np.float64(every["x_T"])), jax.random.key(0)
        ts = np.float64(g["ts"])
        if m := re.match(r"heun_churn([\d.]+)", algorithm):
            churn = float(m[1])
            given = stored[::3] if churn else []  # the ODE's draws are multiplied by 0
            out, path = play(given, heun, denoise, bridge, key, x_T, jnp.asarray(ts), churn=churn)
            expected = g["path"][1::2] if churn else g["path"]
        else:
            times = jnp.asarray([bridge.T, *ts])
            if m := re.match(r"dbim_eta([\d.]+)_n", algorithm):
                settings, sampler = {"eta": float(m[1])}, dbim
            else:
                settings, sampler = {"order": int(re.match(r"ho(\d)_n", algorithm)[1])}, dbim_high_order
            given = stored if settings.get("eta") else stored[:1]  # the others are multiplied by 0
            out, path = play(given, sampler, denoise, bridge, key, x_T, times, mask=mask, **settings)
            expected = g["path"]
    assert len(calls) == g["nfe"]
    atol = 2e-5 * max(np.abs(expected).max(), 1)
    np.testing.assert_allclose(path.x, expected, atol=atol)
    hole = np.broadcast_to(True if mask is None else every["mask"] > 0, out.shape)
    np.testing.assert_allclose(np.asarray(out)[hole], g["x"][hole], atol=atol)
