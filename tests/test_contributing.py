"""The bridge that CONTRIBUTING adds: short, and tested on arrival by the tests that run over the table."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_new_bridge_takes_less_than_25_lines_and_passes_the_tests_of_the_table(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
    assert len(code.splitlines()) < 25
    entry = "from ibmd_jax.bridges import BRIDGES\nBRIDGES['ornstein_uhlenbeck'] = OrnsteinUhlenbeck\n"
    (tmp_path / "new_bridge.py").write_text(f"{code}\n{entry}")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "-p",
        "new_bridge",
        "-k",
        "OrnsteinUhlenbeck",
        "tests/bridges",
    ]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 12
