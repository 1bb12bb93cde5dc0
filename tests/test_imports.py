"""The import order of the architecture, read from the syntax trees; and what importing the package must not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ibmd_jax

ROOT = Path(ibmd_jax.__file__).parent
CORE = {"core"}
BRIDGES = CORE | {"bridges"}
SAMPLERS = BRIDGES | {"samplers"}
METHODS = SAMPLERS | {"methods"}
LEAVES = {"networks", "corruptions", "metrics", "data"}
ALLOWED = {
    "core": set(),
    "networks": CORE,
    "corruptions": CORE,
    "metrics": CORE,
    "data": CORE | {"corruptions"},
    "bridges": CORE,
    "samplers": BRIDGES,
    "methods": METHODS,
    "convert": CORE | {"networks", "train", "build"},
    "train": METHODS | {"metrics", "networks"},
    "build": METHODS | LEAVES | {"train"},
    "main": CORE | {"build", "train"},
    "preflight": CORE | {"build", "corruptions", "networks", "train"},
}


def ours(path: Path) -> set[str]:
    """First folder or module of ibmd_jax that each import statement of a file names, its own left out."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "ibmd_jax":
                names += [f"ibmd_jax.{alias.name}" for alias in node.names]
            elif node.module:
                names.append(node.module)
    return {name.split(".")[1] for name in names if name.startswith("ibmd_jax.")}


COMMANDS = {"data/preview.py": CORE | {"build", "train"}}  # run by themselves, like main; nothing imports them


FILES = [p for p in sorted(ROOT.rglob("*.py")) if p != ROOT / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_downward(path):
    name = str(path.relative_to(ROOT))
    place = name.split("/")[0].removesuffix(".py")
    assert ours(path) <= COMMANDS.get(name, ALLOWED[place]) | {place}


def test_only_the_pipeline_imports_grain_and_only_networks_and_features_import_flax():
    def users(library: str) -> set[str]:
        found = set()
        for path in FILES:
            for node in ast.walk(ast.parse(path.read_text())):
                modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if any(m.split(".")[0] == library for m in modules):
                    found.add(str(path.relative_to(ROOT)))
        return found

    assert users("grain") == {"data/pipeline.py"}
    assert {Path(p).parts[0] for p in users("flax")} <= {"networks", "metrics", "convert"}
    assert not users("torch")


@pytest.mark.parametrize("module", ["ibmd_jax", "ibmd_jax.bridges", "ibmd_jax.samplers", "ibmd_jax.methods"])
def test_the_functional_api_loads_no_heavy_library(module):
    code = f"import sys, {module}; print([m for m in ('tensorflow', 'grain', 'torch', 'clu') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
