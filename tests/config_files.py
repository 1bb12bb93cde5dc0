"""The configuration files of the repository, for tests; and one that is itself: --config=tests/config_files.py."""

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


def light(config):
    """The same with a network that compiles in half the time: one transformer block of 16 tokens."""
    kept = {name: config.network[name] for name in ("conditional", "classes", "embedding")}
    with config.unlocked():
        config.network = {"name": "dit", "channels": 16, "depth": 1, "heads": 2, "patch": 8, **kept}
    return config


def get_config():
    """configs/inpaint.py:quicktest, lighter: for tests of how runs begin, end and go on."""
    config = light(load("inpaint").get_config("quicktest"))
    config.evaluate.nfe = (1, 2)
    config.schedule.save_every = 10
    return config
