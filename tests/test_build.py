"""Configurations of other bridges, parametrisations and samplers than the default ones."""

import functools
import re
from pathlib import Path

import config_files
import jax
import jax.numpy as jnp
import pytest

from ibmd_jax.bridges import DDBMVP, OtOde
from ibmd_jax.build import _bridge, build
from ibmd_jax.convert.__main__ import main as convert
from ibmd_jax.core.errors import UserError
from ibmd_jax.train.job import load_teacher

ROOT = Path(__file__).parents[1]


def quicktest():
    return config_files.load("inpaint").get_config("quicktest")


def test_the_settings_in_the_readme():
    config = quicktest()
    _, code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    exec(code, {"config": config})
    assert build(config).teacher_steps == {1: 1, 2: 2, 10: 10, 100: 100}


def test_rows_are_labelled_with_the_evaluations_that_a_sampler_makes():
    config = quicktest()
    config.bridge = {"name": "ddbm_vp"}
    config.evaluate.sampler = {"name": "heun", "churn": 0.5, "clip": True}
    assert build(config).teacher_steps == {2: 1, 8: 3, 98: 33}
    config.evaluate.sampler = {"name": "probability_flow", "time_grid": {"name": "karras", "t_min": 0.01}}
    assert build(config).teacher_steps == {1: 1, 9: 5, 99: 50}
    config.evaluate.sampler = {"name": "heun", "churn": 0.0}
    assert build(config).teacher_steps == {1: 1, 9: 5, 99: 50}


def test_a_converted_teacher_brings_its_network_bridge_and_parametrisation(tmp_path):
    golden = ROOT / "tests" / "golden" / "ddbm_tiny.pt"
    assert convert([str(golden), "--to", str(tmp_path / "teacher"), "--head_channels", "16"]) == 0
    config = quicktest()
    config.teacher.checkpoint = str(tmp_path / "teacher")
    job = build(config)
    assert job.config["network"]["name"] == "adm"
    assert job.config["bridge"]["name"] == "ddbm_vp"
    assert job.config["parametrisation"] == {"name": "ddbm"}
    params, _ = load_teacher(job, tmp_path)
    x_T = job.test().x_T[:1]
    x_0 = jax.jit(functools.partial(job.teacher.sample, steps=1))(
        params, jax.random.key(0), job.test()._replace(x_T=x_T, x_0=None, mask=job.test().mask[:1])
    )
    assert x_0.shape == x_T.shape
    assert bool(jnp.isfinite(x_0).all())


def test_ot_ode_makes_a_bridge_deterministic():
    assert _bridge({"name": "ddbm_vp", "ot_ode": True}) == OtOde(DDBMVP())
    assert _bridge({"name": "ddbm_vp", "ot_ode": False}) == DDBMVP()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("bridge", {"name": "ddbm"}, "unknown bridge 'ddbm'.*Did you mean 'ddbm_vp'"),
        ("bridge", {"name": "edm"}, "EDM starts from pure noise, which no corruption makes"),
        ("bridge", {"name": "flow"}, "config.parametrisation: it is not finite on all of"),
        ("bridge", {"name": "brownian", "epsilon": -1.0}, "config.bridge: .* not finite"),
        ("bridge", {"name": "brownian", "epsilon": "x"}, "config.bridge: "),
        ("bridge", {"name": "flow", "ot_ode": True}, "config.bridge: there is no ODE version of Flow"),
        ("parametrisation", {"name": "ddbm", "sigma_0": "x"}, "config.parametrisation: "),
        ("parametrisation", {"name": "bridge_eps"}, "config.parametrisation: it is not finite on all of"),
        ("sampler", {"name": "heun", "time_grid": "uniform"}, "config.evaluate.sampler: its result is not finite"),
        ("sampler", {"name": "heun", "churn": 1.0}, "config.evaluate.sampler: heun: churn = 1.0"),
        ("sampler", {"name": "dbim", "time_grid": "ddbm"}, "the grid ddbm is for the sampler heun"),
        (
            "sampler",
            {"name": "dbim", "time_grid": {"name": "karras", "rho": 3}},
            "time_grid has no field 'rho': it takes t_min, power",
        ),
        ("bridge", {"name": "i2sb_table", "steps": 7}, "config.bridge: I2SBTable.steps = 7: it must be even"),
        (
            "parametrisation",
            {"name": "eps", "sigma_0": 1.0},
            "config.parametrisation has no field 'sigma_0': it takes none",
        ),
        ("sampler", {"name": "dbim", "order": 2}, "config.evaluate.sampler has no field 'order': it takes eta, clip"),
        ("sampler", {"name": "dbim_high_order", "order": 4}, "order = 4, it must be 2 or 3"),
        ("sampler", {"name": "dbim", "time_grid": "cosine"}, "unknown time grid 'cosine'"),
    ],
)
def test_wrong_settings_are_named(field, value, message):
    config = quicktest()
    setattr(config.evaluate if field == "sampler" else config, field, value)
    with pytest.raises(UserError, match=message):
        build(config)
