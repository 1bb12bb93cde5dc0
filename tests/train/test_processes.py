"""What processes agree on, and how one of them ends; tests/test_launch.py has several real ones."""

import os
import re
import socket
import subprocess
import sys

import jax
import pytest

from ibmd_jax.core.errors import UserError
from ibmd_jax.train.processes import connect, partners, progress
from ibmd_jax.train.writers import make_writer

START = """
import os, signal, sys, time
from pathlib import Path
import jax
import jax.numpy as jnp
from ibmd_jax.train.checkpoint import Checkpoints
from ibmd_jax.train.processes import connect, end_on_sigterm, preempted
one, jax.process_count = jax.process_count, lambda: 2
connect(sys.argv[1], 1, 0)

def stop():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(3)  # a watching thread of JAX looks for it once a second
"""
# Before the first step of a run that is resumed.
FIRST = "stop(); print([preempted() for step in range(5000, 5003)])"
# After a save, for which Orbax would count on from its step.
SAVED = """
jax.process_count = one
checkpoints = Checkpoints(Path(sys.argv[2]), 1)
checkpoints.save(5000, {"x": jnp.ones(3)}, {})
checkpoints.wait()
jax.process_count = lambda: 2
stop(); print([preempted() for step in range(5001, 5004)])
"""
LATER = "end_on_sigterm(); stop(); print('alive')"


@pytest.mark.parametrize(
    ("script", "out", "code"),
    [(FIRST, "[True, False, False]\n", 0), (SAVED, "[True, False, False]\n", 0), (LATER, "", -15)],
)
def test_a_stop_is_heard_whenever_it_comes(environment, tmp_path, script, out, code):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-c", START + script, address, str(tmp_path / "checkpoints")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == (out, code), done.stderr


@pytest.mark.parametrize("numbers", [(2, 0), (2, 1), (1, 1)])
def test_processes_without_a_coordinator_are_refused(numbers):
    with pytest.raises(UserError, match="need --coordinator"):
        connect("", *numbers)
    connect("", 1, 0)


def test_curves_are_of_the_first_process(tmp_path, monkeypatch):
    for first in (False, True):
        monkeypatch.setattr("ibmd_jax.train.writers.is_first", lambda first=first: first)
        writer = make_writer(tmp_path)
        writer.write_scalars(0, {"loss": 1.0})
        writer.flush()
        writer.close()
        assert bool(list(tmp_path.rglob("events.out.*"))) == first


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("no such folder"), 2, "error: no such folder\n"),
        (ZeroDivisionError("of us"), 1, "Traceback"),
        (jax.errors.JaxRuntimeError("gone"), 1, "error: process 0 of 2 failed, or lost another (gone)"),
    ],
)
def test_a_process_that_fails_does_not_wait_for_the_others(error, code, words, monkeypatch, capsys):
    codes = []
    with pytest.raises(type(error)), partners():  # alone, it ends in order
        raise error
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(os, "_exit", codes.append)
    with partners():
        raise error
    assert codes == [code]
    assert capsys.readouterr().err.startswith(words)


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_a_bar_on_a_terminal_and_lines_in_a_file(capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with progress(4, "teacher", "step", initial=1) as bar:
        assert bar.mininterval == (1 if terminal else 30)
        bar.update(3)
    shown = [line for line in re.split(r"[\r\n]+", capsys.readouterr().err) if line]
    assert shown[0].startswith("teacher:  25%")
    assert shown[-1].startswith("teacher: 100%")
    assert all(("|" in line) == terminal for line in shown)
    assert "1/4 [" in shown[0]
    assert "4/4 [" in shown[-1]
