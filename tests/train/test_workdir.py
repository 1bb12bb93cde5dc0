"""Which runs may share a workdir."""

import contextlib
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from ibmd_jax.core.errors import UserError
from ibmd_jax.train.workdir import check_workdir, locked

CONFIG = {
    "data": {"size": 32, "workers": 0, "on_error": "raise"},
    "distill": {"accumulate": 1, "steps": 5},
    "schedule": {"keep": 3},
    "network": {"remat": "none"},
}


def changed(section, **fields):
    return {**CONFIG, section: {**CONFIG[section], **fields}}


@pytest.fixture
def trained(tmp_path):
    check_workdir(tmp_path, CONFIG)
    (tmp_path / "teacher").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("section", "fields"),
    [
        ("schedule", {"keep": 1}),
        ("data", {"on_error": "skip"}),
        ("data", {"workers": 2}),
        ("distill", {"accumulate": 4}),
        ("network", {"remat": "full"}),
    ],
)
def test_what_does_not_change_the_result_may_change(trained, section, fields):
    check_workdir(trained, changed(section, **fields))
    assert json.loads((trained / "config.json").read_text()) == changed(section, **fields)


def test_parts_of_a_batch_may_not_change_under_dropout(tmp_path):
    """Each part draws its own mask."""
    config = {**CONFIG, "network": {"remat": "none", "dropout": 0.1}}
    check_workdir(tmp_path, config)
    (tmp_path / "teacher").mkdir()
    with pytest.raises(UserError, match=r"\(distill.accumulate was 1, now 4\)"):
        check_workdir(tmp_path, {**config, "distill": {"accumulate": 4, "steps": 5}})


def test_another_configuration_is_refused_once_something_was_trained(trained):
    with pytest.raises(UserError, match=r"\(data.size was 32, now 64; distill.steps was 5, now 6\)"):
        check_workdir(trained, {**changed("data", size=64), "distill": {"accumulate": 1, "steps": 6}})
    (trained / "teacher").rmdir()
    check_workdir(trained, changed("data", size=64))


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[1]", b"{}"])
def test_a_damaged_configuration_is_named_and_kept(trained, content):
    (trained / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config.json (is not valid JSON|holds no configuration)"):
        check_workdir(trained, CONFIG)
    assert (trained / "config.json").read_bytes() == content


def test_an_empty_configuration_is_written_again(trained, caplog):
    check_workdir(trained, CONFIG)
    assert not caplog.text
    (trained / "config.json").write_text("")
    check_workdir(trained, CONFIG)
    assert "config.json is missing or empty: what was trained in " in caplog.text
    assert json.loads((trained / "config.json").read_text()) == CONFIG


def test_commands_may_come_to_a_workdir_at_the_same_time(trained):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: check_workdir(trained, changed("schedule", keep=i)), range(400)))
    assert sorted(p.name for p in trained.iterdir()) == ["config.json", "teacher"]
    assert json.loads((trained / "config.json").read_text())["data"] == CONFIG["data"]


def test_the_folder_of_a_bucket_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="gs:/bucket/run: it must be a folder; mount"):
        check_workdir(Path("gs://bucket/run"), CONFIG)
    assert not list(tmp_path.iterdir())


def test_processes_with_a_folder_each_are_refused(tmp_path, monkeypatch):
    for name, value in (
        ("jax.process_count", lambda: 2),
        ("ibmd_jax.train.workdir.of_first", lambda number: 5),
        ("ibmd_jax.train.workdir.barrier", lambda name: None),
        ("ibmd_jax.train.workdir.highest", int),
        ("ibmd_jax.train.workdir.PATIENCE", 0),
    ):
        monkeypatch.setattr(name, value)
    check_workdir(tmp_path, CONFIG)
    assert not (tmp_path / ".shared").exists()
    monkeypatch.setattr("ibmd_jax.train.workdir.is_first", lambda: False)
    for token in (None, "4"):  # that of an earlier run
        if token:
            (tmp_path / ".shared").write_text(token)
        with pytest.raises(UserError, match="is not one folder for all processes"):
            check_workdir(tmp_path, CONFIG)
    (tmp_path / ".shared").write_text("5")
    check_workdir(tmp_path, CONFIG)


def test_a_run_that_is_ending_is_waited_for(tmp_path, monkeypatch):
    clock, waited = time.monotonic(), []

    def sleep(seconds):
        waited.append(seconds)
        if len(waited) == 3:
            other.close()

    monkeypatch.setattr("ibmd_jax.train.workdir.time", SimpleNamespace(monotonic=lambda: clock, sleep=sleep))
    other = contextlib.ExitStack()
    other.enter_context(locked(tmp_path))
    with locked(tmp_path):
        assert waited == [5, 5, 5]


def test_two_runs_cannot_train_in_one_folder(tmp_path, environment, monkeypatch):
    monkeypatch.setattr("ibmd_jax.train.workdir.PATIENCE", 0)
    code = "import sys, time; from pathlib import Path; from ibmd_jax.train import workdir\nworkdir.PATIENCE = 0\n"
    code += "with workdir.locked(Path(sys.argv[1])): print('locked', flush=True); time.sleep(100)"
    with locked(tmp_path):
        command = [sys.executable, "-c", code, str(tmp_path)]
        process = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert "UserError: another run is at work in " in process.stderr
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"locked\n"
    with pytest.raises(UserError, match="another run is at work"), locked(tmp_path):
        pass
    process.kill()
    process.communicate()
    with locked(tmp_path):
        pass
    with pytest.raises(UserError, match="gs:/bucket/run: it must be a folder"), locked(Path("gs://bucket/run")):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to the workdir .*file/run"), locked(tmp_path / "file" / "run"):
        pass


def test_what_is_only_read_need_not_be_writable(trained, monkeypatch):
    monkeypatch.setattr("pathlib.Path.write_text", None)
    check_workdir(trained, CONFIG, written=False)
    with pytest.raises(UserError, match=r"data\.size was 32, now 64"):
        check_workdir(trained, changed("data", size=64), written=False)


def test_a_restart_needs_no_space(trained, monkeypatch):
    def full(path, text):
        path.touch()
        if text:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    check_workdir(trained, CONFIG)
    with pytest.raises(UserError, match=r"No space left on device\. Free some space"):
        check_workdir(trained, changed("schedule", keep=1))
    assert sorted(p.name for p in trained.iterdir()) == ["config.json", "teacher"]
