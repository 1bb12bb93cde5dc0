"""The configuration files of the repository, for tests."""

import importlib.util
from pathlib import Path

from absl import flags
from ml_collections import config_flags

ROOT = Path(__file__).parents[1]


def load(name):
    """configs/NAME.py as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_flags(file, *overrides):
    """The configuration of --config=configs/FILE, as in "inpaint.py:quicktest", and flags that override its fields."""
    own = flags.FlagValues()
    argv = ["", f"--config={ROOT / 'configs' / file}", *overrides]
    holder = config_flags.DEFINE_config_file("config", flag_values=own, sys_argv=argv, lock_config=True)
    own(argv)
    return holder.value
