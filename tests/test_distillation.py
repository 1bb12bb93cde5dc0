"""Distilling given teachers through the configuration: from corrupted images alone, several teachers, other starts."""

import json
import re
import shutil

import config_files
import jax
import numpy as np
import pytest
from parameters import perturb
from PIL import Image

from ibmd_jax.build import build
from ibmd_jax.core.errors import UserError
from ibmd_jax.data.preview import preview
from ibmd_jax.train import job as job_module
from ibmd_jax.train.checkpoint import Checkpoints
from ibmd_jax.train.job import Restoring, evaluate_both, load_student, load_teacher, run

pytestmark = pytest.mark.usefixtures("one_device")
TASKS = ("sr4x-pool", "jpeg-5", "inpaint-center")


def tiny(corruption):
    config = config_files.get_config()
    config.data.corruption = corruption
    config.teacher.update(steps=2, batch_size=8)
    config.distill.update(steps=2, batch_size=8, auxiliary_updates=1, noise_channels=1)
    config.evaluate.update(nfe=(1,), batch_size=16, examples=16)
    return config


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Folders of a teacher for each task."""
    folder = tmp_path_factory.mktemp("teachers")
    with jax.numpy_dtype_promotion("standard"):
        for task in TASKS:
            run(build(tiny(task)), folder / task, "teacher")
    return [folder / task / "teacher" / "export" for task in TASKS]


@pytest.mark.usefixtures("lenient")
def test_corrupted_images_alone_are_enough(teachers, tmp_path):
    """The source has no x_0; the student is the same, bit for bit, as with a source that brings one beside x_T."""
    rng = np.random.default_rng(0)
    x_T, x_0 = rng.integers(0, 256, (2, 40, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "corrupted.npz", x_T=x_T)
    np.savez(tmp_path / "pairs.npz", x_T=x_T, x_0=x_0)
    students = []
    for name in ("corrupted", "pairs"):
        config = tiny("none")
        config.data.source = f"npz:{tmp_path}/{name}.npz"
        config.teacher.checkpoint = str(teachers[0])
        job = build(config)
        run(job, tmp_path / name, "distill")
        run(job, tmp_path / name, "sample")
        assert list((tmp_path / name / "samples").iterdir())
        students.append(load_student(job, tmp_path / name)[1]["fingerprint"])
    assert students[0] == students[1]
    config.data.source = f"npz:{tmp_path}/corrupted.npz"
    config.distill.real_data = (0.9, 0.9)
    with pytest.raises(UserError, match=r"config.distill.real_data other than \(1.0, 1.0\) needs clean images"):
        build(config)


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("blind", [False, True])
def test_a_teacher_for_each_task(teachers, tmp_path, capsys, blind):
    config = tiny({"name": "mixture", "corruptions": TASKS})
    config.teacher.update(checkpoint=",".join(map(str, teachers)), combine="by_label")
    config.distill.blind = blind
    job = build(config)
    run(job, tmp_path, "distill")
    if not blind:
        run(job, tmp_path, "evaluate")
        report = json.loads((tmp_path / "report.json").read_text())
        assert [row["label"] for row in report["rows"]] == ["student", "teacher"]
        config.teacher.checkpoint = ",".join(map(str, reversed(teachers)))
        with pytest.raises(UserError, match="was distilled from another teacher than the present one"):
            evaluate_both(build(config), tmp_path, {})
    for name in ("a.png", "b/a.jpg", "b/c.png"):
        (tmp_path / "given" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (90, 10, 10)).save(tmp_path / "given" / name)
    mine = job._replace(restoring=Restoring(str(tmp_path / "given")))
    if blind:
        run(mine, tmp_path, "sample")
        found = sorted(p.relative_to(tmp_path / "samples") for p in (tmp_path / "samples").rglob("*.png"))
        assert [str(p) for p in found] == ["a.png", "b/a.png", "b/c.png"]
        (tmp_path / "given" / "a.png").rename(tmp_path / "given" / "d.png")
        capsys.readouterr()
        run(mine, tmp_path, "sample")
        assert f"Wrote 3 restored images to {tmp_path}/samples, where 1 of other runs are." in capsys.readouterr().out
        (tmp_path / "given" / "d.png").rename(tmp_path / "given" / "a.png")
        Image.new("RGB", (40, 40)).save(tmp_path / "given" / "a.jpg")
        with pytest.raises(UserError, match="has 2 images named 'a', which differ in their suffix alone"):
            run(mine, tmp_path, "sample")
    else:
        with pytest.raises(UserError, match="is told a label or text of each image"):
            run(mine, tmp_path, "sample")
    experts, _ = load_teacher(job, tmp_path)
    student, meta = load_student(job, tmp_path)
    assert student["label_emb"]["embedding"].shape[0] == len(TASKS) + blind
    assert meta["model"]["network"]["classes"] == len(TASKS) + blind
    batch = job.test()
    assert set(np.asarray(batch.cond).tolist()) == {0, 1, 2}
    assert "label 0 to 2 in this batch" in preview(config, tmp_path / "preview.png", 1)
    # The student does not see the label if it is blind; the teachers' rows do.
    other = batch._replace(cond=(batch.cond + 1) % len(TASKS))
    key = jax.random.key(0)
    for method, params, sees in ((job.distill, student, not blind), (job.teacher, experts, True)):
        sample = jax.jit(method.sample)
        assert (sample(params, key, batch) != sample(params, key, other)).any() == sees
    # Of inpainting, what is outside the hole stays as it is.
    holes = ~batch.mask.all((1, 2, 3))
    made = np.asarray(sample(experts, key, batch))
    assert (holes == (batch.cond == 2)).all()
    np.testing.assert_array_equal(np.where(batch.mask, 0, made)[holes], np.where(batch.mask, 0, batch.x_T)[holes])


@pytest.mark.usefixtures("lenient")
def test_the_student_of_several_teachers_may_start_as_a_network_that_is_not_told_the_task(teachers, tmp_path):
    config = tiny({"name": "mixture", "corruptions": TASKS})
    config.teacher.update(checkpoint=",".join(map(str, teachers)), combine="by_label")
    config.distill.student_optimizer.learning_rate = 0.0
    config.distill.start = str(teachers[1])
    job = build(config)
    run(job, tmp_path / "run", "distill")
    student, _ = load_student(job, tmp_path / "run")
    (_, second, _), _ = load_teacher(job, tmp_path)
    kept = dict(jax.tree_util.tree_flatten_with_path(student)[0])
    for path, x in jax.tree_util.tree_flatten_with_path(second)[0]:
        np.testing.assert_array_equal(kept.pop(path), x)
    assert all((x == 0).all() for x in kept.values())  # what the teacher has none of: z and the labels
    config.distill.start = "nowhere"
    with pytest.raises(UserError, match=r"config\.distill\.start: no checkpoint at"):
        run(build(config), tmp_path / "other", "distill")


@pytest.mark.usefixtures("lenient")
def test_a_teacher_is_measured_before_there_is_a_student(teachers, tmp_path, capsys, caplog):
    """A picture that cannot be written costs no number; a report that cannot is one error, below its table."""
    config = tiny(TASKS[0])
    config.teacher.checkpoint = str(teachers[0])
    (tmp_path / "samples.tmp").mkdir()  # what the picture is first written to
    job = build(config)
    run(job, tmp_path, "evaluate")
    out = capsys.readouterr().out
    assert f"No finished student in {tmp_path}: this is its teacher alone." in out
    assert "times the images/s" not in out
    assert f"no picture {tmp_path}/samples.png" in caplog.text
    report = json.loads((tmp_path / "report.json").read_text())
    assert ([r["label"] for r in report["rows"]], report["speed_up"]) == (["teacher"], None)
    (tmp_path / "report.json").unlink()
    (tmp_path / "report.json").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*report.json: .*; the table above is all of its numbers"):
        run(job, tmp_path, "evaluate")
    assert re.search(r"images/s\nteacher +1 ", capsys.readouterr().out)


@pytest.mark.usefixtures("lenient")
def test_the_mean_of_teachers_of_one_task(teachers, tmp_path):
    config = tiny("jpeg-5")
    config.teacher.update(checkpoint=f"{teachers[0]}, {teachers[1]}", weights=(1.0, 3.0))
    job = build(config)
    params, _ = load_teacher(job, tmp_path)
    batch, key = job.test(), jax.random.key(0)
    singles = []
    for folder in teachers:
        alone = tiny("jpeg-5")
        alone.teacher.checkpoint = str(folder)
        single = build(alone)
        singles.append(single.teacher.sample(load_teacher(single, tmp_path)[0], key, batch, steps=1))
    found = job.teacher.sample(params, key, batch, steps=1)
    np.testing.assert_allclose(found, 0.25 * singles[0] + 0.75 * singles[1], atol=1e-5)


@pytest.mark.usefixtures("lenient")
def test_a_student_restores_in_any_number_of_steps_up_to_the_most(teachers, tmp_path):
    config = tiny(TASKS[0])
    config.teacher.checkpoint, config.distill.student_steps = str(teachers[0]), 3
    job, made = build(config), {}
    run(job, tmp_path, "distill")
    for steps in (0, 2, 3):
        asked = Restoring(output=str(tmp_path / f"in {steps}"), steps=steps)
        run(job._replace(restoring=asked), tmp_path, "sample")
        made[steps] = [p.read_bytes() for p in sorted((tmp_path / f"in {steps}").iterdir())]
    assert made[0] == made[3] != made[2]


@pytest.mark.usefixtures("lenient")
def test_a_random_start_is_not_the_teacher_and_each_draw_has_a_z_of_its_own(teachers, tmp_path, monkeypatch):
    config = tiny(TASKS[0])
    config.teacher.checkpoint = str(teachers[0])
    config.distill.update(start="random", steps=1)
    config.distill.student_optimizer.learning_rate = 0.0
    job = build(config)
    run(job, tmp_path, "distill")
    (student, meta), (teacher, _) = load_student(job, tmp_path), load_teacher(job, tmp_path)
    assert (student["patch_in"]["kernel"] != teacher["patch_in"]["kernel"]).any()

    # At its start, and not much later, a student hardly listens to z.
    monkeypatch.setattr(job_module, "load_student", lambda job, folder: (perturb(student), meta))
    run(job._replace(restoring=Restoring(draws=2)), tmp_path, "sample")
    images = [(tmp_path / "samples" / f"00000_{draw}.png").read_bytes() for draw in range(2)]
    assert images[0] != images[1]


@pytest.mark.usefixtures("lenient")
def test_student_and_auxiliary_start_where_they_are_told(teachers, tmp_path):
    """At rate 0: the student from the parameters without averaging, the auxiliary network from the average."""
    config = tiny("jpeg-5")
    config.teacher.checkpoint = str(teachers[1])
    config.distill.update(start=str(teachers[1].parent / "raw"), auxiliary_start="teacher", steps=1)
    config.distill.student_optimizer.learning_rate = 0.0
    config.distill.auxiliary_optimizer.learning_rate = 0.0
    job = build(config)
    run(job, tmp_path, "distill")
    student, meta = load_student(job, tmp_path)
    teacher, _ = load_teacher(job, tmp_path)
    assert set(meta["identity"]) == {"teacher", "start"}
    assert (student["patch_out"]["kernel"] != teacher["patch_out"]["kernel"]).any()
    assert not student["noise_in"]["kernel"].any()
    abstract = jax.eval_shape(lambda: job.distill.init((student, teacher)))
    on_device = jax.tree.map(lambda x: x.sharding, teacher["patch_out"]["kernel"])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on_device), abstract)
    _, state, _ = Checkpoints(tmp_path / "distill" / "checkpoints", 1).restore(abstract)
    jax.tree.map(np.testing.assert_array_equal, state.auxiliary, teacher)


@pytest.mark.parametrize(("field", "value"), [("conditional", True), ("classes", 10), ("embedding", 8)])
@pytest.mark.parametrize("combine", ["by_label", "mean"])
def test_teachers_that_see_other_inputs_are_refused(teachers, tmp_path, field, value, combine):
    shutil.copytree(teachers[1], tmp_path / "other")
    file = tmp_path / "other" / "meta" / "metadata"
    meta = json.loads(file.read_text())
    meta["model"]["network"][field] = value
    file.write_text(json.dumps(meta))
    config = tiny({"name": "mixture", "corruptions": TASKS})
    config.teacher.update(checkpoint=f"{teachers[0]},{tmp_path}/other", combine=combine)
    with pytest.raises(UserError, match=rf"network.{field} is {value} of .*/other and (0|False) of .*one input"):
        build(config)


def test_a_teacher_that_cannot_be_read_at_the_moment_is_not_trained_again(teachers, monkeypatch):
    def stale(*args, **kwargs):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr("orbax.checkpoint.CompositeCheckpointHandler.restore", stale)
    with pytest.raises(UserError, match=r"cannot read .*teacher/export now .*Stale"):
        run(build(tiny(TASKS[0])), teachers[0].parents[1], "teacher")


def test_what_does_not_fit_is_named(teachers):
    def refused(message, combine="by_label", **changes):
        config = tiny({"name": "mixture", "corruptions": TASKS})
        config.teacher.update(checkpoint=",".join(map(str, teachers)), combine=combine)
        for field, value in changes.items():
            section, name = field.split("__")
            with config.ignore_type():
                config[section][name] = value
        with pytest.raises(UserError, match=message):
            build(config)

    refused("unknown value of config.teacher.combine 'sum'", combine="sum")
    refused(r"config.teacher.weights = \[1.0\]: 3 teachers need", combine="mean", teacher__weights=(1.0,))
    refused("config.teacher.weights are for combine = mean", teacher__weights=(1.0, 2.0))
    refused("config.distill.blind needs a network with classes", combine="mean", distill__blind=True)
    refused("pretraining = 2 leaves none of 2 steps", combine="by_label", distill__pretraining=2)
    four = {"name": "mixture", "corruptions": (*TASKS, "grey")}
    refused("gives 4 labels, and a blind student takes one more", distill__blind=True, data__corruption=four)
    refused("gives 4 labels", data__corruption=four)
    refused("alpha is between 0 and 1 and beta at most 1, or both are 1", distill__real_data=(1.0, 0.5))
