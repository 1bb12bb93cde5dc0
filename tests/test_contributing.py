"""What CONTRIBUTING says of additions: its bridge is added to a copy, and tested there; who knows methods by name."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from ibmd_jax.build.methods import METHODS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
FLAG_TEST = """import config_files
from ibmd_jax.build import build_model


def test_the_flag_makes_an_OrnsteinUhlenbeck():
    build_model(config_files.by_flags("inpaint.py:quicktest", {flag!r}))
"""


def test_a_new_bridge_takes_less_than_25_lines_and_passes_the_tests_of_the_table(tmp_path):
    """On a copy, by the letter of the text."""
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    assert len(code.splitlines()) < 25
    for name in ("ibmd_jax", "tests", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    (place,) = re.findall(r"One file, `(\S+)`", TEXT)
    (tmp_path / place).write_text(code)
    (table,) = re.findall(r"two lines in `(\S+)`", TEXT)
    (line,) = re.findall(r"`(from ibmd_jax.bridges\.\S+ import \w+)`", TEXT)
    (entry,) = re.findall(r"in `BRIDGES`\s`(.*?)`", TEXT)
    old = (tmp_path / table).read_text().replace("\n\n# A pinned", f"\n{line}\n\n# A pinned")
    (tmp_path / table).write_text(old.replace("\n}\n", f"\n    {entry}\n}}\n"))
    (flag,) = re.findall(r'`(--config.bridge=)"(.*)"`', TEXT)
    (tmp_path / "tests" / "bridges" / "test_flag.py").write_text(FLAG_TEST.format(flag="".join(flag)))
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-k", "OrnsteinUhlenbeck", "tests/bridges"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 12 + 1


def test_a_method_is_known_by_its_name_in_the_places_that_are_listed_alone():
    found = {}
    for path in sorted((ROOT / "ibmd_jax").rglob("*.py")):
        names = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
        for name in METHODS.keys() & {name for name in names if isinstance(name, str)}:
            found.setdefault(name, []).append((str(path.relative_to(ROOT / "ibmd_jax")), names.count(name)))
    assert found == {name: [("build/methods.py", 1), ("methods/__init__.py", 1)] for name in METHODS}
    for place in ("methods/__init__.py", "build/methods.py", "configs/generate.py"):
        assert f"`{place}`" in TEXT
