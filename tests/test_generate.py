"""Diffusion teachers and all methods of distilling them through the configuration."""

import json

import config_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parameters import perturb

from ibmd_jax.bridges import BRIDGES
from ibmd_jax.build import build, build_data, build_model
from ibmd_jax.build.methods import Parts, _teacher_samples
from ibmd_jax.core.errors import UserError
from ibmd_jax.core.types import Batch
from ibmd_jax.networks.generator import told_earlier
from ibmd_jax.train.compare import cosine, spherical, straight
from ibmd_jax.train.job import Restoring, _drawn, load_student, run

GENERATE = config_files.load("generate")


def tiny(arg, **distill):
    config = config_files.light(GENERATE.get_config(f"{arg},quicktest"))
    config.teacher.update(steps=2, batch_size=8)
    if config.distill.method in ("sfddm", "progressive"):
        config.distill.student_steps = 2
    config.distill.update(steps=1, batch_size=8, **distill)
    config.evaluate.update(nfe=(2,), batch_size=16, examples=16)
    return config


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    with jax.numpy_dtype_promotion("standard"):
        run(build(tiny("ibmd")), folder, "teacher")
    return str(folder / "teacher" / "export")


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("dibregman", {"reference": "teacher", "reference_steps": 2, "classifier": "own", "adversarial": 0.1}),
        ("ibmd", {"start": "random"}),
        ("progressive", {}),
    ],
)
def test_every_method_distils(teacher, tmp_path, method, settings):
    config = tiny(method, **settings)
    config.teacher.checkpoint = teacher
    job = build(config)
    run(job, tmp_path, "distill")
    student, _ = load_student(job, tmp_path)
    images = jax.jit(job.distill.sample)(student, jax.random.key(0), job.test())
    assert images.shape == (16, 32, 32, 3)
    assert bool(jnp.isfinite(images).all())
    assert next((tmp_path / "pictures").iterdir()).stat().st_size > 1000


@pytest.mark.usefixtures("lenient")
def test_a_job_that_generates_is_evaluated_and_compared(teacher, tmp_path):
    """At rate 0 the student is the teacher, on the same two steps."""
    config = tiny("sfddm", times=(0.5, 1.0))
    config.teacher.checkpoint = teacher
    config.distill.student_optimizer.learning_rate = 0.0
    job = build(config)
    run(job, tmp_path, "all")
    report = json.loads((tmp_path / "report.json").read_text())
    assert [(r["label"], r["nfe"]) for r in report["rows"]] == [("student", 2), ("teacher", 2)]
    assert set(report["rows"][0]["metrics"]) == {"fid", "kid", "diversity"}  # no pairs to measure
    assert report["rows"][0]["metrics"]["diversity"] > 0.05
    student, slow = (row["images_per_second"] for row in report["rows"])
    assert report["speed_up"] == student / slow  # the teacher's row, though no slower by its NFE
    run(job, tmp_path, "compare")
    found = json.loads((tmp_path / "consistency.json").read_text())
    assert (found["images"], found["student NFE"], found["teacher NFE"]) == (16, 2, 2)
    np.testing.assert_allclose(found["same noise"], 1, atol=1e-4)
    assert found["other noise"] < 0.999
    assert {"consistency.png", "interpolation.png", "samples.png"} <= {p.name for p in tmp_path.iterdir()}
    run(job._replace(restoring=Restoring(draws=2)), tmp_path, "sample")
    made = {p.name: p.read_bytes() for p in (tmp_path / "samples").iterdir()}
    assert made.keys() == {f"{i:05d}_{draw}.png" for i in range(16) for draw in (0, 1)}
    assert len({*made.values()}) == 32  # of new noise, not of another image's
    with pytest.raises(UserError, match="--steps=1: this student takes 2"):
        run(job._replace(restoring=Restoring(steps=1)), tmp_path, "sample")
    (tmp_path / "consistency.png").unlink()
    (tmp_path / "consistency.png").mkdir()
    with pytest.raises(UserError, match=f"cannot write to {tmp_path}: Is a directory; the cosines above"):
        run(job, tmp_path, "compare")
    config.evaluate.sampler.name = "ancestral"
    with pytest.raises(UserError, match=r"x_T alone decides: set config.evaluate.sampler"):
        run(build(config), tmp_path, "compare")


@pytest.mark.usefixtures("lenient")
def test_a_student_is_compared_where_x_T_alone_decides(teacher, tmp_path):
    config = tiny("ibmd", t_start=0.0, student_steps=2)
    config.teacher.checkpoint = teacher
    job = build(config)
    run(job, tmp_path, "distill")
    run(job, tmp_path, "compare")
    assert json.loads((tmp_path / "consistency.json").read_text())["student NFE"] == 1
    with pytest.raises(UserError, match=r"this student draws noise in config.distill.noise_channels"):
        run(build(tiny("ibmd", t_start=0.0, noise_channels=1)), tmp_path / "other", "compare")


def test_further_draws_have_new_noise_of_the_bridges_deviation():
    config = tiny("ibmd", t_start=0.0)
    config.bridge = {"name": "diffusion_ve", "sigma_max": 7.0}
    config.data.corruption = {"name": "pure-noise", "std": 7.0}
    job = build(config)._replace(restoring=Restoring(draws=3))
    drawn = [_drawn(job, job.test(), draw, number).x_T for number in (0, 1) for draw in (1, 2)]
    for i, x_T in enumerate(drawn):
        assert 6.9 < x_T.std() < 7.1
        for other in drawn[:i]:
            assert abs(float(np.corrcoef(x_T.ravel(), other.ravel())[0, 1])) < 0.05
    assert _drawn(job, job.test(), 0, 1) is job.test()


@pytest.mark.usefixtures("lenient")
def test_a_flow_is_distilled_by_configuration(tmp_path):
    config = tiny("ibmd")
    config.bridge, config.parametrisation = {"name": "flow"}, {"name": "v"}
    run(build(config), tmp_path, "all")
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert [row["label"] for row in rows] == ["student", "teacher"]
    assert all(np.isfinite(list(row["metrics"].values())).all() for row in rows)


@pytest.mark.parametrize(
    ("arg", "change", "message"),
    [
        ("sfddm", {"multistep": "marginal"}, r"config.distill .method sfddm. has no field 'multistep'"),
        ("sfddm", {"times": (0.5, 0.4)}, r"config.distill.times = \(0.5, 0.4\): 2 increasing times"),
        ("sfddm", {"times": (0.5, 0.9)}, "increasing times, from above 0 to 1.0"),
        ("sfddm", {"times": (1.0, 1.0)}, "increasing times, from above 0 to 1.0"),
        ("sfddm", {"times": (0.0, 1.0)}, "increasing times, from above 0 to 1.0"),
        ("sfddm", {"hidden": "layers"}, "config.distill: hidden = 'layers'"),
        ("dibregman", {"student_steps": 2}, "a student of dibregman has 1"),
        ("dibregman", {"divergence": "reverse-kl"}, "unknown divergence 'reverse-kl'.*Did you mean 'reverse_kl'"),
        ("dibregman", {"divergence": {"name": "powr"}}, "unknown divergence 'powr'.*Did you mean 'power'"),
        ("dibregman", {"divergence": {"name": "pearson", "exponent": 1}}, "config.distill.divergence has no field"),
        ("dibregman", {"divergence": {"name": "power", "exponent": "x"}}, "config.distill.divergence: "),
        ("dibregman", {"ratio_clip": (20.0, 0.1)}, "the bounds are 0 <= low < high"),
        ("dibregman", {"ratio_clip": 3.0}, "config.distill: "),
        ("dibregman", {"logit_clip": -1.0}, "config.distill.logit_clip = -1.0"),
        ("sfddm", {"times": ("a", 1.0)}, "config.distill.times = .*: it must hold numbers"),
        ("dibregman", {"classifier": "none"}, "unknown value of config.distill.classifier 'none'"),
        ("dibregman", {"t_start": 2.0}, "config.distill.t_start = 2.0: it must be from 0"),
        ("dibregman", {"reference_steps": 0}, "config.distill.reference_steps = 0"),
        ("ibmd", {"method": "idmb"}, "unknown method 'idmb': choose one of dibregman, ibmd, progressive, sfddm"),
    ],
)
def test_wrong_settings_are_named(arg, change, message):
    config = tiny(arg)
    with config.unlocked():
        for name, value in change.items():
            if name in config.distill:
                del config.distill[name]  # so that it may be of any type
            config.distill[name] = value
    with pytest.raises(UserError, match=message):
        build(config)


def test_how_a_run_is_evaluated_does_not_change_what_it_trains():
    """config.evaluate may change between the runs of one workdir: the step is the same program."""
    programs = []
    for sampler in ("dbim", "ancestral"):
        config = tiny("dibregman", reference="teacher")
        config.evaluate.sampler.name = sampler
        job = build(config)
        batch = jax.eval_shape(lambda batch: jax.tree.map(lambda x: x[:8], batch), job.test())
        params = jax.eval_shape(lambda j=job: j.init_params(jax.random.key(0), 0))
        state = jax.eval_shape(lambda p, j=job: j.distill.init((p, p)), params)
        with jax.numpy_dtype_promotion("standard"):
            update = jax.jit(job.distill.updates["auxiliary"].apply)
            programs.append(update.lower(state, params, batch, jax.random.key(0)).as_text())
    assert programs[0] == programs[1]


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_students_of_a_chain_have_one_evaluation_a_step(steps):
    config = tiny("progressive")
    config.evaluate.sampler.name, config.distill.student_steps = "probability_flow", steps
    with pytest.raises(UserError, match="a student of progressive has one evaluation a step: take ancestral or dbim"):
        build(config)


@pytest.mark.parametrize(("method", "told"), [("features", False), ("sfddm", True), ("progressive", True)])
def test_a_chain_that_draws_noise_at_T_is_warned_of(caplog, method, told):
    config = tiny("progressive" if method == "progressive" else "sfddm")
    if method == "features":
        config.distill.update(hidden="features", output_weight=1.0)
    build_model(config)
    assert "learns the mean over it" not in caplog.text
    with config.unlocked():
        config.bridge, config.data.corruption = {"name": "i2sb"}, "inpaint-center"
    build_model(config)
    assert ("learns the mean over it" in caplog.text) == told


@pytest.mark.parametrize("hidden", ["features", "latents", ""])
@pytest.mark.parametrize("sampler", [{"name": "ancestral"}, {"name": "dbim", "eta": 1.0}])
def test_a_student_of_deterministic_steps_is_not_for_random_ones(caplog, hidden, sampler):
    config = tiny("sfddm", hidden=hidden, output_weight=float(hidden == "features")) if hidden else tiny("progressive")
    build_model(config)
    assert "makes a student of deterministic steps" not in caplog.text
    with config.unlocked():
        config.evaluate.sampler = sampler
    build_model(config)
    assert ("makes a student of deterministic steps" in caplog.text) == (hidden != "features")


def test_a_student_of_several_steps_is_told_each_of_its_times_once():
    config = tiny("ibmd")
    config.distill.student_steps, config.distill.t_start = 4, 0.75
    with pytest.raises(UserError, match=r"t_start = 0.75: the second step of this student is told 0.75"):
        build_model(config)
    config.distill.t_start = 0.9
    build_model(config)


def test_samples_of_a_teacher_on_edm_have_its_deviation():
    """An exact denoiser of N(0, 0.5^2): equal steps from 80 would end at a deviation of 0.05."""
    bridge = BRIDGES["edm"]()
    parts = Parts(lambda params, x, t, x_T, cond: x * 0.25 / (0.25 + t**2), *[None] * 2, bridge, *[None] * 5)
    x_T = 80 * jax.random.normal(jax.random.key(0), (4000, 1))
    found = _teacher_samples(parts, 16)(None, jax.random.key(1), Batch(x_T))
    assert 0.4 < found.std() < 0.55


def test_two_of_a_kind_are_refused():
    for arg in ("sfddm,ibmd", "emoji,fashion"):
        with pytest.raises(ValueError, match="one method and one kind of data"):
            GENERATE.get_config(arg)


def test_bridges_take_density_ratios_too():
    """Conditional on x_T, with z in x_t; the whole step is traced, with the head's parameters of this network."""
    config = config_files.load("inpaint").get_config("dibregman")
    config.distill.update(batch_size=4, auxiliary_updates=1)
    job = build(config)
    batch = jax.eval_shape(lambda batch: jax.tree.map(lambda x: x[:8], batch), job.test())
    params = jax.eval_shape(lambda: job.init_params(jax.random.key(0), 0))
    state = jax.eval_shape(lambda start: job.distill.init((start, start)), params)
    with jax.numpy_dtype_promotion("standard"):
        after, _ = jax.eval_shape(job.distill.step, state, params, batch, jax.random.key(0))
    jax.tree.map(lambda x, y: (x.shape, x.dtype) == (y.shape, y.dtype) or pytest.fail(f"{x} became {y}"), state, after)


@pytest.mark.parametrize("times", [(0.3, 1.0), ()])
def test_a_student_has_the_times_that_are_given(times):
    """A new network answers v = 0, so that a DDIM step from s to u multiplies by alpha_s alpha_u + sigma_s sigma_u."""
    job, bridge = build(tiny("sfddm", times=times)), BRIDGES["diffusion_cosine"]()
    batch = jax.tree.map(lambda x: x[:2], job.test())
    images = job.distill.sample(job.init_params(jax.random.key(0), 0), jax.random.key(1), batch)
    middle = times[0] if times else 0.5
    s, u = jnp.float32([1.0, middle]), jnp.float32([middle, 0.0])
    factor = (bridge.alpha(s) * bridge.alpha(u) + bridge.sigma(s) * bridge.sigma(u)).prod()
    np.testing.assert_allclose(images, factor * batch.x_T, atol=1e-5)


def test_a_missing_field_is_named():
    config = tiny("sfddm")
    with config.unlocked():
        del config.distill.chain
    with pytest.raises(UserError, match=r"config.distill lacks 'chain', a field of the method sfddm"):
        build(config)


def test_noise_belongs_to_bridges_that_start_from_it():
    config = tiny("ibmd")
    for corruption in ("grey", {"name": "pure-noise", "std": 2.0}):
        config.data.corruption = corruption
        with pytest.raises(UserError, match=r"Cosine starts from noise of deviation 1: set config.data.corruption"):
            build(config)
    config = tiny("ibmd")
    config.network.conditional = True
    with pytest.raises(UserError, match=r"config.network.conditional: x_T is noise"):
        build(config)
    config.network.conditional, config.bridge = False, {"name": "brownian"}
    with pytest.raises(UserError, match="'pure-noise': Brownian is a bridge between images"):
        build(config)
    config = config_files.load("inpaint").get_config("dibregman")
    config.bridge, config.parametrisation = {"name": "flow"}, {"name": "x_0"}
    with pytest.raises(UserError, match=r"'dibregman': .* has no noise, so that x_t and x_T tell x_0"):
        build(config)
    config = config_files.load("inpaint").get_config("dibregman")
    config.network.conditional = False
    with pytest.raises(UserError, match=r"on a bridge between images needs config.network.conditional"):
        build(config)
    config = config_files.load("inpaint").get_config("quicktest")
    config.distill.update(t_start=0.5, noise_channels=1)
    with pytest.raises(UserError, match=r"noise_channels and .t_start are both set"):
        build(config)
    config.distill.noise_channels = 0
    for start, bridge in ((1.0, {"name": "i2sb"}), (0.5, {"name": "i2sb", "ot_ode": True})):
        config.distill.t_start, config.bridge = start, bridge
        with pytest.raises(UserError, match=rf"t_start = {start}: .* has no noise at that time"):
            build(config)


@pytest.mark.parametrize(("bridge", "std"), [("diffusion_cosine", 1.0), ("edm", 80.0)])
def test_noise_has_the_bridges_deviation_and_nothing_of_the_image(bridge, std):
    config = tiny("ibmd")
    config.data.corruption = {"name": "pure-noise", "std": std}
    config.bridge = {"name": bridge}
    config.parametrisation = {"name": "edm"}
    build(config)
    batch = next(build_data(config).batches("teacher", 32)(0))
    np.testing.assert_allclose([batch.x_T.mean() / std, batch.x_T.std() / std], [0, 1], atol=0.02)
    assert abs(np.corrcoef(np.ravel(batch.x_T), np.ravel(batch.x_0))[0, 1]) < 0.02


def test_names_reach_the_network():
    job = build(tiny("dibregman,emoji-names"))
    batch = jax.tree.map(lambda x: x[:8], job.test())
    assert batch.cond.shape == (8, 128)
    assert job.distill.batches == 2
    params = perturb(job.init_params(jax.random.key(0), 0))
    named = jax.jit(lambda cond: job.distill.sample(params, jax.random.key(1), batch._replace(cond=cond)))
    assert jnp.abs(named(batch.cond) - named(batch.cond[::-1])).max() > 0.01


def test_told_earlier_changes_the_end_alone():
    bridge, t = BRIDGES["diffusion_cosine"](), jnp.asarray([1.0, 0.75, 0.2])
    told = told_earlier(lambda params, x, t, x_T, cond, z: (x, t, z), bridge, 0.75, from_noise=True)
    x, found, z = told(None, jnp.ones((3, 2)), t, z=2.0)
    np.testing.assert_allclose(found, [0.75, 0.75, 0.2])
    np.testing.assert_allclose(x[:, 0], [bridge.sigma(jnp.float32(0.75)), 1, 1], rtol=1e-6)
    assert z == 2.0


def test_a_student_of_images_that_is_told_earlier_sees_the_bridge_from_x_T_to_itself():
    bridge, key, t = BRIDGES["ddbm_vp"](), jax.random.key(0), jnp.asarray([1.0, 0.9, 0.2])
    told = told_earlier(lambda params, x, t, x_T, cond, z: (x, t, x_T, z), bridge, 0.9, from_noise=False)
    x_T = jax.random.normal(jax.random.key(1), (3, 4))
    x, found, seen, z = told(None, x_T, t, x_T, z=jax.random.normal(key, x_T.shape))
    np.testing.assert_allclose(found, [0.9, 0.9, 0.2])
    np.testing.assert_allclose(x[0], bridge.sample(key, x_T, x_T, jnp.full(3, 0.9))[0], rtol=1e-6)
    np.testing.assert_array_equal(x[1:], x_T[1:])
    np.testing.assert_array_equal(seen, x_T)
    assert z is None  # no further channels


def test_lines_in_noise():
    x, y = jax.random.normal(jax.random.key(0), (2, 3, 8, 8, 1))
    for line in (straight, spherical):
        np.testing.assert_allclose(line(x, y, 0.0), x, atol=1e-5)
        np.testing.assert_allclose(line(x, y, 1.0), y, atol=1e-5)
    middle = spherical(x, y, 0.5)
    np.testing.assert_allclose(middle.std() / x.std(), 1, atol=0.1)
    assert straight(x, y, 0.5).std() < 0.8 * x.std()
    same = 2.0 * x / jnp.linalg.norm(x.reshape(3, -1), axis=1).reshape(3, 1, 1, 1)
    other = 2.0 * y / jnp.linalg.norm(y.reshape(3, -1), axis=1).reshape(3, 1, 1, 1)
    half = spherical(same, other, 0.5).reshape(3, -1)
    np.testing.assert_allclose(jnp.linalg.norm(half, axis=1), 2.0, rtol=1e-5)


def test_cosine_is_about_the_mean():
    a, mean = np.float32([[1, 2], [3, 0]]), np.float32([1, 1])
    np.testing.assert_allclose(cosine(a, a, mean), 1)
    np.testing.assert_allclose(cosine(a, 2 * mean - a, mean), -1)
    np.testing.assert_allclose(cosine(np.float32([[2, 1]]), np.float32([[1, 2]]), mean), 0)
