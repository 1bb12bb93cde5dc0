"""Configurations of other bridges, parametrisations and samplers than the default ones."""

import ast
import functools
import itertools
import json
import re
from pathlib import Path

import config_files
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from ibmd_jax.bridges import BRIDGES, DDBMVP, OtOde
from ibmd_jax.build import build, build_data, build_model
from ibmd_jax.build.methods import _weight
from ibmd_jax.build.model import make_bridge
from ibmd_jax.convert.__main__ import main as convert
from ibmd_jax.core.arrays import from_uint8, to_uint8
from ibmd_jax.core.errors import UserError
from ibmd_jax.core.types import Batch
from ibmd_jax.corruptions import corruption
from ibmd_jax.data.emoji import name_embeddings, rows_of
from ibmd_jax.data.images import fit_image
from ibmd_jax.data.source import Options
from ibmd_jax.networks import NETWORKS
from ibmd_jax.train.checkpoint import load_params
from ibmd_jax.train.job import Restoring, load_teacher, run, teacher_folders
from ibmd_jax.train.workdir import check_workdir, locked

ROOT = Path(__file__).parents[1]


def quicktest():
    return config_files.load("inpaint").get_config("quicktest")


def test_the_settings_in_the_readme():
    config = quicktest()
    _, code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    exec(code, {"config": config})
    assert build(config).teacher_steps == {1: 1, 2: 2, 10: 10}


def test_rows_are_labelled_with_the_evaluations_that_a_sampler_makes():
    config = quicktest()
    config.bridge, config.evaluate.nfe = {"name": "ddbm_vp"}, (1, 2, 10, 100)
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


@pytest.mark.usefixtures("lenient", "one_device")
def test_training_starts_from_given_parameters(tmp_path):
    """A step at rate 0 leaves what it started from; config.network keeps what says how it is computed."""
    golden = ROOT / "tests" / "golden" / "ddbm_tiny.pt"
    assert convert([str(golden), "--to", str(tmp_path / "start"), "--head_channels", "16"]) == 0
    config = quicktest()
    config.teacher.update(start=str(tmp_path / "start"), steps=1, ema_decay=0.0)
    config.teacher.optimizer.update(learning_rate=0.0, warmup=0)
    config.network = {"name": "adm", "conditional": True, "dropout": 0.2}
    job = build(config)
    assert job.config["network"]["channels"] == 32
    assert job.config["network"]["dropout"] == 0.2
    assert job.config["bridge"]["name"] == "i2sb"
    run(job, tmp_path / "run", "teacher")
    first, _ = load_params(tmp_path / "start", jax.eval_shape(job.init_params, jax.random.key(0)))
    last, _ = load_params(tmp_path / "run" / "teacher" / "export", first)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(last), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)
    config.teacher.checkpoint = config.teacher.start
    with pytest.raises(UserError, match=r"config.teacher.checkpoint and .start are both set"):
        build(config)


def test_corrupted_images_alone_train_no_teacher_and_are_not_evaluated(tmp_path):
    np.savez(tmp_path / "x.npz", x_T=np.zeros((40, 32, 32, 3), np.uint8))
    config = quicktest()
    config.data.update(source=f"npz:{tmp_path}/x.npz", corruption="none")
    job = build(config)
    assert not job.clean
    assert job.test().x_0 is None
    for mode in ("all", "teacher", "evaluate"):
        with pytest.raises(UserError, match=f"has no clean images, which --mode={mode} needs"):
            run(job, tmp_path / "run", mode)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("ibmd", "real_data other than"),
        ("sfddm", "method = 'sfddm'"),
        ("progressive", "method = 'progressive'"),
        ("dibregman", "reference = 'data'"),
    ],
)
def test_methods_that_need_clean_images_say_what_for(tmp_path, method, message):
    np.savez(tmp_path / "x.npz", x_T=np.zeros((40, 32, 32, 3), np.uint8))
    config = quicktest()
    config.network.conditional = True
    config.data.update(source=f"npz:{tmp_path}/x.npz", corruption="none")
    with config.unlocked():
        config.distill = {**config_files.load("generate").distillation(method), "batch_size": 8}
        if method == "ibmd":
            config.distill.real_data = (0.9, 0.9)
        if "t_start" in config.distill:
            config.distill.t_start = 0.0
    with pytest.raises(
        UserError, match=f"config.distill.{message}.* needs clean images, and config.data.source has none"
    ):
        build(config)


@pytest.mark.parametrize(("real_data", "reads"), [((1.0, 1.0), False), ((0.9, 0.9), True)])
def test_clean_images_stay_with_what_reads_them(real_data, reads):
    config = quicktest()
    config.distill.real_data = real_data
    job = build(config)
    assert (next(job.batches("distill")(0)).x_0 is not None) == reads
    assert next(job.batches("teacher")(0)).x_0 is not None


def test_T_may_be_a_number_that_float32_rounds():
    config = quicktest()
    config.bridge, config.parametrisation = {"name": "ddbm_ve", "sigma_max": 37.3}, {"name": "ddbm"}
    config.evaluate.sampler = {"name": "dbim"}
    build_model(config)


class Joining(nn.Module):
    """A network of one's own that lets z in beside x, and sows no features."""

    @nn.compact
    def __call__(self, x, t, cond=None, z=None):
        return nn.Conv(3, (3, 3))(x if z is None else jnp.concatenate([x, z], -1))


def test_what_a_network_of_ones_own_lacks_is_told_before_its_teacher_is_trained(monkeypatch):
    monkeypatch.setitem(NETWORKS, "joining", Joining)
    config = quicktest()
    with config.unlocked():
        config.network = {"name": "joining", "conditional": False}
    build_model(config)
    config.distill.noise_channels = 3
    with pytest.raises(UserError, match=r"noise_channels = 3: .*\(3, 3, 6, 3\). z has to enter by a layer of its own"):
        build_model(config)
    for method in ("sfddm", "dibregman"):
        config = config_files.load("generate").get_config(f"{method},quicktest")
        with config.unlocked():
            config.network = {"name": "joining", "conditional": False}
        if method == "sfddm":
            build_model(config)
            config.distill.hidden = "features"
        with pytest.raises(UserError, match="Joining sows no features"):
            build_model(config)


@pytest.mark.parametrize("section", ["", "data", "teacher", "distill", "evaluate", "schedule"])
def test_a_misspelt_field_is_told(section):
    config = quicktest()
    with config.unlocked():
        (config[section] if section else config).acumulate = 4
    with pytest.raises(UserError, match=f"{section or 'the configuration'}.* has no field 'acumulate': it takes "):
        build(config)


def test_what_to_profile_is_a_flag():
    config = quicktest()
    with config.unlocked():
        config.schedule.profile = 5
    with pytest.raises(UserError, match="schedule has no field 'profile'"):
        build(config)


def test_ot_ode_makes_a_bridge_deterministic():
    assert make_bridge({"name": "ddbm_vp", "ot_ode": True}) == OtOde(DDBMVP())
    assert make_bridge({"name": "ddbm_vp", "ot_ode": False}) == DDBMVP()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("bridge", {"name": "ddbm"}, "unknown bridge 'ddbm'.*Did you mean 'ddbm_vp'"),
        ("bridge", {"name": "edm"}, "EDM starts from noise of deviation 80: set .*'pure-noise', 'std': 80}"),
        ("bridge", {"name": "flow"}, "config.parametrisation: it is not finite on all of"),
        ("parametrisation", {"name": "ddbm", "covariance": 0.3}, "covariance = 0.3 is beyond sigma_0 sigma_T = 0.25"),
        ("bridge", {"name": "brownian", "epsilon": -1.0}, "config.bridge: .* not finite"),
        ("bridge", {"name": "brownian", "epsilon": "x"}, "config.bridge: "),
        ("bridge", {"name": "flow", "ot_ode": True}, "config.bridge: there is no ODE version of Flow"),
        ("parametrisation", {"name": "ddbm", "sigma_0": "x"}, "config.parametrisation: "),
        ("parametrisation", {"name": "bridge_eps"}, "config.parametrisation: it is not finite on all of"),
        ("sampler", {"name": "heun", "time_grid": "uniform"}, "config.evaluate.sampler: its result is not finite"),
        ("sampler", {"name": "heun", "churn": 1.0}, "config.evaluate.sampler: heun: churn = 1.0"),
        ("sampler", {"name": "dbim", "time_grid": "ddbm"}, "the grid ddbm is for the sampler heun"),
        ("sampler", {"name": "dbim", "time_grid": {"name": "uniform", "t_min": 2.0}}, "must fall to 0 or near it"),
        ("sampler", {"name": "dbim", "time_grid": {"name": "uniform", "t_min": 0.5}}, "must fall to 0 or near it"),
        ("sampler", {"name": "dbim", "time_grid": {"name": "i2sb", "table": 2}}, "1, 1, 0, 0 for 3 steps, must fall"),
        ("sampler", {"name": "dbim", "time_grid": {"name": "karras", "power": 0}}, "config.evaluate.sampler: "),
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
        ("corruption", "jpg-5", "unknown corruption 'jpg-5'.*Did you mean 'jpeg-5'"),
        ("corruption", {"name": "jpeg", "quality": 0}, "config.data.corruption = .*quality"),
        ("corruption", {"name": "sr-pool", "factor": 5}, "config.data.corruption = .*32"),
        ("corruption", "none", "emoji .train. has clean images alone"),
        ("source", "emoji:pairs", "emoji:pairs .train. brings its own x_T"),
        ("features", "inception", "unknown feature network 'inception'"),
        ("multistep", "both", "config.distill: multistep = 'both': it must be marginal or posterior"),
    ],
)
def test_wrong_settings_are_named(field, value, message):
    config = quicktest()
    sections = {"sampler": "evaluate", "features": "evaluate", "corruption": "data", "source": "data"}
    section = {**sections, "multistep": "distill"}.get(field)
    with config.unlocked():
        (config[section] if section else config)[field] = value
    with pytest.raises(UserError, match=message):
        build(config)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seed", "0", "config.seed = '0': it must be a whole number"),
        ("teacher.steps", 2.5, "config.teacher.steps = 2.5: it must be a whole number"),
        ("teacher.ema_decay", "high", "config.teacher.ema_decay = 'high': it must be a number"),
        ("teacher.weight", 2, "config.teacher.weight = 2: it must be text"),
        ("teacher.checkpoint", None, "config.teacher.checkpoint = None: it must be text"),
        ("distill.student_weight", 2.0, "config.distill.student_weight = 2.0: it must be text"),
        ("distill.auxiliary_updates", True, "config.distill.auxiliary_updates = True: it must be a whole number"),
        ("distill.method", ["ibmd"], r"unknown method \['ibmd'\]"),
        ("data.source", 3, "config.data.source = 3: it must be text"),
        ("bridge", "i2sb", "config.bridge = 'i2sb': it must be {'name': ..., a setting: ...}"),
        ("evaluate.sampler", "dbim", "config.evaluate.sampler = 'dbim': it must be {'name': ..., a setting: ...}"),
        ("evaluate.nfe", 3, "config.evaluate.nfe = 3: it must hold whole numbers"),
    ],
)
def test_a_field_of_another_type_is_named(field, value, message):
    """As in a configuration of one's own: flags are checked when they are read."""
    config = ml_collections.ConfigDict(json.loads(quicktest().to_json()))
    *sections, last = field.split(".")
    with config.ignore_type():
        functools.reduce(getattr, sections, config)[last] = value
    with pytest.raises(UserError, match=message):
        build(config)


def test_the_label_of_a_mixture_reaches_a_network_with_classes():
    config = quicktest()
    names = ["grey", "sketch", {"name": "sr-pool", "factor": 8}]
    config.data.corruption = {"name": "mixture", "corruptions": names}
    assert next(build_data(config).batches("teacher", 8)(0)).cond is None  # blind
    with config.unlocked():
        config.network = {"name": "adm", "channels": 16, "conditional": False, "classes": 3}
    data = build_data(config)
    for batch in (next(data.batches("teacher", 8)(0)), data.test_batch(0)):
        for n, spec in enumerate(names):
            expected = jax.vmap(functools.partial(corruption(spec), None))(batch.x_0).x_T
            same = np.asarray(batch.cond) == n
            np.testing.assert_allclose(batch.x_T[same], expected[same], atol=1e-5)
            assert same.any()
    config.network.classes = 2
    with pytest.raises(UserError, match=r"config.network.classes = 2: config.data.corruption gives 3 labels"):
        build_data(config)


def test_what_would_fail_after_the_training_is_said_before(tmp_path):
    config = quicktest()
    config.evaluate.examples = 1
    with pytest.raises(UserError, match=r"config.evaluate.features: FID needs two test images"):
        build(config)
    config.evaluate.features = "none"
    config.distill.start = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"config.distill.start: no checkpoint at .*nowhere"):
        run(build(config), tmp_path / "run", "all")
    assert not (tmp_path / "run").exists()
    np.savez(tmp_path / "small.npz", x_0=np.zeros((2, 8, 8, 3), np.uint8))
    config.data.update(source=f"npz:{tmp_path}/small.npz", size=8)
    config.distill.start = ""
    with pytest.raises(UserError, match=r"config.data.size: ssim needs images of at least 11 x 11"):
        build(config)


@pytest.mark.parametrize(
    ("corruption", "channels", "told"),
    [
        ("inpaint-center", 0, False),
        ({"name": "inpaint-center", "fill": "grey"}, 0, True),
        ("sr4x-pool", 0, True),
        ("sr4x-pool", 3, False),
        ("noise", 0, False),
    ],
)
def test_a_student_without_noise_is_warned_of(caplog, corruption, channels, told):
    config = quicktest()
    config.data.corruption, config.distill.noise_channels = corruption, channels
    build_model(config)
    assert ("gives one x_0 for an x_T" in caplog.text) == told


@pytest.mark.parametrize("t_start", [0.0, 0.9])
def test_a_student_that_is_told_earlier_draws_from_many_answers_without_channels(caplog, t_start):
    config = quicktest()
    config.data.corruption, config.network.conditional, config.distill.t_start = "sr4x-pool", True, t_start
    model = build_model(config)
    assert ("gives one x_0 for an x_T" in caplog.text) == (t_start == 0)
    params = jax.jit(model.init_params)(jax.random.key(0))
    params = jax.tree.map(lambda p: p + 0.1, params)
    sample, batch = jax.jit(model.distill.sample), Batch(jnp.zeros((1, 32, 32, 3)))
    first, second = (sample(params, jax.random.key(i), batch) for i in (1, 2))
    assert bool((first != second).any()) == (t_start > 0)


@pytest.mark.parametrize(
    ("bridge", "conditional", "sampler", "told"),
    [
        ({"name": "i2sb"}, False, {"name": "dbim"}, True),
        ({"name": "i2sb"}, False, {"name": "probability_flow"}, True),
        ({"name": "i2sb"}, False, {"name": "dbim", "eta": 1.0}, False),
        ({"name": "i2sb"}, False, {"name": "ancestral"}, False),
        ({"name": "i2sb"}, True, {"name": "dbim"}, False),
        ({"name": "i2sb", "ot_ode": True}, False, {"name": "dbim"}, False),
    ],
)
def test_a_sampler_for_networks_that_see_x_T_is_warned_of(caplog, bridge, conditional, sampler, told):
    config = quicktest()
    config.bridge, config.network.conditional, config.evaluate.sampler = bridge, conditional, sampler
    config.distill.noise_channels = 3
    build_model(config)
    assert ("is for networks that see x_T" in caplog.text) == told


def test_a_workdir_is_refused_when_the_files_of_its_data_are_others(tmp_path):
    for i in range(2):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "photos" / f"{i}.png")
    config = quicktest()
    config.data.source = f"folder:{tmp_path}/photos"
    config.evaluate.features = "none"
    job = build(config)
    assert job.config["data"]["files"].startswith("1 + 1, ")
    check_workdir(tmp_path / "run", job.config)
    (tmp_path / "run" / "teacher").mkdir()
    check_workdir(tmp_path / "run", build(config).config)
    (tmp_path / "photos" / "1.png").rename(tmp_path / "photos" / "2.png")
    with pytest.raises(UserError, match=r"data.files was '1 \+ 1, .*', now '1 \+ 1, "):
        check_workdir(tmp_path / "run", build(config).config)


@pytest.mark.parametrize(("member", "other"), [("x_0", 1), ("label", 1)])
def test_a_workdir_is_refused_when_the_rows_of_its_file_are_others(tmp_path, member, other):
    arrays = {"x_0": np.zeros((4, 32, 32, 3), np.uint8), "label": np.zeros(4, np.int32)}
    config = quicktest()
    config.data.source = f"npz:{tmp_path}/data.npz"
    config.evaluate.features = "none"
    np.savez(tmp_path / "data.npz", **arrays)
    before = build(config).config
    assert before["data"]["files"].startswith("3 + 1, ")
    np.savez(tmp_path / "data.npz", **arrays)  # the same again
    assert build(config).config == before
    np.savez(tmp_path / "data.npz", **{**arrays, member: arrays[member] + np.asarray(other, arrays[member].dtype)})
    assert build(config).config["data"]["files"] != before["data"]["files"]


def test_restored_images_never_come_among_those_to_restore(tmp_path):
    job, photos, workdir = build(quicktest()), tmp_path / "photos", tmp_path / "run"
    photos.mkdir()
    (tmp_path / "link").symlink_to(photos)
    for source, out in (
        (photos, photos),
        (photos, photos / "restored"),
        (photos, tmp_path / "link" / "restored"),
        (workdir / "samples", ""),
        (workdir, ""),
    ):
        asked = Restoring(input=str(source), output=str(out))
        with pytest.raises(UserError, match="is in the folder of --input="):
            run(job._replace(restoring=asked), workdir, "sample")
    with pytest.raises(UserError, match="no finished student"):
        run(job._replace(restoring=Restoring(input=str(photos), output=str(tmp_path / "out"))), workdir, "sample")


@pytest.mark.parametrize("mode", ["sample", "evaluate"])
def test_a_profile_is_of_training(tmp_path, mode):
    job = build(quicktest())
    with pytest.raises(UserError, match=f"--profile=3 is of training, which --mode={mode} has none of"):
        run(job._replace(schedule=job.schedule._replace(profile=3)), tmp_path, mode)


@pytest.mark.parametrize(("fit", "side"), [("pad", 80), ("crop", 20), ("random-crop", 20), ("pad", 20), ("crop", 80)])
def test_photos_of_any_size_become_input(tmp_path, fit, side):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))
    photo.save(tmp_path / "0.png")
    config = quicktest()
    config.data.update(source="emoji:pairs", corruption="none", fit=fit)
    ((_, batch),) = build_data(config).inputs(str(tmp_path), False)[1]
    taken = fit if (fit == "pad") == (side < 32) else "resize-crop"
    expected = fit_image(photo, Options(32, fit=taken))
    np.testing.assert_array_equal(to_uint8(batch.x_T[0]), expected)


def test_homes_are_found_wherever_a_teacher_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert teacher_folders({"teacher": {"checkpoint": "~/a, /b"}}) == [f"{tmp_path}/a", "/b"]
    read = []
    monkeypatch.setattr("ibmd_jax.build.with_given_model", lambda c: read.append(c["teacher"]["start"]) or c)
    config = quicktest()
    config.teacher.start = "~/a"
    build_data(config)
    assert not read  # it may be elsewhere yet
    (tmp_path / "a").mkdir()
    build_data(config)
    assert read == ["~/a"]


def test_what_a_bridge_ends_at_decides_which_t_start_is_advised(caplog):
    config = quicktest()
    config.bridge = {"name": "ddbm_ve", "sigma_max": 80.0}
    config.network.conditional, config.parametrisation = True, {"name": "ddbm"}
    build_model(config)
    assert "t_start = 72 would let it draw" in caplog.text


def test_a_workdir_where_a_run_is_at_work_keeps_its_configuration(tmp_path, monkeypatch):
    job = build(quicktest())
    check_workdir(tmp_path, job.config)
    before = (tmp_path / "config.json").read_text()
    other = job._replace(config={**job.config, "seed": 7})
    monkeypatch.setattr("ibmd_jax.train.workdir.PATIENCE", 0)
    with locked(tmp_path), pytest.raises(UserError, match="another run is at work"):
        run(other, tmp_path, "all")
    assert (tmp_path / "config.json").read_text() == before


def test_grey_images_take_two_fields():
    config = config_files.by_flags("inpaint.py:quicktest", "--config.data.channels=1")
    with pytest.raises(UserError, match="set out_channels"):
        build_model(config)
    config.network.out_channels = 1
    build_model(config)


def test_without_noise_of_its_own_a_bridge_leaves_a_conditional_teacher_nothing_to_match():
    config = quicktest()
    config.bridge, config.network.conditional = {"name": "i2sb", "ot_ode": True}, True
    with pytest.raises(UserError, match=r"x_t and x_T tell x_0 .* or config.network.conditional = False"):
        build_model(config)
    config.network.conditional = False
    build_model(config)


@pytest.mark.parametrize("teachers", [1, 2])
def test_restoring_takes_neither_the_data_nor_the_teachers(tmp_path, teachers):
    golden, photos, given = ROOT / "tests" / "golden" / "ddbm_tiny.pt", tmp_path / "photos", tmp_path / "teacher"
    assert convert([str(golden), "--to", str(given), "--head_channels", "16"]) == 0
    photos.mkdir()
    for name in "ab":
        Image.new("RGB", (40, 40), (200, 100, 0)).save(photos / f"{name}.png")
    config = quicktest()
    config.teacher.checkpoint = ",".join(teachers * [str(given)])
    config.data.update(source=f"corrupted:{photos}", corruption="none")
    before = build(config)
    check_workdir(tmp_path / "run", before.config)
    for moved in (photos, given):
        moved.rename(tmp_path / f"another {moved.name}")
        with pytest.raises(UserError, match=moved.name):
            build(config)
    job = build(config, trained=tmp_path / "run")
    assert job.config == before.config
    assert job.config["network"]["name"] == "adm"
    count, ((names, batch),) = job.inputs(str(tmp_path / "another photos"))
    assert (count, names, batch.x_T.shape) == (2, ["a", "b"], (2, 32, 32, 3))
    config.distill.batch_size += 1  # does not divide over these devices, and is not needed
    assert build(config, trained=tmp_path / "run").config["network"] == before.config["network"]
    config.teacher.checkpoint = ""  # then the network is what the configuration says
    assert build(config, trained=tmp_path / "run").config["network"]["name"] == config.network.name
    with pytest.raises(UserError, match=r"nowhere has no config.json"):
        build(config, trained=tmp_path / "nowhere")


def test_images_to_restore_are_made_as_those_of_the_training(tmp_path, caplog):
    rng = np.random.default_rng(0)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for i in range(3):
            image = rng.integers(0, 256, (40, 48 + 8 * i, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / folder / f"{i}.png")
    given = f"{tmp_path}/a"
    config = quicktest()
    config.data.update(source=f"paired:{given},{tmp_path}/b", corruption="none", filter="bicubic", filter_T="nearest")
    data = build_data(config)
    count, batches = data.inputs(given, False)
    ((names, batch),) = batches
    assert (count, names) == (3, ["0", "1", "2"])
    np.testing.assert_array_equal(batch.x_T[0], from_uint8(data.train[0]["x_T"]))  # by filter_T
    config.data.source = f"corrupted:{given}"
    np.testing.assert_array_equal(build_data(config).train[0]["x_T"], data.train[0]["x_T"])

    config.data.update(source=f"folder:{tmp_path}/b", corruption="sr4x-pool", fit="random-crop")
    ((_, batch),) = build_data(config).inputs(given, False)[1]
    assert batch.x_T.shape == (3, 32, 32, 3)  # the middle of each

    (tmp_path / "a" / "1.png").write_bytes(b"no image")
    with pytest.raises(
        UserError, match=r"1.png.* set config.data.on_error=skip \(without --config: on_error in WORKDIR"
    ):
        list(build_data(config).inputs(given, False)[1])
    config.data.on_error = "skip"
    ((names, batch),) = build_data(config).inputs(given, False)[1]
    assert (names, len(batch.x_T)) == (["0", "2"], 2)
    assert "skipped" in caplog.text

    config.data.update(fit="resize-crop", corruption="jpeg-5")
    ((_, plain),) = build_data(config).inputs(given, False)[1]
    config.data.corruption = {"name": "mixture", "corruptions": ["inpaint-center", "noise"]}
    with config.unlocked():
        config.network.classes, config.distill.blind = 3, True
    ((_, batch),) = build_data(config).inputs(given, True)[1]
    np.testing.assert_array_equal(batch.x_T, plain.x_T)  # no second corruption on top of the user's
    assert batch.mask is None


@pytest.mark.parametrize("corruption", ["sr4x-pool", {"name": "sr-bicubic"}])
@pytest.mark.parametrize("fit", ["resize-crop", "pad"])
def test_super_resolution_takes_small_images_and_enlarged_ones(tmp_path, corruption, fit):
    small = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    large = small.repeat(4, axis=0).repeat(4, axis=1)
    for name, image in (("small", small), ("large", large)):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    config = quicktest()
    config.data.update(corruption=corruption, fit=fit)
    ((_, batch),) = build_data(config).inputs(str(tmp_path), False)[1]
    for x_T in batch.x_T:
        np.testing.assert_array_equal(x_T, from_uint8(large))


def test_each_image_to_restore_has_noise_of_its_own_whatever_the_batch(tmp_path):
    for i in range(6):
        Image.new("RGB", (32, 32), (90, 10, 10)).save(tmp_path / f"{i}.png")
    config, found = quicktest(), {}
    for size in (4, 8):
        config.evaluate.batch_size = size
        found[size] = np.concatenate([b.x_T for _, b in build_data(config).inputs(str(tmp_path), False)[1]])
    np.testing.assert_array_equal(found[4], found[8])
    holes = found[8][:, 8:24, 8:24]
    for a, b in itertools.combinations(range(6), 2):
        assert abs(float(np.corrcoef(holes[a].ravel(), holes[b].ravel())[0, 1])) < 0.2
    assert 0.9 < holes.std() < 1.1


def test_the_names_of_the_emoji_reach_a_network_with_an_embedding():
    config = quicktest()
    config.data.source = "emoji:names"
    assert next(build_data(config).batches("teacher", 8)(0)).cond is None
    config.network.embedding = 128
    data = build_data(config)
    expected = {x.tobytes() for x in name_embeddings()[rows_of("train")]}
    cond = next(data.batches("teacher", 8)(0)).cond
    assert (cond.shape, cond.dtype) == ((8, 128), jnp.float32)
    assert {x.tobytes() for x in np.asarray(cond)} <= expected
    np.testing.assert_array_equal(data.test_batch(0).cond, name_embeddings()[rows_of("test")])
    np.testing.assert_array_equal(data.test_batch(3).cond, name_embeddings()[rows_of("test")[[0, 198, 397]]])
    job = build(config)
    assert jax.eval_shape(job.init_params, jax.random.key(0))["text_emb"]["kernel"].shape == (128, 64)


@pytest.mark.parametrize(
    ("network", "source", "message"),
    [
        ({"embedding": 128}, "emoji", "emoji .train. has no text, which config.network.embedding = 128 asks for: set"),
        ({"embedding": 64}, "emoji:names", "embedding = 64: the text of emoji:names .train. has .*; set it to 128"),
        ({"embedding": 128, "classes": 3}, "emoji:names", "config.network.classes and .embedding are both set"),
        ({"name": "mlp", "embedding": 128}, "emoji:names", "config.network has no field"),
    ],
)
def test_what_does_not_fit_an_embedding_is_named(network, source, message):
    config = quicktest()
    config.data.source = source
    with config.unlocked():
        config.network.update(network)
    for function in (build, build_data):
        with pytest.raises(UserError, match=message):
            function(config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"combine": "by_label"},
            "config.teacher.combine = 'by_label' is for several teachers in config.teacher.check",
        ),
        ({"weights": (1.0, 2.0)}, r"config.teacher.weights = \[1.0, 2.0\] is for several teachers"),
    ],
)
def test_what_combines_teachers_is_refused_where_there_is_one(settings, message):
    config = quicktest()
    config.teacher.update(settings)
    with pytest.raises(UserError, match=message):
        build_model(config)


@pytest.mark.parametrize("field", ["classes", "embedding"])
def test_teachers_of_a_task_each_are_refused_where_they_are_conditioned(monkeypatch, field):
    config = quicktest()
    own = {"network": {"name": "unet", field: 4}, "bridge": {"name": "i2sb"}, "parametrisation": {"name": "i2sb"}}
    monkeypatch.setattr("ibmd_jax.build.model.read_meta", lambda folder: {"model": own})
    config.teacher.update(checkpoint="a,b", combine="by_label")
    with pytest.raises(UserError, match=f"a has network.{field}: teachers that are combined by_label see no cond"):
        build_model(config)


def test_several_teachers_keep_their_parametrisations_and_are_computed_as_configured(monkeypatch):
    config = quicktest()
    config.network.update(dtype="bfloat16", remat="block")
    network = {"name": "unet", "channels": [16], "attention": [], "groups": 4, "conditional": False}
    common, kinds = {"network": network, "bridge": {"name": "i2sb"}}, ("x_0", "i2sb")
    monkeypatch.setattr(
        "ibmd_jax.build.model.read_meta", lambda kind: {"model": {**common, "parametrisation": {"name": kind}}}
    )

    def made(checkpoint):
        config.teacher.checkpoint = checkpoint
        return build_model(config)

    several = made("x_0,i2sb")
    params = tuple(init(jax.random.key(n)) for n, init in enumerate(several.init_teachers))
    params = jax.tree.map(lambda p: p + 0.05, params)
    x_T = jax.random.normal(jax.random.key(2), (2, 32, 32, 3))

    def one_step(model, params):
        return model.teacher.sample(params, jax.random.key(3), Batch(x_T), steps=1)

    singles = [one_step(made(kind), p) for kind, p in zip(kinds, params, strict=True)]
    assert float(jnp.abs(singles[0] - singles[1]).mean()) > 0.1
    np.testing.assert_allclose(one_step(several, params), sum(singles) / 2, atol=1e-5)
    lowered = str(jax.make_jaxpr(lambda p: jax.grad(lambda p: one_step(several, p).sum())(p))(params))
    assert "bf16" in lowered
    assert "remat" in lowered


POWER = "{'name': 'power', 'exponent': 0.3}"
KARRAS = "{'name': 'karras', 't_min': 0.01}"


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        ("inpaint.py:quicktest", "data.corruption", "jpeg-5"),
        ("inpaint.py:quicktest", "data.corruption", "{'name': 'jpeg', 'quality': 7}"),
        ("paper.py:jpeg-5-quicktest", "data.corruption", "{'name': 'jpeg', 'quality': 7}"),
        ("generate.py:dibregman,quicktest", "distill.divergence", "pearson"),
        ("generate.py:dibregman,quicktest", "distill.divergence", POWER),
        ("inpaint.py:dibregman", "distill.divergence", POWER),
        ("inpaint.py:quicktest", "evaluate.sampler.time_grid", KARRAS),
        ("generate.py:quicktest", "evaluate.sampler.time_grid", KARRAS),
        ("paper.py:jpeg-5-quicktest", "evaluate.sampler.time_grid", KARRAS),
    ],
)
def test_a_name_or_a_name_with_settings_is_set_by_flag_and_in_a_file(file, field, value):
    flagged = config_files.by_flags(file, f"--config.{field}={value}")
    name, _, variant = file.partition(".py:")
    derived = config_files.load(name).get_config(variant)
    *sections, last = field.split(".")
    place = functools.reduce(getattr, sections, derived)
    place[last] = ast.literal_eval(value) if value.startswith("{") else value
    assert json.loads(flagged.to_json()) == json.loads(derived.to_json())
    build_model(flagged)
    for wrong in ("5", "{'quality': 7}"):
        with pytest.raises(UserError, match=r"give a name, or {'name': ..., a setting: ...}"):
            build_model(config_files.by_flags(file, f"--config.{field}={wrong}"))
    # A derived configuration may have a field of type str: what the flag gives is then a string.
    with derived.unlocked():
        del place[last]
        place[last] = value
    build_model(derived)


@pytest.mark.parametrize(("name", "k"), [("ten_to_1", 1), ("ten_to_0.5", 0.5), ("ten_to_-2", -2)])
def test_a_weight_is_ten_to_any_power(name, k):
    weight = _weight({"distill": {"student_weight": name}}, "distill", "student_weight", None)
    found = weight(BRIDGES["edm"](), jnp.float32([0, 20, 80]))
    np.testing.assert_allclose(found, [10.0**k, 10 ** (0.75 * k), 1], rtol=1e-5)
    with pytest.raises(UserError, match=r"unknown weight in config.distill.student_weight 'ten_to_k'"):
        _weight({"distill": {"student_weight": "ten_to_k"}}, "distill", "student_weight", None)


@pytest.mark.parametrize("bridge", ["{'name': 'edm'}", "{'name': 'diffusion_ve', 'sigma_max': 7.0}"])
def test_the_advice_on_noise_works_when_it_is_followed(bridge):
    more = ["--config.parametrisation={'name': 'edm'}", "--config.distill.noise_channels=1"]
    more += [f"--config.bridge={bridge}"]
    with pytest.raises(UserError, match=r"set config.data.corruption = ") as error:
        build_model(config_files.by_flags("inpaint.py:quicktest", *more))
    spec = re.search(r"set config.data.corruption = (\{.*\})", str(error.value))[1]
    build_model(config_files.by_flags("inpaint.py:quicktest", *more, f"--config.data.corruption={spec}"))


def test_a_network_is_conditioned_by_flag():
    config = config_files.by_flags("inpaint.py:quicktest", "--config.network.classes=10")
    assert build_model(config).conditioning.classes == 10
    assert next(build_data(config).batches("teacher", 8)(0)).cond.dtype == jnp.int32
    more = ["--config.data.source=emoji:names", "--config.network.embedding=128"]
    config = config_files.by_flags("inpaint.py:quicktest", *more)
    assert next(build_data(config).batches("teacher", 8)(0)).cond.shape == (8, 128)
    mixture = "--config.data.corruption={'name': 'mixture', 'corruptions': ['grey', 'sketch']}"
    more = [mixture, "--config.network.classes=3", "--config.distill.blind=true"]
    assert build_model(config_files.by_flags("inpaint.py:quicktest", *more)).conditioning.classes == 3
