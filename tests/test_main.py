"""The command line as a user runs it: real processes, real signals, the configuration that ships."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import config_files
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from ibmd_jax.build import build_model
from ibmd_jax.train.checkpoint import read_meta
from ibmd_jax.train.job import CALLED

ROOT = Path(__file__).parents[1]
QUICK = "--config=configs/inpaint.py:quicktest"
LIGHT = "--config=tests/config_files.py"


def start(environment, *args):
    command = [sys.executable, "-m", "ibmd_jax.main", *args]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(environment, *args):
    process = start(environment, *args)
    out, _ = process.communicate(timeout=280)
    return process.returncode, out


def fingerprints(folder):
    """Content checksums of both stages' exports and of their final checkpoints."""
    found = {}
    for stage, step in (("teacher", 60), ("distill", 10)):
        for part in ("export", f"checkpoints/{step}"):
            found[stage, part] = json.loads((folder / stage / part / "meta" / "metadata").read_text())["fingerprint"]
    return found


@pytest.fixture(scope="module")
def whole(environment, tmp_path_factory):
    """The uninterrupted quicktest."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    code, out = run(environment, LIGHT, f"--workdir={folder}")
    assert code == 0, out
    return folder, out


def test_the_whole_job_leaves_a_table_a_report_and_pictures(whole):
    folder, out = whole
    assert re.search(
        r"model +NFE +FID +KID +PSNR +SSIM +DIVERSITY +images/s\n *student +1 .*\n *teacher +1 .*\n *teacher +2 ", out
    )
    report = json.loads((folder / "report.json").read_text())
    assert [(r["label"], r["nfe"]) for r in report["rows"]] == [("student", 1), ("teacher", 1), ("teacher", 2)]
    assert set(report["rows"][0]["metrics"]) == {"fid", "kid", "psnr", "ssim", "diversity"}
    assert set(report["seconds"]) == {"train_teacher", "distill"}
    student = read_meta(folder / "distill" / "export")["model"]["student"]
    assert student == {name: report["config"]["distill"][name] for name in CALLED}
    assert "student" not in read_meta(folder / "teacher" / "export")["model"]
    config = config_files.by_flags("inpaint.py:quicktest", f"--config.teacher.checkpoint={folder}/distill/export")
    assert build_model(config).image_shape == (32, 32, 3)  # a student can be a teacher
    assert (folder / "samples.png").stat().st_size > 10_000
    names = sorted(p.name for p in (folder / "pictures").iterdir())
    assert names[:2] == ["distill_000000.png", "distill_000010.png"]
    assert names[2:] == [f"teacher_{i:06d}.png" for i in (0, 20, 40, 60)]
    for stage in ("teacher", "distill"):
        assert list((folder / stage / "events").iterdir())
        assert (folder / stage / "curves.png").stat().st_size > 10_000
    logged = EventAccumulator(str(folder / "distill" / "events"), size_guidance={"tensors": 0}).Reload()
    for name, low, high in (("diversity", 0.1, 1), ("outside", 1e-4, 0.1)):  # of pictures, before and after
        values = [float(make_ndarray(event.tensor_proto)) for event in logged.Tensors(name)]
        assert len(values) == 2
        assert all(low < value < high for value in values), (name, values)


def test_a_second_run_trains_nothing_and_sample_restores_a_folder(environment, whole, tmp_path):
    folder, _ = whole
    before = fingerprints(folder)
    code, out = run(environment, LIGHT, f"--workdir={folder}")
    assert code == 0, out
    assert "already trained" in out
    assert "already done" in out
    assert fingerprints(folder) == before
    gone, given = f"folder:{tmp_path}/gone", tmp_path / "run"  # all that restoring takes of a run
    shutil.copytree(folder / "distill" / "export", given / "distill" / "export")
    config = json.loads((folder / "config.json").read_text())
    config["data"]["source"] = gone
    (given / "config.json").write_text(json.dumps(config))
    images = tmp_path / "images"
    for name, value in (("a.png", 40), ("more/b.png", 200)):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), (value,) * 3).save(images / name)
    sample = (environment, LIGHT, f"--workdir={given}", f"--input={images}", f"--config.data.source={gone}")
    code, out = run(*sample, "--mode=sample")
    assert code == 0, out
    for name, value in (("a.png", 40), ("more/b.png", 200)):
        image = np.asarray(Image.open(given / "samples" / name))
        inside = image != value
        assert image.shape == (32, 32, 3)
        assert inside.any((0, 2)).sum() == 16  # the hole in the middle was filled, the rest left as it was
    for flag in (f"--input={images}", f"--output={tmp_path}", "--steps=1", "--draws=2"):
        code, out = run(environment, LIGHT, f"--workdir={folder}", flag)
        assert code == 2
        assert f"{flag} is for --mode=sample" in out


def test_a_student_restores_without_its_configuration_file(environment, whole, tmp_path):
    """In the steps that are asked for, as often, and into another folder."""
    folder, _ = whole
    images, before = tmp_path / "images", {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    images.mkdir()
    for value in (40, 200):
        Image.new("RGB", (32, 32), (value,) * 3).save(images / f"{value}.png")
    command = ["--mode=sample", f"--workdir={folder}", f"--input={images}", f"--output={tmp_path}/out"]
    code, out = run(environment, *command, "--steps=1", "--draws=3")
    assert code == 0, out
    assert f"Wrote 6 restored images to {tmp_path}/out." in out
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before
    made = {p.name: np.asarray(Image.open(p)) for p in (tmp_path / "out").iterdir()}
    assert made.keys() == {f"{value}_{i}.png" for value in (40, 200) for i in range(3)}
    assert len({image.tobytes() for image in made.values()}) == 6
    code, out = run(environment, *command, "--steps=9")
    assert code == 2
    assert "--steps=9: this student takes 1\n" in out
    code, out = run(environment, "--mode=sample", f"--workdir={tmp_path}/out")
    assert code == 2
    assert "out has no config.json: set --workdir to the folder of a run" in out
    code, out = run(environment, "--mode=sample")
    assert code == 2
    assert "give --config=FILE" in out


def wait_for(process, path, seconds=200):
    """Until the path is there, or the process has ended."""
    end = time.time() + seconds
    while not path.exists() and process.poll() is None:
        assert time.time() < end, f"{path} did not appear"
        time.sleep(0.05)


@pytest.mark.timeout(900)
def test_killed_and_restarted_at_many_moments_it_ends_with_the_same_bits(environment, whole, tmp_path):
    """SIGTERM, Ctrl-C and kill -9, in both stages, while saving, and before the first step."""
    folder = tmp_path / "run"
    moments = [
        (signal.SIGKILL, "config.json", 1.0),
        (signal.SIGTERM, "teacher/checkpoints/10", 0.0),
        (signal.SIGKILL, "teacher/checkpoints/20", 0.3),
        (signal.SIGINT, "teacher/checkpoints/40", 0.1),
        (signal.SIGKILL, "teacher/checkpoints/60", 0.0),
        (signal.SIGTERM, "pictures/distill_000000.png", 0.5),
        (signal.SIGINT, "config.json", 9.0),
        (signal.SIGINT, "config.json", 1.0),
        (signal.SIGKILL, "distill/checkpoints/10", 0.0),
    ]
    outcomes = []
    for number, path, delay in moments:
        process = start(environment, LIGHT, f"--workdir={folder}")
        wait_for(process, folder / path)
        time.sleep(delay)
        process.send_signal(number)
        out, _ = process.communicate(timeout=200)
        outcomes.append((number.name, path, process.returncode))
        # A signal may come after the end (0); SIGTERM outside of training ends the process as usual (-15), and so does
        # Python after a Ctrl-C inside of exec, even one that was caught (-2, which a shell calls 130).
        assert process.returncode in {9: (-9, 0), 15: (143, -15, 0), 2: (130, -2, 0)}[number], out
        if process.returncode > 0:
            assert "the same command goes on from" in out
            assert "Traceback" not in out
    assert sum(code != 0 for _, _, code in outcomes) >= 5, outcomes
    assert sum(code in (130, 143) for _, _, code in outcomes) >= 2, outcomes
    code, out = run(environment, LIGHT, f"--workdir={folder}")
    assert code == 0, out
    assert fingerprints(folder) == fingerprints(whole[0])
    assert not list(folder.rglob("*tmp*"))


BAD = {
    "unknown field": (["--config.teacher.stepz=3"], r"stepz"),
    "wrong type": (["--config.teacher.steps=many"], r"many"),
    "unknown name": (["--config.bridge.name=browniann"], r"unknown bridge 'browniann'.*Did you mean 'brownian'"),
    "field of another bridge": (["--config.bridge.name=brownian"], r"config.bridge has no field 'beta_min'.*epsilon"),
    "zero steps": (["--config.teacher.steps=0"], r"config.teacher.steps = 0: it must be at least 1"),
    "no evaluation": (
        ["--config.evaluate.nfe=(0,)"],
        r"config.evaluate.nfe = \(0,\): it must hold whole numbers of at least 1",
    ),
    "half an evaluation": (["--config.evaluate.nfe=(1,2.5)"], r"nfe = \(1, 2.5\): it must hold whole numbers"),
    "no network": (["--config.network.channels=()"], r"config.network does not fit images of"),
    "decay above 1": (["--config.distill.ema_decay=1.5"], r"config.distill.ema_decay = 1.5: it must be from 0 to 1"),
    "unknown corruption": (["--config.data.corruption=inpaint-centre"], r"Did you mean 'inpaint-center'"),
    "impossible network": (["--config.network.patch=5"], r"config.network does not fit images of \(32, 32, 3\)"),
    "unknown mode": (["--mode=destill"], r"destill"),
    "missing teacher": (["--mode=distill"], r"no finished teacher in .*: run --mode=teacher first"),
    "missing student": (["--mode=sample"], r"no finished student in"),
    "missing checkpoint": (["--config.teacher.checkpoint=nowhere"], r"no checkpoint at .*nowhere"),
    "stray argument": (["stray"], r"unexpected argument 'stray'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_error_before_any_work(environment, tmp_path, name):
    args, message = BAD[name]
    code, out = run(environment, QUICK, f"--workdir={tmp_path / 'run'}", *args)
    assert code not in (0, -9)
    assert re.search(message, out), out
    assert "Traceback" not in out
    assert not list(tmp_path.rglob("checkpoints"))


def test_a_missing_configuration_and_an_unknown_variant(environment, tmp_path):
    for config, message in (
        ("configs/nothing.py", "nothing.py"),
        ("configs/inpaint.py:fast", "dibregman, not 'fast'"),
        ("runs/inpaint/config.json", "config.json is what a run wrote: give --workdir=its folder, without --config"),
    ):
        code, out = run(environment, f"--config={config}", f"--workdir={tmp_path}")
        assert code != 0
        assert message in out
        assert "Traceback" not in out


def test_the_workdir_of_another_configuration_is_refused(environment, whole):
    code, out = run(environment, LIGHT, f"--workdir={whole[0]}", "--config.teacher.batch_size=8")
    assert code == 2
    assert "belongs to another configuration (teacher.batch_size was 16, now 8)" in out


def test_a_workdir_that_cannot_be_written_is_refused(environment, tmp_path):
    (tmp_path / "file").write_text("")
    code, out = run(environment, QUICK, f"--workdir={tmp_path / 'file' / 'run'}")
    assert code == 2
    assert "cannot write to the workdir" in out


def test_a_given_teacher_brings_its_own_network(environment, whole, tmp_path):
    code, out = run(
        environment,
        LIGHT,
        f"--workdir={tmp_path / 'run'}",
        f"--config.teacher.checkpoint={whole[0] / 'teacher' / 'export'}",
        "--mode=sample",
        "--config.network.channels=24",
    )
    assert code == 2
    assert re.search(r"config.network is that of .*teacher/export: {.*'channels': 16", out), out
    assert "no finished student" in out


def test_a_given_teacher_is_used_and_not_trained(environment, whole, tmp_path):
    folder = tmp_path / "run"
    code, out = run(
        environment,
        LIGHT,
        f"--workdir={folder}",
        f"--config.teacher.checkpoint={whole[0] / 'teacher' / 'export'}",
        "--mode=distill",
    )
    assert code == 0, out
    assert not (folder / "teacher").exists()
    meta = [json.loads((f / "distill/export/meta/metadata").read_text()) for f in (folder, whole[0])]
    assert meta[0]["fingerprint"] == meta[1]["fingerprint"]


def test_a_batch_that_does_not_divide_over_the_devices_is_refused(environment, tmp_path):
    env = {**environment, "XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    code, out = run(env, QUICK, f"--workdir={tmp_path / 'run'}")
    assert code == 2
    assert "config.teacher.batch_size = 16 does not divide over 3 devices: use 15 or 18" in out


def test_a_diverging_run_stops_and_says_what_to_do(environment, tmp_path):
    code, out = run(
        environment, LIGHT, f"--workdir={tmp_path / 'run'}", "--config.teacher.optimizer.learning_rate=1e30"
    )
    assert code == 2
    assert re.search(
        r"error: teacher: \w+ is not finite at step \d+; nothing was saved yet. Lower the learning", out
    ), out


def test_the_modes_of_the_command_line_are_the_modes_of_the_job():
    from ibmd_jax import main
    from ibmd_jax.train.job import MODES

    assert list(MODES) == main.MODES


def test_help_answers_at_once(environment):
    begin = time.time()
    code, out = run(environment, "--help")
    assert code in (0, 1)
    assert "--workdir" in out
    assert time.time() - begin < 10
