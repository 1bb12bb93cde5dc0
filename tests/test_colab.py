"""The notebooks: each is the twin of a script, which is run here."""

import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

COLAB = Path(__file__).parents[1] / "colab"
scripts = pytest.mark.parametrize("script", sorted(COLAB.glob("*.py")), ids=lambda p: p.stem)


@scripts
def test_the_notebook_has_the_cells_of_the_script(script):
    """After a change of the script: jupytext --to ipynb colab/*.py"""
    ours, theirs = (
        [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]
        for path in (script, script.with_suffix(".ipynb"))
    )
    assert ours == theirs


@scripts
def test_the_script_runs(script, environment, tmp_path):
    """About a minute on two idle cores; its last lines of each part assert what it shows."""
    command = [sys.executable, "-W", "ignore", str(script)]
    done = subprocess.run(
        command,
        cwd=COLAB,
        env={**environment, "MPLBACKEND": "Agg", "WORKDIR": str(tmp_path / "run")},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
