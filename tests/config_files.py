"""The configuration files of the repository, for tests."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def load(name):
    """configs/NAME.py as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
